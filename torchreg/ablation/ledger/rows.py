"""Rows as they are written and read: which one counts for a cell, and what a table shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from torchreg.ablation.cell import CURVE
from torchreg.ablation.ledger.manifest import Manifest, read_manifest
from torchreg.ablation.ledger.reader import Reader, Row, read_lines
from torchreg.ablation.ledger.shard import LedgerError
from torchreg.ablation.plain import dumps
from torchreg.ablation.plan import steps

CELLS = "cells"


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
    return [_flat(row, names) for row in kept], manifest


def counted(ledger: Path, manifest: Mapping[str, Any]) -> dict[str, Row]:
    """By key, the row that counts, as it was written."""
    return Reader(ledger, manifest["run"]["sha256"] if manifest["run"] else None).rows()


def curves(ledger: Path | str) -> list[Row]:
    """The points of all learning curves, each with its cell's columns."""
    ledger = Path(ledger)
    rows, manifest = read(ledger)
    axes = axes_of(manifest)
    points = []
    for row in rows:
        told = {name: row[name] for name in ("penalty", "alpha", "seed", *axes, "mode") if name in row}
        if (curve := cell_folder(ledger, row["key"]) / CURVE).exists():
            points += [told | point for point in read_lines(curve, _is_point)[0]]
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
    return dumps(dict(sorted(axes.items())))


def cell_folder(ledger: Path, key: str) -> Path:
    """Where a cell's own files are.

    Raises:
        LedgerError: if the key, which comes from a file, is none: it could lead elsewhere.
    """
    if not (isinstance(key, str) and key.isalnum()):
        raise LedgerError(f"{ledger} has a row with the key {key!r}, which is none.")
    return ledger / CELLS / key


def _is_point(found: Any) -> bool:
    return isinstance(found, dict) and "epoch" in found


def _names(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Each name of a penalty, and its last one: who renames a penalty keeps its rows."""
    last = {dumps(spec): name for name, spec in manifest["penalties"].items()}
    return {name: last[dumps(spec)] for name, spec in manifest["penalties"].items()}


def _points(grid: Mapping[str, Any]) -> list[str]:
    return [as_point(dict(zip(grid["axes"], point, strict=True))) for point in product(*grid["axes"].values())]


def _ways(manifest: Mapping[str, Any]) -> dict[tuple[str, str, int, float], list[float]]:
    """For each cell of a path the strengths before it, as the last grid that has the cell wants them."""
    names, ways = _names(manifest), {}
    for grid in manifest["grids"]:
        if grid["path"]:
            for name, point, seed in product(grid["penalties"], _points(grid), grid["seeds"]):
                for alpha, before in steps(grid["alphas"], grid["path"]):
                    ways[names.get(name, name), point, seed, alpha] = list(before)
    return ways


def _point(row: Row, names: Mapping[str, str]) -> tuple[str, str, int, float]:
    return names.get(row["penalty"], row["penalty"]), as_point(row["axes"]), row["seed"], row["alpha"]


def _flat(row: Row, names: Mapping[str, str]) -> Row:
    return {
        "penalty": names.get(row["penalty"], row["penalty"]),
        "alpha": row["alpha"],
        "seed": row["seed"],
        **row["axes"],
        "mode": row["mode"],
        "status": row["status"],
        **row["metrics"],
        "seconds": row["seconds"],
        "attempt": row["attempt"],
        "error": row["error"],
        "key": row["key"],
    }
