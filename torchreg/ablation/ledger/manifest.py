"""What a ledger is of: penalties by name, the grids asked for, the function, and who worked on it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchreg.ablation.fingerprint import Fingerprint
from torchreg.ablation.ledger.files import (
    LedgerError,
    exists,
    folder,
    is_unfinished,
    make_folder,
    names,
    read_bytes,
    replace,
)  # fmt: skip
from torchreg.ablation.ledger.shard import ROWS

FORMAT = 1
_NAME, _MARK = "manifest.json", "mark"
# what a driver leaves that dies before its manifest is there
_OURS = (ROWS, "lock", "workers", _MARK, "logs", f"{_NAME}.tmp")
Manifest = dict[str, Any]


def empty() -> Manifest:
    """The manifest of a ledger that nothing has been asked of."""
    return {"format": FORMAT, "penalties": {}, "grids": [], "run": None, "sessions": []}


def read_manifest(ledger: Path) -> Manifest:
    """The manifest of a directory.

    Raises:
        FileNotFoundError: if there is no ledger here.
        LedgerError: if it cannot be read, or says what a manifest does not.
        ValueError: if a later version of torchreg wrote it.
    """
    path = ledger / _NAME
    try:
        manifest = json.loads(read_bytes(ledger, _NAME).decode())
        found = manifest["format"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{ledger} holds no ablation: there is no {_NAME} in it.") from error
    except LedgerError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LedgerError(f"{path} is no manifest of an ablation ({error}).") from error
    if not isinstance(found, int) or found > FORMAT:
        raise ValueError(f"{path} has format {found!r}, this version reads up to {FORMAT}; update torchreg.")
    manifest = empty() | manifest
    if fault := _fault(manifest):
        raise LedgerError(f"{path} is damaged: {fault}. Put back a copy of it, or mend that entry.")
    return manifest


def open_manifest(ledger: Path) -> Manifest:
    """The manifest of a directory, which is made if it is not there.

    Raises:
        FileExistsError: if there is something else in it; nothing of it is touched.
        LedgerError: if it cannot be written to.
    """
    if exists(ledger, _NAME):
        manifest = read_manifest(ledger)
    elif _foreign(ledger):
        raise FileExistsError(
            f"{ledger} exists and holds other files than an ablation's; give another directory by `out`."
        )
    else:
        manifest = empty()
    try:
        make_folder(ledger, ROWS)
    except LedgerError:
        raise
    except OSError as error:
        raise LedgerError(f"{ledger} cannot be made: {error.strerror}; give another directory by `out`.") from error
    with folder(ledger, ROWS) as rows:
        if not os.access(".", os.W_OK, dir_fd=rows):
            raise LedgerError(f"{ledger} cannot be written to; give another directory by `out`.")
    return manifest


def _foreign(ledger: Path) -> bool:
    if not ledger.exists():
        return False
    return not ledger.is_dir() or any(
        name not in _OURS and not is_unfinished(name, _NAME) and not is_unfinished(name, _MARK)
        for name in names(ledger)
    )


def write_manifest(ledger: Path, manifest: Mapping[str, Any]) -> None:
    """Write all of it or nothing."""
    try:
        text = json.dumps(manifest, indent=1)
        replace(ledger, _NAME, lambda file: file.write(text.encode()))
    except OSError as error:
        raise LedgerError(f"{ledger / _NAME} could not be written: {error.strerror or error}.") from error


def add_penalties(manifest: Manifest, specs: Mapping[str, Any]) -> None:
    """Note which penalty each name means.

    Raises:
        ValueError: if a name has meant another penalty here.
    """
    known = manifest["penalties"]
    for name, spec in specs.items():
        if known.get(name, spec) != spec:
            raise ValueError(
                f"Penalty {name!r} is not the one that this ablation knows by that name ({known[name]} before, {spec} "
                "now); name it otherwise by a dict, or give another `out`."
            )
    known.update(specs)


def add_function(manifest: Manifest, name: str, code: Fingerprint, *, new: bool) -> None:
    """Note the function's name and what it does.

    Raises:
        ValueError: if it is not what made the rows that are ok, unless ``new``.
    """
    known = manifest["run"]
    if known is not None and known["sha256"] != code.sha256 and not new:
        raise ValueError(
            f"The source of {name} has changed: sha256 {known['sha256']} made the rows that are there, {code.sha256} "
            f"would make the new ones. {_difference(known, code)} Take the change back, give another `out`, or set "
            "on_change='new': the old rows stay in the files, and count no more."
        )
    first = code.sha256 if known is None else known.get("first", known["sha256"])
    told = {"python": sys.implementation.cache_tag, "parts": code.parts}
    manifest["run"] = {"name": name, "sha256": code.sha256, "first": first} | told


def _difference(known: Mapping[str, Any], code: Fingerprint) -> str:
    """What differs, in words."""
    parts, tag = known.get("parts"), sys.implementation.cache_tag
    if not isinstance(parts, dict):
        return "Those are by an earlier version of torchreg, which looked at its text alone."
    if known.get("python") != tag:
        return f"Those are by {known.get('python')!s:.40}, this is {tag}, whose byte code differs for the same text."
    changed = sorted(name for name in {*parts, *code.parts} if parts.get(name) != code.parts.get(name))
    return f"Changed: {'; '.join(changed)}."


_DEEPEST = 100  # what is told of it is made by functions that call themselves
_PARTS = {"penalties": dict, "grids": list, "sessions": list}
_LISTS = {"penalties": (str,), "alphas": (float, int), "seeds": (int,)}  # of a grid, and what they are of
_SESSION = {"git": (dict, type(None)), "argv": (list,), "directory": (str, type(None))}  # what a report makes use of


def _fault(manifest: Mapping[str, Any]) -> str | None:
    """What is not as it was written; None for a sound manifest."""
    for name, kind in _PARTS.items():
        if type(manifest[name]) is not kind:
            return f"{name!r} is {manifest[name]!r:.80}"
    run = manifest["run"]
    words = {"first": ""} | run if isinstance(run, dict) else {}
    if _is_deep(manifest):
        return f"it nests lists or dicts more than {_DEEPEST} deep"
    if run is not None and not all(isinstance(words.get(name), str) for name in ("name", "sha256", "first")):
        return f"'run' is {run!r:.80}"
    checks = {"sessions": _session_fault, "grids": _grid_fault}
    for name, check in checks.items():
        for k, found in enumerate(manifest[name]):
            fault = check(found) if isinstance(found, dict) else f"is {found!r:.80}"
            if fault:
                return f"{name}[{k}] {fault}"
    return None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        nested = [inner for inner in level if isinstance(inner, (dict, list))]
        level = [part for inner in nested for part in (inner.values() if isinstance(inner, dict) else inner)]
    return bool(level)


def _session_fault(session: Mapping[str, Any]) -> str | None:
    for name, kinds in _SESSION.items():
        if name in session and not isinstance(session[name], kinds):
            return f"has {name!r} = {session[name]!r:.80}"
    git = session.get("git")
    if git and not (isinstance(git.get("commit"), str) and isinstance(git.get("dirty"), bool)):
        return f"has 'git' = {git!r:.80}"
    return None


def _grid_fault(grid: Mapping[str, Any]) -> str | None:
    for name, kinds in _LISTS.items():
        found = grid.get(name)
        if not isinstance(found, list) or not all(type(value) in kinds for value in found):
            return f"has {name!r} = {found!r:.80}"
    axes = grid.get("axes")
    if not isinstance(axes, dict) or not all(isinstance(values, list) for values in axes.values()):
        return f"has 'axes' = {axes!r:.80}"
    if grid.get("path", "") not in (None, "descending", "ascending"):
        return f"has 'path' = {grid.get('path', 'nothing')!r:.80}"
    return None
