"""Newton's linear systems for smooth fits: exact factors, factors that precondition, conjugate gradients.

The Hessian is ``X' B X + diag(ridge)`` with a matrix B for each row: a number for one output, K by K for K outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchreg.linear.features import Features
from torchreg.linear.shifted import cholesky

_GRAM_COST = 32  # columns for which a Gram matrix costs as much as two products with a vector; measured
_WORTH = 3  # conjugate gradient steps below which a new factor is cheaper
_LARGEST = 4096  # columns of a factor
_BLOCKS = 256  # columns of factors for K outputs
_JOINT = 128  # unknowns of one factor for K outputs together
_ROOM = 1 << 20  # entries of a temporary: 8 MiB


class Curve(NamedTuple):
    """The second derivative of the loss at a point.

    Attributes:
        bend: of each row, its diagonal for K outputs, times the row's weight, (n,) or (n, K).
        times: the map of rows (n,) or (n, K) to B times them.
        ridge: of the coefficients, of theta's shape.
    """

    bend: Tensor
    times: Callable[[Tensor], Tensor]
    ridge: Tensor


class System(ABC):
    """Solves with the Hessian, or with something near it.

    Attributes:
        exact: whether `solve` is the inverse of the Hessian for which it was last prepared.
    """

    exact: bool = False

    @abstractmethod
    def prepare(self, curve: Curve, steps: int) -> None:
        """Get ready for a Hessian, anew or as it is; ``steps`` of conjugate gradients were taken last time."""

    @abstractmethod
    def solve(self, side: Tensor) -> Tensor:
        """An approximate solution, of theta's shape."""


class OneFactor(System):
    """One output: a Cholesky factor, which preconditions later Hessians while that is cheaper than another."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._patience = features.width / _GRAM_COST
        self._factor: Tensor | None = None

    def prepare(self, curve: Curve, steps: int) -> None:
        self.exact = self._factor is None or self._patience < _WORTH or steps > self._patience
        if self.exact:
            self._factor = cholesky(self._features.gram(curve.bend), curve.ridge)

    def solve(self, side: Tensor) -> Tensor:
        assert self._factor is not None
        return torch.cholesky_solve(side[:, None], self._factor)[:, 0]


class JointFactor(System):
    """A few unknowns of K outputs: one Cholesky factor."""

    exact = True

    def __init__(self, features: Features, like: Tensor) -> None:
        self._table = features.times(torch.eye(features.width, dtype=like.dtype, device=like.device))

    def prepare(self, curve: Curve, steps: int) -> None:
        (n, outputs), width = curve.bend.shape, self._table.shape[1]
        units = torch.eye(outputs, dtype=curve.bend.dtype, device=curve.bend.device)
        rows = torch.stack([curve.times(unit.expand(n, -1)) for unit in units], 1)
        square = rows.new_zeros(width, outputs * outputs * width)
        chunk = max(1, _ROOM // square.shape[1])
        for start in range(0, n, chunk):
            part = self._table[start : start + chunk]
            spread = rows[start : start + chunk, :, :, None] * part[:, None, None, :]
            square.addmm_(part.T, spread.reshape(len(part), -1))
        joined = square.view(width, outputs, outputs, width).transpose(2, 3).reshape(width * outputs, -1)
        self._factor = cholesky(0.5 * (joined + joined.T), curve.ridge.reshape(-1))

    def solve(self, side: Tensor) -> Tensor:
        return torch.cholesky_solve(side.reshape(-1, 1), self._factor).view_as(side)


class BlockFactors(System):
    """K outputs: a factor for each, as if they were independent."""

    def __init__(self, features: Features) -> None:
        self._features = features

    def prepare(self, curve: Curve, steps: int) -> None:
        squares = torch.stack([self._features.gram(bend) for bend in curve.bend.T])
        self._factors = cholesky(squares, curve.ridge.T)

    def solve(self, side: Tensor) -> Tensor:
        return torch.cholesky_solve(side.T[:, :, None], self._factors)[:, :, 0].T


class Diagonal(System):
    """Many columns: the diagonal of the Hessian, as if rows and their curvatures were unrelated."""

    def __init__(self, features: Features, weights: Tensor) -> None:
        self._squares = features.squares(weights)

    def prepare(self, curve: Curve, steps: int) -> None:
        total = curve.bend.sum(0)
        diagonal = curve.ridge + (torch.outer(self._squares, total) if total.dim() else self._squares * total)
        self._diagonal = torch.where(diagonal > 0.0, diagonal, 1.0)

    def solve(self, side: Tensor) -> Tensor:
        return side / self._diagonal


def system_for(features: Features, weights: Tensor, outputs: int | None) -> System:
    """The cheapest that needs few steps of conjugate gradients."""
    if outputs is None:
        return OneFactor(features) if features.width <= _LARGEST else Diagonal(features, weights)
    if features.width * outputs <= _JOINT:
        return JointFactor(features, weights)
    return BlockFactors(features) if features.width <= _BLOCKS else Diagonal(features, weights)


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
    features: Features, system: System, curve: Curve, side: Tensor, mask: Tensor | None, share: float, limit: int
) -> Direction:
    """The solution of ``Hessian step = side``: at once with an exact factor, else by conjugate gradients.

    Args:
        features: X.
        system: prepared for the Hessian.
        curve: the Hessian.
        side: minus the gradient, of theta's shape.
        mask: 1 where theta may move, of its shape, or None.
        share: of the residual, in the system's norm, that may be left, < 1.
        limit: steps at most.

    Source:
        Hestenes and Stiefel, J. Res. NBS 49, 1952; truncation: Dembo and Steihaug, Math. Programming 26, 1983.
    """
    solve = system.solve if mask is None else lambda r: mask * system.solve(r)
    if system.exact and mask is None:
        step = solve(side)
        return Direction(step, features.times(step), 0)
    step, residual = torch.zeros_like(side), side
    image = torch.zeros_like(curve.bend)
    way = z = solve(residual)
    size = first = float((residual * z).sum())
    for k in range(1, limit + 1):
        along = features.times(way)
        product = features.transposed(curve.times(along)) + curve.ridge * way
        product = product if mask is None else mask * product
        steepness = float((way * product).sum())
        if not steepness > 0.0:
            return Direction(step + way if k == 1 else step, image + along if k == 1 else image, k)
        step, image = step + size / steepness * way, image + size / steepness * along
        residual = residual - size / steepness * product
        z = solve(residual)
        before, size = size, float((residual * z).sum())
        if size <= share * share * first:
            break
        way = z + size / before * way
    return Direction(step, image, k)
