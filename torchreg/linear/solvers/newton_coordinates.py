"""Unknowns of a smooth fit: coefficients themselves, or, for fewer rows than columns, those of the row space."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from torchreg.linear.designs.base import Design
from torchreg.linear.designs.inputs import as_design
from torchreg.linear.moments import per_row
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.ridge_pattern import Pattern
from torchreg.linear.solvers.ridge_systems import columns_of, kernel_of

_FEW = 2048  # kept columns up to which a copy of them, and their Gram matrix, cost little
_CUT = 1e-15  # of the largest eigenvalue of a kernel, for each row: less is rounding
_TOGETHER = 16  # points of the row space that are brought back to X together


class Features:
    """Columns of a linear predictor ``eta = X theta[:count] + theta[count]``, the last only with an intercept.

    Args:
        design: X. kept: numbers of the columns that count, (m,), copied where they are few; None for all.
        ones: whether there is a column of ones. weights: of the rows, (n,).

    Shapes:
        theta: (width,) or (width, K); rows: (n,) or (n, K); bend: weights of rows >= 0, (n,).
    """

    def __init__(self, design: Design, kept: Tensor | None, ones: bool, weights: Tensor) -> None:
        self._design, self._kept, self.ones = design, kept, ones
        self.count = design.p if kept is None else len(kept)
        self.width = self.count + int(ones)
        self._copy = None
        if kept is not None and self.count <= min(_FEW, design.n, design.p // 2):
            self._copy = design.selection(weights)
            self._diagonal = self._copy.append(kept).diagonal()

    def times(self, theta: Tensor) -> Tensor:
        """The linear predictor of ``theta``."""
        w = theta[: self.count]
        if self._copy is None and self._kept is not None:
            w = w.new_zeros(self._design.p, *w.shape[1:]).index_copy_(0, self._kept, w)
        product = (self._copy or self._design).times(w)
        return product + theta[self.count] if self.ones else product

    def transposed(self, rows: Tensor) -> Tensor:
        """``X' rows``, and their sum."""
        product = self._columns(rows)
        return torch.cat([product, rows.sum(0, keepdim=True)]) if self.ones else product

    def gram(self, bend: Tensor) -> Tensor:
        """``X' diag(bend) X`` with ones, (width, width)."""
        inner = (self._copy or self._design).gram(bend)
        if self._copy is not None:
            inner = 0.5 * (inner + inner.T)
        elif self._kept is not None:
            inner = inner[self._kept[:, None], self._kept]
        if not self.ones:
            return inner
        edge = self._columns(bend)
        last = torch.cat([edge, bend.sum()[None]])
        return torch.cat([torch.cat([inner, edge[None]]), last[:, None]], 1)

    def squares(self, weights: Tensor) -> Tensor:
        """The diagonal of ``gram(weights)``, (width,); ``weights`` add up to 1."""
        if self._copy is not None:
            inner = self._diagonal
        else:
            design = self._design
            mean, variance = design.moments(weights)
            squares = variance + (mean if design.mean is None else mean - design.mean).square()
            squares = squares if design.scale is None else squares / design.scale.square()
            inner = squares if self._kept is None else squares[self._kept]
        return torch.cat([inner, inner.new_ones(1)]) if self.ones else inner

    def _columns(self, rows: Tensor) -> Tensor:
        if self._copy is not None:
            return self._copy.transposed(rows)
        product = self._design.transposed(rows)
        return product if self._kept is None else product[self._kept]


class Parametrisation(ABC):
    """A way to write coefficients (p,) or (p, K) and intercepts as ``theta``, (width,) or (width, K).

    Attributes:
        design: X, its columns centred where there is an intercept. features: the columns that multiply theta.
        together: how many points are best brought back at once.
    """

    features: Features
    together: int

    def __init__(self, problem: Problem) -> None:
        self.design = centred(problem)
        self._mean = None if self.design is problem.design else self.design.mean

    def inward(self, coef: Tensor, intercept: Tensor) -> Tensor:
        """Theta of coefficients that are zero where they must be."""
        theta = self._inward(coef)
        shift = intercept if self._mean is None else intercept + self._mean @ coef
        return torch.cat([theta, shift[None]]) if self.features.ones else theta

    def outward(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (p, r) and intercepts (r,) of ``theta``, (width, r)."""
        coef = self._outward(theta[: self.features.count])
        if not self.features.ones:
            return coef, theta.new_zeros(theta.shape[1:])
        return coef, theta[-1] if self._mean is None else theta[-1] - self._mean @ coef

    def ridge(self, l2: Tensor) -> Tensor:
        """Strengths of theta for those of the coefficients, ``l2``, (p,) or (p, K)."""
        ridge = self._ridge(l2)
        return torch.cat([ridge, ridge.new_zeros(1, *ridge.shape[1:])]) if self.features.ones else ridge

    @abstractmethod
    def _inward(self, coef: Tensor) -> Tensor:
        """Theta but for the intercept."""

    @abstractmethod
    def _outward(self, theta: Tensor) -> Tensor:
        """Coefficients of theta but for the intercept."""

    @abstractmethod
    def _ridge(self, l2: Tensor) -> Tensor:
        """Strengths of theta but for the intercept."""


class Coefficients(Parametrisation):
    """The coefficients that may be other than zero, ``kept``, (m,), or all for None."""

    together = 1

    def __init__(self, problem: Problem, kept: Tensor | None) -> None:
        super().__init__(problem)
        self._kept = kept
        self.features = Features(self.design, kept, problem.fit_intercept, problem.weights)

    def _inward(self, coef: Tensor) -> Tensor:
        return coef if self._kept is None else coef[self._kept]

    def _outward(self, theta: Tensor) -> Tensor:
        if self._kept is None:
            return theta
        return theta.new_zeros(self.design.p, *theta.shape[1:]).index_copy_(0, self._kept, theta)

    def _ridge(self, l2: Tensor) -> Tensor:
        return self._inward(l2)


class RowSpace(Parametrisation):
    """An orthonormal basis of the space of the rows, in the norm of the ridge, and the columns without ridge.

    A ridge leaves nothing outside of it. ``coef = shares^-1 X' U t / root`` for the eigenvectors U of
    the kernel ``X diag(1 / shares) X'`` and its eigenvalues ``root^2``.
    """

    together = _TOGETHER

    def __init__(self, problem: Problem, pattern: Pattern) -> None:
        super().__init__(problem)
        self._scales, self._free = pattern.scales(problem.weights), pattern.free(problem.weights)
        values, vectors = torch.linalg.eigh(kernel_of(self.design, self._scales))
        alive = values > _CUT * self.design.n * values[-1]
        self._root, self._vectors = values[alive].sqrt(), vectors[:, alive]
        columns = torch.cat([self._vectors * self._root, columns_of(self.design, self._free)], 1)
        self.features = Features(as_design(columns), None, problem.fit_intercept, problem.weights)

    def _inward(self, coef: Tensor) -> Tensor:
        inner = self._vectors.T @ self.design.times(coef.index_fill(0, self._free, 0.0))
        return torch.cat([inner / per_row(self._root, coef), coef[self._free]])

    def _outward(self, theta: Tensor) -> Tensor:
        rank = len(self._root)
        rows = self._vectors @ (theta[:rank] / per_row(self._root, theta))
        coef = per_row(self._scales, theta) * self.design.transposed(rows)
        return coef.index_copy_(0, self._free, theta[rank:])

    def _ridge(self, l2: Tensor) -> Tensor:
        top = torch.where(per_row(self._scales, l2) > 0.0, l2, 0.0).amax(0, keepdim=True)
        rest = top.new_zeros(len(self._free), *top.shape[1:])
        return torch.cat([top.expand(len(self._root), *top.shape[1:]), rest])


def centred(problem: Problem) -> Design:
    """The design with centred columns where there is an intercept: that makes the two nearly independent."""
    design = problem.design
    if not problem.fit_intercept or design.mean is not None:
        return design
    return design.standardised(problem.weights, centre=True, scale=False)
