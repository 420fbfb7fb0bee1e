"""A working set for several outputs: pairs of a column of X and an output, and the second derivative over them.

The second derivative of the mean loss in the coefficients of pairs (j, k) and (l, m) is ``sum_i x_ij B_ikm x_il``, with
a K by K matrix ``B_i`` for each row; intercepts are profiled out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.designs.base import Design
from torchreg.linear.problem import Problem
from torchreg.penalties import L1Form

_FLAT = 1e-12  # of the largest curvature in the intercepts: a direction in which nothing changes


@dataclass(frozen=True)
class Strengths:
    """A penalty of type L1 on each of some pairs: ``l1``, ``l2``, (m,), and ``lower``, -inf or 0."""

    l1: Tensor
    l2: Tensor
    lower: float

    @property
    def form(self) -> L1Form:
        """As certificates take it."""
        return L1Form(self.l1, self.l2, self.lower)

    def at(self, index: Tensor) -> Strengths:
        """Those of some pairs."""
        return Strengths(self.l1[index], self.l2[index], self.lower)

    def value(self, w: Tensor) -> Tensor:
        """The penalty of coefficients, 0-d."""
        return (self.l1 * w.abs() + self.l2 * w.square() / 2.0).sum()

    def reach(self, g: Tensor) -> Tensor:
        """The size of correlations that counts against ``l1``."""
        return g if self.lower == 0.0 else g.abs()


class Pairs:
    """A growing set of pairs.

    Args:
        problem: K outputs, of a datafit with a second derivative.
        design: its columns, centred where there is an intercept.

    Attributes:
        index: numbers of the pairs, ``column * K + output``, in the order in which they came, (m,).
    """

    def __init__(self, problem: Problem, design: Design) -> None:
        self._problem = problem
        self._outputs = int(problem.K or 1)
        self._sets = [design.selection(problem.weights) for _ in range(self._outputs)]
        nothing = torch.zeros(0, dtype=torch.long, device=design.device)
        self._places = [nothing for _ in self._sets]
        self.index = nothing
        self._second: Callable[[Tensor], Tensor] = torch.zeros_like
        self._floor = 0.0
        self._edge = problem.weights.new_zeros(0, self._outputs)
        self._inverse = problem.weights.new_zeros(self._outputs, self._outputs)

    def append(self, new: Tensor) -> Tensor:
        """Add pairs; returns the second derivative of all with the new ones, (m + k, k)."""
        start = len(self.index)
        self.index = torch.cat([self.index, new])
        places = torch.arange(start, len(self.index), device=new.device)
        for output in range(self._outputs):
            mine = new % self._outputs == output
            if bool(mine.any()):
                self._sets[output].append(new[mine] // self._outputs)
                self._places[output] = torch.cat([self._places[output], places[mine]])
        self._edge = torch.cat([self._edge, self._edge.new_zeros(len(new), self._outputs)])
        return self._block(start)

    def bend(self, eta: Tensor, floor: float) -> None:
        """Take the second derivative at ``eta``, with ``floor`` of the largest curvature added to every row.

        Before anything else that depends on it, `matrix` must be asked for.
        """
        problem = self._problem
        self._second = problem.datafit.hessian_map(eta, problem.y)
        self._floor = floor * float(problem.datafit.hessian(eta, problem.y).max())
        if problem.fit_intercept:
            self._inverse = _inverted(torch.stack([self._rows(k).sum(0) for k in range(self._outputs)]))

    def _rows(self, output: int) -> Tensor:
        """What one output's predictor does to the slopes of all, times the weights of the rows, (n, K)."""
        unit = self._problem.weights.new_zeros(self._outputs)
        unit[output] = 1.0
        rows = self._second(unit.expand(len(self._problem.weights), -1))
        return (rows + self._floor * unit).mul_(self._problem.weights[:, None])

    def matrix(self) -> Tensor:
        """The second derivative over all pairs, (m, m)."""
        return self._block(0)

    def times(self, w: Tensor) -> Tensor:
        """What coefficients (m,) contribute to the linear predictor, (n, K)."""
        columns = [part.times(w[place]) for part, place in zip(self._sets, self._places, strict=True)]
        return torch.stack(columns, 1)

    def transposed(self, rows: Tensor) -> Tensor:
        """``sum_i x_ij rows_ik`` for each pair (j, k), (m,)."""
        product = rows.new_zeros(len(self.index))
        for part, place, row in zip(self._sets, self._places, rows.T.contiguous(), strict=True):
            product[place] = part.transposed(row)
        return product

    def profiled(self, g: Tensor, top: Tensor) -> Tensor:
        """Correlations (m,) after the step of the intercepts that their own, (K,), ask for."""
        return g - self._edge @ (self._inverse @ top)

    def shift(self, top: Tensor, way: Tensor) -> Tensor:
        """The step of the intercepts, (K,), that goes with a step ``way`` of the coefficients, (m,)."""
        return self._inverse @ (top - self._edge.T @ way)

    def _block(self, start: int) -> Tensor:
        """All pairs against those from ``start`` on, the intercepts profiled out."""
        block = self._edge.new_zeros(len(self.index), len(self.index) - start)
        for output, (part, place) in enumerate(zip(self._sets, self._places, strict=True)):
            fresh = (place >= start).nonzero().flatten()
            if len(fresh):
                rows, columns = self._rows(output), part.times(_units(fresh, len(place), block))
                if self._problem.fit_intercept:
                    self._edge[place[fresh]] = columns.T @ rows
                for other in range(output + 1 if start == 0 else self._outputs):
                    products = self._sets[other].transposed(columns * rows[:, other, None])
                    block[self._places[other][:, None], place[fresh] - start] = products
                    if start == 0 and other < output:
                        block[place[:, None], self._places[other]] = products.T
        return block.sub_(self._edge @ (self._inverse @ self._edge[start:].T))


def _units(places: Tensor, size: int, like: Tensor) -> Tensor:
    """Columns ``places`` of the identity, (size, k)."""
    units = like.new_zeros(size, len(places))
    units[places, torch.arange(len(places), device=like.device)] = 1.0
    return units


def _inverted(square: Tensor) -> Tensor:
    """The inverse where the curvature is not rounding, nothing where it is."""
    values, vectors = torch.linalg.eigh(square)
    kept = values > _FLAT * values[-1]
    return (vectors * torch.where(kept, 1.0 / torch.where(kept, values, 1.0), 0.0)) @ vectors.T
