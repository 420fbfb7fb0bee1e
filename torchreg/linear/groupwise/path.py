"""Least squares with a penalty of groups, solved on a working set of groups by Newton's method.

The working set is wide: the groups that a block of strengths may need. In it `GroupWorkingSet` finds for each strength
those that it does need.

Source: Yuan and Lin, JRSS B 68, 2006 (group lasso).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from torchreg.linear.groupwise.conditions import GroupTerms
from torchreg.linear.groupwise.partition import partition
from torchreg.linear.oracle import Oracle
from torchreg.linear.points import PathPoint, nonzero_rows, zero_intercept
from torchreg.linear.solvers.group_working_set import GroupWorkingSet
from torchreg.linear.solvers.path_following import Solved, Subsolver

_SHARE = 0.3  # of the tolerance: a gap over a working set that leaves room for rounding


class GroupLeastSquares(Subsolver[GroupTerms]):
    """Blocks of strengths of least squares with groups of rows of coef.

    Args:
        oracle: the data.
        labels: the group of each row of coef, (p,); every number from 0 to the largest occurs.
        goal: duality gap at which a point is accepted.
        limit: rounds of Newton's method for one point.
        start: coefficients to start from, (p,) or (p, K); None for zeros.
    """

    keep, block, reach, far = 0.95, 8, 0.0, 0.0

    def __init__(self, oracle: Oracle, labels: Tensor, goal: float, limit: int, start: Tensor | None) -> None:
        self._oracle, self.goal, self._start = oracle, goal, start
        self._zero = torch.zeros_like(oracle.cross)
        self._outputs = self._zero[:1].numel()
        self._rows, sizes = partition(labels), torch.bincount(labels)
        width = int(sizes[0]) if bool((sizes == sizes[0]).all()) else None
        self._set = GroupWorkingSet(oracle, sizes, width, _SHARE * goal, limit)
        self._chosen = torch.zeros(self._zero.numel(), dtype=torch.bool, device=labels.device)

    @property
    def chosen(self) -> Tensor:
        return self._chosen

    def begin(self, terms: GroupTerms) -> Tensor:
        w = (self._zero if self._start is None else self._start.to(self._zero)).reshape(-1).clamp(min=terms.lower)
        w = w * terms.parts.spread(terms.l1.isfinite())
        first = w != 0.0
        if terms.unpenalised is not None:
            first = first | (terms.parts.spread(terms.unpenalised) > 0.0)
        self.add(first, terms)
        entries = self._set.entries
        if not bool(w.any()):
            return self._oracle.cross.reshape(-1)
        self._set.begin(w[entries])
        return terms.slack(w, self._correlations(w[entries][:, None])[0][:, 0])

    def add(self, needed: Tensor, terms: GroupTerms) -> None:
        groups = terms.parts.labels[needed & ~self._chosen].unique()
        if len(groups):
            self._set.append(groups, self._rows.entries(groups))
            self._chosen[terms.parts.entries(groups)] = True

    def solve(
        self, alphas: Sequence[float], penalties: Sequence[GroupTerms], accuracy: float | None
    ) -> Solved[GroupTerms]:
        w, rounds = self._set.solve(alphas, penalties, accuracy or 1.0)
        (g, squares), coef = self._correlations(w), w.new_zeros(self._zero.numel(), len(alphas))
        terms, coef = penalties[0].batch(penalties), coef.index_copy_(0, self._set.entries, w)
        return Solved(terms, terms.slack(coef, g), partial(self._points, terms, coef, g, squares, rounds))

    def _points(
        self, terms: GroupTerms, coef: Tensor, g: Tensor, squares: Tensor, rounds: Sequence[int]
    ) -> list[PathPoint]:
        """One point for each of a batch of penalties, with coefficients and correlations of all entries."""
        scale = terms.scale(g)
        gaps, off = 0.5 * (1.0 - scale).square() * squares + terms.gap(coef, scale * g), terms.violation(coef, g)
        none, points = zero_intercept(g, None if self._zero.dim() == 1 else self._outputs), []
        for k, flat in enumerate(coef.unbind(1)):
            table = flat.view(self._zero.shape)
            kept = nonzero_rows(table)
            points.append(PathPoint(kept, table[kept], none, gaps[k], off[k], 0.5 * squares[k], rounds[k]))
        return points

    def accept(self, count: int) -> None:
        self._set.return_to(count)

    def _correlations(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Correlations of all entries and residual squares at coefficients of the working set, (entries, batch)."""
        if self._zero.dim() == 1:
            return self._oracle.correlations(w)
        g, squares = self._oracle.correlations(w.view(-1, self._outputs, w.shape[1]).transpose(1, 2))
        return g.transpose(1, 2).reshape(-1, w.shape[1]), squares
