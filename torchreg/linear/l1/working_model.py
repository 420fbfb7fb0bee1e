"""The second-order model of a loss on a working set of columns, and its penalised minimisers by pivoting."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchreg.linear.certificate import columns
from torchreg.linear.pivoting.solver import PivotSolver
from torchreg.linear.pivoting.subproblem import Subproblem
from torchreg.linear.problem import Problem
from torchreg.penalties import L1Form

_CURVED = 1e-8  # least curvature of a row relative to the largest, so that the matrix is regular
_STIFFER, _SOFTER = 100.0, 0.1  # what the least curvature is multiplied by after a step that had to be cut, or had not
_FULL = 0.5  # of a step: where less of it is taken, the model was too soft
_FACTOR = 5.0  # at most, or its inverse, between the curvature along a step and the model's


class WorkingModel:
    """Columns of a design, the intercept before them if there is one, and one matrix ``X' diag(curvature) X``.

    The matrix is kept from step to step; what it has wrong in curvature along the last step is put right by a factor
    (Barzilai and Borwein, IMA J. Numer. Anal. 8, 1988).

    Args:
        problem: one output, of a datafit with a second derivative.
        eta: linear predictor at which the first matrix is made, (n,).

    Attributes:
        head: 1 if the intercept is the first of the columns, else 0.
        chosen: which columns of X are in the set, (p,).
    """

    def __init__(self, problem: Problem, eta: Tensor) -> None:
        design = problem.design
        self._problem, self._floor, self._factor = problem, _CURVED, 1.0
        self._curvature = self._bend(eta)
        self._columns = design.selection(problem.weights)
        self._solver = PivotSolver(design.device, design.p + 1, min(design.n, design.p + 1))
        self.head = int(problem.fit_intercept)
        self.chosen = torch.zeros(design.p, dtype=torch.bool, device=design.device)
        if self.head:
            total = self._curvature.sum().reshape(1, 1)
            self._solver.append(total, None)

    @property
    def index(self) -> Tensor:
        """Numbers of the columns of X, (size - head,)."""
        return self._columns.index

    @property
    def size(self) -> int:
        """The number of columns, the intercept included."""
        return self._solver.tableau.size

    def add(self, new: Tensor) -> None:
        """More columns of X, none of them in the set."""
        old = len(self.index)
        self._columns.add(new)
        self.chosen[new] = True
        block = self._columns.gram(self._curvature, old)
        if self.head:
            block = torch.cat([self._columns.transposed(self._curvature)[None, old:], block])
        self._solver.append(block, None)

    def begin(self, w: Tensor) -> None:
        """Pivoting starts from these coefficients, (size,)."""
        if self.size:
            self._solver.begin(w)

    def renew(self, eta: Tensor) -> None:
        """The matrix of the second derivatives at a linear predictor, (n,)."""
        self._curvature, self._factor = self._bend(eta), 1.0
        if not self.size:
            return
        gram = self._columns.gram(self._curvature)
        if self.head:
            edge = torch.cat([self._curvature.sum()[None], self._columns.transposed(self._curvature)])
            gram = torch.cat([edge[None], torch.cat([edge[1:, None], gram], 1)])
        self._solver.replace(gram, None)

    def times(self, w: Tensor) -> Tensor:
        """``X w`` with the intercept, (n,)."""
        product = self._columns.times(w[self.head :])
        return product + w[0] if self.head else product

    def transposed(self, rows: Tensor) -> Tensor:
        """``X' rows`` with the intercept, (size,)."""
        product = self._columns.transposed(rows)
        return torch.cat([rows.sum()[None], product]) if self.head else product

    def within(self, form: L1Form) -> L1Form:
        """A penalty of all columns of X as one of the set's, (size,); nothing for the intercept."""
        like = self._curvature.new_empty(len(self.chosen))
        parts = (columns(s, like).expand(len(like))[self.index] for s in (form.l1, form.l2))
        l1, l2 = (torch.cat([part.new_zeros(self.head), part]) for part in parts)
        return L1Form(l1, l2, form.lower)

    def minimiser(self, w: Tensor, g: Tensor, inside: L1Form, *, ridge: bool) -> Tensor:
        """The minimiser of the model around ``w``, whose minus gradient is ``g``, plus the penalty of the set.

        ``ridge`` says whether that has one.
        """
        factor = self._factor
        c = self._solver.tableau.gram @ w + g / factor
        l2 = columns(inside.l2, w) / factor if ridge else None
        solved = self._solver.solve(Subproblem(c, columns(inside.l1, w) / factor, l2, inside.lower))
        return solved.clamp(min=inside.lower)  # which pivoting meets to rounding

    def learn(self, change: Tensor, bent: Tensor, share: float, *, ridge: bool) -> None:
        """What a step teaches.

        Args:
            change: of the linear predictor, had the step been taken in full, (n,).
            bent: change of the rows' derivatives, (n,).
            share: of the step that was taken, > 0.
            ridge: whether the penalty has a ridge, which a factor would turn into another at each step.
        """
        if share < _FULL:
            self.stiffen()
        else:
            self._floor = max(_SOFTER * self._floor, _CURVED)
        if not ridge:
            ratio = float(bent @ change / (share * (self._curvature @ change.square())))
            if 0.0 < ratio < math.inf:
                self._factor = min(max(ratio, 1.0 / _FACTOR), _FACTOR)

    def stiffen(self) -> None:
        """Raise the least curvature, after a step that had to be cut."""
        self._floor = min(_STIFFER * self._floor, 1.0)

    def _bend(self, eta: Tensor) -> Tensor:
        """Weighted second derivatives of the rows, kept away from zero; their bound where none is curved."""
        problem = self._problem
        bend = problem.weights * problem.datafit.hessian(eta, problem.y)
        if not bool(bend.max() > 0.0):
            return problem.weights * (problem.datafit.curvature or 1.0)
        return bend.clamp(min=self._floor * bend.max())
