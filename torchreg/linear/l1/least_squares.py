"""Whole paths of least squares with weighted L1, ridge and sign constraints, each point exact.

One pass over the data serves a block of strengths: the block is solved on a working set of columns, then all
correlations are computed at once. Columns whose correlation, continued along the line through the last two points,
comes near its strength join the set before; columns that violate optimality after join it then, and the block goes
on from the first point that they spoilt.

Source: Tibshirani et al., JRSS B 74, 2012 (sequential strong rule); Larsson and Wallin, arXiv 2104.13026, 2021
(screening along the path's direction).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from torchreg.linear.certificate import columns, dual_scale, penalty_gap, table, violation
from torchreg.linear.oracle import Oracle
from torchreg.linear.pivoting.solver import PivotSolver
from torchreg.linear.pivoting.subproblem import Subproblem
from torchreg.linear.points import PathPoint, nonzero_rows, zero_intercept
from torchreg.penalties import L1Form

_KEEP = 0.95  # of its strength: a correlation predicted to reach it joins the working set
_SLACK = 1e-12  # of a correlation beyond its strength: less is rounding
_BLOCK = 8  # strengths for one pass over the data


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
        done, size = 0, 1
        while done < len(forms):
            block = slice(done, min(done + size, len(forms)))
            accepted = yield from self._block(alphas[block], forms[block])
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
            self._slack = self._before = _slacks(table([form], g), self._dense(w[:, None]), g)[:, 0]

    def _add(self, new: Tensor, form: L1Form) -> None:
        if len(new):
            l2 = None if _is_nothing(form.l2) else columns(form.l2, self._slack).expand(self._p)[new]
            self._solver.append(self._oracle.append(new), l2)
            self._chosen[new] = True

    def _block(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> Generator[PathPoint, None, int]:
        """Solve a block and give the points before the first that is not optimal; returns how many."""
        self._screen(alphas, forms)
        solved, rounds = self._solve(forms)
        g, squares = self._oracle.correlations(solved)
        form, coef = table(forms, g), self._dense(solved)
        slack = _slacks(form, coef, g)
        reach = slack if form.lower == 0.0 else slack.abs()
        beyond = (reach > (1.0 + _SLACK) * form.l1) & ~self._chosen[:, None]
        good = int((~beyond.any(0)).long().cumprod(0).sum())
        yield from _points(form, coef, g, squares, rounds)[:good]
        if good:
            self._remember(slack[:, :good], alphas[:good])
        if good < len(forms):
            self._add(beyond.any(1).nonzero().flatten(), forms[0])
        return good

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
        scale = float(c.abs().max()) if len(c) else 0.0
        solutions, rounds = [], []
        for form in forms:
            before = self._solver.rounds
            l2 = None if _is_nothing(form.l2) else self._inside(form.l2, c)
            solutions.append(self._solver.solve(Subproblem(c, self._inside(form.l1, c), l2, form.lower, scale))[0])
            rounds.append(self._solver.rounds - before)
        return torch.stack(solutions, 1), rounds

    def _inside(self, strength: float | Tensor, like: Tensor) -> Tensor:
        """A strength of each column of the set."""
        value = columns(strength, like)
        return value.expand(self._p)[self._oracle.chosen] if value.dim() else value.expand(len(like))

    def _dense(self, solved: Tensor) -> Tensor:
        """Coefficients of all columns, (p, batch)."""
        return solved.new_zeros(solved.shape[1], self._p).index_copy_(1, self._oracle.chosen, solved.T).T

    def _remember(self, slack: Tensor, alphas: Sequence[float]) -> None:
        if slack.shape[1] > 1:
            self._before, self._at_before = slack[:, -2].clone(), alphas[-2]
        else:
            self._before, self._at_before = self._slack, self._at
        self._slack, self._at = slack[:, -1].clone(), alphas[-1]


def _points(form: L1Form, coef: Tensor, g: Tensor, squares: Tensor, rounds: Sequence[int]) -> list[PathPoint]:
    """One point for each of a table of strengths."""
    scale = dual_scale(form, g)
    gaps = 0.5 * (1.0 - scale).square() * squares + penalty_gap(form, coef, scale * g)
    off, none = violation(form, coef, g), zero_intercept(g, None)
    found = []
    for k, w in enumerate(coef.unbind(1)):
        kept = nonzero_rows(w)
        found.append(PathPoint(kept, w[kept], none, gaps[k], off[k], 0.5 * squares[k], rounds[k]))
    return found


def _slacks(form: L1Form, coef: Tensor, g: Tensor) -> Tensor:
    """Correlations less the ridge's part, (p, batch), for a table of strengths."""
    return g - form.l2 * coef if bool((columns(form.l2, g) > 0.0).any()) else g


def _is_nothing(strength: float | Tensor) -> bool:
    return not isinstance(strength, Tensor) and strength == 0.0
