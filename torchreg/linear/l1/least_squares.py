"""Whole paths of least squares with weighted L1, ridge and sign constraints, each point exact.

One pass over the data serves a block of strengths: the block is solved on a working set of columns, then all
correlations are computed at once. Columns whose correlation, continued along the line through the last two points,
comes near its strength join the set before; columns that violate optimality after join it then, and the block goes
on from the first point that they spoilt.

A strength far below the last is solved alone, without others between: the columns that violate its optimality most
join the set, as many as it has coefficients that are not zero, until none is left. From one set to the next few
coefficients change sign, so that exchanges of columns do not go astray.

Source: Tibshirani et al., JRSS B 74, 2012 (sequential strong rule); Larsson and Wallin, arXiv 2104.13026, 2021
(screening along the path's direction); Massias, Gramfort and Salmon, ICML 2018 (working sets that double).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from torchreg.linear.certificate import columns, dual_scale, penalty_gap, table, violation
from torchreg.linear.oracle import Oracle
from torchreg.linear.pivoting.solver import PivotSolver
from torchreg.linear.pivoting.subproblem import Subproblem
from torchreg.linear.points import PathPoint, zero_intercept
from torchreg.penalties import L1Form

_KEEP = 0.95  # of its strength: a correlation predicted to reach it joins the working set
_SLACK = 1e-12  # of a correlation beyond its strength: less is rounding
_BLOCK = 8  # strengths for one pass over the data
_FAR = 0.9  # of the last strength: one below is solved alone
_FEW = 10  # columns that join a working set at once, at least
_ASTRAY = 1e-12  # of the target's energy: a larger gap means that the strength was too far away
_WIDE, _LESS_FAR = 4.0, 0.3  # with so many columns for one of rank, strengths go no farther down from one to the next
_ROOM = 0.3  # of the columns that the rank leaves room for: no more join at once, or exchanges go astray


class L1Path:
    """Follows one path, from the strongest penalty to the weakest.

    Args:
        oracle: the data.
        start: coefficients to start from, (p,); None for zeros.
    """

    def __init__(self, oracle: Oracle, start: Tensor | None = None) -> None:
        self._oracle = oracle
        self._p = len(oracle.cross)
        self._solver = PivotSolver(oracle.cross.device, self._p, oracle.rank)
        self._chosen = torch.zeros(self._p, dtype=torch.bool, device=oracle.cross.device)
        self._slack = self._before = oracle.cross
        self._at = self._at_before = math.inf
        self._start = start

    def points(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions, one for each form.

        Args:
            alphas: strengths, descending; only their ratios matter.
            forms: the penalty at each of them, each of type L1.
        """
        self._open(forms[0])
        yield from self._rest(alphas, forms)

    def _rest(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions from the last one on."""
        done, size = 0, 1
        while done < len(forms):
            if self._at > 0.0 and not alphas[done] >= _FAR * self._at:
                yield self._far(alphas[done], forms[done])
                done += 1
                continue
            stop = done + 1
            while stop < min(done + size, len(forms)) and alphas[stop] >= _FAR * alphas[stop - 1]:
                stop += 1
            accepted = yield from self._block(alphas[done:stop], forms[done:stop])
            size = _BLOCK if accepted else size
            done += accepted

    def _open(self, form: L1Form) -> None:
        """Unpenalised columns, and those of the start, are in the set from the beginning."""
        l1 = columns(form.l1, self._slack).expand(self._p)
        first = l1 == 0.0
        if self._start is not None:
            self._start = torch.where(l1.isinf(), 0.0, self._start.clamp(min=form.lower))
            first = first | (self._start != 0.0)
        self._add(first.nonzero().flatten(), form)
        if self._start is not None and len(self._oracle.chosen):
            w = self._start[self._oracle.chosen]
            self._solver.begin(w)
            g = self._oracle.correlations(w[:, None])[0]
            self._slack = self._before = _less_ridge(g, table([form], g), self._oracle.chosen, w[:, None])[:, 0]

    def _add(self, new: Tensor, form: L1Form) -> None:
        if len(new):
            l2 = None if _is_nothing(form.l2) else columns(form.l2, self._slack).expand(self._p)[new]
            self._solver.append(self._oracle.append(new), l2)
            self._chosen[new] = True

    def _far(self, alpha: float, form: L1Form) -> PathPoint:
        """Solve one strength on a set that grows by the columns that violate optimality most."""
        start, before = self._solver.w, self._solver.rounds
        if self._p > _WIDE * self._oracle.rank and 0.0 < alpha < _LESS_FAR * self._at:
            return self._by_way_of_others(_LESS_FAR, alpha, form)
        whole = table([form], self._slack[:, None])
        new = self._worst(self._slack[:, None], whole, _FEW)
        while True:
            self._add(new, form)
            w, _ = self._solve([form])
            g, squares = self._oracle.correlations(w)
            slack = _less_ridge(g, whole, self._oracle.chosen, w)
            active = int(w.count_nonzero())
            new = self._worst(slack, whole, max(_FEW, min(active, int(_ROOM * (self._oracle.rank - active)))))
            if not len(new):
                break
        order, rounds = self._oracle.chosen.argsort(), self._solver.rounds - before
        over = self._over(slack, whole).amax(0)
        (point,) = _points(whole, self._oracle.chosen[order], w[order], g, squares, over, [rounds])
        if alpha > 0.0 and not bool(point.gap <= _ASTRAY * self._oracle.energy):
            self._solver.begin(torch.cat([start, start.new_zeros(len(self._oracle.chosen) - len(start))]))
            return self._by_way_of_others(_FAR, alpha, form)
        self._remember(slack, [alpha])
        return point

    def _by_way_of_others(self, stride: float, alpha: float, form: L1Form) -> PathPoint:
        """Solve one strength to which exchanges would go astray: others before, each ``stride`` times the last."""
        if math.isinf(self._at):
            reach = self._slack if form.lower == 0.0 else self._slack.abs()
            l1 = columns(form.l1, reach)
            self._at = alpha * max(1.0, float(torch.where(l1 > 0.0, reach / l1, 0.0).amax()))
        steps = 1 + int(1.001 * math.log(self._at / alpha) / -math.log(stride))
        shares = [(self._at / alpha) ** (k / steps) for k in range(steps - 1, -1, -1)]
        points = list(self._rest([s * alpha for s in shares], [replace(form, l1=s * form.l1) for s in shares]))
        return replace(points[-1], n_iter=sum(point.n_iter for point in points))

    def _worst(self, slack: Tensor, form: L1Form, count: int) -> Tensor:
        """Columns not in the set that violate optimality most, (k,), so many at most.

        Args:
            slack: correlations less the ridge's part, (p, 1).
            form: a table of one strength.
            count: how many.
        """
        over = self._over(slack, form) - _SLACK * columns(form.l1, slack)
        most, index = over[:, 0].topk(min(count, self._p))
        return index[most > 0.0]

    def _over(self, slack: Tensor, form: L1Form) -> Tensor:
        """How far correlations of columns not in the set go beyond their strengths, (p, batch); of the set -inf."""
        reach = slack if form.lower == 0.0 else slack.abs()
        return (reach - form.l1).masked_fill_(self._chosen[:, None], -torch.inf)

    def _block(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> Generator[PathPoint, None, int]:
        """Solve a block and give the points before the first that is not optimal; returns how many."""
        self._screen(alphas, forms)
        solved, rounds = self._solve(forms)
        g, squares = self._oracle.correlations(solved)
        form, order = table(forms, g), self._oracle.chosen.argsort()
        index, w = self._oracle.chosen[order], solved[order]
        slack = _less_ridge(g, form, index, w)
        over = self._over(slack, form).amax(0)
        beyond = self._beyond(slack, form) if bool((over > 0.0).any()) else None
        good = len(forms) if beyond is None else int((~beyond.any(0)).long().cumprod(0).sum())
        yield from _points(form, index, w, g, squares, over, rounds)[:good]
        if good:
            self._remember(slack[:, :good], alphas[:good])
        if beyond is not None:
            self._add(beyond.any(1).nonzero().flatten(), forms[0])
        return good

    def _beyond(self, slack: Tensor, form: L1Form) -> Tensor | None:
        """Columns not in the set that violate optimality, (p, batch); None if there are none."""
        beyond = self._over(slack, form) > _SLACK * form.l1
        return beyond if bool(beyond.any()) else None

    def _screen(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> None:
        """Add the columns that the block will need, as far as one can tell."""
        span, last = self._at - self._at_before, self._slack
        if math.isfinite(span) and span != 0.0:
            last = last + (alphas[-1] - self._at) / span * (self._slack - self._before)
        needed = torch.zeros_like(self._chosen)
        for g, form in ((self._slack, forms[0]), (last, forms[-1])):
            size = g if form.lower == 0.0 else g.abs()
            needed |= size >= _KEEP * columns(form.l1, g)
        self._add((needed & ~self._chosen).nonzero().flatten(), forms[0])

    def _solve(self, forms: Sequence[L1Form]) -> tuple[Tensor, list[int]]:
        chosen = self._oracle.chosen
        c = self._oracle.cross[chosen]
        solutions, rounds = [], []
        for form in forms:
            before = self._solver.rounds
            l2 = None if _is_nothing(form.l2) else self._inside(form.l2, c)
            solutions.append(self._solver.solve(Subproblem(c, self._inside(form.l1, c), l2, form.lower)))
            rounds.append(self._solver.rounds - before)
        return torch.stack(solutions, 1), rounds

    def _inside(self, strength: float | Tensor, like: Tensor) -> Tensor:
        """A strength of each column of the set."""
        value = columns(strength, like)
        return value.expand(self._p)[self._oracle.chosen] if value.dim() else value.expand(len(like))

    def _remember(self, slack: Tensor, alphas: Sequence[float]) -> None:
        if slack.shape[1] > 1:
            self._before, self._at_before = slack[:, -2].clone(), alphas[-2]
        else:
            self._before, self._at_before = self._slack, self._at
        self._slack, self._at = slack[:, -1].clone(), alphas[-1]


def _points(
    form: L1Form, index: Tensor, w: Tensor, g: Tensor, squares: Tensor, over: Tensor, rounds: Sequence[int]
) -> list[PathPoint]:
    """One point for each of a table of strengths.

    Columns outside of the set, whose correlations are within their strengths, count in no certificate.

    Args:
        form: the penalties of all columns.
        index: numbers of the columns of the set, ascending, (m,).
        w: their coefficients, (m, batch).
        g: correlations of all columns, (p, batch).
        squares: residual sums of squares, (batch,).
        over: how far correlations outside of the set go beyond their strengths, (batch,).
        rounds: of each.
    """
    seen: Tensor | slice = index
    coef = w
    if bool((over > 0.0).any()):  # by rounding, or where a column has yet to join
        seen, coef = slice(None), torch.zeros_like(g).index_copy_(0, index, w)
    part = L1Form(_rows(form.l1, seen), _rows(form.l2, seen), form.lower)
    g = g[seen]
    scale = dual_scale(part, g)
    gaps = 0.5 * (1.0 - scale).square() * squares + penalty_gap(part, coef, scale * g)
    off, none = violation(part, coef, g), zero_intercept(g, None)
    found = []
    for k, values in enumerate(w.unbind(1)):
        kept = values != 0.0
        found.append(PathPoint(index[kept], values[kept], none, gaps[k], off[k], 0.5 * squares[k], rounds[k]))
    return found


def _rows(strengths: float | Tensor, seen: Tensor | slice) -> Tensor:
    """Some rows of a table of strengths, which has one row where all columns have the same."""
    assert isinstance(strengths, Tensor)
    return strengths if len(strengths) == 1 else strengths[seen]


def _less_ridge(g: Tensor, form: L1Form, index: Tensor, w: Tensor) -> Tensor:
    """Correlations less the ridge's part, (p, batch), for a table of strengths."""
    l2 = _rows(form.l2, index)
    return g.index_add(0, index, l2 * w, alpha=-1.0) if bool((l2 > 0.0).any()) else g


def _is_nothing(strength: float | Tensor) -> bool:
    return not isinstance(strength, Tensor) and strength == 0.0
