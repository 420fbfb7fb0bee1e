"""Whole paths of least squares with a ridge alone, in closed form.

    minimise  sum_i weights_i |y_i - x_i' w|^2 / 2 + sum_j l2_j w_j^2 / 2

The system has one row for each column of X, or, where there are fewer rows than columns, one for each row. Where
``l2`` changes along the path by a factor alone, as it does for every penalty with one strength, columns divided by
the roots of ``l2`` make it ``M + s 1``, and one eigendecomposition serves all strengths. Without a ridge the least of
all solutions is taken. Where the certificate says that the system lost too many digits of X, X itself is decomposed.

Source: Hoerl and Kennard, Technometrics 12, 1970.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from torchreg.linear.moments import Moments, moments_of
from torchreg.linear.objective.entry_terms import penalty_gap, violation
from torchreg.linear.points import PathPoint, nonzero_rows, zero_intercept
from torchreg.linear.problem import Problem
from torchreg.linear.ridge.routes import (
    ByColumns,
    ByRows,
    BySingularValues,
    Forced,
    Pattern,
    Route,
    Solved,
    as_table,
    pattern_of,
    singular_values_pay,
)
from torchreg.penalties import L1Form

_ROOM = 1 << 23  # entries of the coefficients that are solved together
_BLOCK = 64  # strengths that are solved together, at most
_FINE = 1e-10  # of the null loss: a larger gap is worth a decomposition


class RidgePath:
    """Follows one path.

    Args:
        problem: least squares; beside detached moments only the number of columns is used.
        moments: of the columns and targets, or None to take them from the problem.
    """

    def __init__(self, problem: Problem, moments: Moments | None) -> None:
        self._problem, self._moments = problem, moments
        self._outputs, self._detached = problem.K, moments is not None and moments.detached
        weighted = problem.weights if self._outputs is None else problem.weights[:, None]
        self._energy = (weighted * problem.y.square()).sum() if moments is None else moments.energy
        self._routes: list[tuple[Pattern, Route]] = []
        self._finest: list[tuple[Pattern, Route]] = []

    def points(self, forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions, one for each form, none of which has a kink."""
        size = min(_BLOCK, max(1, _ROOM // (self._problem.design.p * (self._outputs or 1))))
        for start in range(0, len(forms), size):
            block = forms[start : start + size]
            solved = self._solve(block, forms[-1], len(forms))
            for k, form in enumerate(block):
                yield self._point(form, solved.w[:, k], solved.g[:, k], solved.gain[k])

    def _solve(self, forms: Sequence[L1Form], last: L1Form, count: int) -> Solved:
        """Coefficients and correlations, (p, a, K), and gains, (a, K); ``last`` is the weakest form of the path."""
        p, outputs = self._problem.design.p, self._outputs or 1
        w = self._problem.weights.new_empty(p, len(forms), outputs)
        g, gain = torch.empty_like(w), w.new_empty(len(forms), outputs)
        table = [_patterns(form, w, self._outputs) for form in forms]
        to_come = [*chain(*table), *_patterns(last, w, self._outputs)]
        for k in range(len(table[0])):
            targets = slice(None) if len(table[0]) == 1 else slice(k, k + 1)
            for rows in _runs([row[k][0] for row in table]):
                strengths = [row[k][1] for row in table[rows]]
                numbers = torch.arange(outputs, device=w.device)[targets]
                pattern = table[rows.start][k][0]
                found = self._solved(pattern, self._route(pattern, count, to_come), strengths, numbers)
                w[:, rows, targets] = found.w.reshape(p, -1, len(numbers))
                g[:, rows, targets] = found.g.reshape(p, -1, len(numbers))
                gain[rows, targets] = found.gain.reshape(-1, len(numbers))
        return Solved(w, g, gain)

    def _solved(self, pattern: Pattern, route: Route, strengths: list[float], targets: Tensor) -> Solved:
        """For each strength each target, by the quick route, and by the finest what that does not solve."""
        ridges = self._problem.weights.new_tensor(strengths).repeat_interleave(len(targets))
        targets = targets.repeat(len(strengths))
        found = route.solve(ridges, targets)
        gaps = _gaps(found, pattern, ridges)
        poor = (gaps > _FINE * self._energy / 2.0).nonzero().flatten()
        if not len(poor) or self._detached or not singular_values_pay(self._problem, pattern):
            return found
        finer = self._finer(pattern).solve(ridges[poor], targets[poor])
        better = _gaps(finer, pattern, ridges[poor]) < gaps[poor]
        for part, new in zip(found, finer, strict=True):
            part[..., poor[better]] = new[..., better]
        return found

    def _finer(self, pattern: Pattern) -> Route:
        if not (self._finest and self._finest[0][0].fits(pattern)):
            self._finest = []  # one matrix at a time
            self._finest = [(pattern, BySingularValues(self._problem, pattern))]
        return self._finest[0][1]

    def _route(self, pattern: Pattern, count: int, to_come: list[tuple[Pattern, float]]) -> Route:
        """One for all strengths of a pattern, of all targets: the weakest decides how."""
        for known, route in self._routes:
            if known.fits(pattern):
                return route
        least = min(strength for other, strength in to_come if other.fits(pattern))
        problem, n = self._problem, self._problem.design.n
        columns = problem.design.p if pattern.kept is None else len(pattern.kept)
        bare = pattern.shares is not None and bool((pattern.shares == 0.0).any())
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
        weighted = self._problem.weights[:, None] * as_table(self._problem.y)
        return Moments(chosen.append(kept), chosen.transposed(weighted), self._energy)

    def _point(self, form: L1Form, w: Tensor, g: Tensor, gain: Tensor) -> PathPoint:
        if self._outputs is None:
            w, g = w[:, 0], g[:, 0]
        gap = penalty_gap(form, w, g).sum()
        kept = nonzero_rows(w)
        loss = (self._energy / 2.0 - gain.sum()).clamp(min=0.0)
        return PathPoint(kept, w[kept], zero_intercept(w, self._outputs), gap, violation(form, w, g).max(), loss, 1)


def lost_digits(points: Sequence[PathPoint], null: Tensor) -> bool:
    """Whether some gap is worth a decomposition of X, which a path on detached moments has not.

    Args:
        points: of one path.
        null: the null model's loss, 0-d.
    """
    return bool((torch.stack([point.gap for point in points]) > _FINE * null).any())


def _gaps(found: Solved, pattern: Pattern, strengths: Tensor) -> Tensor:
    """The duality gap of each solution, (r,), on columns that have a ridge."""
    w, g = (part if pattern.kept is None else part[pattern.kept] for part in found[:2])
    ridge = strengths if pattern.shares is None else pattern.shares[:, None] * strengths
    ridged = ridge > 0.0
    return torch.where(ridged, (g - ridge * w).square() / (2.0 * torch.where(ridged, ridge, 1.0)), 0.0).sum(0)


def _patterns(form: L1Form, like: Tensor, outputs: int | None) -> list[tuple[Pattern, float]]:
    """Pattern and strongest ridge of each output; one pair if all outputs have the same."""
    return [pattern_of(*parts) for parts in _by_output(form, like, outputs)]


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
