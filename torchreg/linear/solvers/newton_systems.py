"""Newton's linear systems for smooth fits: exact factors, factors that precondition, conjugate gradients.

The Hessian is ``X' B X + diag(ridge)`` with a matrix B for each row: a number for one output, K by K for K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from torchreg.linear.solvers.linear_algebra import conjugate_gradients, safe_cholesky
from torchreg.linear.solvers.newton_coordinates import Features

_GRAM_COST = 12  # columns for which a Gram matrix costs as much as two products with a vector; measured
_WORTH = 3  # steps of conjugate gradients below which a factor is not worth keeping
_KEPT = 0.2  # of a factor's cost: steps that it may take before another is worth it
_LARGEST = 4096  # columns of a factor
_BLOCKS = 512  # columns of a factor for each of K outputs
_RELUCTANT = 10  # times as many steps as columns come before such factors, which only approximate the Hessian
_JOINT = 128  # unknowns of one factor for K outputs together
_UNLIKE = 0.5  # of the fall that a factor promises: a solution differs from it by rounding
_ROOM = 1 << 20  # entries of a temporary: 8 MiB


class Curvature(NamedTuple):
    """The second derivative at a point.

    Attributes:
        bend: of each row's loss, its diagonal for K outputs, times the row's weight, (n,) or (n, K).
        times: the map of rows (n,) or (n, K) to B times them.
        ridge: of the coefficients, of theta's shape.
    """

    bend: Tensor
    times: Callable[[Tensor], Tensor]
    ridge: Tensor


class Diagonal:
    """The diagonal of the Hessian, as if rows and their curvatures were unrelated.

    Attributes:
        exact: whether `solve` is the inverse of the Hessian for which it was last prepared.
    """

    exact = False

    def __init__(self, features: Features, weights: Tensor) -> None:
        self._squares = features.squares(weights)

    def prepare(self, curvature: Curvature, steps: int) -> None:
        """Get ready for a Hessian; ``steps`` of conjugate gradients were taken last time."""
        total = curvature.bend.sum(0)
        diagonal = curvature.ridge + (torch.outer(self._squares, total) if total.dim() else self._squares * total)
        self._diagonal = torch.where(diagonal > 0.0, diagonal, 1.0)

    def solve(self, side: Tensor) -> Tensor:
        """An approximate solution, of theta's shape."""
        return side / self._diagonal


class Factors:
    """A Cholesky factor for each output, exact if there is one; it preconditions later Hessians while that is cheaper.

    Args:
        features: X.
        first: what preconditions until it has taken as many steps of conjugate gradients as factors cost.
        cost: of factors, in such steps.
        patience: steps that old factors may take before others are worth it.
    """

    exact = False

    def __init__(self, features: Features, first: Diagonal | None, cost: float, patience: float) -> None:
        self._features, self._first, self._cost, self._patience = features, first, cost, patience
        self._factors: Tensor | None = None

    def prepare(self, curvature: Curvature, steps: int) -> None:
        """As `Diagonal.prepare`, unless the factor of an earlier Hessian will do."""
        self._cost -= steps
        if self._first is not None and self._cost >= 0.0:
            self._first.prepare(curvature, steps)
            return
        self._first = None
        fresh, bend = self._factors is None or steps > self._patience, curvature.bend
        self.exact = fresh and bend.dim() == 1
        if fresh:
            grams = [self._features.gram(column) for column in bend.reshape(len(bend), -1).T]
            square = grams[0] if bend.dim() == 1 else torch.stack(grams)
            self._factors, _ = safe_cholesky(square, curvature.ridge.T if bend.dim() == 2 else curvature.ridge)

    def solve(self, side: Tensor) -> Tensor:
        """As `Diagonal.solve`."""
        if self._first is not None:
            return self._first.solve(side)
        assert self._factors is not None
        if side.dim() == 1:
            return torch.cholesky_solve(side[:, None], self._factors)[:, 0]
        return torch.cholesky_solve(side.T[:, :, None], self._factors)[:, :, 0].T


class JointFactor:
    """A few unknowns of K outputs: one Cholesky factor."""

    exact = True

    def __init__(self, features: Features, like: Tensor) -> None:
        self._table = features.times(torch.eye(features.width, dtype=like.dtype, device=like.device))

    def prepare(self, curvature: Curvature, steps: int) -> None:
        """As `Diagonal.prepare`."""
        (n, outputs), width = curvature.bend.shape, self._table.shape[1]
        units = torch.eye(outputs, dtype=curvature.bend.dtype, device=curvature.bend.device)
        rows = torch.stack([curvature.times(unit.expand(n, -1)) for unit in units], 1)
        square = rows.new_zeros(width, outputs * outputs * width)
        chunk = max(1, _ROOM // square.shape[1])
        for start in range(0, n, chunk):
            part = self._table[start : start + chunk]
            spread = rows[start : start + chunk, :, :, None] * part[:, None, None, :]
            square.addmm_(part.T, spread.reshape(len(part), -1))
        joined = square.view(width, outputs, outputs, width).transpose(2, 3).reshape(width * outputs, -1)
        self._factor, _ = safe_cholesky(0.5 * (joined + joined.T), curvature.ridge.reshape(-1))

    def solve(self, side: Tensor) -> Tensor:
        """As `Diagonal.solve`."""
        return torch.cholesky_solve(side.reshape(-1, 1), self._factor).view_as(side)


System: TypeAlias = Diagonal | Factors | JointFactor


def system_for(features: Features, weights: Tensor, outputs: int | None) -> System:
    """The cheapest for which conjugate gradients take few steps."""
    if outputs is None:
        cost = features.width / _GRAM_COST
        if cost < _WORTH:
            return Factors(features, None, 0.0, -1.0)
        first = Diagonal(features, weights)
        return first if features.width > _LARGEST else Factors(features, first, cost, _WORTH + _KEPT * cost)
    if features.width * outputs <= _JOINT:
        return JointFactor(features, weights)
    first = Diagonal(features, weights)
    if features.width > _BLOCKS:
        return first
    return Factors(features, first, float(_RELUCTANT * features.width), float(features.width))


class Direction(NamedTuple):
    """A descent direction.

    Attributes:
        step: of theta's shape. image: what it does to the linear predictor, (n,) or (n, K).
        steps: of conjugate gradients that it took.
    """

    step: Tensor
    image: Tensor
    steps: int


def newton_direction(
    features: Features, system: System, curvature: Curvature, side: Tensor, mask: Tensor | None, tol: float, limit: int
) -> Direction:
    """The solution of ``Hessian step = side``: at once with an exact factor, else by conjugate gradients.

    Args:
        features: X.
        system: prepared for the Hessian.
        curvature: the Hessian.
        side: minus the gradient, of theta's shape.
        mask: 1 where theta may move, of its shape, or None.
        tol: of the residual, in the system's norm, that may be left, < 1.
        limit: steps at most.
    """
    solve = system.solve if mask is None else lambda r: mask * system.solve(r)
    if system.exact and mask is None:
        step = solve(side)
        exact = Direction(step, features.times(step), 0)
        if _solves(exact, curvature, side):
            return exact
        solve = torch.clone  # the Hessian is singular to rounding: go without its factor
    image = torch.zeros_like(curvature.bend)
    along = image

    def times(way: Tensor) -> Tensor:
        nonlocal along
        along = features.times(way)
        product = features.transposed(curvature.times(along)) + curvature.ridge * way
        return product if mask is None else mask * product

    def follow(length: Tensor) -> None:
        image.addcmul_(length, along)

    found = conjugate_gradients(times, solve, side, tol=tol, limit=limit, follow=follow)
    return Direction(found.x, image, found.steps)


def _solves(found: Direction, curvature: Curvature, side: Tensor) -> bool:
    """Whether ``<side, step>`` is about ``<step, Hessian step>``, as it is for a solution; False for NaN."""
    fall = float((side * found.step).sum())
    bent = float((found.image * curvature.times(found.image)).sum() + (curvature.ridge * found.step.square()).sum())
    return abs(bent - fall) <= _UNLIKE * fall
