"""The groups that a block of strengths may need, and for each strength those that it does need."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchreg.linear.designs.gram_blocks import balanced
from torchreg.linear.groupwise.growing_gram import FullGram
from torchreg.linear.groupwise.newton import GroupNewton
from torchreg.linear.groupwise.partition import Partition, contiguous
from torchreg.linear.groupwise.strengths import Strengths
from torchreg.linear.groupwise.system import GroupSystem
from torchreg.linear.oracle import Oracle

SLACK = 1e-10  # of a correlation beyond its strength: less is rounding
_NEAR = 0.98  # of a strength: a correlation that comes along when others are needed
_SPARE = 1.3  # times as many groups as are not zero: Newton's set is built anew
_FEW = 10  # spare groups that are no reason to
_VISITS = 20  # of Newton's set for one strength
_PAST = 3  # points to predict the next one from; one more where no group has come or gone

_Known = tuple[float, Tensor]  # a strength and its coefficients over the pool


class GroupPool:
    """A growing set of groups with its Gram matrix, and in it the set that Newton's method works on.

    Args:
        oracle: the data.
        sizes: columns of each group of the data, (groups,).
        width: of all, None where they differ.
        target: duality gap at which a point is accepted.
        limit: rounds for one point.

    Attributes:
        entries: those of the pool among the entries of coef, in the pool's order.
    """

    def __init__(self, oracle: Oracle, sizes: Tensor, width: int | None, target: float, limit: int) -> None:
        self._oracle, self._sizes, self._width, self._target, self._limit = oracle, sizes, width, target, limit
        cross = oracle.cross
        self._outputs, self._energy = 1 if cross.dim() == 1 else cross.shape[1], float(oracle.energy)
        self._gram: FullGram | None = FullGram(cross.device, self._outputs, len(cross))
        self.entries = self._groups = sizes[:0]
        self._parts: Partition = contiguous(self._groups, width)
        self._w = self._cross = cross.new_zeros(0)
        self._past: list[_Known] = []
        self._alive = self._is_hot = torch.zeros(0, dtype=torch.bool, device=cross.device)
        self._calm = 0  # points since a group came or went
        self._cool()

    def append(self, groups: Tensor, rows: Tensor) -> None:
        """New groups and their rows, in the same order."""
        if self._gram is not None and self._is_wide(len(self.entries) // self._outputs + len(rows)):
            self._gram = None
        if self._gram is None:
            self._oracle.add(rows)
        else:
            self._gram.append(self._oracle.append(rows))
        self._groups = torch.cat([self._groups, groups])
        sizes = self._sizes[self._groups] * self._outputs
        self._parts = contiguous(sizes, None if self._width is None else self._width * self._outputs)
        outputs = torch.arange(self._outputs, device=rows.device)
        self.entries = torch.cat([self.entries, (rows[:, None] * self._outputs + outputs).view(-1)])
        self._cross = self._oracle.cross.reshape(-1)[self.entries]
        more = self._w.new_zeros(len(rows) * self._outputs)
        self._w = torch.cat([self._w, more])
        self._past = [(alpha, torch.cat([w, more])) for alpha, w in self._past]
        none = self._is_hot.new_zeros(len(groups))
        self._is_hot, self._alive = torch.cat([self._is_hot, none]), torch.cat([self._alive, none])

    def begin(self, w: Tensor) -> None:
        """Start from these coefficients, (entries,)."""
        self._w = w

    def solve(self, alphas: Sequence[float], strengths: Sequence[Strengths]) -> tuple[Tensor, list[int]]:
        """The minimisers over the pool, (entries, batch), and how many rounds each took.

        Args:
            alphas: strengths, descending.
            strengths: of all groups of the data, one for each.
        """
        self._before = self._w, self._past
        solved, rounds = [], []
        for alpha, strength in zip(alphas, strengths, strict=True):
            if len(self._groups):
                rounds.append(self._point(alpha, strength.part(self._groups, self.entries, self._parts)))
            else:
                rounds.append(0)
            solved.append((alpha, self._w))
            self._remember(alpha)
        self._solved = solved
        return torch.stack([w for _, w in solved], 1), rounds

    def return_to(self, count: int) -> None:
        """Forget the last block but for its first ``count`` points."""
        self._w, past = self._before
        if count:
            self._w = self._solved[count - 1][1]
        known = dict([*past, *self._solved[:count]])  # one point for each strength
        self._past, self._calm = list(known.items())[-_PAST:], 0

    def _point(self, alpha: float, strengths: Strengths) -> int:
        """Solve for one strength; rounds."""
        w, young = self._predicted(alpha, strengths)
        rounds = 0
        for visit in range(_VISITS):
            g = self._correlations(w)
            if not self._warm(strengths, w, g, first=visit == 0):
                break
            parts, entries = self._system.parts, self._hot_entries
            newton = GroupNewton(
                self._system, strengths.part(self._hot, entries, parts), parts.shaped(w[entries]),
                parts.shaped(g[entries]), parts.column(young[self._hot]),
            )  # fmt: skip
            rounds += newton.run(self._target, self._limit)
            w = torch.zeros_like(w).index_copy_(0, entries, newton.w.view(-1))
            if len(self._hot) == len(self._groups):
                break
            young = torch.zeros_like(young)
        self._w = w
        return rounds

    def _is_wide(self, columns: int) -> bool:
        """Whether the data of so many columns are fewer numbers than their Gram matrix, and at hand."""
        return 2 * self._oracle.rank < columns and self._oracle.factor(self._groups[:0]) is not None

    def _correlations(self, w: Tensor) -> Tensor:
        """Of the pool."""
        if self._gram is None:
            return self._oracle.within(w.view(-1, *self._oracle.cross.shape[1:])).reshape(-1)
        return self._cross - self._gram.times(w)

    def _warm(self, strengths: Strengths, w: Tensor, g: Tensor, *, first: bool) -> bool:
        """Give Newton's method the groups that it needs; whether it has anything to do."""
        parts = self._parts
        w, g = parts.shaped(w), parts.shaped(g)
        alive = parts.norms(w) > 0.0
        reach = parts.norms(strengths.left(g))
        needed = alive | (reach > (1.0 + SLACK) * strengths.l1)
        if strengths.free is not None:
            needed |= strengths.free > 0.0
        if first and len(self._hot) > _SPARE * int(alive.sum()) + _FEW:
            self._cool()
        new = (needed.view(-1) & ~self._is_hot).nonzero().flatten()
        if len(new):
            self._heat(((needed | (reach > _NEAR * strengths.l1)).view(-1) & ~self._is_hot).nonzero().flatten())
        return bool(len(self._hot)) and (first or bool(len(new)))

    def _cool(self, *, thin: bool = False) -> None:
        """Begin Newton's set anew."""
        oracle = self._oracle
        device, limit = oracle.cross.device, len(oracle.cross)
        self._system = GroupSystem(device, self._outputs, self._width, limit, self._energy, thin=thin)
        self._hot = self._hot_entries = self._groups[:0]
        self._is_hot = torch.zeros_like(self._is_hot)

    def _heat(self, groups: Tensor) -> None:
        """Groups, by their numbers in the pool, join Newton's set."""
        both = torch.cat([self._hot, groups])
        if not self._system.thin and self._is_wide(int(self._sizes[self._groups[both]].sum())):
            groups = both
            self._cool(thin=True)
        fresh = self._parts.entries(groups)
        self._hot_entries = torch.cat([self._hot_entries, fresh])
        rows, columns = (part[:: self._outputs] // self._outputs for part in (fresh, self._hot_entries))
        self._system.append(self._piece(rows, columns), self._cross[fresh], self._sizes[self._groups[groups]])
        self._hot = torch.cat([self._hot, groups])
        self._is_hot[groups] = True

    def _piece(self, rows: Tensor, columns: Tensor) -> Tensor:
        """What Newton's system wants to know of new columns ``rows``, the last of ``columns``."""
        if self._gram is not None and not self._system.thin:
            return self._gram.block(rows, columns).T
        fresh, known = self._oracle.factor(rows), None if self._system.thin else self._oracle.factor(columns)
        assert fresh is not None
        return fresh if known is None else balanced(known @ fresh.T)

    def _remember(self, alpha: float) -> None:
        """Keep the points from which to predict the next one, the last at the end, of different strengths."""
        alive = (self._parts.norms(self._parts.shaped(self._w)) > 0.0).view(-1)
        self._calm = self._calm + 1 if torch.equal(alive, self._alive) else 0
        self._alive = alive
        past = self._past[:-1] if self._past and self._past[-1][0] == alpha else self._past
        self._past = [*past, (alpha, self._w)][-(_PAST + (self._calm >= _PAST)) :]

    def _predicted(self, alpha: float, strengths: Strengths) -> tuple[Tensor, Tensor]:
        """Coefficients by extrapolation, and the groups that have come too lately for it."""
        past, parts = self._past[::-1], self._parts
        if len(past) < 2:
            return self._w, torch.zeros(len(self._groups), dtype=torch.bool, device=self._w.device)
        known = torch.stack([w for _, w in past], 1)
        terms = parts.shaped(known @ known.new_tensor(_newton_weights([at for at, _ in past], alpha)))
        last, alive = parts.shaped(self._w), parts.norms(parts.shaped(known)).sign_()
        guess = last + (terms * parts.spread(alive.cumprod(-1)[..., 1:])).sum(-1)
        lost = parts.sums(guess * last) <= 0.0
        if strengths.signed:
            guess = torch.where(guess * last > 0.0, guess, 0.0)
        young = (alive[..., 0] > alive[..., 1]).view(-1)
        return torch.where(parts.spread(lost), last, guess).view(-1), young


def _newton_weights(past: list[float], alpha: float) -> list[list[float]]:
    """Of each point (row) in each term of Newton's interpolation after the first (column), at ``alpha``."""
    rows: list[list[float]] = [[] for _ in past]
    _, size = math.frexp(past[-1])  # scaled by its power of two, products neither vanish nor overflow, nor round anew
    past, alpha = [math.ldexp(at, -size) for at in past], math.ldexp(alpha, -size)
    for order in range(1, len(past)):
        reach = math.prod(alpha - at for at in past[:order])
        for k, row in enumerate(rows):
            others = (past[k] - at for j, at in enumerate(past[: order + 1]) if j != k)
            row.append(reach / math.prod(others) if k <= order else 0.0)
    return rows
