"""Second moments of a least-squares problem: all that a fit needs where there are more rows than columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.designs.base import Design, as_scale, divided
from torchreg.linear.intercept import mean_of
from torchreg.linear.problem import Problem

_SMALL = 4096  # columns up to which n >= p suffices for a Gram matrix of them all
_FLAT = 1e-13  # of a variance: what rounding leaves of a column or target that is constant on the remaining rows


@dataclass(frozen=True)
class Moments:
    """``X' W X``, ``X' W y`` and ``y' W y`` of the columns and the target as the engines see them.

    Attributes:
        detached: whether the rows of the problem beside them are not those that they were made of.

    Shapes:
        gram: (p, p). cross: (p,) or (p, K). energy: 0-d.
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    detached: bool = False


def moments_pay(problem: Problem) -> bool:
    """Whether a full Gram matrix is cheaper than passes over the data."""
    n, p = problem.design.n, problem.design.p
    return problem.datafit.quadratic and n >= p and (p <= _SMALL or n >= 2 * p)


def moments_of(problem: Problem) -> Moments:
    """By one pass over the data."""
    design, weights, y = problem.design, problem.weights, problem.y
    weighted = per_row(weights, y) * y
    return Moments(design.gram(weights), design.transposed(weighted), (weighted * y).sum())


def per_row(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers of rows, shaped to multiply (rows,) or (rows, K)."""
    return numbers[:, None] if like.dim() == 2 else numbers


@dataclass(frozen=True)
class Remainder:
    """Moments of the rows that are left, and how their coordinates differ from those of all rows.

    Attributes:
        moments: of the remaining rows, centred and scaled by themselves.
        mean: of the remaining columns in the old coordinates, (p,). shift: of their target, 0-d or (K,).
        scale: of the remaining columns in the old coordinates, (p,), or None.
    """

    moments: Moments
    mean: Tensor
    shift: Tensor
    scale: Tensor | None


def remainder(problem: Problem, whole: Moments, rows: Tensor, *, centre: bool, scale: bool) -> Remainder:
    """Moments without some rows, by subtraction: one pass over these rows instead of the others.

    The data is centred by the mean of all rows before, so that no digits are lost.

    Args:
        problem: of all rows.
        whole: its moments.
        rows: those to leave out.
        centre: whether the remaining rows are centred anew.
        scale: whether they are scaled anew.

    Source:
        Chan, Golub and LeVeque, American Statistician 37, 1983 (updating of moments), read backwards.
    """
    part, weights, y = problem.design.subset(rows), problem.weights[rows], problem.y[rows]
    left = 1.0 - weights.sum()
    weighted = per_row(weights, y) * y
    gram = whole.gram - part.gram(weights)
    cross, every = whole.cross - part.transposed(weighted), mean_of(problem.y.square(), problem.weights)
    energy = every - (weighted * y).sum(0)
    gram, cross, energy = gram.div_(left), cross / left, energy / left
    mean, shift = torch.zeros_like(gram[0]), torch.zeros_like(weighted[0])
    if centre:
        mean, shift = -part.transposed(weights) / left, -weighted.sum(0) / left
        gram, cross = gram.addr_(mean, mean, alpha=-1.0), cross - per_row(mean, cross) * shift
        energy = energy - shift.square()
    variance = gram.diagonal()
    constant = variance <= _FLAT * whole.gram.diagonal()
    if bool(constant.any()):
        gram[constant], gram[:, constant] = 0.0, 0.0
        cross = torch.where(per_row(constant, cross), 0.0, cross)
    still = energy <= _FLAT * every
    cross, energy = torch.where(still, 0.0, cross), torch.where(still, 0.0, energy)
    spread = None
    if scale:
        centred = gram.diagonal() if centre else gram.diagonal() - _mean_without(problem, part, weights).square()
        spread = as_scale(torch.where(centred > _FLAT * gram.diagonal(), centred, 0.0).sqrt())
        gram, cross = gram.div_(spread[:, None]).div_(spread), divided(cross, spread)
    return Remainder(Moments(gram, cross, energy.sum(), detached=True), mean, shift, spread)


def _mean_without(problem: Problem, part: Design, weights: Tensor) -> Tensor:
    """The mean of the remaining columns, where they are not centred."""
    return (problem.design.transposed(problem.weights) - part.transposed(weights)) / (1.0 - weights.sum())
