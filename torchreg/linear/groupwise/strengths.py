"""What a group penalty asks of each group and entry, and the certificates that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchreg.functional.shrinkage import soft
from torchreg.linear.groupwise.partition import Partition
from torchreg.penalties import GroupForm

_HUGE = 1e150  # stands for an infinite strength of an entry: its product with 0 is 0
_NEWTON_STEPS = 4  # for the scale of a group with strengths of its entries: it is feasible after any
_TINY = 1e-300


@dataclass(frozen=True)
class Strengths:
    """``sum_g l1_g ||w_g|| + ridge_g / 2 ||w_g||^2 + sum_i inner_i |w_i|``, subject to ``w_i >= lower``.

    All is shaped by ``parts``; a batch of strengths has one dimension more.

    Attributes:
        parts: the groups.
        l1: of groups, >= 0, inf where a group is zero.
        ridge: of groups, >= 0; None for zero.
        inner: of entries, >= 0; None for zero.
        lower: -inf or 0.
        free: 1 for groups without any penalty, else 0; None where there are none.
    """

    parts: Partition
    l1: Tensor
    ridge: Tensor | None
    inner: Tensor | None
    lower: float
    free: Tensor | None

    @property
    def signed(self) -> bool:
        """Whether single entries of a group can be zero."""
        return self.inner is not None or self.lower == 0.0

    def part(self, groups: Tensor, entries: Tensor, parts: Partition) -> Strengths:
        """Those of some groups, whose entries have the numbers ``entries`` and the partition ``parts``."""

        def picked(values: Tensor | None) -> Tensor | None:
            return None if values is None else parts.column(values.view(-1).index_select(0, groups))

        l1 = parts.column(self.l1.view(-1).index_select(0, groups))
        inner = None if self.inner is None else parts.shaped(self.inner.view(-1).index_select(0, entries))
        return Strengths(parts, l1, picked(self.ridge), inner, self.lower, picked(self.free))

    def times(self, factor: float) -> Strengths:
        """Multiplied by ``factor > 0``."""
        ridge, inner = (None if part is None else factor * part for part in (self.ridge, self.inner))
        return replace(self, l1=factor * self.l1, ridge=ridge, inner=inner)

    def left(self, g: Tensor) -> Tensor:
        """What the strengths of entries leave of correlations: ``soft(g, inner)``, its positive part where w >= 0."""
        if self.inner is not None:
            g = soft(g, self.inner)
        return g.clamp(min=0.0) if self.lower == 0.0 else g

    def slack(self, g: Tensor, w: Tensor) -> Tensor:
        """Correlations less the ridge's part."""
        return g if self.ridge is None else g - self.parts.spread(self.ridge) * w

    def prox(self, y: Tensor, curvature: Tensor) -> Tensor:
        """``argmin_w sum_g curvature_g / 2 ||w_g||^2 - y' w +`` the penalty."""
        left = self.left(y)
        norms = self.parts.norms(left)
        steep = curvature if self.ridge is None else curvature + self.ridge
        return left * self.parts.spread((norms - self.l1).clamp_(min=0.0) / (norms * steep).clamp_(min=_TINY))

    def change(self, w: Tensor, norms: Tensor, fresh: Tensor) -> Tensor:
        """The penalty at ``fresh`` less that at ``w``, whose norms are given, 0-d."""
        after = self.parts.norms(fresh)
        change = self.l1 * (after - norms)
        if self.ridge is not None:
            change = change + 0.5 * self.ridge * (after.square() - norms.square())
        if self.inner is None:
            return change.sum()
        return change.sum() + (self.inner * (fresh.abs() - w.abs())).sum()


def strengths_of(form: GroupForm, coef: Tensor, parts: Partition, present: Tensor) -> Strengths:
    """The strengths of one penalty.

    Args:
        form: of the penalty.
        coef: any coefficients, (p,) or (p, K).
        parts: groups of coef's entries.
        present: their numbers in ``form``, (groups,).
    """
    l1 = parts.column(form.l1.to(coef).index_select(0, present))

    def entries(value: float | Tensor) -> Tensor | None:
        if not isinstance(value, Tensor) and value == 0.0:
            return None
        return parts.shaped(torch.as_tensor(value, dtype=coef.dtype, device=coef.device).expand(coef.shape).reshape(-1))

    l2, inner = entries(form.l2), entries(form.inner)
    ridge = None if l2 is None else parts.largest(l2)
    free = (l1 == 0.0) if ridge is None else (l1 == 0.0) & (ridge == 0.0)
    some = inner is None and bool(free.any())
    inner = None if inner is None else inner.clamp(max=_HUGE)
    return Strengths(parts, l1, ridge, inner, form.lower, free.to(l1) if some else None)


def batched(many: Sequence[Strengths]) -> Strengths:
    """Several strengths as one batch."""

    def stacked(values: list[Tensor | None]) -> Tensor | None:
        known = [value for value in values if value is not None]
        if not known:
            return None
        return torch.stack([torch.zeros_like(known[0]) if value is None else value for value in values], -1)

    first, l1 = many[0], torch.stack([s.l1 for s in many], -1)
    ridge, inner, free = (stacked([getattr(s, name) for s in many]) for name in ("ridge", "inner", "free"))
    return Strengths(first.parts, l1, ridge, inner, first.lower, free)


def dual_scale(strengths: Strengths, g: Tensor) -> Tensor:
    """A scale ``s <= 1`` for which ``s g`` is feasible for the conjugate: the largest but for ``inner`` strengths.

    With these it is found from above by Newton's method on the convex norm of what is left of a group, and then
    shrunk to the feasible side, since ``||soft(t g, inner)|| <= t ||soft(g, inner)||`` for ``t <= 1``.

    Args:
        strengths: of one penalty, or a batch.
        g: correlations, shaped.

    Returns:
        0-d or (batch,).
    """
    parts, l1 = strengths.parts, strengths.l1
    norms = parts.norms(strengths.left(g))
    held = norms > l1
    if strengths.free is not None:
        held &= strengths.free == 0.0
    if strengths.ridge is not None:
        held &= strengths.ridge == 0.0
    scale = torch.ones_like(norms)
    if strengths.inner is not None:
        for _ in range(_NEWTON_STEPS):
            left = strengths.left(g * parts.spread(scale))
            norms = parts.norms(left)
            slope = parts.sums(left * g) / norms.clamp(min=_TINY)
            over = held & (norms > l1)
            scale = torch.where(over, (scale - (norms - l1) / torch.where(over, slope, 1.0)).clamp(min=0.0), scale)
        norms = parts.norms(strengths.left(g * parts.spread(scale)))
    shrunk = scale * (l1 / norms.clamp(min=_TINY)).clamp(max=1.0)
    if strengths.inner is not None:
        shrunk = torch.where(l1 > 0.0, shrunk, _entry_scale(strengths, g))
    return parts.least(torch.where(held, shrunk, 1.0))


def _entry_scale(strengths: Strengths, g: Tensor) -> Tensor:
    """The largest ``s <= 1`` for which no entry of ``s g`` exceeds its ``inner`` strength, of each group."""
    inner = torch.zeros_like(g) if strengths.inner is None else strengths.inner
    size = g if strengths.lower == 0.0 else g.abs()
    over = (size > inner) & (inner > 0.0)
    return 1.0 / strengths.parts.largest(torch.where(over, size / torch.where(over, inner, 1.0), 1.0))


def penalty_gap(strengths: Strengths, w: Tensor, z: Tensor) -> Tensor:
    """``R(w) + R*(z) - <z, w>`` as a sum over groups of terms none of which is negative, 0-d or (batch,).

    Args:
        strengths: of one penalty, or a batch.
        w: coefficients, shaped.
        z: feasible correlations, shaped.
    """
    parts, l1, ridge = strengths.parts, strengths.l1, strengths.ridge
    norms = parts.norms(w)
    price = torch.where(norms == 0.0, 0.0, l1 * norms) - parts.sums(z * w)
    if strengths.inner is not None:
        price = price + parts.sums(strengths.inner * w.abs())
    if ridge is not None:
        excess = (parts.norms(strengths.left(z)) - l1).clamp(min=0.0)
        conjugate = torch.where(ridge > 0.0, 0.5 * excess.square() / ridge.clamp(min=_TINY), 0.0)
        price = price + 0.5 * ridge * norms.square() + conjugate
    if strengths.free is not None:
        price = torch.where(strengths.free > 0.0, price.abs(), price)
    return parts.total(price.clamp(min=0.0))


def violation(strengths: Strengths, w: Tensor, g: Tensor) -> Tensor:
    """The largest distance of a group of ``g`` from the subdifferential at ``w``, 0-d or (batch,).

    Args:
        strengths: of one penalty, or a batch.
        w: coefficients, shaped.
        g: minus the gradient of the data term, shaped.
    """
    parts = strengths.parts
    norms = parts.norms(w)
    alive = norms > 0.0
    rest = strengths.slack(g, w) - w * parts.spread(torch.where(alive, strengths.l1 / norms.clamp(min=_TINY), 0.0))
    if strengths.signed:
        pull = 0.0 if strengths.inner is None else strengths.inner * w.sign()
        rest = torch.where(w != 0.0, rest - pull, strengths.left(rest))
    at_zero = (parts.norms(strengths.left(g)) - strengths.l1).clamp(min=0.0)
    return -parts.least(-torch.where(alive, parts.norms(rest), at_zero))
