"""How the share of zeros went: what was asked and what was there, step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchreg.parts import here, read
from torchreg.training.term import Term
from torchreg.training.units import Units


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


def units_of(term: Term) -> list[Units]:
    """The entries, or the groups, of each parameter of a term."""
    return [Units(p.detach(), part.penalty.groups) for part in term.parts for p in part.parameters.values()]


class TargetHistory:
    """Records whose numbers stay on their device until they are read."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, float, Any, int, Any]] = []

    def add(self, step: int, wanted: float, term: Term, alpha: Tensor | float) -> None:
        """Count the zeros of now; nobody waits for them."""
        units = units_of(term)
        counts = [u.zeros(here(u.w)) for u in units]
        zeros = sum((c.to(counts[0].device) for c in counts[1:]), counts[0])
        kept = alpha.clone() if isinstance(alpha, Tensor) else alpha
        self._rows.append((step, wanted, zeros, sum(u.number for u in units), kept))

    def records(self) -> list[TargetRecord]:
        """All of it, for which the host waits."""
        told = read([torch.as_tensor(value) for *_, zeros, _, alpha in self._rows for value in (zeros, alpha)])
        counts, alphas = told[::2], told[1::2]
        rows = zip(self._rows, counts, alphas, strict=True)
        return [TargetRecord(row[0], row[1], round(zeros) / row[3], float(alpha)) for row, zeros, alpha in rows]

    def saved(self) -> list[tuple[int, float, int, int, float]]:
        """As plain numbers."""
        rows = zip(self._rows, self.records(), strict=True)
        return [(row[0], row[1], round(r.measured * row[3]), row[3], r.alpha) for row, r in rows]

    def load(self, saved: Any) -> None:
        """Take what was saved."""
        self._rows = [tuple(row) for row in saved]
