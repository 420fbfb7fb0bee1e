"""What a reader must know to run it again: versions, code, device, command, machine, time."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch

from torchreg.release import installed_version

_PROGRAMS = ("core.fsmonitor=false", "core.hooksPath=/dev/null")  # what `git status` would start
# a partial clone would fetch what it lacks by a program that it names; names of files are no patterns
_NO_FETCH = {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "", "GIT_LITERAL_PATHSPECS": "1"}
_SECRET = re.compile(r"(?i)token(?!s|iz)|secret|passw|credential|auth(?!or)|(api|access|private)[-_]?key")
_KEYS = re.compile(r"\b(hf_|gh[a-z]_|glpat-|sk-|xox[a-z]-|AKIA)[\w-]{12,}|(?<=://)[^/\s]+(?=@)")
_HIDDEN = "***"


def run_record(source: str | None) -> dict[str, Any]:
    """A record of this process and its machine, in JSON's types.

    Args:
        source: the file of the user's function, whose git repository is looked at; None where it has none.
    """
    try:
        folder = Path.cwd()
    except FileNotFoundError:  # it has been removed
        folder = None
    return {
        "start": now(),
        "end": None,
        "argv": without_secrets(sys.argv),
        "directory": None if folder is None else str(folder),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "platform": platform.platform(),
        "versions": _versions(),
        "git": None if source is None else git_state(Path(source)),
        "device": _device(),
        "threads": torch.get_num_threads(),
        "deterministic": {
            "algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "matmul_precision": torch.get_float32_matmul_precision(),
        },
    }


def without_secrets(argv: Sequence[str]) -> list[str]:
    """A command line in which the values of tokens, passwords and keys are hidden.

    Hidden are the value of an option or variable whose name says so (``--api-key K``, ``--api-key=K``,
    ``HF_TOKEN=K``), what has the form of a well-known service's key, and the user's part of an address
    (``https://user:password@host``).

    Example:
        >>> without_secrets(["train.py", "--hub-token", "hf_abc", "--lr=0.1", "https://me:pw@host/x"])
        ['train.py', '--hub-token', '***', '--lr=0.1', 'https://***@host/x']
    """
    shown: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        before = shown[-1] if shown else ""
        if before.startswith("-") and "=" not in before and _SECRET.search(before) and not word.startswith("-"):
            shown.append(_HIDDEN)
        elif equals and value and _SECRET.search(name):
            shown.append(f"{name}={_HIDDEN}")
        else:
            shown.append(_KEYS.sub(_HIDDEN, word))
    return shown


def now() -> str:
    """UTC, to the second; for readers only: nothing is ordered by it, since clocks are set back."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def git_state(source: Path) -> dict[str, Any] | None:
    """The commit that a source file stands at; None outside a repository or without git.

    Nothing that a repository's configuration names is run, and variables such as GIT_DIR do not lead elsewhere.

    Args:
        source: the file.

    Returns:
        ``commit``; ``dirty``, whether tracked files differ from it; ``tracked``, whether the file is in it.
    """
    folder = source.resolve().parent
    commit = _git(folder, "rev-parse", "--verify", "HEAD^{commit}")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    listed = _git(folder, "ls-tree", "--name-only", "HEAD", "--", source.resolve().name)
    return {"commit": commit, "dirty": changed != "", "tracked": bool(listed)}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, with every program that a configuration may name switched off; None where it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | _NO_FETCH
    command = ["git", "--no-optional-locks", "-C", str(folder)]
    try:
        named = _output([*command, "config", "-z", "--name-only", "--list"], environment)
        filters = sorted({name for name in named.split("\0") if name.startswith("filter.")})
        if any("=" in name for name in filters):  # which -c would take for the end of a shorter name
            return None
        options = [word for setting in (*_PROGRAMS, *(f"{name}=" for name in filters)) for word in ("-c", setting)]
        return _output([*command, *options, *arguments], environment)
    except (OSError, subprocess.SubprocessError):
        return None


def _output(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, timeout=10, env=environment, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise subprocess.SubprocessError(done.stderr)
    return os.fsdecode(done.stdout).strip()  # names go back to git byte for byte


def _versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "torchreg": installed_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "cuda": torch.version.cuda,
    }


def _device() -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
    return f"cpu ({os.cpu_count()} cores)"
