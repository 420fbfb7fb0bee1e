"""How the share of zeros went: what was asked and what was there, step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from torchreg.functional.dtensor import here, read
from torchreg.training.term import Term
from torchreg.training.units import units_of


class TargetRecord(NamedTuple):
    """What was asked and what was there after an optimizer step.

    Attributes:
        step: optimizer steps made.
        wanted: the share of zeros that the schedule has for that step.
        measured: the share of entries, or of groups, that were exactly zero.
        alpha: the strength that was set, 0.0 where none acts.
    """

    step: int
    wanted: float
    measured: float
    alpha: float


class TargetHistory:
    """Records whose numbers stay on their device until they are read."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, float, Any, int, Any]] = []

    def add(self, step: int, wanted: float, term: Term, alpha: Tensor | float) -> None:
        """Count the zeros of now; nobody waits for them."""
        units = units_of(term)
        counts = [u.zeros([here(p) for p in u.parameters]) for u in units]
        zeros = sum((c.to(counts[0].device) for c in counts[1:]), counts[0])
        kept = alpha.clone() if isinstance(alpha, Tensor) else alpha
        self._rows.append((step, wanted, zeros, sum(u.number for u in units), kept))

    def records(self) -> list[TargetRecord]:
        """All of it, for which the host waits."""
        rows = zip(
            self._rows, _numbers([row[2] for row in self._rows]), _numbers([row[4] for row in self._rows]), strict=True
        )
        return [TargetRecord(row[0], row[1], zeros / row[3], alpha) for row, zeros, alpha in rows]

    def saved(self) -> list[tuple[int, float, int, int, float]]:
        """The history as plain numbers."""
        rows = zip(self._rows, self.records(), strict=True)
        return [(row[0], row[1], round(r.measured * row[3]), row[3], r.alpha) for row, r in rows]

    def load(self, saved: Any) -> None:
        """Take what was saved."""
        self._rows = [tuple(row) for row in saved]


def _numbers(values: list[Any]) -> list[Any]:
    """Numbers as they are, and what 0-d tensors hold, for which the host waits once."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    held = iter(read(tensors))
    return [next(held) if isinstance(value, Tensor) else value for value in values]
