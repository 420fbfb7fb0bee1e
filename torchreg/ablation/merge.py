"""Ledgers of several machines joined into one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from torchreg.ablation.ledger.lock import DriverLock
from torchreg.ablation.ledger.manifest import Manifest, add_penalties, open_manifest, read_manifest, write_manifest
from torchreg.ablation.ledger.reader import Row, rank
from torchreg.ablation.ledger.rows import CELLS, counted
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
    with DriverLock(target):
        for number, folder in enumerate(folders):
            for shard in (folder / ROWS).glob("*.jsonl"):
                shutil.copyfile(shard, target / ROWS / f"{number:06d}-{shard.name}")
        _copy_cells(folders, target)
        write_manifest(target, joined)
    return Ablation.load(target)


def _joined(folders: Sequence[Path]) -> Manifest:
    first, *others = (read_manifest(folder) for folder in folders)
    for folder, other in zip(folders[1:], others, strict=True):
        if (first["run"] or {}).get("sha256") != (other["run"] or {}).get("sha256"):
            raise ValueError(
                f"{folders[0]} and {folder} are of different functions: sources {first['run']} and {other['run']}; "
                "their rows cannot be compared."
            )
        add_penalties(first, other["penalties"])
        first["grids"] += [grid for grid in other["grids"] if grid not in first["grids"]]
        first["sessions"] += other["sessions"]
    return first


def _copy_cells(folders: Sequence[Path], target: Path) -> None:
    """Each cell's files from one source, whole: two runs' files are never mixed, and no link is followed."""
    best: dict[str, tuple[Row, Path]] = {}
    for folder in folders:
        for key, row in counted(folder, read_manifest(folder)).items():
            if key not in best or rank(row) > rank(best[key][0]):
                best[key] = row, folder
    for folder in folders:
        for cell in (folder / CELLS).glob("*"):
            owner = best[cell.name][1] if cell.name in best else folder
            copy = target / CELLS / cell.name
            if owner == folder and cell.is_dir() and not cell.is_symlink() and not copy.exists():
                shutil.copytree(cell, copy, symlinks=True)
