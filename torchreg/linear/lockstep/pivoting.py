"""Exact minimisers of several penalised quadratics over the same columns, by block principal pivoting in lockstep.

    minimise  w' (G_k + diag(l2)) w / 2 - c_k' w + sum_j l1_j |w_j|,  w >= 0 where asked,  for each problem k

As in `pivoting`, columns with a coefficient of the wrong sign or a correlation beyond l1 change sides together. A round
is one batched Cholesky factorisation of the active columns of all problems, padded by the identity to the widest, and
one question to the host: how many change. (A tableau for each problem would span the columns that any problem may need,
several times as many as are active in one; a factor spans the active ones.) Where an exchange leads to dependent
columns, it is taken back, and fewer columns change; a single one enters in exchange for another. There are no fallbacks
beyond: a problem that does not settle is lost and left alone, for the caller to solve otherwise.

Source: Kim and Park, AISTATS 2010 (block pivoting for L1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.linear.lockstep.exchanges import Patience, Round, Sides
from torchreg.linear.lockstep.factor import Factor
from torchreg.linear.pivoting.limits import ROUNDING, SLACK
from torchreg.linear.pivoting.subproblem import Subproblem

_ROUNDS = 80
_FIRST = 64  # columns of the first buffer


class BatchedPivots:
    """Solves K subproblems over one growing set of columns, each from the solution of the one before.

    Args:
        ranks: for each problem, no more columns than this are independent.
        limit: no more columns than this will ever come.
        ridged: whether there is a ridge, which makes any columns independent.
        device: where to compute.

    Attributes:
        lost: the problems that were given up. alive: the others, (K, 1).
        rounds: so far.
        sides: of all problems.
    """

    def __init__(self, ranks: list[int], limit: int, ridged: bool, device: torch.device) -> None:
        self._ranks, self._limit, self._ridged = ranks, limit, ridged
        self._room = torch.zeros(len(ranks), 0, 0, dtype=torch.float64, device=device)
        self.alive = torch.ones(len(ranks), 1, dtype=torch.bool, device=device)
        self._gram, self._factor = self._room, Factor.none()
        self._before: Round | None = None
        self._patience: list[Patience] = []
        self._back: list[bool] = []
        self.lost = [False] * len(ranks)
        self.rounds = 0
        signs = self._room[:, :, :0].sum(2)
        self.sides = Sides(signs > 0.0, signs, [0] * len(ranks))

    @property
    def size(self) -> int:
        """The number of columns, m."""
        return self._gram.shape[1]

    def append(self, gram: Tensor) -> None:
        """New columns, none of them active: the Gram matrices of all columns with them, (K, m + k, k)."""
        old, size = self.size, gram.shape[1]
        if size > self._room.shape[1]:
            wider = min(max(size, 2 * old, _FIRST), max(self._limit, size))
            room = self._room.new_empty(len(gram), wider, wider)
            room[:, :old, :old] = self._gram
            self._room = room
        self._gram = self._room[:, :size, :size]
        self._gram[:, :, old:] = gram
        self._gram[:, old:, :old] = gram[:, :old].mT
        active, signs = (
            torch.cat([x, x.new_zeros(len(x), size - old)], 1) for x in (self.sides.active, self.sides.signs)
        )
        self.sides, self._factor = Sides(active, signs, self.sides.counts), Factor.none()

    def drop(self, problem: int) -> None:
        """Give a problem up: it gets no coefficients, and costs nothing any more."""
        self.lost[problem] = True
        self.alive[problem] = False
        self.sides.active[problem] = False
        self.sides.counts[problem] = 0
        self._factor = Factor.none()

    def return_to(self, sides: Sides) -> None:
        """Go on from other sides, of the present columns."""
        self.sides = Sides(sides.active & self.alive, sides.signs, list(sides.counts))
        self._factor = Factor.none()

    def solve(self, problem: Subproblem) -> Tensor:
        """Coefficients, (K, m); zeros for a lost problem.

        Args:
            problem: ``c`` is (K, m), ``l1`` and ``l2`` are shared, (m,).
        """
        if not self.size:
            return problem.c
        self._patience = [Patience(self.size + 1) for _ in self._ranks]
        self._before = None
        if self._ridged:
            self._factor = Factor.none()
        for _ in range(_ROUNDS):
            self.rounds += 1
            w, pull = self._solved(problem, problem.c - problem.l1 * self.sides.signs)
            g = problem.c - pull - problem.ridge * w
            moving = self._exchange(problem, w, g)
            if not moving:
                break
        for k in moving:
            self.drop(k)
        rest = torch.where(self.sides.active, g - problem.l1 * self.sides.signs, 0.0)
        return torch.where(self.alive, w + self._solved(problem, rest)[0], 0.0)

    def _solved(self, problem: Subproblem, sides: Tensor) -> tuple[Tensor, Tensor]:
        """Solutions over the active columns, zero for the others, and their products with the matrices, (K, m)."""
        if self._factor.width < 0:
            self._factor = Factor.of(self._gram, problem.ridge, self.sides)
        return self._factor.solve(sides)

    def _excess(self, problem: Subproblem, w: Tensor, g: Tensor) -> Tensor:
        """How far each column is from optimal on its side, as a correlation; > 0: it must change."""
        rounding = ROUNDING * problem.c.abs().amax(1, keepdim=True)
        size = g if problem.lower == 0.0 else g.abs()
        entering = size - (1.0 + SLACK) * problem.l1 - rounding
        steep = self._gram.diagonal(dim1=1, dim2=2) + problem.ridge
        leaving = rounding - w * self.sides.signs * steep  # zero is as good as what is rounding
        if problem.lower != 0.0:
            leaving = torch.where(problem.l1 > 0.0, leaving, -1.0)  # unpenalised columns stay
        return torch.where(self.alive, torch.where(self.sides.active, leaving, entering), -1.0)

    def _exchange(self, problem: Subproblem, w: Tensor, g: Tensor) -> list[int]:
        """Let columns change sides; the problems in which some did."""
        here = self._found(problem, w, g)
        swaps: dict[int, list[int]] = {}
        allowed = [self._allowed(k, here, problem, swaps) for k in range(len(self._ranks))]
        if any(allowed):
            self._flip(here, allowed, swaps)
            self._before = here
        return [k for k, few in enumerate(allowed) if few]

    def _found(self, problem: Subproblem, w: Tensor, g: Tensor) -> Round:
        """This round; for problems whose last exchange led to dependent columns, or nowhere, the one before."""
        excess, active = self._excess(problem, w, g), self.sides.active
        chosen = excess > 0.0
        numbers = torch.stack([chosen.sum(1), (chosen & active).sum(1), self._factor.failed.long()])
        counts, leaving, failed = numbers.tolist()
        here = Round(self.sides, excess, g, counts, leaving)
        self._back = [
            (bool(fail) or patience.astray(count)) and not lost
            for fail, count, patience, lost in zip(failed, counts, self._patience, self.lost, strict=True)
        ]
        if not any(self._back):
            return here
        if self._before is not None:
            return here.but(self._before, self._back)
        for k in [k for k, back in enumerate(self._back) if back]:
            self.drop(k)
        return here

    def _allowed(self, k: int, here: Round, problem: Subproblem, swaps: dict[int, list[int]]) -> int:
        """How many columns of a problem may change; where none can enter beside the others, two are to be swapped."""
        if self.lost[k] or not here.counts[k]:
            return 0
        few = self._patience[k].again() if self._back[k] else self._patience[k].allowed(here.counts[k])
        if few and (here.leaving[k] or self._room_in(k, here)):
            return few
        pair = self._swap(k, here, problem)
        if pair is None:
            self.drop(k)
            return 0
        swaps[k] = pair
        return 2

    def _swap(self, k: int, here: Round, problem: Subproblem) -> list[int] | None:
        """A dependent column, and the active one whose coefficient its growth brings to zero first."""
        active = here.sides.active[k]
        entering = torch.where(active, -1.0, here.excess[k]).argmax()
        chosen = active.nonzero().flatten()
        square = self._gram[k].index_select(0, chosen).index_select(1, chosen) + problem.ridge[chosen].diag()
        rest = problem.c[k, chosen] - problem.l1[chosen] * here.sides.signs[k, chosen]
        sides = torch.stack([rest, -here.g[k, entering].sign() * self._gram[k, chosen, entering]], 1)
        w, way = torch.cholesky_solve(sides, torch.linalg.cholesky_ex(square)[0]).unbind(1)
        shrinks = way * w < 0.0
        if problem.lower != 0.0:
            shrinks &= problem.l1[chosen] > 0.0  # unpenalised columns may change sign
        if not bool(shrinks.any() & (here.excess[k, entering] > 0.0)):
            return None
        first = torch.where(shrinks, -w / torch.where(shrinks, way, 1.0), torch.inf).argmin()
        return [int(entering), int(chosen[first])]

    def _room_in(self, k: int, here: Round) -> int:
        """How many columns may enter a problem."""
        rank = self.size if self._ridged else min(self._ranks[k], self.size)
        return max(rank - here.sides.counts[k] + here.leaving[k], 0)

    def _flip(self, here: Round, allowed: list[int], swaps: dict[int, list[int]]) -> None:
        """Exchange columns; those that enter take the sign of their correlation."""
        active, chosen = here.sides.active, (here.excess > 0.0) & self.alive
        rooms = [self._room_in(k, here) for k in range(len(allowed))]
        entering = [count - leave for count, leave in zip(here.counts, here.leaving, strict=True)]
        freely = all(few in (0, count) for few, count in zip(allowed, here.counts, strict=True))
        limited = bool(swaps) or not freely or any(many > room for many, room in zip(entering, rooms, strict=True))
        if limited:
            fresh = torch.where(active, -1.0, here.excess)
            chosen &= _largest(here.excess, allowed) & (active | _largest(fresh, rooms))
        for k, pair in swaps.items():
            chosen[k] = False
            chosen[k, pair] = True
        signs = torch.where(chosen & ~active, here.g.sign(), here.sides.signs)
        active = (active ^ chosen) & self.alive
        changes = zip(here.sides.counts, entering, here.leaving, self.lost, strict=True)
        counts = [0 if lost else n + more - less for n, more, less, lost in changes]
        self.sides = Sides(active, signs, active.sum(1).tolist() if limited else counts)
        self._factor = Factor.none()


def _largest(values: Tensor, counts: list[int]) -> Tensor:
    """Mask of the ``counts`` largest entries of each row."""
    order = values.argsort(1, descending=True).argsort(1)
    return order < torch.tensor(counts, device=values.device)[:, None]
