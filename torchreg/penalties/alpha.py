"""Alpha: what it may be, and the least one that gives zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from torchreg.functional.reductions import widened
from torchreg.functional.shrinkage import Scalar

_OCTAVES = 120.0  # alphas from 2^-120 to 2^120 are searched, the range of float32
_HALVINGS = 64  # 240 octaves halved 64 times: exact in float64


def zeros_decide(penalty: object) -> bool:
    """Whether a penalty leaves entries out by making them zero: all but ridges, plain, weighted or of groups."""
    inner = getattr(penalty, "penalty", penalty)
    return getattr(inner, "ridge", None) is None and getattr(inner, "l1_ratio", 1.0) != 0.0


class NoConjugate(ValueError):
    """The convex conjugate of this penalty is not known in closed form."""


class NoExactProx(TypeError):
    """No closed form is known for this proximal map; the message says what to use instead."""


def strength(owner: str, alpha: Scalar) -> Scalar:
    """``alpha`` as a finite float >= 0, or as the 0-d floating tensor that it is."""
    if isinstance(alpha, Tensor):
        if alpha.dim() or not alpha.is_floating_point():
            raise ValueError(
                f"{owner} needs alpha as a number or a 0-d floating tensor, got a {alpha.dtype} tensor of shape "
                f"{tuple(alpha.shape)}; use Weighted(penalty, weights) for one strength per entry, torch.vmap for many."
            )
        return alpha
    if isinstance(alpha, bool) or not isinstance(alpha, Real):
        raise TypeError(f"{owner} needs alpha as a number or a 0-d tensor, got {type(alpha).__name__}; use 0.1, say.")
    value = float(alpha)
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"{owner} needs a finite alpha >= 0, got {value}; use alpha=0.0 for no penalty.")
    return value


def check_values(owner: str, alpha: Scalar) -> None:
    """Check the value of a tensor alpha: reads it once, so it is for attach and fits only."""
    strength(owner, float(alpha.detach()) if isinstance(alpha, Tensor) and not alpha.dim() else alpha)


def least_alpha(prox_at: Callable[[Tensor], Tensor], grad: Tensor) -> Tensor:
    """The least alpha at which ``prox_at(alpha)`` is zero throughout, by bisection, or inf.

    The answer is an alpha that was tried: at it the prox is exactly zero.
    """
    dtype = widened(grad).dtype

    def vanishes(octave: Tensor) -> Tensor:
        return (prox_at(torch.exp2(octave).to(dtype)) == 0).all()

    low = torch.full((), -_OCTAVES, dtype=torch.float64, device=grad.device)
    high = -low
    reachable = vanishes(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = vanishes(middle)
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    found = torch.where(reachable, torch.exp2(high).to(dtype), math.inf)
    return torch.where((grad == 0).all(), torch.zeros_like(found), found)
