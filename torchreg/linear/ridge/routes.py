"""Ways to solve least squares with a ridge for many strengths, and what makes them share one matrix.

The products X'X and XX' keep half the digits of X: where its singular values differ by more than 1e7, only its own
singular value decomposition tells the small ones from rounding. It costs many times as much.

Source: Hoerl and Kennard, Technometrics 12, 1970; fewer rows than columns: Saunders, Gammerman and Vovk, ICML 1998;
singular values: Golub and Van Loan, Matrix Computations, 2013, section 6.1.4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchreg.linear.moments import Moments
from torchreg.linear.problem import Problem
from torchreg.linear.ridge.kernel import kernel_of
from torchreg.linear.ridge.shifted import shifted

_REPAIRS = 5  # looks at the residual, each but the last followed by a correction
_EXACT = 4e-15  # of the largest entry of an equation's sides: a residual that is rounding
_SAME = 1e-12  # relative difference of shares that is rounding
_NULL = torch.finfo(torch.float64).eps  # of the largest singular value, for each row or column: less is rounding
_SMALL = 1 << 31  # multiplications: singular values of a matrix that takes more of them to square are not computed
_DENSE = 1 << 24  # entries of such a matrix


@dataclass(frozen=True)
class Pattern:
    """What the systems of some strengths have in common.

    Attributes:
        kept: columns that may be other than zero, (m,); None for all.
        shares: of the strongest ridge, for each kept column, (m,); None where all are the same.
    """

    kept: Tensor | None
    shares: Tensor | None

    def fits(self, other: Pattern) -> bool:
        """Whether the same matrix serves both."""
        return _alike(self.kept, other.kept) and _alike(self.shares, other.shares)


def pattern_of(l1: Tensor, l2: Tensor) -> tuple[Pattern, float]:
    """The pattern and the strongest ridge of one output; ``l1`` and ``l2`` are 0-d or (p,)."""
    kept = None if bool((l1 == 0.0).all()) else (l1 == 0.0).reshape(-1).nonzero().flatten()
    if l2.dim() and kept is not None:
        l2 = l2[kept]
    if not l2.dim() or not len(l2):
        return Pattern(kept, None), float(l2.sum())
    top = float(l2.max())
    return Pattern(kept, None if bool((l2 == top).all()) else l2 / top), top


class Solved(NamedTuple):
    """Solutions of some strengths and targets, one a column.

    Attributes:
        w: coefficients, (p, r). g: ``X' W (y - X w)``, 0 at columns that are forced to zero, (p, r).
        gain: how much less the loss is than at zero, (r,).
    """

    w: Tensor
    g: Tensor
    gain: Tensor


class Route(ABC):
    """A way to solve strengths of one pattern."""

    @abstractmethod
    def solve(self, strengths: Tensor, targets: Tensor) -> Solved:
        """Solutions for ``strengths`` (r,), each with its target of ``targets`` (r,)."""


class Forced(Route):
    """Where no column is kept: every coefficient is zero.

    Args:
        like: of the dtype and on the device of the solutions. p: the number of all columns.
    """

    def __init__(self, like: Tensor, p: int) -> None:
        self._like, self._p = like, p

    def solve(self, strengths: Tensor, targets: Tensor) -> Solved:
        nothing = self._like.new_zeros(self._p, len(strengths))
        return Solved(nothing, nothing, self._like.new_zeros(len(strengths)))


class ByColumns(Route):
    """With the Gram matrix of the kept columns: ``(G + s D) u = c`` for ``u = root * w``.

    Args:
        moments: of the kept columns. pattern: which they are, and their shares.
        count: strengths to come. least: the weakest of them. p: the number of all columns.
    """

    def __init__(self, moments: Moments, pattern: Pattern, count: int, least: float, p: int) -> None:
        self._kept, self._p = pattern.kept, p
        self._gram, self._cross = moments.gram, as_table(moments.cross)
        self._shares = self._gram.new_ones(1) if pattern.shares is None else pattern.shares
        ridged = self._shares > 0.0
        self._root = torch.where(ridged, self._shares, 1.0).sqrt()[:, None]
        square = self._gram if pattern.shares is None else self._gram / self._root / self._root.T
        self._system = shifted(square, None if bool(ridged.all()) else ridged, count, least)

    def solve(self, strengths: Tensor, targets: Tensor) -> Solved:
        cross = self._cross[:, targets]
        ridge = self._shares[:, None] * strengths
        w = self._system.solve(strengths, cross / self._root) / self._root
        for attempt in range(_REPAIRS):
            product = self._gram @ w
            g = cross - product
            residual = g - ridge * w
            if attempt == _REPAIRS - 1 or bool((residual.abs() <= _EXACT * _size(cross, product)).all()):
                break
            w = w + self._system.solve(strengths, residual / self._root) / self._root
        gain = (w * (2.0 * cross - product)).sum(0) / 2.0
        return Solved(self._spread(w), self._spread(g), gain)

    def _spread(self, rows: Tensor) -> Tensor:
        return rows if self._kept is None else rows.new_zeros(self._p, rows.shape[1]).index_copy_(0, self._kept, rows)


class ByRows(Route):
    """With the kernel of the rows: ``(K + s 1) a = sqrt(weights) y``, where every kept column has a ridge.

    Args:
        problem: the data. pattern: which columns are kept, and their shares, all positive.
        count: strengths to come. least: the weakest of them.
    """

    def __init__(self, problem: Problem, pattern: Pattern, count: int, least: float) -> None:
        self._design, self._root = problem.design, problem.weights.sqrt()[:, None]
        self._y = self._root * as_table(problem.y)
        scales = problem.weights.new_ones(problem.design.p)
        if pattern.kept is not None:
            scales = torch.zeros_like(scales).index_fill_(0, pattern.kept, 1.0)
        if pattern.shares is not None:
            scales[scales > 0.0] = 1.0 / pattern.shares
        kernel = kernel_of(problem.design, scales).mul_(self._root).mul_(self._root.T)
        self._scales = scales[:, None]
        self._system = shifted(kernel, None, count, least)

    def solve(self, strengths: Tensor, targets: Tensor) -> Solved:
        y = self._y[:, targets]
        a = self._system.solve(strengths, y)
        for attempt in range(_REPAIRS):
            w = self._scales * self._design.transposed(self._root * a)
            fitted = self._root * self._design.times(w)
            residual = y - fitted - strengths * a
            if attempt == _REPAIRS - 1 or bool((residual.abs() <= _EXACT * _size(y, fitted)).all()):
                break
            a = a + self._system.solve(strengths, residual)
        g = torch.where(self._scales > 0.0, self._design.transposed(self._root * (y - fitted)), 0.0)
        return Solved(w, g, (fitted * (2.0 * y - fitted)).sum(0) / 2.0)


class BySingularValues(Route):
    """With the rows themselves: ``A = sqrt(weights) X / sqrt(shares)``, dense, where every kept column has a ridge.

    Args:
        problem: the data. pattern: which columns are kept, and their shares, all positive.
    """

    def __init__(self, problem: Problem, pattern: Pattern) -> None:
        self._design, self._kept, self._root = problem.design, pattern.kept, problem.weights.sqrt()[:, None]
        self._y = self._root * as_table(problem.y)
        rows = self._root * _rows_of(problem)
        rows = rows if pattern.kept is None else rows[:, pattern.kept]
        self._scale = rows.new_ones(1, 1) if pattern.shares is None else pattern.shares.sqrt()[:, None]
        self._rows = rows / self._scale.T
        self._left, self._values, self._right = torch.linalg.svd(self._rows, full_matrices=False)
        self._cut = _NULL * max(self._rows.shape) * self._values[0]

    def solve(self, strengths: Tensor, targets: Tensor) -> Solved:
        y = self._y[:, targets]
        values = self._values[:, None]
        held = torch.hypot(values, strengths.sqrt()) > self._cut
        curvature = torch.where(held, values.square() + strengths, 1.0)
        u = self._right.T @ torch.where(held, values * (self._left.T @ y) / curvature, 0.0)
        best, least = u, torch.full_like(strengths, torch.inf)
        for _ in range(_REPAIRS):
            residual = self._rows.T @ (y - self._rows @ u) - strengths * u
            size = residual.square().sum(0)
            best, least = torch.where(size < least, u, best), torch.minimum(size, least)
            u = u + self._right.T @ torch.where(held, (self._right @ residual) / curvature, 0.0)
        return self._outward(best / self._scale, y)

    def _outward(self, w: Tensor, y: Tensor) -> Solved:
        """Coefficients of all columns, with correlations from the design itself."""
        if self._kept is not None:
            w = w.new_zeros(self._design.p, w.shape[1]).index_copy_(0, self._kept, w)
        fitted = self._root * self._design.times(w)
        g = self._design.transposed(self._root * (y - fitted))
        if self._kept is not None:
            g = torch.zeros_like(g).index_copy_(0, self._kept, g[self._kept])
        return Solved(w, g, (fitted * (2.0 * y - fitted)).sum(0) / 2.0)


def singular_values_pay(problem: Problem, pattern: Pattern) -> bool:
    """Whether the matrix is small enough to decompose, and has a ridge on every column."""
    n, p = problem.design.n, problem.design.p
    ridged = pattern.shares is None or bool((pattern.shares > 0.0).all())
    return ridged and n * p <= _DENSE and n * p * min(n, p) <= _SMALL


def _rows_of(problem: Problem) -> Tensor:
    """The columns as the engine sees them, dense, (n, p)."""
    design, like = problem.design, problem.weights
    if design.n < design.p:
        return design.transposed(torch.eye(design.n, dtype=like.dtype, device=like.device)).T
    return design.times(torch.eye(design.p, dtype=like.dtype, device=like.device))


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool(torch.allclose(one.double(), other.double(), rtol=_SAME, atol=0.0))


def _size(one: Tensor, other: Tensor) -> Tensor:
    """The largest entry of each column, (r,): what rounding is relative to."""
    return torch.maximum(one.abs(), other.abs()).amax(0)


def as_table(rows: Tensor) -> Tensor:
    """Targets or correlations as columns, (n, K)."""
    return rows if rows.dim() == 2 else rows[:, None]
