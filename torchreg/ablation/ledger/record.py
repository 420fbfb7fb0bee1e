"""What a reader must know to run it again: versions, code, device, command, machine, time."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch


def run_record(source: str | None) -> dict[str, Any]:
    """A record of this process and its machine, in JSON's types.

    Args:
        source: the file of the user's function, whose git repository is looked at; None takes the
            working directory's.
    """
    try:
        folder = Path.cwd()
    except FileNotFoundError:  # it has been removed
        folder = None
    here = Path(source).parent if source else folder
    return {
        "start": now(),
        "end": None,
        "argv": list(sys.argv),
        "directory": None if folder is None else str(folder),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "platform": platform.platform(),
        "versions": _versions(),
        "git": None if here is None else git_state(here),
        "device": _device(),
        "threads": torch.get_num_threads(),
        "deterministic": {
            "algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "matmul_precision": torch.get_float32_matmul_precision(),
        },
    }


def now() -> str:
    """UTC, to the second; for readers only: nothing is ordered by it, since clocks are set back."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit, and whether files differ from it; None outside a repository or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "torchreg": version("torchreg-penalty"),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "cuda": torch.version.cuda,
    }


def _device() -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
    return f"cpu ({os.cpu_count()} cores)"
