"""Rows as they are written and read: which one counts for a cell, and what a table shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from torchreg.ablation.cell import CURVE
from torchreg.ablation.json_values import dumps, unified
from torchreg.ablation.ledger.files import LedgerError, exists
from torchreg.ablation.ledger.manifest import Manifest, read_manifest
from torchreg.ablation.ledger.reader import Reader, Row, rank, read_lines
from torchreg.ablation.plan import steps

CELLS = "cells"
_SOURCE = 16  # characters of a source's sha256 in the name of a directory


def read(ledger: Path | str) -> tuple[list[Row], Manifest]:
    """The row of each cell, flat, and the manifest.

    Rows of an earlier source of the function do not count, nor those of a path on which other strengths have been put
    before theirs since.
    """
    ledger = Path(ledger)
    manifest = read_manifest(ledger)
    raw = counted(ledger, manifest)
    names, ways = _names(manifest), _ways(manifest)
    kept = (r for r in raw.values() if r.get("before") is None or r["before"] == ways.get(_point(r, names)))
    words = {(axis, _place(v)): v for grid in manifest["grids"] for axis, vs in grid["axes"].items() for v in vs}
    cells: dict[Any, Row] = {}
    for row in kept:
        flat = _flat(row, names, words)
        cell = tuple(_place(flat[name]) for name in ("penalty", "alpha", "seed", "mode", *sorted(row["axes"])))
        if cell not in cells or rank(flat) > rank(cells[cell]):  # earlier versions took 0 and 0.0 for two
            cells[cell] = flat
    return list(cells.values()), manifest


def counted(ledger: Path, manifest: Mapping[str, Any]) -> dict[str, Row]:
    """The row that counts of each key, as it was written."""
    return Reader(ledger, manifest["run"]["sha256"] if manifest["run"] else None).rows()


def curves(ledger: Path | str) -> list[Row]:
    """The points of all learning curves, each with its cell's columns."""
    ledger = Path(ledger)
    rows, manifest = read(ledger)
    axes, run = axes_of(manifest), manifest["run"]
    cells = CELLS if run is None else cells_of(run, run["sha256"])
    points = []
    for row in rows:
        told = {name: row[name] for name in ("penalty", "alpha", "seed", *axes, "mode") if name in row}
        curve = f"{cells}/{cell_folder(ledger, row['key']).name}/{CURVE}"
        if exists(ledger, curve):
            points += [told | point | told for point in read_lines(ledger, curve, _point_fault)[0]]
    return points


def axes_of(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the axes of all grids."""
    return tuple(dict.fromkeys(name for grid in manifest["grids"] for name in grid["axes"]))


def planned(manifest: Mapping[str, Any]) -> set[tuple[str, float, int, str, str]]:
    """Cells asked for so far: name, alpha, seed, axes as JSON in the order of their names, and mode."""
    names, cells = _names(manifest), set()
    for grid in manifest["grids"]:
        mode = "path" if grid["path"] else "independent"
        for name, point, alpha, seed in product(grid["penalties"], _points(grid), grid["alphas"], grid["seeds"]):
            cells.add((names.get(name, name), alpha, seed, point, mode))
    return cells


def as_point(axes: Mapping[str, Any]) -> str:
    """A point of the grid as JSON, the same whatever order its axes are in."""
    return dumps(unified(dict(sorted(axes.items()))))


def cells_of(run: Mapping[str, Any], source: str) -> str:
    """The directory of the cells' own files, one for each source of the function: what another left is not reused."""
    return CELLS if source == run.get("first", run["sha256"]) else f"{CELLS}-{source[:_SOURCE]}"


def cell_folder(ledger: Path, key: str, cells: str = CELLS) -> Path:
    """Where a cell's own files are.

    Raises:
        LedgerError: if the key, which comes from a file, is none: it could lead elsewhere.
    """
    if not (isinstance(key, str) and key.isalnum()):
        raise LedgerError(f"{ledger} has a row with the key {key!r}, which is none.")
    return ledger / cells / key


def _point_fault(line: bytes, found: Any) -> str | None:
    if isinstance(found, dict) and type(found.get("epoch")) in (int, float):
        return None
    return "a point of a curve has a number as its epoch"


def _place(value: Any) -> Any:
    """Hashable, and equal for equal values of an axis: 0 and 0.0, but not False."""
    return dumps(unified(value)) if isinstance(value, (list, dict)) else (isinstance(value, bool), value)


def _names(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Each name of a penalty, and its last one: who renames a penalty keeps its rows."""
    last = {dumps(spec): name for name, spec in manifest["penalties"].items()}
    return {name: last[dumps(spec)] for name, spec in manifest["penalties"].items()}


def _points(grid: Mapping[str, Any]) -> list[str]:
    return [as_point(dict(zip(grid["axes"], point, strict=True))) for point in product(*grid["axes"].values())]


def _ways(manifest: Mapping[str, Any]) -> dict[tuple[str, str, int, float], list[float]]:
    """The strengths before each cell of a path, as the last grid that has the cell wants them."""
    names, ways = _names(manifest), {}
    for grid in manifest["grids"]:
        if grid["path"]:
            for name, point, seed in product(grid["penalties"], _points(grid), grid["seeds"]):
                for alpha, before in steps(grid["alphas"], grid["path"]):
                    ways[names.get(name, name), point, seed, alpha] = list(before)
    return ways


def _point(row: Row, names: Mapping[str, str]) -> tuple[str, str, int, float]:
    return names.get(row["penalty"], row["penalty"]), as_point(row["axes"]), row["seed"], row["alpha"]


def _flat(row: Row, names: Mapping[str, str], words: Mapping[Any, Any]) -> Row:
    """A row as tables have it; values of axes as the last grid wrote them that has them."""
    return {
        "penalty": names.get(row["penalty"], row["penalty"]),
        "alpha": row["alpha"],
        "seed": row["seed"],
        **{name: words.get((name, _place(value)), value) for name, value in row["axes"].items()},
        "mode": row["mode"],
        "status": row["status"],
        **row["metrics"],
        "seconds": row["seconds"],
        "attempt": row["attempt"],
        "error": row["error"],
        "key": row["key"],
    }
