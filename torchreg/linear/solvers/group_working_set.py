"""Least squares over screened groups: warm starts, and the working set of each alpha.

For each alpha Newton's method starts from the parabola through the last three solutions, on the groups that are not
zero there or whose correlations exceed their strength; it is repeated while other groups' correlations do.

Source: Friedman, Hastie and Tibshirani, J. Stat. Softw. 33, 2010 (active sets and warm starts along a path).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchreg.linear.groupwise.conditions import GroupTerms
from torchreg.linear.groupwise.partition import contiguous
from torchreg.linear.oracle import Oracle
from torchreg.linear.solvers.group_newton import GroupNewton
from torchreg.linear.solvers.group_quadratic import GroupQuadratic

SLACK = 1e-10  # of a correlation beyond its strength: less is rounding
_NEAR = 0.98  # of a strength: a correlation that comes along when others are needed
_SPARE = 1.3  # times as many groups as are not zero: the working set is built anew
_FEW = 10  # spare groups that are no reason to
_VISITS = 20  # of Newton's method for one alpha
_PAST = 3  # points to predict the next one from
_FORMED = 0  # columns up to which the Gram matrix is formed even of fewer rows

_Known = tuple[float, Tensor]  # an alpha and its coefficients over the screened groups


class GroupWorkingSet:
    """Solves for descending alphas over a growing set of screened groups.

    Args:
        oracle: the data.
        sizes: columns of each group of the data, (groups,).
        width: of all, None where they differ.
        target: duality gap at which a point is accepted.
        limit: rounds of Newton's method for one point.

    Attributes:
        entries: those of the screened groups among the entries of coef, in the order in which they came.
    """

    def __init__(self, oracle: Oracle, sizes: Tensor, width: int | None, target: float, limit: int) -> None:
        self._oracle, self._sizes, self._width, self._target, self._limit = oracle, sizes, width, target, limit
        cross = oracle.cross
        self._outputs, self._energy = 1 if cross.dim() == 1 else cross.shape[1], float(oracle.energy)
        self.entries = self._groups = sizes[:0]
        self._parts = contiguous(self._groups, width)
        self._w = self._cross = cross.new_zeros(0)
        self._past: list[_Known] = []
        self._is_working = torch.zeros(0, dtype=torch.bool, device=cross.device)
        self._empty(thin=False)

    def append(self, groups: Tensor, rows: Tensor) -> None:
        """New groups and their rows, in the same order."""
        self._oracle.add(rows)
        self._groups = torch.cat([self._groups, groups])
        sizes = self._sizes[self._groups] * self._outputs
        self._parts = contiguous(sizes, None if self._width is None else self._width * self._outputs)
        outputs = torch.arange(self._outputs, device=rows.device)
        self.entries = torch.cat([self.entries, (rows[:, None] * self._outputs + outputs).view(-1)])
        self._cross = self._oracle.cross.reshape(-1)[self.entries]
        more = self._w.new_zeros(len(rows) * self._outputs)
        self._w = torch.cat([self._w, more])
        self._past = [(alpha, torch.cat([w, more])) for alpha, w in self._past]
        self._is_working = torch.cat([self._is_working, self._is_working.new_zeros(len(groups))])

    def begin(self, w: Tensor) -> None:
        """Start from these coefficients, (entries,)."""
        self._w = w

    def solve(
        self, alphas: Sequence[float], penalties: Sequence[GroupTerms], accuracy: float
    ) -> tuple[Tensor, list[int]]:
        """The minimisers over the screened groups, (entries, batch), and how many rounds each took.

        Args:
            alphas: descending.
            penalties: of all groups of the data, one for each.
            accuracy: share of the target that is asked for now.
        """
        self._before = self._w, self._past
        self._solved: list[_Known] = []
        rounds = []
        for alpha, penalty in zip(alphas, penalties, strict=True):
            inside = penalty.part(self._groups, self.entries, self._parts)
            rounds.append(self._solve_one(alpha, inside, accuracy * self._target) if len(self._groups) else 0)
            self._solved.append((alpha, self._w))
            self._past = list(dict([*self._past, (alpha, self._w)]).items())[-_PAST:]  # one point for each alpha
        return torch.stack([w for _, w in self._solved], 1), rounds

    def return_to(self, count: int) -> None:
        """Forget the last block but for its first ``count`` points."""
        self._w, past = self._before
        if count:
            self._w = self._solved[count - 1][1]
        self._past = list(dict([*past, *self._solved[:count]]).items())[-_PAST:]

    def _solve_one(self, alpha: float, penalty: GroupTerms, target: float) -> int:
        """Solve for one alpha; rounds."""
        w, rounds = self._warm_start(alpha, penalty), 0
        for visit in range(_VISITS):
            g = self._oracle.within(w.view(-1, *self._oracle.cross.shape[1:])).reshape(-1)
            if not self._enlarge(penalty, w, g, first=visit == 0):
                break
            quadratic, entries = self._quadratic, self._entries
            inside = penalty.part(self._working, entries, quadratic.parts)
            newton = GroupNewton(quadratic, inside, w[entries], g[entries])
            rounds += newton.run(target, self._limit)
            w = torch.zeros_like(w).index_copy_(0, entries, newton.w)
            if len(self._working) == len(self._groups):
                break
        self._w = w
        return rounds

    def _warm_start(self, alpha: float, penalty: GroupTerms) -> Tensor:
        """Coefficients by extrapolation, where groups and signs have not changed."""
        past, parts = self._past[::-1], self._parts
        if len(past) < 2:
            return self._w
        weights = _newton_weights([at for at, _ in past], alpha)
        guess, alive = self._w, torch.stack([parts.norms(w) for _, w in past]).sign_().cumprod(0)
        for k, kept in enumerate(alive[1:]):
            term = sum(
                (row[k] * w for row, (_, w) in zip(weights[1:], past[1:], strict=True)), weights[0][k] * past[0][1]
            )
            guess = torch.addcmul(guess, term, parts.spread(kept))
        if penalty.signed:
            guess = torch.where(guess * self._w > 0.0, guess, 0.0)
        return torch.where(parts.spread(parts.sums(guess * self._w) > 0.0), guess, self._w)

    def _enlarge(self, penalty: GroupTerms, w: Tensor, g: Tensor, *, first: bool) -> bool:
        """Add the groups that are needed to the working set; whether Newton's method has anything to do."""
        alive = self._parts.norms(w) > 0.0
        reach = penalty.reach(g)
        needed = alive | (reach > (1.0 + SLACK) * penalty.l1)
        if penalty.unpenalised is not None:
            needed |= penalty.unpenalised > 0.0
        count, new = torch.stack([alive.sum(), (needed & ~self._is_working).sum()]).tolist()
        if first and len(self._working) > _SPARE * count + _FEW:
            self._empty(thin=False)
            new = bool(needed.any())
        if new:
            self._add(((needed | (reach > _NEAR * penalty.l1)) & ~self._is_working).nonzero().flatten())
        return bool(len(self._working)) and (first or bool(new))

    def _empty(self, *, thin: bool) -> None:
        """Begin the working set anew."""
        device = self._oracle.cross.device
        self._quadratic = GroupQuadratic(device, self._outputs, self._width, self._energy, thin=thin)
        self._working = self._entries = self._groups[:0]
        self._is_working = torch.zeros_like(self._is_working)

    def _add(self, groups: Tensor) -> None:
        """Groups, by their numbers among the screened ones, join the working set."""
        both = torch.cat([self._working, groups])
        if not self._quadratic.thin and self._is_wide(int(self._sizes[self._groups[both]].sum())):
            groups = both
            self._empty(thin=True)
        fresh = self._parts.entries(groups)
        self._entries = torch.cat([self._entries, fresh])
        rows, columns = (part[:: self._outputs] // self._outputs for part in (fresh, self._entries))
        piece = self._oracle.factor(rows) if self._quadratic.thin else self._oracle.products(columns, rows)
        assert piece is not None
        self._quadratic.append(piece, self._cross[fresh], self._sizes[self._groups[groups]])
        self._working = torch.cat([self._working, groups])
        self._is_working[groups] = True

    def _is_wide(self, columns: int) -> bool:
        """Whether the data of so many columns are fewer numbers than a large Gram matrix, and at hand."""
        return columns > max(2 * self._oracle.rank, _FORMED) and self._oracle.factor(self._groups[:0]) is not None


def _newton_weights(past: list[float], alpha: float) -> list[list[float]]:
    """Weights of points (rows) in the terms of Newton's interpolation after the first (columns), at ``alpha``."""
    rows: list[list[float]] = [[] for _ in past]
    _, size = math.frexp(past[-1])  # scaled by its power of two, products neither vanish nor overflow, nor round anew
    past, alpha = [math.ldexp(at, -size) for at in past], math.ldexp(alpha, -size)
    for order in range(1, len(past)):
        reach = math.prod(alpha - at for at in past[:order])
        for k, row in enumerate(rows):
            others = (past[k] - at for j, at in enumerate(past[: order + 1]) if j != k)
            row.append(reach / math.prod(others) if k <= order else 0.0)
    return rows
