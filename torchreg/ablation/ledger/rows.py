"""Rows as they are written and read: which one counts for a cell, and what a table shows of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from torchreg.ablation.cell import CURVE
from torchreg.ablation.ledger.manifest import Manifest, read_manifest
from torchreg.ablation.ledger.shard import ROWS, LedgerError
from torchreg.ablation.plain import dumps, loads

CELLS = "cells"
Row = dict[str, Any]


def read(ledger: Path | str) -> tuple[list[Row], Manifest]:
    """The row of each cell, flat, and the manifest. Rows of an earlier source of the function do not count."""
    ledger = Path(ledger)
    manifest = read_manifest(ledger)
    raw = counted(ledger, manifest["run"]["sha256"] if manifest["run"] else None)
    names = _names(manifest)
    return [_flat(row, names) for row in raw.values()], manifest


def counted(ledger: Path, source: str | None) -> dict[str, Row]:
    """By key, the row that counts, as it was written: one that is ok before any other, else the last attempt."""
    best: dict[str, Row] = {}
    for row in _raw(ledger):
        if row["source"] != source:
            continue
        held = best.get(row["key"])
        if held is None or _rank(row) > _rank(held):
            best[row["key"]] = row
    return best


def curves(ledger: Path | str) -> list[Row]:
    """The points of all learning curves, each with its cell's columns."""
    ledger = Path(ledger)
    rows, manifest = read(ledger)
    axes = axes_of(manifest)
    points = []
    for row in rows:
        told = {name: row[name] for name in ("penalty", "alpha", "seed", *axes, "mode") if name in row}
        points += [told | point for point in _lines(cell_folder(ledger, row["key"]) / CURVE)]
    return points


def axes_of(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the axes of all grids."""
    return tuple(dict.fromkeys(name for grid in manifest["grids"] for name in grid["axes"]))


def planned(manifest: Mapping[str, Any]) -> set[tuple[str, float, int, str, str]]:
    """Cells asked for so far: name, alpha, seed, axes as JSON, and mode."""
    names, cells = _names(manifest), set()
    for grid in manifest["grids"]:
        points = [dict(zip(grid["axes"], point, strict=True)) for point in product(*grid["axes"].values())]
        for name, alpha, seed, point in product(grid["penalties"], grid["alphas"], grid["seeds"], points):
            cells.add((names.get(name, name), alpha, seed, dumps(point), grid["mode"]))
    return cells


def cell_folder(ledger: Path, key: str) -> Path:
    """Where a cell's own files are.

    Raises:
        LedgerError: if the key, which comes from a file, is none: it could lead elsewhere.
    """
    if not (isinstance(key, str) and key.isalnum()):
        raise LedgerError(f"{ledger} has a row with the key {key!r}, which is none.")
    return ledger / CELLS / key


def _raw(ledger: Path) -> Iterator[Row]:
    for path in sorted((ledger / ROWS).glob("*.jsonl")):
        yield from _lines(path)


def _lines(path: Path) -> Iterator[Row]:
    """Of one file; what follows its last line's end was being written when the process died."""
    if not path.exists():
        return
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            yield loads(line)
        except ValueError as error:
            raise LedgerError(f"Line {number} of {path} is no row ({error}); mend or remove that line.") from error


def _rank(row: Row) -> tuple[bool, int]:
    return row["status"] == "ok", row["attempt"]


def _names(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Each name of a penalty, and its last one: who renames a penalty keeps its rows."""
    last = {dumps(spec): name for name, spec in manifest["penalties"].items()}
    return {name: last[dumps(spec)] for name, spec in manifest["penalties"].items()}


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
