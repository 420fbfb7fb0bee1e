"""The second derivative of a mean loss over a growing set of coefficients, the intercepts beside them.

For one output it is ``X' diag(curvature) X`` over columns of X. For K outputs, over pairs (j, k) and (l, m) of a column
and an output, it is ``sum_i x_ij B_ikm x_il`` with a K by K matrix ``B_i`` for each row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from torchreg.linear.problem import Problem

_FLAT = 1e-12  # of the largest curvature in the intercepts: a direction in which nothing changes


class Hessian(ABC):
    """A growing set of coefficients, its part of the linear predictor, and the second derivative over it.

    Attributes:
        index: numbers of the coefficients in the order in which they came, (m,).
    """

    index: Tensor

    @abstractmethod
    def add(self, new: Tensor) -> None:
        """Add coefficients by their numbers, (k,)."""

    @abstractmethod
    def bend(self, eta: Tensor, floor: float) -> None:
        """Take the second derivative at ``eta``, kept away from zero by ``floor`` of its largest entry."""

    @abstractmethod
    def block(self, start: int) -> Tensor:
        """The second derivative of all against those from ``start`` on, (m, m - start)."""

    @abstractmethod
    def edge(self, start: int) -> Tensor:
        """The second derivative of those from ``start`` on against the intercepts, (m - start, outputs)."""

    @abstractmethod
    def inverse(self) -> Tensor:
        """The inverse of the second derivative in the intercepts, nothing where these are flat, (outputs, outputs)."""

    @abstractmethod
    def along(self, change: Tensor) -> Tensor:
        """The second derivative along a change of the linear predictor, 0-d."""

    @abstractmethod
    def times(self, w: Tensor) -> Tensor:
        """What coefficients (m,) contribute to the linear predictor, (n,) or (n, K)."""

    @abstractmethod
    def transposed(self, rows: Tensor) -> Tensor:
        """``sum_i x_ij rows_i``, or ``rows_ik`` for pairs (j, k), (m,)."""


class ColumnHessian(Hessian):
    """The second derivative over columns of X.

    Args:
        problem: one output, of a datafit with a second derivative.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._columns = problem.design.selection(problem.weights)

    @property
    def index(self) -> Tensor:  # type: ignore[override]
        return self._columns.index

    def add(self, new: Tensor) -> None:
        self._columns.add(new)

    def bend(self, eta: Tensor, floor: float) -> None:
        """Where no row is curved its bound stands in."""
        problem = self._problem
        bend = problem.weights * problem.datafit.hessian(eta, problem.y)
        if bool(bend.max() > 0.0):
            self._curvature = bend.clamp(min=floor * bend.max())
        else:
            self._curvature = problem.weights * (problem.datafit.curvature or 1.0)

    def block(self, start: int) -> Tensor:
        return self._columns.gram(self._curvature, start)

    def edge(self, start: int) -> Tensor:
        return self._columns.transposed(self._curvature)[start:, None]

    def inverse(self) -> Tensor:
        return 1.0 / self._curvature.sum().reshape(1, 1)

    def along(self, change: Tensor) -> Tensor:
        return self._curvature @ change.square()

    def times(self, w: Tensor) -> Tensor:
        return self._columns.times(w)

    def transposed(self, rows: Tensor) -> Tensor:
        return self._columns.transposed(rows)


class PairHessian(Hessian):
    """The second derivative over pairs of a column of X and an output, numbered ``column * K + output``.

    Args:
        problem: K outputs, of a datafit with a second derivative.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem, self._outputs = problem, int(problem.K or 1)
        self._sets = [problem.design.selection(problem.weights) for _ in range(self._outputs)]
        self.index = torch.zeros(0, dtype=torch.long, device=problem.design.device)
        self._places = [self.index for _ in self._sets]
        self._second: Callable[[Tensor], Tensor] = torch.zeros_like
        self._floor = 0.0

    def add(self, new: Tensor) -> None:
        places = torch.arange(len(self.index), len(self.index) + len(new), device=new.device)
        self.index = torch.cat([self.index, new])
        for output in range(self._outputs):
            mine = new % self._outputs == output
            if bool(mine.any()):
                self._sets[output].add(new[mine] // self._outputs)
                self._places[output] = torch.cat([self._places[output], places[mine]])

    def bend(self, eta: Tensor, floor: float) -> None:
        """The floor is added to every row."""
        problem = self._problem
        self._second = problem.datafit.hessian_map(eta, problem.y)
        self._floor = floor * float(problem.datafit.hessian(eta, problem.y).max())

    def _rows(self, output: int) -> Tensor:
        """What one output's predictor does to the slopes of all, times the weights of the rows, (n, K)."""
        unit = self._problem.weights.new_zeros(self._outputs)
        unit[output] = 1.0
        rows = self._second(unit.expand(len(self._problem.weights), -1))
        return (rows + self._floor * unit).mul_(self._problem.weights[:, None])

    def block(self, start: int) -> Tensor:
        block = self._problem.weights.new_zeros(len(self.index), len(self.index) - start)
        for output, (part, place) in enumerate(zip(self._sets, self._places, strict=True)):
            fresh = (place >= start).nonzero().flatten()
            if not len(fresh):
                continue
            rows, columns = self._rows(output), part.times(_units(fresh, len(place), block))
            for other in range(output + 1 if start == 0 else self._outputs):
                products = self._sets[other].transposed(columns * rows[:, other, None])
                block[self._places[other][:, None], place[fresh] - start] = products
                if start == 0 and other < output:
                    block[place[:, None], self._places[other]] = products.T
        return block

    def edge(self, start: int) -> Tensor:
        edge = self._problem.weights.new_zeros(len(self.index), self._outputs)
        for output, (part, place) in enumerate(zip(self._sets, self._places, strict=True)):
            if len(place) and int(place[-1]) >= start:
                edge[place] = part.transposed(self._rows(output))
        return edge[start:]

    def inverse(self) -> Tensor:
        square = torch.stack([self._rows(k).sum(0) for k in range(self._outputs)])
        values, vectors = torch.linalg.eigh(square)
        kept = values > _FLAT * values[-1]
        return (vectors * torch.where(kept, 1.0 / torch.where(kept, values, 1.0), 0.0)) @ vectors.T

    def along(self, change: Tensor) -> Tensor:
        curved = change * (self._second(change) + self._floor * change)
        return self._problem.weights @ curved.sum(1)

    def times(self, w: Tensor) -> Tensor:
        columns = [part.times(w[place]) for part, place in zip(self._sets, self._places, strict=True)]
        return torch.stack(columns, 1)

    def transposed(self, rows: Tensor) -> Tensor:
        product = rows.new_zeros(len(self.index))
        for part, place, row in zip(self._sets, self._places, rows.T.contiguous(), strict=True):
            product[place] = part.transposed(row)
        return product


def _units(places: Tensor, size: int, like: Tensor) -> Tensor:
    """Columns ``places`` of the identity, (size, k)."""
    units = like.new_zeros(size, len(places))
    units[places, torch.arange(len(places), device=like.device)] = 1.0
    return units
