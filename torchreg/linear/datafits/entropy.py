"""Relative entropy without cancellation: what the Fenchel gaps of likelihoods are made of."""

from __future__ import annotations

import torch
from torch import Tensor

_NEAR = 0.5  # relative difference below which terms of the plain difference cancel
_SERIES = 1e-4  # below it four terms of the series are exact to 1e-16
_INSIDE = 1.0 - 1e-15  # keeps a scaled point within its bound after rounding


def excess(relative: Tensor) -> Tensor:
    """``(1 + d) log(1 + d) - d``, which is ``d^2 / 2`` for small d, exact to relative rounding for d > -1."""
    direct = torch.special.xlog1py(1.0 + relative, relative) - relative
    series = relative.square() * (0.5 - relative / 6.0 + relative.square() / 12.0 - relative.pow(3) / 20.0)
    return torch.where(relative.abs() < _SERIES, series, direct)


def relative_entropy(difference: Tensor, base: Tensor) -> Tensor:
    """``x log(x / base) - x + base`` for ``x = base + difference``, entry by entry; base 0 counts as 0."""
    positive = base > 0
    relative = difference / torch.where(positive, base, torch.ones_like(base))
    return torch.where(positive, base * excess(relative), 0.0)


def near(difference: Tensor, base: Tensor) -> Tensor:
    """Where `relative_entropy` is needed, since the plain difference of its terms cancels."""
    return (difference.abs() <= _NEAR * base) & (base < torch.inf)


def largest_scale(u: Tensor, room: Tensor) -> Tensor:
    """The largest ``s`` in [0, 1] with ``s * u <= room`` in all entries, for ``room >= 0``; a 0-d tensor."""
    exceeds = u > room
    ratio = torch.where(exceeds, _INSIDE * room / torch.where(exceeds, u, torch.ones_like(u)), 1.0)
    return ratio.min()
