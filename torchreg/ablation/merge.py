"""Ledgers of several machines joined into one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from torchreg.ablation.ledger.lock import DriverLock
from torchreg.ablation.ledger.manifest import Manifest, add_penalties, open_manifest, read_manifest, write_manifest
from torchreg.ablation.ledger.rows import CELLS
from torchreg.ablation.ledger.shard import ROWS
from torchreg.ablation.results.ablation import Ablation


def merge(out: str | Path, sources: Sequence[str | Path]) -> Ablation:
    """Copy the rows and the cells' files of several directories into a new one; the sources stay as they are.

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
            _copy(folder, target, number)
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


def _copy(folder: Path, target: Path, number: int) -> None:
    for shard in (folder / ROWS).glob("*.jsonl"):
        shutil.copyfile(shard, target / ROWS / f"{number}-{shard.name}")
    if (folder / CELLS).is_dir():
        shutil.copytree(folder / CELLS, target / CELLS, dirs_exist_ok=True, symlinks=True)
