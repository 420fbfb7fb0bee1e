"""Conditions of optimality for penalties of type L1, coefficient by coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torchreg.linear.certificate import columns, dual_scale, penalty_gap, table, violation
from torchreg.linear.newton.conditions import Conditions
from torchreg.penalties import L1Form


@dataclass(frozen=True)
class EntryConditions(Conditions):
    """Of ``sum_j l1_j |w_j| + l2_j / 2 w_j^2``, subject to ``w_j >= lower``.

    Attributes:
        form: the penalty; for a batch a `table`.
        like: any coefficients, (m,).
    """

    form: L1Form
    like: Tensor

    @property
    def lower(self) -> float:  # type: ignore[override]
        return self.form.lower

    @cached_property
    def ridge(self) -> bool:  # type: ignore[override]
        return bool((columns(self.form.l2, self.like) > 0.0).any())

    @cached_property
    def least(self) -> float:  # type: ignore[override]
        l1 = columns(self.form.l1, self.like)
        return float(torch.where(l1 > 0.0, l1, torch.inf).amin()) if l1.numel() else torch.inf

    def batch(self, others: Sequence[EntryConditions]) -> EntryConditions:
        return EntryConditions(table([other.form for other in others], self.like[:, None]), self.like)

    def within(self, index: Tensor) -> EntryConditions:
        l1, l2 = (columns(s, self.like).expand_as(self.like)[index] for s in (self.form.l1, self.form.l2))
        return EntryConditions(L1Form(l1, l2, self.form.lower), self.like[index])

    def slack(self, w: Tensor, g: Tensor) -> Tensor:
        return g - self.form.l2 * w

    def reached(self, slack: Tensor, share: float) -> Tensor:
        size = slack if self.form.lower == 0.0 else slack.abs()
        return size >= share * columns(self.form.l1, slack)

    def violation(self, w: Tensor, g: Tensor) -> Tensor:
        return violation(self.form, w, g)

    def scale(self, g: Tensor) -> Tensor:
        return dual_scale(self.form, g)

    def gap(self, w: Tensor, z: Tensor) -> Tensor:
        return penalty_gap(self.form, w, z)

    def change(self, w: Tensor, fresh: Tensor) -> Tensor:
        l1, l2 = columns(self.form.l1, w), columns(self.form.l2, w)
        return (l1 * (fresh.abs() - w.abs()) + 0.5 * l2 * (fresh.square() - w.square())).sum()

    def extent(self, w: Tensor) -> Tensor:
        return w.abs().sum()
