"""How far an ablation has come."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchreg.ablation.ledger.rows import as_point, planned
from torchreg.ablation.results.grouping import Row

Told = tuple[str, float, int, str, str]  # penalty, alpha, seed, axes as JSON, mode


@dataclass(frozen=True, repr=False)
class Status:
    """Counts of cells; prints as a sentence.

    Attributes:
        done: rows that are ok.
        failed: cells whose last attempt failed; the next call of `ablate` tries them again.
        missing: cells of the grids asked for that have no row; None for rows without a manifest, which knows the grids.
    """

    done: int
    failed: int
    missing: int | None

    def __repr__(self) -> str:
        return f"{self.done} done, {self.failed} failed, {'?' if self.missing is None else self.missing} missing"


def status(rows: Sequence[Row], axes: Collection[str], manifest: Mapping[str, Any]) -> Status:
    """Count the cells of an ablation."""
    done = sum(row["status"] == "ok" for row in rows)
    missing = None
    if "grids" in manifest:
        there = {_cell(row, axes) for row in rows}
        missing = len(planned(manifest) - there)
    return Status(done, len(rows) - done, missing)


def _cell(row: Row, axes: Collection[str]) -> Told:
    point = as_point({name: row[name] for name in axes if name in row})
    return row["penalty"], row["alpha"], row["seed"], point, row["mode"]
