"""Ways to solve least squares with a ridge for many strengths at once, each with one matrix for all of them.

The products X'X and XX' keep half the digits of X: where its singular values differ by more than 1e7, only its own
singular value decomposition tells the small ones from rounding. It costs many times as much.

Source: Hoerl and Kennard, Technometrics 12, 1970; fewer rows than columns: Saunders, Gammerman and Vovk, ICML 1998;
columns without a ridge: Frisch and Waugh, Econometrica 1, 1933; singular values: Golub and Van Loan, Matrix
Computations, 2013, section 6.1.4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchreg.linear.designs.base import Design
from torchreg.linear.moments import Moments
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.linear_algebra import safe_cholesky
from torchreg.linear.solvers.ridge_pattern import Pattern

_REPAIRS = 5  # looks at the residual, each but the last followed by a correction
_EXACT = 4e-15  # of the largest entry of an equation's sides: a residual that is rounding
_ROUNDING = torch.finfo(torch.float64).eps
_CUT = 4.0 * _ROUNDING  # of the largest eigenvalue, for each row: less is rounding
_MANY = 12  # Cholesky factorisations that cost as much as one eigendecomposition; measured
_LIFT = 1e-9  # of the mean diagonal: a ridge for columns that have none; refinement takes it off again
_ROOM = 1 << 22  # entries of a strip of rows, written as columns: 32 MiB
_WIDEST = 256  # rows of a strip: more would be multiplied with themselves twice


class Solved(NamedTuple):
    """Solutions of some strengths and targets, one a column.

    Attributes:
        w: coefficients of the kept columns, (m, r).
        slope: ``X' W (y - X w) - ridge * w``, which is zero at the minimum, (m, r).
        gain: how much less the loss is than at zero, (r,).
    """

    w: Tensor
    slope: Tensor
    gain: Tensor


class ByColumns:
    """With the Gram matrix of the kept columns: ``(G + s D) u = c`` for ``u = root * w``.

    Args:
        moments: of the kept columns. pattern: which they are, and their shares.
        count: strengths to come. least: the weakest of them.
    """

    def __init__(self, moments: Moments, pattern: Pattern, count: float, least: float) -> None:
        self._gram, self._cross, self._pattern = moments.gram, as_table(moments.cross), pattern
        scales, ridged = pattern.taken(pattern.scales(moments.gram)), pattern.ridged
        self.scale = (scales if ridged is None else torch.where(ridged, scales, 1.0)).sqrt()[:, None]
        square = self._gram if pattern.shares is None else self._gram * self.scale * self.scale.T
        self.system = system_for(square, ridged, count, least)

    def solve(self, strengths: Tensor, targets: Tensor) -> Solved:
        """Solutions for ``strengths`` (r,), each with its target of ``targets`` (r,)."""
        cross, ridge = self._cross[:, targets], self._pattern.ridge(strengths)
        w = self.scale * self.system.solve(strengths, self.scale * cross)
        for attempt in range(_REPAIRS):
            product = self._gram @ w
            slope = cross - product - ridge * w
            if attempt == _REPAIRS - 1 or _is_rounding(slope, cross, product):
                break
            w = w + self.scale * self.system.solve(strengths, self.scale * slope)
        return Solved(w, slope, (w * (2.0 * cross - product)).sum(0) / 2.0)


class ByRows:
    """With the kernel of the rows: ``(K + s 1) a = sqrt(weights) y``, for fewer rows than columns with a ridge.

    Columns without a ridge leave the equations by projection of all rows on what is orthogonal to them.

    Args:
        problem: the data. pattern: which columns are kept, and their shares.
        count: strengths to come. least: the weakest of them.
        aside: further directions of rows to project out, (n, k); only where ``a`` is known to have none of them.
    """

    def __init__(
        self, problem: Problem, pattern: Pattern, count: float, least: float, aside: Tensor | None = None
    ) -> None:
        self._design, self._pattern, self._root = problem.design, pattern, problem.weights.sqrt()[:, None]
        self.y, self._scales = self._root * as_table(problem.y), pattern.scales(problem.weights)
        kernel = kernel_of(problem.design, self._scales).mul_(self._root).mul_(self._root.T)
        self._plain = pattern.kept is None and pattern.shares is None
        self._free, self._kernel, parts = pattern.free(problem.weights), kernel, [] if aside is None else [aside]
        if len(self._free):
            self._columns = self._root * columns_of(problem.design, self._free)
            self._inverse = torch.linalg.pinv(self._columns)
            parts.append(self._columns)
        self.system = projected(kernel, torch.cat(parts, 1)) if parts else system_for(kernel, None, count, least)

    def solve(self, strengths: Tensor, targets: Tensor) -> Solved:
        """As `ByColumns.solve`."""
        y = self.y[:, targets]
        a = self.system.solve(strengths, y)
        a = a + self.system.solve(strengths, y - self._kernel @ a - strengths * a)
        for attempt in range(_REPAIRS):
            w = self._design.transposed(self._root * a)
            w = w if self._plain else self._scales[:, None] * w
            fitted = self._root * self._design.times(w)
            if len(self._free):
                w[self._free] = self._inverse @ (y - fitted - strengths * a)
                fitted = fitted + self._columns @ w[self._free]
            residual = y - fitted - strengths * a
            if attempt == _REPAIRS - 1 or _is_rounding(residual, y, fitted):
                break
            a = a + self.system.solve(strengths, residual)
        slope = self._design.transposed(self._root * residual)
        if len(self._free):
            slope[self._free] = self._columns.T @ (y - fitted)
        return Solved(self._pattern.taken(w), self._pattern.taken(slope), _gain(y, fitted))


class BySingularValues:
    """With the rows themselves: ``A = sqrt(weights) X / sqrt(shares)``, dense, where every kept column has a ridge.

    Args:
        problem: the data. pattern: which columns are kept, and their shares, all positive.
    """

    def __init__(self, problem: Problem, pattern: Pattern) -> None:
        self._design, self._pattern, self._root = problem.design, pattern, problem.weights.sqrt()[:, None]
        self._y = self._root * as_table(problem.y)
        self._scale = pattern.taken(pattern.scales(problem.weights)).sqrt()[:, None]
        self._rows = self._root * pattern.taken(problem.design.dense_rows(slice(None))).T * self._scale.T
        self._left, self._values, self._right = torch.linalg.svd(self._rows, full_matrices=False)
        self._cut = _ROUNDING * max(self._rows.shape) * self._values[0]

    def solve(self, strengths: Tensor, targets: Tensor) -> Solved:
        """As `ByColumns.solve`."""
        y, values = self._y[:, targets], self._values[:, None]
        held = torch.hypot(values, strengths.sqrt()) > self._cut
        curvature = torch.where(held, values.square() + strengths, 1.0)
        u = self._right.T @ torch.where(held, values * (self._left.T @ y) / curvature, 0.0)
        best, least = u, torch.full_like(strengths, torch.inf)
        for _ in range(_REPAIRS):
            residual = self._rows.T @ (y - self._rows @ u) - strengths * u
            size = residual.square().sum(0)
            best, least = torch.where(size < least, u, best), torch.minimum(size, least)
            u = u + self._right.T @ torch.where(held, (self._right @ residual) / curvature, 0.0)
        w = best * self._scale
        fitted = self._root * self._design.times(self._pattern.spread(w))
        g = self._pattern.taken(self._design.transposed(self._root * (y - fitted)))
        return Solved(w, g - self._pattern.ridge(strengths) * w, _gain(y, fitted))


class Spectrum:
    """``(M + s D)^-1 = B diag(1 / (values + s units)) B'``: each further strength costs two products.

    M is positive semidefinite, and D has ones and zeros on its diagonal. Where ``M + s D`` is singular, as at s = 0,
    it is a pseudo-inverse.
    """

    def __init__(self, basis: Tensor, values: Tensor, units: Tensor) -> None:
        self.basis, self._values, self._units = basis, values.clamp(min=0.0), units
        self._cut = _CUT * len(basis) * torch.where(units > 0.0, self._values, 0.0).amax(0) if len(values) else 0.0

    def inverses(self, strengths: Tensor) -> Tensor:
        """``1 / (values + s units)``, (j, r); for s = 0 a value that is rounding counts as infinite."""
        shifted = self._values[:, None] + self._units[:, None] * strengths
        return torch.where((strengths > 0.0) | (shifted > self._cut), 1.0 / shifted, 0.0)

    def solve(self, strengths: Tensor, sides: Tensor) -> Tensor:
        """Solutions, (m, r), for ``sides`` (m, r), each with its own ``strengths`` (r,)."""
        shifted = self._values[:, None] + self._units[:, None] * strengths
        kept = (shifted > self._cut) | (self._units[:, None] == 0.0)
        return self.basis @ torch.where(kept, (self.basis.T @ sides) / torch.where(kept, shifted, 1.0), 0.0)


class Factors:
    """Solves ``(M + s D) u = b`` by a Cholesky factorisation for each strength.

    A column without ridge gets a small one, and so does a matrix that is singular to rounding: solutions are then
    near, and correcting them by their residuals makes them exact.

    Args:
        square: M, (m, m).
        ridged: D's diagonal, (m,), bool; None for ones.
    """

    def __init__(self, square: Tensor, ridged: Tensor | None) -> None:
        self._square, self._ridged = square, ridged
        self._lift = _LIFT * square.diagonal().mean()
        self._last: tuple[float, Tensor] | None = None

    def solve(self, strengths: Tensor, sides: Tensor) -> Tensor:
        """As `Spectrum.solve`."""
        distinct, owners = strengths.unique(return_inverse=True)
        solutions = torch.empty_like(sides)
        for k, strength in enumerate(distinct.tolist()):
            mine = owners == k
            solutions[:, mine] = torch.cholesky_solve(sides[:, mine], self._factor(strength))
        return solutions

    def _factor(self, strength: float) -> Tensor:
        if self._last is None or self._last[0] != strength:
            ridge = torch.full_like(self._square[0], strength)
            ridge = ridge if self._ridged is None else torch.where(self._ridged, ridge, self._lift)
            self._last = (strength, safe_cholesky(self._square.clone(), ridge)[0])
        return self._last[1]


def system_for(square: Tensor, ridged: Tensor | None, count: float, least: float) -> Spectrum | Factors:
    """The cheaper way to solve ``(M + s D) u = b``.

    Args:
        square: M, (m, m).
        ridged: D's diagonal, or None for ones.
        count: how many strengths there will be.
        least: the weakest; at 0 only eigenvectors tell what is null.
    """
    cut = _CUT * len(square) * float(square.diagonal().sum())
    if count < _MANY and (ridged is not None or least > cut):
        return Factors(square, ridged)
    if ridged is None:
        values, basis = torch.linalg.eigh(square)
        return Spectrum(basis, values, torch.ones_like(values))
    free, rest = (~ridged).nonzero().flatten(), ridged.nonzero().flatten()
    sizes, half = torch.linalg.eigh(square[free[:, None], free])
    alive = sizes > _CUT * len(sizes) * sizes[-1]
    half = half[:, alive] / sizes[alive].sqrt()  # half half' is the inverse of what has no ridge
    edge = half.T @ square[free[:, None], rest]
    values, inner = torch.linalg.eigh(square[rest[:, None], rest] - edge.T @ edge)
    k = half.shape[1]
    basis = square.new_zeros(len(square), k + len(rest))
    basis[free, :k], basis[free, k:], basis[rest, k:] = half, -half @ (edge @ inner), inner
    values = torch.cat([values.new_ones(k), values])
    return Spectrum(basis, values, (torch.arange(len(values), device=values.device) >= k).to(values.dtype))


def projected(kernel: Tensor, columns: Tensor) -> Spectrum:
    """The spectrum of a kernel on what is orthogonal to some columns, (n, k)."""
    left, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    out = left[:, sizes > _CUT * len(left) * sizes[:1]]
    kernel = kernel - out @ (out.T @ kernel)
    kernel = kernel - (kernel @ out) @ out.T
    above = 2.0 * kernel.diagonal().sum()  # makes these directions the largest, to be left out
    above = torch.where(above > 0.0, above, 1.0)
    values, vectors = torch.linalg.eigh((kernel + kernel.T) / 2.0 + above * out @ out.T)
    rest = len(kernel) - out.shape[1]
    return Spectrum(vectors[:, :rest], values[:rest], torch.ones_like(values[:rest]))


def kernel_of(design: Design, scales: Tensor) -> Tensor:
    """``X~ diag(scales) X~'``, (n, n), exactly symmetric, by strips of rows against all that follow.

    Args:
        design: n rows and p columns.
        scales: of the columns, >= 0, (p,).
    """
    n = design.n
    square, plain = scales.new_empty(n, n), bool((scales == 1.0).all())
    width = max(1, min(_WIDEST, _ROOM // max(1, design.p)))
    for start in range(0, n, width):
        rows = slice(start, min(start + width, n))
        strip = design.dense_rows(rows)
        strip = strip if plain else strip * scales[:, None]
        square[start:, rows] = design.subset(slice(start, n)).times(strip)
        corner = square[rows, rows]
        corner.copy_(0.5 * (corner + corner.T))
        square[rows, rows.stop :] = square[rows.stop :, rows].T
    return square


def columns_of(design: Design, index: Tensor) -> Tensor:
    """Some columns of X~, dense, (n, k)."""
    unit = torch.zeros(design.p, len(index), dtype=torch.float64, device=index.device)
    unit[index, torch.arange(len(index), device=index.device)] = 1.0
    return design.times(unit)


def as_table(rows: Tensor) -> Tensor:
    """Targets or correlations as columns, (n, K)."""
    return rows if rows.dim() == 2 else rows[:, None]


def _is_rounding(residual: Tensor, one: Tensor, other: Tensor) -> bool:
    """Whether the residual of each column is rounding of an equation's sides."""
    size = torch.maximum(one.abs(), other.abs()).amax(0)
    return bool((residual.abs() <= _EXACT * size).all())


def _gain(y: Tensor, fitted: Tensor) -> Tensor:
    return (fitted * (2.0 * y - fitted)).sum(0) / 2.0
