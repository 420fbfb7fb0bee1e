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

from torchreg.linear.certificate import columns, dual_scale, penalty_gap, violation
from torchreg.linear.oracle import Oracle
from torchreg.linear.pivoting import PivotSolver
from torchreg.linear.points import PathPoint, nonzero_rows, zero_intercept
from torchreg.linear.subproblem import Subproblem
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
            self._slack = self._before = self._slacks([form], g, w[:, None])[:, 0]

    def _add(self, new: Tensor, form: L1Form) -> None:
        if len(new):
            l2 = columns(form.l2, self._slack).expand(self._p)
            self._solver.append(self._oracle.append(new), l2[new])
            self._chosen[new] = True

    def _block(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> Generator[PathPoint, None, int]:
        """Solve a block and give the points before the first that is not optimal; returns how many."""
        self._screen(alphas, forms)
        solved, rounds = self._solve(forms)
        g, squares = self._oracle.correlations(solved)
        l1 = _table([f.l1 for f in forms], g)
        slack = self._slacks(forms, g, solved)
        reach = slack if forms[0].lower == 0.0 else slack.abs()
        beyond = (reach > (1.0 + _SLACK) * l1) & ~self._chosen[:, None]
        spoilt = beyond.any(0)
        good = int(spoilt.long().cumsum(0).eq(0).sum())
        for k in range(good):
            yield self._point(forms[k], solved[:, k], g[:, k], squares[k], rounds[k])
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
        solutions, rounds = [], []
        for form in forms:
            before = self._solver.rounds
            l1, l2 = (columns(part, c).expand(self._p)[chosen] for part in (form.l1, form.l2))
            solutions.append(self._solver.solve(Subproblem(c, l1, l2, form.lower))[0])
            rounds.append(self._solver.rounds - before)
        return torch.stack(solutions, 1), rounds

    def _slacks(self, forms: Sequence[L1Form], g: Tensor, solved: Tensor) -> Tensor:
        """Correlations less the ridge's part, (p, batch)."""
        l2 = _table([f.l2 for f in forms], g)
        if not isinstance(forms[0].l2, Tensor) and all(f.l2 == 0.0 for f in forms):
            return g
        dense = torch.zeros_like(g).index_copy_(0, self._oracle.chosen, solved)
        return g - l2 * dense

    def _remember(self, slack: Tensor, alphas: Sequence[float]) -> None:
        if slack.shape[1] > 1:
            self._before, self._at_before = slack[:, -2].clone(), alphas[-2]
        else:
            self._before, self._at_before = self._slack, self._at
        self._slack, self._at = slack[:, -1].clone(), alphas[-1]

    def _point(self, form: L1Form, w: Tensor, g: Tensor, squares: Tensor, n_iter: int) -> PathPoint:
        scale = dual_scale(form, g)
        full = torch.zeros_like(g).index_copy_(0, self._oracle.chosen, w)
        gap = 0.5 * (1.0 - scale).square() * squares + penalty_gap(form, full, scale * g)
        kept = nonzero_rows(full)
        none = zero_intercept(w, None)
        return PathPoint(kept, full[kept], none, gap, violation(form, full, g), 0.5 * squares, n_iter)


def _table(strengths: Sequence[float | Tensor], like: Tensor) -> Tensor:
    """One column a form: (1, batch) for numbers, (p, batch) for strengths of each column."""
    parts = [columns(s, like[:, 0]).reshape(-1) for s in strengths]
    return torch.stack(torch.broadcast_tensors(*parts), 1)
