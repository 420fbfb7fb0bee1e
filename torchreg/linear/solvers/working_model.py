"""The second-order model of a loss on a growing working set of coefficients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Generic

import torch
from torch import Tensor

from torchreg.linear.objective.entry_terms import EntryTerms
from torchreg.linear.objective.penalty_terms import C
from torchreg.linear.pivoting.solver import PivotSolver
from torchreg.linear.pivoting.subproblem import Subproblem
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.hessian import ColumnHessian, PairHessian

_CURVED = 1e-8  # least curvature of a row relative to the largest, so that the matrix is regular
_STIFFER, _SOFTER = 100.0, 0.1  # what the least curvature is multiplied by after a step that had to be cut, or had not
_FULL = 0.5  # of a step: where less of it is taken, the model was too soft
_FACTOR = 5.0  # at most, or its inverse, between the curvature along a step and the model's


class WorkingModel(ABC, Generic[C]):
    """The intercepts, if there are any, and a set of coefficients, with one matrix of second derivatives.

    The matrix is that of the coefficients, the intercepts profiled out of it. It is kept from step to step; what it has
    wrong in curvature along the last step is put right by a factor (Barzilai and Borwein, IMA J. Numer. Anal. 8, 1988).
    Vectors ``w`` are (head + m,), the intercepts first.

    Args:
        problem: data, with a datafit that has a second derivative.
        eta: linear predictor at which the first matrix is made, (n,) or (n, K).

    Attributes:
        patience: a step may leave this share of the violation, and the matrix is kept.
        head: how many intercepts there are.
        chosen: which of all coefficients are in the set, (p,) or (p K,).
        factor: of the matrix.
    """

    patience: float

    def __init__(self, problem: Problem, eta: Tensor) -> None:
        self._problem, self._floor, self.factor = problem, _CURVED, 1.0
        self.head = (problem.K or 1) if problem.fit_intercept else 0
        self.chosen = torch.zeros(problem.no_coef().numel(), dtype=torch.bool, device=problem.design.device)
        self._restart(eta)

    @abstractmethod
    def begin(self, w: Tensor) -> None:
        """Steps will start from these coefficients, (m,)."""

    @abstractmethod
    def _minimised(self, w: Tensor, slope: Tensor, inside: C) -> Tensor:
        """The minimiser of the model around coefficients ``w`` plus the penalty of the set, (m,) each.

        Args:
            w: the coefficients.
            slope: minus the model's gradient there, over the factor.
            inside: the penalty.
        """

    @abstractmethod
    def _together(self, needed: Tensor) -> Tensor:
        """Numbers of the coefficients that join where those of a mask are needed, in the order in which they join."""

    @abstractmethod
    def _emptied(self) -> None:
        """The matrix has no coefficients."""

    @abstractmethod
    def _grown(self, block: Tensor, old: int, terms: C) -> None:
        """The coefficients from number ``old`` on are new to the matrix: their columns of it, (m, m - old)."""

    @abstractmethod
    def _renewed(self, block: Tensor, inside: C) -> None:
        """All coefficients have another matrix, (m, m)."""

    @property
    def index(self) -> Tensor:
        """Numbers of the coefficients, (m,)."""
        return self._hessian.index

    @property
    def size(self) -> int:
        """The number of intercepts and coefficients."""
        return self.head + len(self.index)

    def add(self, needed: Tensor, terms: C) -> None:
        """The coefficients of a mask join the set, but for those that are in it.

        Args:
            needed: of all coefficients.
            terms: the penalty of all.
        """
        self._join(self._together(needed & ~self.chosen), terms)

    def keep(self, near: Tensor, eta: Tensor, terms: C) -> None:
        """Forget the coefficients of the set outside of a mask (m,), and renew the matrix at a linear predictor."""
        kept = self.index[near]
        self.chosen.zero_()
        self._restart(eta)
        self._join(kept, terms)

    def _restart(self, eta: Tensor) -> None:
        self._hessian = ColumnHessian(self._problem) if self._problem.K is None else PairHessian(self._problem)
        self._bend(eta)
        self._edge = self._problem.weights.new_zeros(0, self.head)
        self._emptied()

    def _join(self, new: Tensor, terms: C) -> None:
        if len(new):
            old = len(self.index)
            self._hessian.add(new)
            self.chosen[new] = True
            self._grown(self._profiled(old), old, terms)

    def renew(self, eta: Tensor, inside: C) -> None:
        """The matrix of the second derivatives at a linear predictor, for a penalty of the set."""
        self._bend(eta)
        self._edge = self._edge[:0]
        if len(self.index):
            self._renewed(self._profiled(0), inside)

    def _bend(self, eta: Tensor) -> None:
        self._hessian.bend(eta, self._floor)
        self.factor = 1.0
        if self.head:
            self._inverse = self._hessian.inverse()

    def _profiled(self, start: int) -> Tensor:
        """The matrix of all coefficients against those from ``start`` on, which are new, without the intercepts."""
        block = self._hessian.block(start)
        if self.head:
            self._edge = torch.cat([self._edge, self._hessian.edge(start)])
            block.addmm_(self._edge @ self._inverse, self._edge[start:].T, alpha=-1.0)
        return block

    def times(self, w: Tensor) -> Tensor:
        """The linear predictor without an offset, (n,) or (n, K)."""
        product = self._hessian.times(w[self.head :])
        return product + w[: self.head] if self.head else product

    def transposed(self, rows: Tensor) -> Tensor:
        """Sums over the rows, and those of the rows times columns, (head + m,)."""
        product = self._hessian.transposed(rows)
        return torch.cat([rows.sum(0).reshape(-1), product]) if self.head else product

    def minimiser(self, w: Tensor, g: Tensor, inside: C) -> Tensor:
        """The minimiser of the model around ``w``, whose minus gradient is ``g``, plus the penalty of the set."""
        head, old, pull = self.head, w[self.head :], g / self.factor
        if not head:
            return self._minimised(old, pull, inside) if len(old) else old
        rest, fresh = self._inverse @ pull[:head], old
        if len(old):
            fresh = self._minimised(old, pull[head:] - self._edge @ rest, inside)
            rest = rest - self._inverse @ (self._edge.T @ (fresh - old))
        return torch.cat([w[:head] + rest, fresh])

    def gain(self, top: Tensor) -> Tensor:
        """What the model falls by its intercepts' best step, twice, 0-d, for minus the gradient in them, (head,)."""
        return top @ self._inverse @ top if self.head else top.sum()

    def learn(self, change: Tensor, bent: Tensor, share: float, *, ridge: bool) -> None:
        """What a step teaches.

        Args:
            change: of the linear predictor, had the step been taken in full, (n,) or (n, K).
            bent: change of the rows' derivatives, of its shape.
            share: of the step that was taken, > 0.
            ridge: whether the penalty has a ridge, which a factor would turn into another at each step.
        """
        if share < _FULL:
            self.stiffen()
        else:
            self._floor = max(_SOFTER * self._floor, _CURVED)
        if not ridge:
            ratio = float((bent * change).sum() / (share * self._hessian.along(change)))
            if 0.0 < ratio < math.inf:
                self.factor = min(max(ratio, 1.0 / _FACTOR), _FACTOR)

    def stiffen(self) -> None:
        """Raise the least curvature, after a step that had to be cut."""
        self._floor = min(_STIFFER * self._floor, 1.0)


class PivotModel(WorkingModel[EntryTerms]):
    """A working model with a penalty of type L1, whose minimisers are exact, by pivoting."""

    def __init__(self, problem: Problem, eta: Tensor) -> None:
        super().__init__(problem, eta)
        self.patience = 0.1 if problem.K is None else 0.2  # K^2 products of columns cost more steps

    def begin(self, w: Tensor) -> None:
        if len(w):
            self._solver.begin(w)

    def _minimised(self, w: Tensor, slope: Tensor, inside: EntryTerms) -> Tensor:
        c, l2 = self._solver.tableau.gram @ w + slope, inside.l2
        l2 = None if l2 is None else l2 / self.factor
        solved = self._solver.solve(Subproblem(c, inside.l1 / self.factor, l2, inside.lower))
        return solved.clamp(min=inside.lower)  # which pivoting meets to rounding; a copy: the solver goes on in its own

    def _together(self, needed: Tensor) -> Tensor:
        return needed.nonzero().flatten()

    def _emptied(self) -> None:
        size = len(self.chosen)
        self._solver = PivotSolver(self.chosen.device, size, min(size, self._problem.y.numel()))

    def _grown(self, block: Tensor, old: int, terms: EntryTerms) -> None:
        self._solver.append(block, terms.within(self.index[old:]).l2)

    def _renewed(self, block: Tensor, inside: EntryTerms) -> None:
        self._solver.replace(block, inside.l2)
