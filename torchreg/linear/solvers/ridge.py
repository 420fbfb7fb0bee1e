"""Whole paths of least squares with a ridge alone, in closed form, and their leave-one-out errors.

    minimise  sum_i weights_i |y_i - x_i' w|^2 / 2 + sum_j l2_j w_j^2 / 2

1. Patterns: strengths whose ``l2`` differs by a factor alone, as under every penalty with one alpha, share a matrix.
2. Decompose: the Gram matrix of the columns, or the kernel of the rows where these are fewer; for many strengths by its
   eigenvalues, for few by a Cholesky factor each.
3. Solve all strengths and targets of a block together, and correct by residuals of X itself until these are rounding.
   Without a ridge the least of all solutions is taken.
4. Finer: where the gap says that the matrix lost too many digits of X, X itself is decomposed.
5. Certify: gaps and violations follow from the slope that is left.
6. Leave-one-out: the same eigenvalues give the leverage of every row at every strength.

Source: Hoerl and Kennard, Technometrics 12, 1970; leave-one-out: Golub, Heath and Wahba, Technometrics 21, 1979.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from torchreg.linear.moments import Moments, moments_of, per_row
from torchreg.linear.points import PathPoint, zero_intercept
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.ridge_pattern import Pattern, patterns_of
from torchreg.linear.solvers.ridge_systems import ByColumns, ByRows, BySingularValues, Solved, Spectrum, as_table
from torchreg.penalties import L1Form

_ROOM = 1 << 23  # entries of the coefficients that are solved together
_BLOCK = 64  # strengths that are solved together, at most
_FINE = 1e-10  # of the null loss: a larger gap is worth a decomposition of X
_SMALL = 1 << 31  # multiplications: singular values of a matrix that takes more of them to square are not computed
_DENSE = 1 << 24  # entries of such a matrix

Cell = tuple[Pattern, float]


class RidgePath:
    """Follows one path.

    Args:
        problem: least squares; beside detached moments only the number of columns is used.
        moments: of the columns and targets, or None to take them from the problem.
        centred: whether columns and targets are centred by an intercept; asked for by `left_out` alone.
    """

    def __init__(self, problem: Problem, moments: Moments | None, *, centred: bool = False) -> None:
        self._problem, self._moments = problem, moments
        self._detached = moments is not None and moments.detached
        weighted = per_row(problem.weights, problem.y) * problem.y.square()
        self._energy = weighted.sum() if moments is None else moments.energy
        self._aside = problem.weights.sqrt()[:, None] if centred else None
        self._route: tuple[Pattern, float, ByColumns | ByRows] | None = None  # one matrix at a time
        self._finer: tuple[Pattern, BySingularValues] | None = None

    def points(self, forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions, one for each form, none of which has a kink."""
        cells = self._cells(forms)
        size = min(_BLOCK, max(1, _ROOM // (self._problem.design.p * (self._problem.K or 1))))
        for start in range(0, len(forms), size):
            yield from self._block(cells, range(start, min(start + size, len(forms))))

    def left_out(self, forms: Sequence[L1Form]) -> Tensor:
        """Leave-one-out residuals times sqrt(weight), (a, n) or (a, n, K), for ridges of one pattern, all > 0.

        ``sqrt(weights_i) (y_i - x_i' w_i)`` for the solution ``w_i`` without row i, which is the residual of row i
        divided by one minus its leverage.
        """
        cells = [row[0] for row in self._cells(forms)]
        pattern, strengths = cells[0][0], self._problem.weights.new_tensor([strength for _, strength in cells])
        root, y = self._problem.weights.sqrt()[:, None], as_table(self._problem.y)
        residual, rest = (root * y)[:, None], root.new_ones(len(root), 1)
        rest = rest if self._aside is None else rest - self._aside.square()
        route = self._route_of(pattern, math.inf, 0.0) if pattern.count else None
        if isinstance(route, ByRows):
            assert isinstance(route.system, Spectrum)
            residual, rest = _spectral(route.system.basis, route.system.inverses(strengths), route.y)
        elif isinstance(route, ByColumns):
            assert isinstance(route.system, Spectrum)
            vectors = root * self._problem.design.times(pattern.spread(route.scale * route.system.basis))
            fitted, leverage = _spectral(vectors, route.system.inverses(strengths), root * y)
            residual, rest = residual - fitted, rest - leverage
        errors = (residual / rest[:, :, None]).expand(-1, len(forms), -1).transpose(0, 1)
        return errors if self._problem.K is not None else errors[:, :, 0]

    def _cells(self, forms: Sequence[L1Form]) -> list[list[Cell]]:
        """Pattern and strength of each output at each strength; patterns that are alike are one object."""
        table: list[list[Cell]] = []
        coef = self._problem.no_coef()
        for form in forms:
            row: list[Cell] = []
            for pattern, strength in patterns_of(form, coef):
                near = [*row[-1:], *(table[-1][len(row) : len(row) + 1] if table else ())]
                pattern = next((other for other, _ in near if other.fits(pattern)), pattern)
                row.append((pattern, strength))
            table.append(row)
        width = max(len(row) for row in table)
        return [row if len(row) == width else row * width for row in table]

    def _block(self, cells: list[list[Cell]], numbers: range) -> Iterator[PathPoint]:
        """The points of some strengths."""
        outputs, p = self._problem.K or 1, self._problem.design.p
        w = self._energy.new_empty(len(numbers), outputs, p)
        gain, gap, violation, value = (w.new_zeros(len(numbers), outputs) for _ in range(4))
        for k in range(len(cells[0])):
            part = slice(k, outputs if len(cells[0]) == 1 else k + 1)
            targets = torch.arange(part.start, part.stop, device=w.device)
            for pattern, run in groupby(numbers, key=lambda i: cells[i][k][0]):
                rows = list(run)
                strengths = w.new_tensor([cells[i][k][1] for i in rows]).repeat_interleave(len(targets))
                least = min(strength for row in cells for other, strength in row if other is pattern)
                found, gaps = self._solved(pattern, len(cells), least, strengths, targets.repeat(len(rows)))
                places = slice(rows[0] - numbers.start, rows[-1] + 1 - numbers.start)
                w[places, part] = pattern.spread(found.w).T.reshape(len(rows), -1, p)
                if pattern.count:
                    columns = found.gain, gaps, found.slope.abs().amax(0), pattern.value(strengths, found.w)
                    for table, column in zip((gain, gap, violation, value), columns, strict=True):
                        table[places, part] = column.reshape(len(rows), -1)
        losses = (self._energy / 2.0 - gain.sum(1)).clamp(min=0.0)
        yield from self._points_of(w, gap.sum(1), violation.amax(1), losses, value.sum(1))

    def _points_of(
        self, w: Tensor, gaps: Tensor, violations: Tensor, losses: Tensor, values: Tensor
    ) -> Iterator[PathPoint]:
        alive, zero = w != 0.0, zero_intercept(w, self._problem.K)
        alive = alive[:, 0] if self._problem.K is None else alive.any(1)
        index, shared = alive[0].nonzero().flatten(), bool(alive.all()) or bool((alive == alive[:1]).all())
        table = w[:, 0] if self._problem.K is None else w.transpose(1, 2).contiguous()
        table = table[:, index] if shared and len(index) < table.shape[1] else table
        judged = zip(gaps.unbind(), violations.unbind(), losses.unbind(), values.unbind(), strict=True)
        for k, (coef, (gap, violation, loss, value)) in enumerate(zip(table.unbind(), judged, strict=True)):
            index = index if shared else alive[k].nonzero().flatten()
            coef = coef.clone() if shared else coef[index]  # of its own memory, so that a pickle holds it once
            yield PathPoint(index, coef, zero, gap, violation, loss, 1, value)

    def _solved(
        self, pattern: Pattern, count: int, least: float, strengths: Tensor, targets: Tensor
    ) -> tuple[Solved, Tensor]:
        """For each strength its target, by one matrix, and by singular values of X what that leaves; with the gaps."""
        if not pattern.count:
            nothing, zeros = strengths.new_zeros(0, len(strengths)), torch.zeros_like(strengths)
            return Solved(nothing, nothing, zeros), zeros
        found = self._route_of(pattern, count, least).solve(strengths, targets)
        gaps = _gaps(found, pattern, strengths)
        poor = (gaps > _FINE * self._energy / 2.0).nonzero().flatten()
        if not len(poor) or self._detached or not self._singular_values_pay(pattern):
            return found, gaps
        if self._finer is None or self._finer[0] is not pattern:
            self._finer = (pattern, BySingularValues(self._problem, pattern))
        finer = self._finer[1].solve(strengths[poor], targets[poor])
        left = _gaps(finer, pattern, strengths[poor])
        better = left < gaps[poor]
        for part, new in zip((*found, gaps), (*finer, left), strict=True):
            part[..., poor[better]] = new[..., better]
        return found, gaps

    def _singular_values_pay(self, pattern: Pattern) -> bool:
        """Whether the matrix is small enough to decompose, and has a ridge on every column."""
        n, p = self._problem.design.n, self._problem.design.p
        return pattern.ridged is None and n * p <= _DENSE and n * p * min(n, p) <= _SMALL

    def _route_of(self, pattern: Pattern, count: float, least: float) -> ByColumns | ByRows:
        """One for all strengths of a pattern, of all targets: how many there are, and the weakest, decide how."""
        if self._route is not None and self._route[0].fits(pattern) and self._route[1] <= least:
            return self._route[2]
        self._route = None
        made: ByColumns | ByRows
        if self._moments is None and pattern.count > self._problem.design.n:
            made = ByRows(self._problem, pattern, count, least, self._aside)
        else:
            made = ByColumns(self._moments_of(pattern.kept), pattern, count, least)
        self._route = (pattern, least, made)
        return made

    def _moments_of(self, kept: Tensor | None) -> Moments:
        """Moments of the kept columns."""
        whole = self._moments
        if whole is not None:
            return whole if kept is None else Moments(whole.gram[kept[:, None], kept], whole.cross[kept], whole.energy)
        if kept is None:
            return moments_of(self._problem)
        chosen = self._problem.design.selection(self._problem.weights)
        weighted = self._problem.weights[:, None] * as_table(self._problem.y)
        return Moments(chosen.append(kept), chosen.transposed(weighted), self._energy)


def lost_digits(points: Sequence[PathPoint], null: Tensor) -> bool:
    """Whether some gap is worth a decomposition of X, which a path on detached moments has not.

    Args:
        points: of one path.
        null: the null model's loss, 0-d.
    """
    return bool((torch.stack([point.gap for point in points]) > _FINE * null).any())


def _gaps(found: Solved, pattern: Pattern, strengths: Tensor) -> Tensor:
    """The duality gap of each solution, (r,): what a slope of zero is away; to first order without a ridge."""
    ridge = pattern.ridge(strengths)
    ridged = ridge > 0.0
    if len(ridge) == 1 and bool(ridged.all()):
        return torch.linalg.vector_norm(found.slope, dim=0).square() / (2.0 * strengths)
    quadratic = found.slope.square() / torch.where(ridged, 2.0 * ridge, 1.0)
    return torch.where(ridged, quadratic, (found.slope * found.w).abs()).sum(0)


def _spectral(vectors: Tensor, inverses: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """``V diag(inverses) V' y``, (n, a, K), and the diagonal of the matrix, (n, a)."""
    inner = inverses[:, :, None] * (vectors.T @ y)[:, None]
    return torch.tensordot(vectors, inner, 1), vectors.square() @ inverses
