"""Where a quadratic loss of two weights touches a penalty's ball: the computation behind the picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchreg.penalties import Penalty

_F64 = torch.float64
_SWEEPS = 10_000  # proximal gradient steps at the most; about 20 per unit of condition reach rounding
_HALVINGS = 60
_LOG_MULTIPLIERS = (-30.0, 30.0)  # between them every multiplier that float64 can tell from 0 and infinity
_RAYS = 720  # a multiple of 8, so that corners on the axes and diagonals are drawn exactly


def check(hessian: Tensor, center: Tensor, penalty: Penalty, budget: float) -> None:
    """Raise ValueError unless this is a strictly convex problem of two weights with a positive budget."""
    if not penalty.convex:
        raise ValueError(f"The geometry needs a convex penalty, got {penalty!r}; use L1, L2, L1L2 or a Group of one.")
    if hessian.shape != (2, 2) or center.shape != (2,) or not bool(center.isfinite().all()):
        raise ValueError(
            f"The geometry needs a hessian of shape (2, 2) and a finite center of shape (2,), got {hessian.tolist()} "
            f"and {center.tolist()}; choose two weights."
        )
    if not torch.allclose(hessian, hessian.T) or float(torch.linalg.eigvalsh(hessian)[0]) <= 0.0:
        raise ValueError(
            f"The geometry needs a symmetric positive definite hessian, got {hessian.tolist()}; try X.T @ X / n."
        )
    if not (math.isfinite(budget) and budget > 0.0):
        raise ValueError(f"The geometry needs a finite budget > 0, got {budget}.")
    penalty.check(center)


def constrained_minimiser(hessian: Tensor, center: Tensor, penalty: Penalty, budget: float) -> tuple[Tensor, float]:
    """The constrained minimiser and its multiplier: bisection on the multiplier's logarithm."""
    if float(penalty.value(center)) <= budget:
        return center, 0.0
    w, low, high = center, *_LOG_MULTIPLIERS
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        w = _penalised(hessian, center, penalty, math.exp(middle), w)
        low, high = (middle, high) if float(penalty.value(w)) > budget else (low, middle)
    return _penalised(hessian, center, penalty, math.exp(high), w), math.exp(high)


def _penalised(hessian: Tensor, center: Tensor, penalty: Penalty, multiplier: float, w: Tensor) -> Tensor:
    """``argmin loss + multiplier * penalty``, by proximal gradient steps from ``w``."""
    values = torch.linalg.eigvalsh(hessian)
    step = 2.0 / float(values[0] + values[-1])
    last = math.inf
    for _ in range(_SWEEPS):
        before, w = w, penalty.prox(w - step * (hessian @ (w - center)), step * multiplier)
        moved = float((w - before).norm())
        if moved >= last or moved == 0.0:  # the step is a contraction, so this is rounding
            break
        last = moved
    return w


def region(center: Tensor, penalty: Penalty, budget: float) -> Tensor:
    """The boundary of ``penalty(w) <= budget`` along rays from its minimum, cut where it leaves the picture."""
    origin = penalty.prox(center, math.inf)
    angles = torch.linspace(0.0, 2.0 * math.pi, _RAYS + 1, dtype=_F64)
    rays = torch.stack([angles.cos(), angles.sin()], 1)
    low = torch.zeros(_RAYS + 1, 1, dtype=_F64)
    high = torch.full_like(low, 4.0 * float((center - origin).norm()) + 1.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        inside = (torch.vmap(penalty.value)(origin + middle * rays) <= budget)[:, None]
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return origin + low * rays
