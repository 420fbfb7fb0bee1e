"""A small penalised quadratic, and the kinks on a straight way between two of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_STILL = 1e-11  # a rate relative to the largest, below which nothing moves
_TINY = 1e-300


@dataclass
class Subproblem:
    """Linear and penalty parts over the columns of a tableau, each (size,); ``l1`` finite.

    Attributes:
        c: linear part.
        l1: strengths of ``|w|``.
        l2: strengths of ``w^2 / 2``; None for none.
        lower: -inf, or 0 for ``w >= 0``.
    """

    c: Tensor
    l1: Tensor
    l2: Tensor | None
    lower: float

    @cached_property
    def scale(self) -> float:
        """The largest entry of ``c`` in absolute value."""
        return float(self.c.abs().max()) if self.c.numel() else 0.0

    @property
    def ridge(self) -> Tensor:
        """``l2`` as a tensor in any case."""
        return torch.zeros_like(self.l1) if self.l2 is None else self.l2


def kinks(
    problem: Subproblem,
    active: Tensor,
    signs: Tensor,
    t: float,
    base: Tensor,
    slope: Tensor,
    origin: Tensor,
    way: Tensor,
) -> tuple[Tensor, Tensor]:
    """Where on a way each active coefficient is zero, and each other correlation reaches its strength.

    Coefficients and what they take from correlations are ``base + t slope``, the linear part is ``origin + t way``.

    Args:
        problem: strengths and bounds.
        active: which columns are active, (size,).
        signs: of the active ones, (size,).
        t: where on the way one is; kinks before it are moved there.
        base: at the way's origin, (size,).
        slope: along the way, (size,).
        origin: linear part at the way's origin, (size,).
        way: its change to the way's end, (size,).

    Returns:
        Two tensors (size,), inf where there is no kink.
    """
    rate = way - slope
    falls = active & (slope * signs < -_STILL * slope.abs().max())
    if problem.lower != 0.0:
        falls &= problem.l1 > 0.0
    moves = ~active & (rate.abs() > _STILL * way.abs().max())
    if problem.lower == 0.0:
        moves &= rate > 0.0
    zero = torch.where(falls, -base / torch.where(falls, slope, 1.0), torch.inf)
    missing = rate.sign() * problem.l1 - origin + base
    reach = torch.where(moves, missing / torch.where(moves, rate, 1.0), torch.inf)
    return zero.clamp(min=t), reach.clamp(min=t)


def misfit(problem: Subproblem, active: Tensor, signs: Tensor, w: Tensor, g: Tensor) -> float:
    """What coefficients of the wrong sign and correlations off their strength cost, relative to the energy explained.

    Args:
        problem: strengths and bounds.
        active: which columns are active, (size,).
        signs: of the active ones, (size,).
        w: coefficients, (size,).
        g: correlations there, (size,).

    Returns:
        0 at the minimiser; inf where something is not a number.
    """
    reach = g if problem.lower == 0.0 else g.abs()
    beyond = torch.where(active, (g - problem.l1 * signs).abs(), reach - problem.l1).max().clamp(min=0.0)
    wrong = torch.where(active, (-w * signs).clamp(min=0.0) * problem.l1, 0.0).sum()
    if problem.lower == 0.0:
        wrong = wrong + ((-w).clamp(min=0.0) * problem.c.abs()).sum()
    explained = problem.c @ w
    worse = (problem.l1 @ w.abs() - explained).clamp(min=0.0)  # than zero: a saddle of a matrix that is but rounding
    cost = (beyond * w.abs().sum() + wrong + worse) / explained.abs().clamp(min=_TINY)
    reached = beyond / max(problem.scale, _TINY)  # where there are no coefficients yet, nothing costs
    return float(torch.nan_to_num(torch.maximum(cost, reached), nan=torch.inf))
