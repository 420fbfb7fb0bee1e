"""The second-order model of a loss on a growing working set of columns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor

from torchreg.linear.newton.conditions import Conditions
from torchreg.linear.problem import Problem

C = TypeVar("C", bound=Conditions)

_CURVED = 1e-8  # least curvature of a row relative to the largest, so that the matrix is regular
_STIFFER, _SOFTER = 100.0, 0.1  # what the least curvature is multiplied by after a step that had to be cut, or had not
_FULL = 0.5  # of a step: where less of it is taken, the model was too soft
_FACTOR = 5.0  # at most, or its inverse, between the curvature along a step and the model's


class WorkingModel(ABC, Generic[C]):
    """Columns of a design, the intercept before them if there is one, and one matrix ``X' diag(curvature) X``.

    The matrix is kept from step to step; what it has wrong in curvature along the last step is put right by a factor
    (Barzilai and Borwein, IMA J. Numer. Anal. 8, 1988).

    Args:
        problem: one output, of a datafit with a second derivative.
        eta: linear predictor at which the first matrix is made, (n,).

    Attributes:
        patience: a step may leave this share of the violation, and the matrix is kept.
        head: 1 if the intercept is the first of the columns, else 0.
        chosen: which columns of X are in the set, (p,).
        curvature: weighted second derivatives of the rows that the matrix is made of, (n,).
        columns: of X.
        factor: of the matrix.
    """

    patience: float

    def __init__(self, problem: Problem, eta: Tensor) -> None:
        design = problem.design
        self._problem, self._floor, self.factor = problem, _CURVED, 1.0
        self.curvature = self._bend(eta)
        self.columns = design.selection(problem.weights)
        self.head = int(problem.fit_intercept)
        self.chosen = torch.zeros(design.p, dtype=torch.bool, device=design.device)

    @abstractmethod
    def begin(self, w: Tensor) -> None:
        """Steps will start from these coefficients, (size,)."""

    @abstractmethod
    def minimiser(self, w: Tensor, g: Tensor, inside: C) -> Tensor:
        """The minimiser of the model around ``w``, whose minus gradient is ``g``, plus the penalty of the set."""

    @abstractmethod
    def _together(self, needed: Tensor) -> Tensor:
        """Numbers of the columns that join where those of a mask are needed, in the order in which they join."""

    @abstractmethod
    def _grown(self, old: int) -> None:
        """The columns from number ``old`` on are new to the matrix."""

    @abstractmethod
    def _renewed(self) -> None:
        """Make the matrix of the present curvature."""

    @property
    def index(self) -> Tensor:
        """Numbers of the columns of X, (size - head,)."""
        return self.columns.index

    @property
    def size(self) -> int:
        """The number of columns, the intercept included."""
        return self.head + len(self.index)

    def add(self, needed: Tensor) -> None:
        """The columns of a mask (p,) join the set, but for those that are in it."""
        new = self._together(needed & ~self.chosen)
        if len(new):
            old = len(self.index)
            self.columns.add(new)
            self.chosen[new] = True
            self._grown(old)

    def renew(self, eta: Tensor) -> None:
        """The matrix of the second derivatives at a linear predictor, (n,)."""
        self.curvature, self.factor = self._bend(eta), 1.0
        if self.size:
            self._renewed()

    def times(self, w: Tensor) -> Tensor:
        """``X w`` with the intercept, (n,)."""
        product = self.columns.times(w[self.head :])
        return product + w[0] if self.head else product

    def transposed(self, rows: Tensor) -> Tensor:
        """``X' rows`` with the intercept, (size,)."""
        product = self.columns.transposed(rows)
        return torch.cat([rows.sum()[None], product]) if self.head else product

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
            ratio = float(bent @ change / (share * (self.curvature @ change.square())))
            if 0.0 < ratio < math.inf:
                self.factor = min(max(ratio, 1.0 / _FACTOR), _FACTOR)

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
