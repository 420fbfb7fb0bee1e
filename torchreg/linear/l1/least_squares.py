"""Least squares with weighted L1, ridge and sign constraints, exact on a working set of columns, by pivoting.

A strength far below the last is solved alone, without others between: the columns that violate its optimality most
join the set, as many as it has coefficients that are not zero, until none is left. From one set to the next few
coefficients change sign, so that exchanges of columns do not go astray. Where they have, strengths between are solved.

Source: Massias, Gramfort and Salmon, ICML 2018 (working sets that double).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from torchreg.linear.objective.entry_terms import EntryTerms
from torchreg.linear.oracle import Oracle
from torchreg.linear.pivoting.solver import PivotSolver
from torchreg.linear.pivoting.subproblem import Subproblem
from torchreg.linear.points import PathPoint, zero_intercept
from torchreg.linear.solvers.path_following import Continuation, Solved, Subsolver

_FEW = 10  # columns that join a working set at once, at least
_ASTRAY = 1e-12  # of the target's energy: a larger gap means that the strength was too far away
_WIDE, _LESS_FAR = 4.0, 0.3  # with so many columns for one of rank, strengths go no farther down from one to the next
_ROOM = 0.3  # of the columns that the rank leaves room for: no more join at once, or exchanges go astray


class PivotLeastSquares(Subsolver[EntryTerms]):
    """Blocks of strengths of least squares with one target.

    Args:
        oracle: the data.
        start: coefficients to start from, (p,); None for zeros.
    """

    keep, block, reach, far = 0.95, 8, 0.0, 0.9
    goal = math.nan  # on the working set all points are exact

    def __init__(self, oracle: Oracle, start: Tensor | None = None) -> None:
        self._oracle, self._start = oracle, start
        self._chosen = torch.zeros(len(oracle.cross), dtype=torch.bool, device=oracle.cross.device)
        self._solver = PivotSolver(oracle.cross.device, len(oracle.cross), oracle.rank)
        self._rounds = 0  # before the strength that is solved alone
        self._before = self._solver.w

    @property
    def chosen(self) -> Tensor:
        return self._chosen

    def begin(self, terms: EntryTerms) -> Tensor:
        l1 = terms.l1
        w = torch.zeros_like(l1) if self._start is None else self._start.clamp(min=terms.lower)
        w = torch.where(l1.isinf(), 0.0, w)
        self.add((l1 == 0.0) | (w != 0.0), terms)
        if self._start is None or not len(self._oracle.chosen):
            return self._oracle.cross
        inside = w[self._oracle.chosen]
        self._solver.begin(inside)
        return terms.slack(w, self._oracle.correlations(inside[:, None])[0][:, 0])

    def add(self, needed: Tensor, terms: EntryTerms) -> None:
        new = (needed & ~self._chosen).nonzero().flatten()
        if len(new):
            self._solver.append(self._oracle.append(new), terms.within(new).l2)
            self._chosen[new] = True

    def most(self, *, far: bool) -> int | None:
        active = int(self._solver.w.count_nonzero()) if far else 0
        return max(_FEW, min(active, int(_ROOM * (self._oracle.rank - active)))) if far else None

    def solve(
        self, alphas: Sequence[float], penalties: Sequence[EntryTerms], accuracy: float | None
    ) -> Solved[EntryTerms]:
        if accuracy is None:
            self._rounds, self._before = self._solver.rounds, self._solver.w
        chosen, rounds, solutions = self._oracle.chosen, [self._rounds], []
        c = self._oracle.cross[chosen]
        for terms in penalties:
            inside = terms.within(chosen)
            solutions.append(self._solver.solve(Subproblem(c, inside.l1, inside.l2, terms.lower)))
            rounds.append(self._solver.rounds)
        w = torch.stack(solutions, 1)
        (g, squares), order = self._oracle.correlations(w), chosen.argsort()
        index, w = chosen[order], w[order]
        terms = penalties[0].batch(penalties)
        slack = terms.slack(g.new_zeros(g.shape).index_copy_(0, index, w), g) if terms.ridge else g
        steps = [after - before for before, after in pairwise(rounds)]
        return Solved(terms, slack, partial(self._points, terms, index, w, g, slack, squares, steps))

    def accept(self, count: int) -> None:
        del count  # the next strength is as near to the last one solved

    def continuation(
        self, tried: PathPoint | None, alpha: float, terms: EntryTerms, slack: Tensor, last: float
    ) -> Continuation[EntryTerms] | None:
        wide = len(self._chosen) > _WIDE * self._oracle.rank and alpha < _LESS_FAR * last
        known = wide if tried is None else not bool(tried.gap <= _ASTRAY * self._oracle.energy)
        last = alpha * max(1.0, terms.strongest(slack)) if math.isinf(last) else last
        if not (known and alpha > 0.0 and math.isfinite(last / alpha)):
            return None
        if tried is not None:
            more = len(self._oracle.chosen) - len(self._before)
            self._solver.begin(torch.cat([self._before, self._before.new_zeros(more)]))
        steps = 1 + int(1.001 * math.log(last / alpha) / -math.log(_LESS_FAR if tried is None else self.far))
        shares = [(last / alpha) ** (k / steps) for k in range(steps - 1, -1, -1)]
        return Continuation(last, [share * alpha for share in shares], [terms.raised(share) for share in shares])

    def _points(
        self, terms: EntryTerms, index: Tensor, w: Tensor, g: Tensor, slack: Tensor, squares: Tensor, steps: list[int]
    ) -> list[PathPoint]:
        """One point for each of a batch of penalties.

        Columns outside of the set, whose correlations are within their strengths, count in no certificate.

        Args:
            terms: the penalties of all columns.
            index: numbers of the columns of the set, ascending, (m,).
            w: their coefficients, (m, batch).
            g: correlations of all columns, (p, batch).
            slack: those less the ridge's part.
            squares: residual sums of squares, (batch,).
            steps: of each.
        """
        coef, part, seen = w, terms, g
        if bool((terms.excess(slack).masked_fill_(self._chosen[:, None], -torch.inf) > 0.0).any()):
            coef = torch.zeros_like(g).index_copy_(0, index, w)  # rounding, or a column that has yet to join
        else:
            part, seen = terms.within(index), g[index]
        scale = part.scale(seen)
        gaps = 0.5 * (1.0 - scale).square() * squares + part.gap(coef, scale * seen)
        off, none = part.violation(coef, seen), zero_intercept(g, None)
        found = []
        for k, values in enumerate(w.unbind(1)):
            kept = values != 0.0
            found.append(PathPoint(index[kept], values[kept], none, gaps[k], off[k], 0.5 * squares[k], steps[k]))
        return found
