"""What a ledger is of: penalties by name, the grids asked for, the function, and who worked on it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchreg.ablation.ledger.shard import ROWS, LedgerError, sync_directory

FORMAT = 1
_NAME = "manifest.json"
# what a driver leaves that dies before its manifest is there
_OURS = (ROWS, "lock", "workers", "mark", "logs", f"{_NAME}.tmp")
Manifest = dict[str, Any]


def empty() -> Manifest:
    """Of a ledger that nothing has been asked of."""
    return {"format": FORMAT, "penalties": {}, "grids": [], "run": None, "sessions": []}


def read_manifest(ledger: Path) -> Manifest:
    """The manifest of a directory.

    Raises:
        FileNotFoundError: if there is no ledger here.
        LedgerError: if it cannot be read.
        ValueError: if a later version of torchreg wrote it.
    """
    path = ledger / _NAME
    if not path.exists():
        raise FileNotFoundError(f"{ledger} holds no ablation: there is no {_NAME} in it.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{path} is no manifest of an ablation ({error}).") from error
    if not isinstance(found, int) or found > FORMAT:
        raise ValueError(f"{path} has format {found!r}, this version reads up to {FORMAT}; update torchreg.")
    return empty() | manifest


def open_manifest(ledger: Path) -> Manifest:
    """The manifest of a directory, which is made if it is not there.

    Raises:
        FileExistsError: if there is something else in it; nothing of it is touched.
        LedgerError: if it cannot be written to.
    """
    if (ledger / _NAME).exists():
        manifest = read_manifest(ledger)
    elif _foreign(ledger):
        raise FileExistsError(
            f"{ledger} exists and holds other files than an ablation's; give another directory by `out`."
        )
    else:
        manifest = empty()
    try:
        (ledger / ROWS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"{ledger} cannot be made: {error.strerror}; give another directory by `out`.") from error
    if not os.access(ledger / ROWS, os.W_OK):
        raise LedgerError(f"{ledger} cannot be written to; give another directory by `out`.")
    return manifest


def _foreign(ledger: Path) -> bool:
    if not ledger.exists():
        return False
    return not ledger.is_dir() or any(p.name not in _OURS for p in ledger.iterdir())


def write_manifest(ledger: Path, manifest: Mapping[str, Any]) -> None:
    """All of it or nothing: beside the old one first, then in its place."""
    path, unfinished = ledger / _NAME, ledger / f"{_NAME}.tmp"
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_directory(ledger)
    except OSError as error:
        raise LedgerError(f"{path} could not be written: {error.strerror or error}.") from error


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


def add_function(manifest: Manifest, name: str, sha256: str, *, new: bool) -> None:
    """Note the function's name and source.

    Raises:
        ValueError: if its source is not the one that made the rows that are ok, unless ``new``.
    """
    known = manifest["run"]
    if known is not None and known["sha256"] != sha256 and not new:
        raise ValueError(
            f"The source of {name} has changed: sha256 {known['sha256']} made the rows that are there, {sha256} would "
            "make the new ones. Take the change back, give another `out`, or set on_change='new': the old rows stay in "
            "the files, and count no more."
        )
    manifest["run"] = {"name": name, "sha256": sha256}
