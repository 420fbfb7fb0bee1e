"""Whole paths of least squares with a ridge alone, in closed form.

    minimise  sum_i weights_i |y_i - x_i' w|^2 / 2 + sum_j l2_j w_j^2 / 2

The system has one row for each column of X, or, where there are fewer rows than columns, one for each row. Where
``l2`` changes along the path by a factor alone, as it does for every penalty with one strength, columns divided by
the roots of ``l2`` make it ``M + s 1``, and one eigendecomposition serves all strengths. Without a ridge the least of
all solutions is taken.

Source: Hoerl and Kennard, Technometrics 12, 1970; fewer rows than columns: Saunders, Gammerman and Vovk, ICML 1998.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchreg.linear.certificate import penalty_gap, violation
from torchreg.linear.kernel import kernel_of
from torchreg.linear.moments import Moments, moments_of
from torchreg.linear.points import PathPoint, nonzero_rows, zero_intercept
from torchreg.linear.problem import Problem
from torchreg.linear.shifted import shifted
from torchreg.penalties import L1Form

_ROOM = 1 << 23  # entries of the coefficients that are solved together
_BLOCK = 64  # strengths that are solved together, at most
_REPAIRS = 5  # looks at the residual, each but the last followed by a correction
_EXACT = 4e-15  # of the largest entry of an equation's sides: a residual that is rounding
_SAME = 1e-12  # relative difference of shares that is rounding


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
        self._gram, self._cross = moments.gram, _table(moments.cross)
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
        self._y = self._root * _table(problem.y)
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


class RidgePath:
    """Follows one path.

    Args:
        problem: least squares; of moments that are not its own only the number of columns is used.
        moments: of the columns and targets, or None to take them from the problem.
    """

    def __init__(self, problem: Problem, moments: Moments | None) -> None:
        self._problem, self._moments = problem, moments
        self._outputs = problem.K
        weighted = problem.weights if self._outputs is None else problem.weights[:, None]
        self._energy = (weighted * problem.y.square()).sum() if moments is None else moments.energy
        self._routes: list[tuple[Pattern, Route]] = []

    def points(self, forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions, one for each form, none of which has a kink."""
        size = min(_BLOCK, max(1, _ROOM // (self._problem.design.p * (self._outputs or 1))))
        for start in range(0, len(forms), size):
            block = forms[start : start + size]
            solved = self._solve(block, len(forms))
            for k, form in enumerate(block):
                yield self._point(form, solved.w[:, k], solved.g[:, k], solved.gain[k])

    def _solve(self, forms: Sequence[L1Form], count: int) -> Solved:
        """Coefficients and correlations, (p, a, K), and gains, (a, K)."""
        p, outputs = self._problem.design.p, self._outputs or 1
        w = self._problem.weights.new_empty(p, len(forms), outputs)
        g, gain = torch.empty_like(w), w.new_empty(len(forms), outputs)
        table = [[pattern_of(*parts) for parts in _by_output(form, w, self._outputs)] for form in forms]
        for k in range(len(table[0])):
            targets = slice(None) if len(table[0]) == 1 else slice(k, k + 1)
            for rows in _runs([row[k][0] for row in table]):
                strengths = [row[k][1] for row in table[rows]]
                route = self._route(table[rows.start][k][0], count, min(strengths))
                numbers = torch.arange(outputs, device=w.device)[targets]
                found = route.solve(
                    w.new_tensor(strengths).repeat_interleave(len(numbers)), numbers.repeat(len(strengths))
                )
                w[:, rows, targets] = found.w.reshape(p, -1, len(numbers))
                g[:, rows, targets] = found.g.reshape(p, -1, len(numbers))
                gain[rows, targets] = found.gain.reshape(-1, len(numbers))
        return Solved(w, g, gain)

    def _route(self, pattern: Pattern, count: int, least: float) -> Route:
        for known, route in self._routes:
            if known.fits(pattern):
                return route
        problem, n = self._problem, self._problem.design.n
        columns = problem.design.p if pattern.kept is None else len(pattern.kept)
        bare = least > 0.0 and pattern.shares is not None and bool((pattern.shares == 0.0).any())
        self._routes = []  # one matrix at a time
        made: Route
        if not columns:
            made = Forced(problem.weights, problem.design.p)
        elif self._moments is None and columns > n and not bare:
            made = ByRows(problem, pattern, count, least)
        else:
            made = ByColumns(self._moments_of(pattern), pattern, count, least, problem.design.p)
        self._routes = [(pattern, made)]
        return made

    def _moments_of(self, pattern: Pattern) -> Moments:
        """Moments of the kept columns."""
        kept, whole = pattern.kept, self._moments
        if whole is not None:
            return whole if kept is None else Moments(whole.gram[kept[:, None], kept], whole.cross[kept], whole.energy)
        if kept is None:
            return moments_of(self._problem)
        chosen = self._problem.design.selection(self._problem.weights)
        weighted = self._problem.weights[:, None] * _table(self._problem.y)
        return Moments(chosen.append(kept), chosen.transposed(weighted), self._energy)

    def _point(self, form: L1Form, w: Tensor, g: Tensor, gain: Tensor) -> PathPoint:
        if self._outputs is None:
            w, g = w[:, 0], g[:, 0]
        gap = penalty_gap(form, w, g).sum()
        kept = nonzero_rows(w)
        loss = (self._energy / 2.0 - gain.sum()).clamp(min=0.0)
        return PathPoint(kept, w[kept], zero_intercept(w, self._outputs), gap, violation(form, w, g).max(), loss, 1)


def _by_output(form: L1Form, like: Tensor, outputs: int | None) -> list[tuple[Tensor, Tensor]]:
    """l1 and l2 of each output, 0-d or (p,); one pair if all outputs have the same."""
    l1, l2 = (torch.as_tensor(part, dtype=like.dtype, device=like.device) for part in (form.l1, form.l2))
    if outputs is None:
        return [(l1, l2)]
    tables = [part.reshape(1, 1) if not part.dim() else torch.atleast_2d(part) for part in (l1, l2)]
    widths = max(part.shape[1] for part in tables)
    wide = [part.expand(-1, widths) for part in tables]
    return [tuple(part[:, k].squeeze(0) for part in wide) for k in range(widths)]  # type: ignore[misc]


def _runs(patterns: Sequence[Pattern]) -> Iterator[slice]:
    """Stretches of patterns that are the same."""
    start = 0
    for end in range(1, len(patterns) + 1):
        if end == len(patterns) or not patterns[start].fits(patterns[end]):
            yield slice(start, end)
            start = end


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool(torch.allclose(one.double(), other.double(), rtol=_SAME, atol=0.0))


def _size(one: Tensor, other: Tensor) -> Tensor:
    """The largest entry of each column, (r,): what rounding is relative to."""
    return torch.maximum(one.abs(), other.abs()).amax(0)


def _table(rows: Tensor) -> Tensor:
    return rows if rows.dim() == 2 else rows[:, None]
