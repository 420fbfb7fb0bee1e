"""Penalties of type L1, coefficient by coefficient: value, optimality and their part of the duality gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from torchreg.functional.shrinkage import soft
from torchreg.linear.objective.penalty_terms import PenaltyTerms
from torchreg.penalties import L1Form


@dataclass(frozen=True)
class EntryTerms(PenaltyTerms):
    """``sum_j l1_j |w_j| + l2_j / 2 w_j^2``, subject to ``w_j >= lower``.

    Attributes:
        form: the penalty; for a batch a `table`.
        like: any coefficients, (m,).
    """

    form: L1Form
    like: Tensor

    @classmethod
    def of(cls, form: L1Form, coef: Tensor) -> EntryTerms:
        """The penalty of coefficients of coef's shape, (p,) or (p, K), made flat."""
        l1, l2 = (
            part.to(coef).broadcast_to(coef.shape).reshape(-1) if isinstance(part, Tensor) and part.dim() else part
            for part in (form.l1, form.l2)
        )
        return cls(L1Form(l1, l2, form.lower), coef.reshape(-1))

    @property
    def lower(self) -> float:  # type: ignore[override]
        return self.form.lower

    @cached_property
    def ridge(self) -> bool:  # type: ignore[override]
        l2 = self.form.l2
        return bool((l2 > 0.0).any()) if isinstance(l2, Tensor) else l2 > 0.0

    @property
    def l1(self) -> Tensor:
        """Strengths of absolute values, (m,)."""
        return columns(self.form.l1, self.like).expand_as(self.like)

    @property
    def l2(self) -> Tensor | None:
        """Strengths of squares, (m,); None without a ridge."""
        return columns(self.form.l2, self.like).expand_as(self.like) if self.ridge else None

    @cached_property
    def least(self) -> float:  # type: ignore[override]
        l1 = columns(self.form.l1, self.like)
        return float(torch.where(l1 > 0.0, l1, torch.inf).amin()) if l1.numel() else torch.inf

    @cached_property
    def free(self) -> bool:  # type: ignore[override]
        l1, l2 = columns(self.form.l1, self.like), columns(self.form.l2, self.like)
        return bool(((l1 == 0.0) & (l2 == 0.0)).any())

    def batch(self, others: Sequence[EntryTerms]) -> EntryTerms:
        return EntryTerms(table([other.form for other in others], self.like[:, None]), self.like)

    def within(self, index: Tensor) -> EntryTerms:
        """The penalty of some coefficients, by their numbers, or a batch of them."""
        l1, l2 = (
            part[index] if isinstance(part, Tensor) and part.dim() and len(part) != 1 else part
            for part in (self.form.l1, self.form.l2)
        )
        return EntryTerms(L1Form(l1, l2, self.form.lower), self.like[index])

    def raised(self, factor: float) -> EntryTerms:
        """With l1 multiplied by a factor."""
        return EntryTerms(replace(self.form, l1=factor * self.form.l1), self.like)

    def strongest(self, slack: Tensor) -> float:
        """The factor of l1 at which no correlation reaches it any more, for one penalty."""
        l1 = columns(self.form.l1, slack)
        return float(torch.where(l1 > 0.0, self._size(slack) / l1, 0.0).amax())

    def slack(self, w: Tensor, g: Tensor) -> Tensor:
        return g - columns(self.form.l2, g) * w if self.ridge else g

    def reached(self, slack: Tensor, share: float) -> Tensor:
        return self._size(slack) >= share * columns(self.form.l1, slack)

    def excess(self, slack: Tensor) -> Tensor:
        return self._size(slack) - columns(self.form.l1, slack)

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

    def _size(self, g: Tensor) -> Tensor:
        """What of correlations counts against l1."""
        return g if self.form.lower == 0.0 else g.abs()


def dual_scale(form: L1Form, g: Tensor) -> Tensor:
    """The largest ``s <= 1`` such that ``s g`` is feasible for the penalty's conjugate.

    ``s = min(1, min_j l1_j / |g_j|)`` over the entries j with l1 and without a ridge, whose conjugate is finite for
    ``|z_j| <= l1_j`` alone; g_j instead of |g_j| where coefficients are >= 0. A ridge makes every z feasible.

    Unpenalised coefficients are left out: their correlations are zero up to rounding.

    Args:
        form: of one penalty.
        g: correlations, (p,) or (p, batch).

    Returns:
        0-d or (batch,).
    """
    l1, l2 = columns(form.l1, g), columns(form.l2, g)
    size = g if form.lower == 0.0 else g.abs()
    bound = (l2 == 0.0) & (size > l1) & (l1 > 0.0)
    ratio = torch.where(bound, l1 / torch.where(bound, size, 1.0), 1.0)
    return ratio.amin(0) if len(ratio) else ratio.new_ones(g.shape[1:])


def penalty_gap(form: L1Form, w: Tensor, z: Tensor) -> Tensor:
    """``R(w) + R*(z) - <z, w>`` as a sum of non-negative terms.

    For each entry, ``R(w) = l1 |w| + l2 w^2 / 2``, and S is soft thresholding, ``S(z) = sign(z) max(0, |z| - l1)``:

    - l1 alone: ``l1 |w| - z w``, for ``|z| <= l1``;
    - with a ridge: ``l1 |w| - sign(z) min(|z|, l1) w + (l2 w - S(z))^2 / (2 l2)``;
    - neither, where z is 0 but for rounding: ``|z w|``, what leaving w as it is may cost;
    - forced to zero (l1 infinite): 0.

    Where coefficients are >= 0, z stands for |z|, and S(z) is ``max(0, z - l1)``.

    Args:
        form: of one penalty.
        w: coefficients, (p,) or (p, batch).
        z: feasible correlations, of w's shape.

    Returns:
        0-d or (batch,).
    """
    l1, l2 = columns(form.l1, z), columns(form.l2, z)
    bounded = z if form.lower == 0.0 else z.abs()
    clipped = torch.minimum(bounded, l1)
    linear = torch.where(w == 0.0, 0.0, torch.nan_to_num(l1, posinf=0.0) * w.abs() - _sign(form, z) * clipped * w)
    excess = soft(z.clamp(min=0.0) if form.lower == 0.0 else z, l1)
    free = (l1 == 0.0) & (l2 == 0.0)
    ridge = l2 > 0.0
    quadratic = torch.where(ridge, (l2 * w - excess).square() / (2.0 * torch.where(ridge, l2, 1.0)), 0.0)
    return torch.where(free, (z * w).abs(), linear + quadratic).clamp(min=0.0).sum(0)


def _sign(form: L1Form, z: Tensor) -> Tensor:
    return torch.ones_like(z) if form.lower == 0.0 else z.sign()


def violation(form: L1Form, w: Tensor, g: Tensor) -> Tensor:
    """The largest distance of ``g`` from the subdifferential of the penalty at ``w``.

    ``max(0, |g| - l1)`` where w is 0, with g for |g| where coefficients are >= 0; elsewhere
    ``|g - l2 w - l1 sign(w)|``.

    Args:
        form: of one penalty.
        w: coefficients, (p,) or (p, batch).
        g: minus the gradient of the data term, of w's shape.

    Returns:
        0-d or (batch,).
    """
    l1, l2 = columns(form.l1, g), columns(form.l2, g)
    size = g if form.lower == 0.0 else g.abs()
    finite = torch.nan_to_num(l1, posinf=0.0)
    at_zero = (size - l1).clamp(min=0.0)
    elsewhere = (g - l2 * w - finite * w.sign()).abs()
    distance = torch.where(w == 0.0, at_zero, elsewhere)
    return distance.amax(0) if len(distance) else distance.new_zeros(g.shape[1:])


def columns(strength: float | Tensor, like: Tensor) -> Tensor:
    """A strength as a tensor that broadcasts with coefficients (p,) or (p, batch)."""
    value = torch.as_tensor(strength, dtype=like.dtype, device=like.device)
    return value[:, None] if value.dim() == 1 and like.dim() == 2 else value


def table(forms: Sequence[L1Form], like: Tensor) -> L1Form:
    """Penalties of several strengths as one: (1, batch) for numbers, (p, batch) for strengths of each column."""
    l1, l2 = (
        torch.stack(torch.broadcast_tensors(*(columns(s, like[:, 0]).reshape(-1) for s in part)), 1)
        for part in ([form.l1 for form in forms], [form.l2 for form in forms])
    )
    return L1Form(l1, l2, forms[0].lower)
