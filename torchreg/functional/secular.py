"""The radius r > 0 at which ``sum z_i^2 / (r + d_i)^2 = 1``: the norm of a group after its proximal step in a metric.

With ``h(r) = 1 / sqrt(sum z_i^2 / (r + d_i)^2)`` the equation is ``h(r) = 1``, and h is concave, a power mean of the
``r + d_i``. So Newton's method on it rises to the root from below. It is the first of a family. The sum at the radius
``r (1 + e)`` is ``sum q_i (1 + e v_i)^-2`` with ``q_i = (z_i / (r + d_i))^2`` and the shares ``v_i = r / (r + d_i)``:
an integral over v. Gauss's rule puts one node or two in place of the v_i; every even derivative of ``(1 + e v)^-2`` in
v is positive, so the rule gives too little, and its root lies below the true one. One node is Newton's method, of
order 2; two nodes, from four sums, are of order 4: from the same rule at r = 0 two steps reach 1e-7, three 1e-13,
whatever the metric (tried up to a condition of 1e10).

Source: More and Sorensen, SIAM J. Sci. Stat. Comput. 4, 1983, section 3 (h, and Newton's method on it); Golub and
Meurant, Matrices, Moments and Quadrature, 2010, chapter 6 (bounds by Gauss's rules).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_NARROW = 64.0  # roundings of its mean's square below which a variance is not told from 0
_GRID = 1.5 * 2.0**11  # to which a float32 is added to be rounded to a multiple of 2^-12
_LEAST = -0.5  # of e: a radius may be too large by roundings


def growth(sums: Sequence[Tensor]) -> Tensor:
    """The e at which Gauss's rule of two nodes for ``sum q_i (1 + e v_i)^-2`` is 1, but for roundings.

    Args:
        sums: ``sum q v^k`` for k = 0, 1, 2, 3, each the number of a group; all > 0.
    """
    mean, second, third = (m / sums[0] for m in sums[1:])
    variance = second - mean * mean
    spread = variance > _NARROW * torch.finfo(sums[-1].dtype).eps * mean * mean
    variance = torch.where(spread, variance, 1.0)
    skew = torch.where(spread, third - mean * (3.0 * second - 2.0 * mean * mean), 0.0) / variance
    far = (skew.abs() + (skew * skew + 4.0 * variance).sqrt()) * torch.where(skew < 0, -0.5, 0.5)
    near = -variance / far  # the nodes are mean + far and mean + near
    share = near / (near - far)
    one, other = (torch.where(spread, (mean + x).clamp(min=0.0), mean) for x in (far, near))
    found = ((sums[0].sqrt() - 1.0) / mean).clamp(min=_LEAST)  # Newton's step with one node, then with both
    for _ in range(2):
        below, beside = 1.0 / (1.0 + found * one), 1.0 / (1.0 + found * other)
        part, rest = sums[0] * share * below * below, sums[0] * (1.0 - share) * beside * beside
        total, slope = part + rest, part * below * one + rest * beside * other
        found = (found + (total.sqrt() - 1.0) * (total / slope)).clamp(min=_LEAST)
    return found


def in_two(x: Tensor) -> tuple[Tensor, Tensor]:
    """Multiples of 2^-12, which float32 adds without rounding up to 4096, and what is left of each.

    Their sums together are a sum that is about 1 as if in float64, at a fraction of the time that turning each entry
    into float64 takes on a CPU.
    """
    high = (x + _GRID) - _GRID
    return high, x - high
