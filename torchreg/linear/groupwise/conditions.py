"""Conditions of optimality for penalties of groups, on flat vectors of coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torchreg.linear.groupwise.partition import contiguous
from torchreg.linear.groupwise.strengths import Strengths, batched, dual_scale, penalty_gap, violation
from torchreg.linear.objective.penalty_terms import PenaltyTerms


@dataclass(frozen=True)
class GroupTerms(PenaltyTerms):
    """A penalty of groups, or a batch of them.

    Attributes:
        strengths: of the penalty.
        width: the size of all groups, None where they differ.
    """

    strengths: Strengths
    width: int | None

    @property
    def lower(self) -> float:  # type: ignore[override]
        return self.strengths.lower

    @property
    def ridge(self) -> bool:  # type: ignore[override]
        return self.strengths.ridge is not None

    @cached_property
    def least(self) -> float:  # type: ignore[override]
        l1 = self.strengths.l1 if self.strengths.inner is None else torch.maximum(self._inner(), self.strengths.l1)
        return float(torch.where(l1 > 0.0, l1, torch.inf).amin()) if len(l1) else math.inf

    @property
    def free(self) -> bool:  # type: ignore[override]
        return self.strengths.free is not None

    def batch(self, others: Sequence[GroupTerms]) -> GroupTerms:
        return GroupTerms(batched([other.strengths for other in others]), self.width)

    def within(self, index: Tensor) -> GroupTerms:
        groups, sizes = self.strengths.parts.labels[index].unique_consecutive(return_counts=True)
        return GroupTerms(self.strengths.part(groups, index, contiguous(sizes, self.width)), self.width)

    def slack(self, w: Tensor, g: Tensor) -> Tensor:
        return self.strengths.slack(self._shaped(g), self._shaped(w)).reshape(g.shape)

    def reached(self, slack: Tensor, share: float) -> Tensor:
        return self._of_entries(self._size(slack) >= share * self.strengths.l1, slack)

    def excess(self, slack: Tensor) -> Tensor:
        return self._of_entries(self._size(slack) - self.strengths.l1, slack)

    def violation(self, w: Tensor, g: Tensor) -> Tensor:
        return violation(self.strengths, self._shaped(w), self._shaped(g)) if len(w) else w.new_zeros(w.shape[1:])

    def scale(self, g: Tensor) -> Tensor:
        return dual_scale(self.strengths, self._shaped(g))

    def gap(self, w: Tensor, z: Tensor) -> Tensor:
        return penalty_gap(self.strengths, self._shaped(w), self._shaped(z))

    def change(self, w: Tensor, fresh: Tensor) -> Tensor:
        old = self._shaped(w)
        return self.strengths.change(old, self.strengths.parts.norms(old), self._shaped(fresh))

    def extent(self, w: Tensor) -> Tensor:
        return self.strengths.parts.norms(self._shaped(w)).sum()

    def _shaped(self, x: Tensor) -> Tensor:
        return self.strengths.parts.shaped(x)

    def _size(self, slack: Tensor) -> Tensor:
        """The norm of what entries' own strengths leave of correlations, of each group."""
        return self.strengths.parts.norms(self.strengths.left(self._shaped(slack)))

    def _of_entries(self, groups: Tensor, like: Tensor) -> Tensor:
        """What each entry's group has, of the shape of entries ``like``."""
        parts = self.strengths.parts
        return groups.reshape(len(parts), *like.shape[1:]).index_select(0, parts.labels)

    def _inner(self) -> Tensor:
        """The largest strength of an entry of each group."""
        parts = self.strengths.parts
        assert self.strengths.inner is not None
        return parts.largest(self.strengths.inner)
