"""Ledgers of several machines joined into one."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from torchreg.ablation.ledger.files import LedgerError, names, read_bytes, replace
from torchreg.ablation.ledger.lock import DriverLock
from torchreg.ablation.ledger.manifest import Manifest, add_penalties, open_manifest, read_manifest, write_manifest
from torchreg.ablation.ledger.reader import Row, rank
from torchreg.ablation.ledger.rows import CELLS, cells_of, counted
from torchreg.ablation.ledger.shard import ROWS
from torchreg.ablation.results.ablation import Ablation


def merge(out: str | Path, sources: Sequence[str | Path]) -> Ablation:
    """Copy the rows and the cells' files of several directories into a new one; the sources stay as they are.

    Of a cell that several have run, the row counts that is ok, the first of them if several are; its files are copied.

    Args:
        out: a directory that is not there yet, or is empty.
        sources: directories of ablations of the same function.

    Raises:
        ValueError: if their functions differ in source, or a name means two penalties.
        FileExistsError: if ``out`` holds anything.
        FileNotFoundError: if a source is no ablation.
    """
    target, folders = Path(out), [Path(source) for source in sources]
    if not folders:
        raise ValueError("merge needs at least one directory to merge.")
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty; merge makes a new directory.")
    joined = _joined(folders)
    open_manifest(target)
    lock = DriverLock(target)
    try:
        lock.take()
        for number, folder in enumerate(folders):
            for name in names(folder, ROWS):
                if name.endswith(".jsonl"):
                    _copy(folder, f"{ROWS}/{name}", target, f"{ROWS}/{number:06d}-{name}")
        _copy_cells(folders, target, joined)
        write_manifest(target, joined)
    finally:
        lock.release()
    return Ablation.load(target)


def _copy(folder: Path, name: str, target: Path, copy: str) -> None:
    data = read_bytes(folder, name)
    replace(target, copy, lambda file: file.write(data))


def _joined(folders: Sequence[Path]) -> Manifest:
    first, *others = (read_manifest(folder) for folder in folders)
    for folder, other in zip(folders[1:], others, strict=True):
        hashes = [(one["run"] or {}).get("sha256") for one in (first, other)]
        if hashes[0] != hashes[1]:
            raise ValueError(
                f"{folders[0]} and {folder} are of different functions: sha256 {hashes[0]} and {hashes[1]}; "
                "their rows cannot be compared."
            )
        add_penalties(first, other["penalties"])
        first["grids"] += [grid for grid in other["grids"] if grid not in first["grids"]]
        first["sessions"] += other["sessions"]
    if first["run"] is not None:
        first["run"]["first"] = first["run"]["sha256"]  # whose cells' files go by the plain name
    return first


def _copy_cells(folders: Sequence[Path], target: Path, joined: Manifest) -> None:
    """Each cell's files from one directory, whole: two runs' files are never mixed. Links are left out.

    Files of cells of another source, which do not count, stay where they are.
    """
    best: dict[str, tuple[Row, Path, str]] = {}
    for folder in folders:
        manifest = read_manifest(folder)
        run = manifest["run"]
        cells = CELLS if run is None else cells_of(run, run["sha256"])
        rows = counted(folder, manifest)
        for key in {*rows, *names(folder, cells)}:
            row = rows.get(key, {"status": "", "attempt": 0})
            if key not in best or rank(row) > rank(best[key][0]):
                best[key] = row, folder, cells
    for key, (_, folder, cells) in best.items():
        if key.isalnum() and key in names(folder, cells) and (folder / cells / key).is_dir():
            with contextlib.suppress(LedgerError):  # it is a link
                names(folder, f"{cells}/{key}")
                shutil.copytree(folder / cells / key, target / CELLS / key, ignore=_odd)


def _odd(folder: str, found: list[str]) -> list[str]:
    """What is neither file nor directory."""
    modes = {name: os.lstat(os.path.join(folder, name)).st_mode for name in found}
    return [name for name, mode in modes.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))]
