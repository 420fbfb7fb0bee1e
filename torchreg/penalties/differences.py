"""Penalties of the order of entries: how much neighbours differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from torchreg.functional.reductions import narrowed, wide, widened
from torchreg.functional.shrinkage import Scalar, filled, scaled
from torchreg.functional.total_variation import denoised
from torchreg.penalties.alpha import strength
from torchreg.penalties.base import Grain, Penalty

_FIXED = 2.0**60  # the weight of an entry whose step is 0, beside 1 of the one with the least step else
_ENDLESS = 2.0**60  # the most that a step may be of the least one


@dataclass(frozen=True, eq=False, repr=False)
class TotalVariation(Penalty):
    """The total variation along a dimension: neighbours become exactly equal, and what is left is piecewise constant.

    ``R(w) = alpha * sum_i |w_(i+1) - w_i|``, along ``dim``, summed over all others. Its prox is exact, for one step and
    for a step per entry (an adaptive optimizer's), computed in float64 where the device has it, in parallel over all
    entries. Constants cost nothing: for zeros too add L1, the fused lasso ``TotalVariation(a) + L1(b)``, whose prox is
    the soft threshold of this one's (of the two together for one step per tensor; see `Nuclear` under Adam).

    Args:
        alpha: strength, finite and >= 0; a number or a 0-d tensor.
        dim: along which entries are neighbours.

    Raises:
        ValueError: if ``alpha`` is negative, NaN or infinite; at attach, if the tensor has no such dimension.
        TypeError: if ``dim`` is no integer.

    Notes:
        A row that holds a NaN or an infinity stays as it is. ``alpha_max`` is inf unless the gradient sums to zero
        along each row, since no alpha takes a mean to zero.

    Source:
        Rudin, Osher and Fatemi, Physica D 60, 1992; Tibshirani et al., JRSS B 67, 2005 (fused lasso); the sum's prox:
        Friedman, Hastie, Höfling and Tibshirani, Ann. Appl. Stat. 1, 2007; the algorithm:
        `torchreg.functional.total_variation`.

    Example:
        >>> import torch
        >>> from torchreg import L1, TotalVariation
        >>> w = torch.tensor([4.0, 5.0, 0.5, 0.25, -0.25])
        >>> TotalVariation(1.0).prox(w, 1.0)
        tensor([4.0000, 4.0000, 0.5000, 0.5000, 0.5000])
        >>> (TotalVariation(1.0) + L1(0.5)).prox(w, 1.0)
        tensor([3.5000, 3.5000, 0.0000, 0.0000, 0.0000])
    """

    alpha: Scalar
    dim: int = -1
    fuses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("TotalVariation", self.alpha))
        if isinstance(self.dim, bool) or not isinstance(self.dim, Integral):
            raise TypeError(f"TotalVariation needs an integer as dim, got {type(self.dim).__name__}; use dim=-1, say.")
        object.__setattr__(self, "dim", int(self.dim))

    @property
    def convex(self) -> bool:
        return True

    @property
    def grain(self) -> Grain:
        return "row" if self.dim > 0 else "tensor"

    def _rows(self, x: Tensor) -> Tensor:
        """The tensor as rows along which entries are neighbours, (rows, entries)."""
        moved = x.movedim(self.dim, -1)
        return moved.reshape(-1, moved.shape[-1])

    def _back(self, rows: Tensor, like: Tensor) -> Tensor:
        moved = like.movedim(self.dim, -1).shape
        return rows.reshape(moved).movedim(-1, self.dim)

    def value(self, w: Tensor) -> Tensor:
        return self.alpha * widened(w).diff(dim=self.dim).abs().sum()

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        if not w.numel():
            return w.clone()
        x, still = self._rows(widened(w)), _is_zero(step, w)
        precise = wide(x)
        known = precise.isfinite().all(-1, keepdim=True)
        safe = torch.where(known, precise, 0.0)
        result = denoised(safe, *self._problem(step, w, safe))
        kept = ~known | self._rows(still.broadcast_to(w.shape))
        kept = kept | _is_zero(self.alpha, w)
        return narrowed(self._back(torch.where(kept, x, result.to(x.dtype)), w), w)

    def _problem(self, step: Scalar, w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of each entry and the level, so scaled that the least step is one."""
        if not isinstance(step, Tensor) or step.numel() == 1:
            one = step.reshape(()) if isinstance(step, Tensor) else step
            level = filled(scaled(self.alpha, one), x).to(x.dtype)
            return torch.ones_like(x), level.clamp(max=torch.finfo(x.dtype).max ** 0.5)
        t = self._rows(step.broadcast_to(w.shape)).to(x.dtype)
        moved = t > 0
        t = torch.where(moved, t, 1.0).clamp(max=torch.finfo(x.dtype).max ** 0.25)
        least = torch.where(moved, t.detach(), math.inf).amin()
        least = torch.where(least.isinf(), 1.0, least)
        weight = torch.where(moved, least / t.clamp(max=_ENDLESS * least), _FIXED)
        return weight, filled(self.alpha, x).to(x.dtype) * least

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        x = widened(grad)
        sums = self._rows(wide(x)).cumsum(-1) if grad.numel() else wide(x).reshape(1, -1)
        largest = sums.abs().amax() if grad.numel() else sums.sum()
        return torch.where(self._balanced(x), largest, math.inf).to(x.dtype)

    def _balanced(self, x: Tensor) -> Tensor:
        """Whether every row sums to 0, to rounding."""
        rows = self._rows(wide(x)) if x.numel() else wide(x).reshape(1, -1)
        rounding = rows.shape[-1] * torch.finfo(x.dtype).eps
        return (rows.sum(-1).abs() <= rounding * rows.abs().sum(-1)).all()

    def check(self, w: Tensor) -> None:
        super().check(w)
        if not -w.dim() <= self.dim < w.dim():
            raise ValueError(
                f"TotalVariation along dim={self.dim} does not fit a tensor of shape {tuple(w.shape)}; give one of its "
                "dimensions."
            )


def _is_zero(value: Scalar, like: Tensor) -> Tensor:
    """Whether a step or a strength is 0, made where ``like`` lies, so that nothing waits for a copy."""
    return value == 0 if isinstance(value, Tensor) else torch.full((), value == 0, device=like.device)
