"""Whole paths of least squares with a group penalty, every point certified on all groups.

As in `L1Path`, one pass over the data serves a block of strengths. Groups whose correlations, continued along the line
through the last two points, come near their strength form the pool; its Gram matrix tells for each strength which of
them are needed, and Newton's method works on these alone. It starts from the parabola through the last three points.

Source: Tibshirani et al., JRSS B 74, 2012 (sequential strong rule); Yuan and Lin, JRSS B 68, 2006 (group lasso).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from torchreg.linear.groupwise.conditions import GroupTerms, group_terms
from torchreg.linear.groupwise.partition import partition
from torchreg.linear.oracle import Oracle
from torchreg.linear.points import PathPoint, nonzero_rows, zero_intercept
from torchreg.linear.solvers.group_working_set import SLACK, GroupWorkingSet
from torchreg.penalties import GroupForm

_KEEP = 0.95  # of its strength: a group predicted to reach it joins the pool
_BLOCK = 8  # strengths for one pass over the data


class GroupPath:
    """Follows one path, from the strongest penalty to the weakest.

    Args:
        oracle: the data.
        rows: the group of each row of coef, (p,).
        target: duality gap at which a point is accepted.
        limit: rounds of Newton's method for one point.
        start: coefficients to start from, (p,) or (p, K); None for zeros.
    """

    def __init__(self, oracle: Oracle, rows: Tensor, target: float, limit: int, start: Tensor | None = None) -> None:
        self._oracle = oracle
        cross = oracle.cross
        self._zero, self._outputs = torch.zeros_like(cross), 1 if cross.dim() == 1 else cross.shape[1]
        self._present, labels = rows.unique(return_inverse=True)
        self._rows = partition(labels)
        self._parts = partition(labels.repeat_interleave(self._outputs))
        sizes = torch.bincount(labels)
        width = int(sizes[0]) if bool((sizes == sizes[0]).all()) else None
        self._pool = GroupWorkingSet(oracle, sizes, width, target, limit)
        self._chosen = torch.zeros(len(self._rows), dtype=torch.bool, device=cross.device)
        self._slack = self._before = cross.reshape(-1)
        self._at = self._at_before = math.inf
        self._start = start

    def points(self, alphas: Sequence[float], forms: Sequence[GroupForm]) -> Iterator[PathPoint]:
        """The solutions, one for each form.

        Args:
            alphas: strengths, descending; only their ratios matter.
            forms: the penalty at each of them.
        """
        strengths = group_terms(forms, self._zero, self._parts, self._present)
        self._open(strengths[0])
        done, size = 0, 1
        while done < len(forms):
            block = slice(done, min(done + size, len(forms)))
            accepted = yield from self._block(alphas[block], strengths[block])
            size = _BLOCK if accepted else size
            done += accepted

    def _open(self, strengths: GroupTerms) -> None:
        """Unpenalised groups, and those of the start, are in the pool from the beginning."""
        parts = self._parts
        first = torch.zeros_like(self._chosen) if strengths.unpenalised is None else strengths.unpenalised > 0.0
        if self._start is None:
            self._add(first)
            return
        w = self._start.to(self._zero).reshape(-1).clamp(min=strengths.lower)
        w = w * parts.spread(strengths.l1.isfinite())
        self._add(first | (parts.norms(w) > 0.0))
        entries = self._pool.entries
        if len(entries):
            self._pool.begin(w[entries])
            g = self._correlations(w[entries][:, None])[0][..., 0]
            self._slack = self._before = strengths.slack(w, g)

    def _add(self, groups: Tensor) -> None:
        new = (groups & ~self._chosen).nonzero().flatten()
        if len(new):
            self._pool.append(new, self._rows.entries(new))
            self._chosen[new] = True

    def _block(self, alphas: Sequence[float], strengths: Sequence[GroupTerms]) -> Generator[PathPoint, None, int]:
        """Solve a block and give the points before the first that is not optimal; returns how many."""
        self._screen(alphas, strengths)
        solved, rounds = self._pool.solve(alphas, strengths)
        batch, (g, squares) = strengths[0].batch(strengths), self._correlations(solved)
        w = solved.new_zeros(self._zero.numel(), len(alphas)).index_copy_(0, self._pool.entries, solved)
        slack = batch.slack(w, g)
        beyond = (batch.reach(slack) > (1.0 + SLACK) * batch.l1) & ~self._chosen[:, None]
        good = int(beyond.any(0).long().cumsum(0).eq(0).sum())
        scale = batch.scale(g)
        gaps = 0.5 * (1.0 - scale).square() * squares + batch.gap(w, scale * g)
        worst = batch.violation(w, g)
        for k in range(good):
            coef = w[:, k].view(self._zero.shape)
            kept = nonzero_rows(coef)
            none = zero_intercept(w, None if self._zero.dim() == 1 else self._outputs)
            yield PathPoint(kept, coef[kept], none, gaps[k], worst[k], 0.5 * squares[k], rounds[k])
        self._remember(slack[..., :good], alphas[:good])
        if good < len(alphas):
            self._pool.return_to(good)
            self._add(beyond.any(1))
        return good

    def _correlations(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Correlations of all entries and residual squares at coefficients of the pool, (entries, batch)."""
        if self._zero.dim() == 1:
            g, squares = self._oracle.correlations(w)
        else:
            g, squares = self._oracle.correlations(w.view(-1, self._outputs, w.shape[1]).transpose(1, 2))
            g = g.transpose(1, 2).reshape(-1, w.shape[1])
        return g, squares

    def _screen(self, alphas: Sequence[float], strengths: Sequence[GroupTerms]) -> None:
        """Add the groups that the block may need, as far as one can tell."""
        span, last = self._at - self._at_before, self._slack
        if math.isfinite(span) and span != 0.0:
            last = last + (alphas[-1] - self._at) / span * (self._slack - self._before)
        needed = torch.zeros_like(self._chosen)
        for g, s in ((self._slack, strengths[0]), (last, strengths[-1])):
            needed |= s.reach(g) > _KEEP * s.l1
        self._add(needed)

    def _remember(self, slack: Tensor, alphas: Sequence[float]) -> None:
        if not alphas:
            return
        if len(alphas) > 1:
            self._before, self._at_before = slack[..., -2].contiguous(), alphas[-2]
        else:
            self._before, self._at_before = self._slack, self._at
        self._slack, self._at = slack[..., -1].contiguous(), alphas[-1]
