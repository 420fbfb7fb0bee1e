"""Descent on small penalised quadratics where exchanges of columns lead nowhere.

For matrices that are singular to rounding: Newton's way for the present signs and the column that violates optimality
most, followed to the least value on it, kinks included; where that way does not go down, the column alone. Nothing is
ever worse than the start, or than zero.

Source: feature-sign search (Lee, Battle, Raina and Ng, NeurIPS 2006).
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.linear.solvers.linear_algebra import safe_cholesky

_ENOUGH = 1e-14  # of the largest correlation: a violation that is left
_ROUNDING = 1e-15  # of the terms of a slope: what a descent must be steeper than
_STEPS = 10  # for each column


def descended(matrix: Tensor, c: Tensor, l1: Tensor, bounded: Tensor, w: Tensor) -> Tensor:
    """Coefficients with a lower ``w' matrix w / 2 - c' w + sum l1 |w|`` than ``w`` and zero have.

    Args:
        matrix: (m, m), positive semidefinite to rounding.
        c: linear part, (m,).
        l1: strengths of ``|w|``, (m,).
        bounded: where w >= 0 is asked for, (m,).
        w: where to start, (m,).
    """
    w = torch.where(bounded, w.clamp(min=0.0), w)
    w = torch.where(w @ (matrix @ w / 2.0 - c) + l1 @ w.abs() < 0.0, w, 0.0)
    sizes = matrix.abs()
    for _ in range(_STEPS * len(w)):
        support = w.nonzero().flatten()
        g = c - matrix[:, support] @ w[support]
        signs = torch.where(w == 0.0, g.sign(), w.sign())
        slope = g - l1 * signs
        excess = torch.where(w == 0.0, torch.where(bounded, g, g.abs()) - l1, slope.abs())
        excess = torch.where(matrix.diagonal() > 0.0, excess, 0.0)  # a column of zeros can do nothing
        worst = excess.argmax()
        if not excess[worst] > _ENOUGH * c.abs().max():
            break
        noise = _ROUNDING * (c.abs() + l1 + sizes @ w.abs())
        chosen = torch.cat([w.nonzero().flatten(), worst[None]]).unique()
        way = torch.zeros_like(w)
        way[chosen] = _newton(matrix[chosen[:, None], chosen], slope[chosen])
        fresh = _lowest(matrix, l1, bounded, w, way, g, noise)
        if torch.equal(fresh, w):
            way = torch.zeros_like(w)
            way[worst] = slope[worst] / matrix[worst, worst]
            fresh = _lowest(matrix, l1, bounded, w, way, g, noise)
            if torch.equal(fresh, w):
                break
        w = fresh
    return w


def _newton(matrix: Tensor, slope: Tensor) -> Tensor:
    """``matrix^-1 slope``, with the least ridge that makes it possible."""
    factor, regular = safe_cholesky(matrix.clone())
    return torch.cholesky_solve(slope[:, None], factor)[:, 0] if regular else slope / matrix.diagonal()


def _lowest(matrix: Tensor, l1: Tensor, bounded: Tensor, w: Tensor, way: Tensor, g: Tensor, noise: Tensor) -> Tensor:
    """The least value on the segment from ``w`` to ``w + way``: its slope is linear between kinks, and jumps there.

    ``w`` itself where the slope is down by rounding alone, ``noise`` being that of ``g``: in a direction in which
    the matrix is zero, nothing would end the way.
    """
    sides = torch.where(w == 0.0, way.sign(), w.sign())
    slope, bend = way @ (l1 * sides - g), way @ (matrix @ way)
    if not slope < -(noise @ way.abs()) or bool((bounded & (w == 0.0) & (way < 0.0)).any()):
        return w
    crosses = w * way < 0.0
    at = torch.where(crosses, -w / torch.where(crosses, way, 1.0), torch.inf)
    at, order = at.sort()
    jump = torch.where(bounded, torch.inf, 2.0 * l1 * way.abs())[order]
    after = slope + bend * at + jump.cumsum(0)
    kink = int((after < 0.0).long().cumprod(0).sum())  # the first at which the way goes up again
    passed = slope + jump[:kink].sum()
    flat = -passed / bend if bend > 0 else torch.full_like(slope, torch.inf)
    end = torch.minimum(torch.minimum(flat, at[kink] if kink < len(at) else flat), torch.ones_like(flat))
    moved = w + end * way
    return torch.where(crosses & (-w / torch.where(crosses, way, 1.0) == end), 0.0, moved)
