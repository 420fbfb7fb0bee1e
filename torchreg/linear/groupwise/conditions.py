"""Penalties of groups of the entries of a vector: value, prox, optimality and duality gap.

``R(w) = sum_g l1_g ||w_g|| + l2_g / 2 ||w_g||^2 + sum_i inner_i |w_i|``, subject to ``w_i >= lower``. With
``S(z) = soft(z, inner)``, of which only the positive part counts where ``lower`` is 0, group g is zero at the minimum
where ``||S(g_g)|| <= l1_g``, and the conjugate without l2 is finite for the same z.

Source: Yuan and Lin, JRSS B 68, 2006; dual norm of the sparse group lasso: Ndiaye, Fercoq, Gramfort and Salmon,
NeurIPS 2016.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from torchreg.functional.shrinkage import soft
from torchreg.linear.groupwise.partition import Partition, contiguous, entry_labels
from torchreg.linear.objective.penalty_terms import PenaltyTerms
from torchreg.penalties import GroupForm

_HUGE = 1e150  # stands for an infinite strength of an entry: its product with 0 is 0
_NEWTON_STEPS = 4  # for the scale of a group with strengths of its entries: it is feasible after any
_TINY = 1e-300


@dataclass(frozen=True)
class GroupTerms(PenaltyTerms):
    """A penalty of groups, or a batch of them, whose tensors have one dimension more.

    Attributes:
        parts: the groups.
        l1: of groups, >= 0, inf where a group is zero.
        l2: of groups, >= 0; None for zero.
        inner: of entries, >= 0; None for zero.
        lower: -inf or 0.
        unpenalised: 1 for groups without any penalty, else 0; None where there are none.
    """

    parts: Partition
    l1: Tensor
    l2: Tensor | None
    inner: Tensor | None
    lower: float
    unpenalised: Tensor | None

    @property
    def signed(self) -> bool:
        """Whether single entries of a group can be zero."""
        return self.inner is not None or self.lower == 0.0

    @property
    def ridge(self) -> bool:  # type: ignore[override]
        return self.l2 is not None

    @cached_property
    def _finite(self) -> Tensor:
        """l1, with 0 for groups that are zero, so that nothing is added for them."""
        return self.l1.nan_to_num(nan=math.nan, posinf=0.0)

    @property
    def free(self) -> bool:  # type: ignore[override]
        return self.unpenalised is not None

    @cached_property
    def least(self) -> float:  # type: ignore[override]
        l1 = self.l1 if self.inner is None else torch.maximum(self.parts.largest(self.inner), self.l1)
        return float(torch.where(l1 > 0.0, l1, torch.inf).amin()) if len(l1) else math.inf

    def batch(self, others: Sequence[GroupTerms]) -> GroupTerms:
        def stacked(values: list[Tensor | None]) -> Tensor | None:
            known = [value for value in values if value is not None]
            if not known:
                return None
            return torch.stack([torch.zeros_like(known[0]) if value is None else value for value in values], -1)

        l2, inner, free = (
            stacked([getattr(other, name) for other in others]) for name in ("l2", "inner", "unpenalised")
        )
        return replace(self, l1=torch.stack([other.l1 for other in others], -1), l2=l2, inner=inner, unpenalised=free)

    def within(self, index: Tensor) -> GroupTerms:
        groups, sizes = self.parts.labels[index].unique_consecutive(return_counts=True)
        return self.part(groups, index, contiguous(sizes, self.parts.width))

    def part(self, groups: Tensor, entries: Tensor, parts: Partition) -> GroupTerms:
        """The penalty of some groups, whose entries have the numbers ``entries`` and the partition ``parts``."""
        l2, free = (None if v is None else v.index_select(0, groups) for v in (self.l2, self.unpenalised))
        inner = None if self.inner is None else self.inner.index_select(0, entries)
        return GroupTerms(parts, self.l1.index_select(0, groups), l2, inner, self.lower, free)

    def times(self, factor: float) -> GroupTerms:
        """Multiplied by ``factor > 0``."""
        l2, inner = (None if part is None else factor * part for part in (self.l2, self.inner))
        return replace(self, l1=factor * self.l1, l2=l2, inner=inner)

    def left(self, g: Tensor) -> Tensor:
        """What the strengths of entries leave of correlations: ``soft(g, inner)``, its positive part where w >= 0."""
        if self.inner is not None:
            g = soft(g, self.inner)
        return g.clamp(min=0.0) if self.lower == 0.0 else g

    def slack(self, w: Tensor, g: Tensor) -> Tensor:
        return g if self.l2 is None else g - self.parts.spread(self.l2) * w

    def reach(self, slack: Tensor) -> Tensor:
        """What must exceed l1 for a group not to be zero, (groups,)."""
        return self.parts.norms(self.left(slack))

    def reached(self, slack: Tensor, share: float) -> Tensor:
        return (self.reach(slack) >= share * self.l1).index_select(0, self.parts.labels)

    def excess(self, slack: Tensor) -> Tensor:
        return (self.reach(slack) - self.l1).index_select(0, self.parts.labels)

    def prox(self, y: Tensor, curvature: Tensor) -> Tensor:
        """``argmin_w sum_g curvature_g / 2 ||w_g||^2 - y' w +`` the penalty."""
        left = self.left(y)
        norms = self.parts.norms(left)
        steep = curvature if self.l2 is None else curvature + self.l2
        shrunk = (norms - self.l1).clamp_(min=0.0).div_(norms.clamp(min=_TINY))
        return left * self.parts.spread(shrunk / steep)

    def change(self, w: Tensor, fresh: Tensor) -> Tensor:
        before, after = self.parts.norms(w), self.parts.norms(fresh)
        change = self.l1 * (after - before)
        if self.l2 is not None:
            change = change + 0.5 * self.l2 * (after.square() - before.square())
        if self.inner is None:
            return change.sum()
        return change.sum() + (self.inner * (fresh.abs() - w.abs())).sum()

    def extent(self, w: Tensor) -> Tensor:
        return self.parts.norms(w).sum()

    def violation(self, w: Tensor, g: Tensor) -> Tensor:
        if not len(w):
            return w.new_zeros(w.shape[1:])
        norms = self.parts.norms(w)
        alive = norms > 0.0
        pull = torch.where(alive, self.l1 / norms.clamp(min=_TINY), 0.0)
        rest = self.slack(w, g) - w * self.parts.spread(pull)
        if self.signed:
            rest = torch.where(w != 0.0, rest - (0.0 if self.inner is None else self.inner * w.sign()), self.left(rest))
        at_zero = (self.reach(g) - self.l1).clamp(min=0.0)
        return torch.where(alive, self.parts.norms(rest), at_zero).amax(0)

    def scale(self, g: Tensor) -> Tensor:
        """A scale ``s <= 1`` for which ``s g`` is feasible for the conjugate: the largest but for ``inner`` strengths.

        With these it is found from above by Newton's method on the convex norm of what is left of a group, and then
        shrunk to the feasible side, since ``||S(t g)|| <= t ||S(g)||`` for ``t <= 1``. Groups without any penalty are
        left out: their correlations are zero up to rounding.
        """
        if not len(self.l1):
            return g.new_ones(g.shape[1:])
        inner = self.inner
        scale = self._inner_scale(g, inner) if inner is not None else (self.l1 / self.reach(g).clamp(min=_TINY))
        for penalty in (self.unpenalised, self.l2):
            scale = scale if penalty is None else torch.where(penalty > 0.0, 1.0, scale)
        return scale.amin(0).clamp(max=1.0)

    def _inner_scale(self, g: Tensor, inner: Tensor) -> Tensor:
        """The scale of each group where entries have strengths ``inner`` of their own."""
        l1, scale = self.l1, torch.ones_like(self.reach(g))
        for _ in range(_NEWTON_STEPS):
            left = self.left(g * self.parts.spread(scale))
            norms = self.parts.norms(left)
            slope = self.parts.sums(left * g) / norms.clamp(min=_TINY)
            over = norms > l1
            scale = torch.where(over, (scale - (norms - l1) / torch.where(over, slope, 1.0)).clamp(min=0.0), scale)
        norms = self.reach(g * self.parts.spread(scale))
        shrunk = scale * (l1 / norms.clamp(min=_TINY)).clamp(max=1.0)
        return torch.where(l1 > 0.0, shrunk, self._entry_scale(g, inner))

    def _entry_scale(self, g: Tensor, inner: Tensor) -> Tensor:
        """The largest ``s <= 1`` for which no entry of ``s g`` exceeds its ``inner`` strength, of each group."""
        size = g if self.lower == 0.0 else g.abs()
        over = (size > inner) & (inner > 0.0)
        return 1.0 / self.parts.largest(torch.where(over, size / torch.where(over, inner, 1.0), 1.0))

    def gap(self, w: Tensor, z: Tensor) -> Tensor:
        norms = self.parts.norms(w)
        price = self._finite * norms - self.parts.sums(z * w)
        if self.inner is not None:
            price = price + self.parts.sums(self.inner * w.abs())
        if self.l2 is not None:
            excess = (self.reach(z) - self.l1).clamp(min=0.0)
            conjugate = torch.where(self.l2 > 0.0, 0.5 * excess.square() / self.l2.clamp(min=_TINY), 0.0)
            price = price + 0.5 * self.l2 * norms.square() + conjugate
        if self.unpenalised is not None:
            price = torch.where(self.unpenalised > 0.0, price.abs(), price)
        return price.clamp(min=0.0).sum(0)


def group_terms(
    forms: Sequence[GroupForm], coef: Tensor, parts: Partition | None = None, present: Tensor | None = None
) -> list[GroupTerms]:
    """The terms of several penalties, over the entries of coef in one dimension.

    Args:
        forms: of the penalties, which have the same groups.
        coef: any coefficients, (p,) or (p, K).
        parts: groups of coef's entries; None for those of the forms.
        present: their numbers in the forms, (groups,); None for all.
    """
    if parts is None:
        by = forms[0].by
        parts = Partition(by.count(coef), entry_labels(by, coef).reshape(-1), None)
    terms = [_terms(form, coef, parts, present) for form in forms]
    some = torch.stack(
        [term.unpenalised.any() for term in terms if term.unpenalised is not None] or [coef.new_zeros(())]
    )
    return terms if bool(some.any()) else [replace(term, unpenalised=None) for term in terms]


def _terms(form: GroupForm, coef: Tensor, parts: Partition, present: Tensor | None) -> GroupTerms:
    """The terms of one penalty; without strengths of entries, all groups are asked whether they are unpenalised."""

    def entries(value: float | Tensor) -> Tensor | None:
        if not isinstance(value, Tensor) and value == 0.0:
            return None
        return torch.as_tensor(value, dtype=coef.dtype, device=coef.device).expand(coef.shape).reshape(-1)

    l1, l2, inner = form.l1.to(coef), entries(form.l2), entries(form.inner)
    l1 = l1 if present is None else l1.index_select(0, present)
    l2 = None if l2 is None else parts.largest(l2)
    if inner is not None:
        return GroupTerms(parts, l1, l2, inner.clamp(max=_HUGE), form.lower, None)
    free = (l1 == 0.0) if l2 is None else (l1 == 0.0) & (l2 == 0.0)
    return GroupTerms(parts, l1, l2, None, form.lower, free.to(l1))
