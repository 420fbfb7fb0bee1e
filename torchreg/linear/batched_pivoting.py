"""Exact minimisers of several penalised quadratics over the same columns, by block principal pivoting in lockstep.

    minimise  w' (G_k + diag(l2)) w / 2 - c_k' w + sum_j l1_j |w_j|,  w >= 0 where asked,  for each problem k

As in `pivoting`, columns with a coefficient of the wrong sign or a correlation beyond l1 change sides together. Here a
round is one batched Cholesky factorisation of the active columns of all problems, each padded by the identity to the
widest, and the host is asked once a round how many columns change. Whether a matrix is regular is read off its factor.
There are no fallbacks: a problem that does not settle, or whose active columns are dependent, is lost and left alone,
for the caller to solve otherwise.

Source: Kim and Park, AISTATS 2010 (block pivoting for L1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.subproblem import Subproblem

_DEPENDENT = 1e-10  # of its square norm is left of a column, after active ones: it is their combination
_SLACK = 1e-12  # of a correlation beyond l1: less is rounding, not a violation
_ROUNDING = 1e-14  # of a correlation, relative to the largest
_ROUNDS = 40
_SPARE = 3  # exchanges that need not lessen the violations, before only the worst change
_ASTRAY = 8  # times as many violations as before (and at least its square): exchanges lead nowhere
_FIRST = 64  # columns of the first buffer
_LARGE = 1024  # columns of a matrix that fills a device by itself: a batch of such is factored one by one


@dataclass(frozen=True)
class Sides:
    """Which columns are active, and their signs: (K, m) each; and how many are active in each problem."""

    active: Tensor
    signs: Tensor
    counts: list[int]


@dataclass
class Patience:
    """How long the exchanges of one problem may go on without getting better."""

    fewest: int
    spare: int = _SPARE

    def allowed(self, count: int) -> int:
        """How many of ``count`` columns that violate optimality may change; 0 where it leads nowhere."""
        if count < self.fewest:
            self.fewest, self.spare = count, _SPARE
        elif count > _ASTRAY * max(self.fewest, _ASTRAY):
            return 0
        elif self.spare:
            self.spare -= 1
        else:
            return max(1, count // 4)
        return count


class BatchedPivots:
    """Solves K subproblems over one growing set of columns, each from the solution of the one before.

    Args:
        ranks: for each problem, no more columns than this are independent.
        limit: no more columns than this will ever come.
        ridged: whether there is a ridge, which makes any columns independent.
        device: where to compute.

    Attributes:
        lost: the problems that were given up.
        rounds: so far.
        sides: of all problems.
    """

    def __init__(self, ranks: list[int], limit: int, ridged: bool, device: torch.device) -> None:
        self._ranks, self._limit, self._ridged = ranks, limit, ridged
        self._room = torch.zeros(len(ranks), 0, 0, dtype=torch.float64, device=device)
        self._alive = torch.ones(len(ranks), 1, dtype=torch.bool, device=device)
        self._gram, self._factor = self._room, _Factor.none()
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
        active, signs = (torch.cat([x, x.new_zeros(len(x), size - old)], 1) for x in (self.sides.active, self.sides.signs))
        self.sides = Sides(active, signs, self.sides.counts)

    def drop(self, problem: int) -> None:
        """Give a problem up: it gets no coefficients, and costs nothing any more."""
        self.lost[problem] = True
        self._alive[problem] = False
        self.sides.active[problem] = False
        self.sides.counts[problem] = 0
        self._factor = _Factor.none()

    def return_to(self, sides: Sides) -> None:
        """Go on from other sides, of the present columns."""
        self.sides = Sides(sides.active & self._alive, sides.signs, list(sides.counts))
        self._factor = _Factor.none()

    def solve(self, problem: Subproblem) -> Tensor:
        """Coefficients, (K, m); zeros for a lost problem.

        Args:
            problem: ``c`` is (K, m), ``l1`` and ``l2`` are shared, (m,).
        """
        patience = [Patience(self.size + 1) for _ in self._ranks]
        if self._ridged:
            self._factor = _Factor.none()
        for _ in range(_ROUNDS):
            self.rounds += 1
            w = self._solved(problem, problem.c - problem.l1 * self.sides.signs)
            g = problem.c - torch.matmul(self._gram, w[..., None])[..., 0] - problem.l2 * w
            if not self._exchange(problem, w, g, patience):
                break
        else:
            self._lose_unsettled(problem, w, g)
        rest = torch.where(self.sides.active, g - problem.l1 * self.sides.signs, 0.0)
        return torch.where(self._alive, w + self._solved(problem, rest), 0.0)

    def _solved(self, problem: Subproblem, sides: Tensor) -> Tensor:
        """Solutions over the active columns, (K, m), zero for the others."""
        if self._factor.width < 0:
            self._factor = _Factor.of(self._gram, problem.l2, self.sides)
        return self._factor.solve(sides)

    def _excess(self, problem: Subproblem, w: Tensor, g: Tensor) -> Tensor:
        """How far each column is from optimal on its side, as a correlation; > 0: it must change."""
        rounding = _ROUNDING * problem.c.abs().amax(1, keepdim=True)
        size = g if problem.lower == 0.0 else g.abs()
        entering = size - (1.0 + _SLACK) * problem.l1 - rounding
        steep = self._gram.diagonal(dim1=1, dim2=2) + problem.l2
        leaving = rounding - w * self.sides.signs * steep  # zero is as good as what is rounding
        if problem.lower != 0.0:
            leaving = torch.where(problem.l1 > 0.0, leaving, -1.0)  # unpenalised columns stay
        return torch.where(self._alive, torch.where(self.sides.active, leaving, entering), -1.0)

    def _exchange(self, problem: Subproblem, w: Tensor, g: Tensor, patience: list[Patience]) -> bool:
        """Let columns change sides; whether any did."""
        excess, active = self._excess(problem, w, g), self.sides.active
        chosen = excess > 0.0
        counts = torch.stack([chosen.sum(1), (chosen & active).sum(1), self._factor.failed.long()]).tolist()
        allowed, rooms = [], []
        for k, (count, leaving, failed) in enumerate(zip(*counts, strict=True)):
            few = patience[k].allowed(count) if count else 0
            room = self._free(k) + leaving
            if not self.lost[k] and (failed or (count and not (few and (room or leaving)))):
                self.drop(k)
                few = 0
            allowed.append(few)
            rooms.append(max(room, 0))
        if not any(allowed):
            return False
        if allowed != counts[0] or any(c - n > r for c, n, r in zip(counts[0], counts[1], rooms, strict=True)):
            entering = torch.where(active, -1.0, excess)
            chosen &= _largest(excess, allowed) & (active | _largest(entering, rooms))
        self._flip(chosen & self._alive, g)
        return True

    def _free(self, k: int) -> int:
        """How many columns may enter a problem if none leaves."""
        return (self.size if self._ridged else self._ranks[k]) - self.sides.counts[k]

    def _flip(self, chosen: Tensor, g: Tensor) -> None:
        """Exchange columns; those that enter take the sign of their correlation."""
        signs = torch.where(chosen & ~self.sides.active, g.sign(), self.sides.signs)
        active = self.sides.active ^ chosen
        self.sides = Sides(active, signs, active.sum(1).tolist())
        self._factor = _Factor.none()

    def _lose_unsettled(self, problem: Subproblem, w: Tensor, g: Tensor) -> None:
        unsettled = (self._excess(problem, w, g) > 0.0).any(1).tolist()
        for k, open_ in enumerate(unsettled):
            if open_:
                self.drop(k)


@dataclass(frozen=True)
class _Factor:
    """Cholesky factors of the active columns of each problem, padded by the identity.

    Attributes:
        width: of the matrices; < 0 where there are none.
        places: of the active columns, (K, width). filled: which of them are not padding, (K, width).
        lower: the factors, (K, width, width).
        failed: whether a problem's active columns are dependent, (K,).
    """

    width: int
    places: Tensor
    filled: Tensor
    lower: Tensor
    failed: Tensor

    @classmethod
    def none(cls) -> _Factor:
        empty = torch.empty(0)
        return cls(-1, empty, empty, empty, empty)

    @classmethod
    def of(cls, gram: Tensor, ridge: Tensor, sides: Sides) -> _Factor:
        """Of ``gram + diag(ridge)``, (K, m, m) and (m,)."""
        width = max(1, *sides.counts)
        places, filled = _gathered(sides.active, width)
        batch = torch.arange(len(gram), device=gram.device)
        square = gram[batch[:, None, None], places[:, :, None], places[:, None, :]]
        square = torch.where(filled[:, :, None] & filled[:, None, :], square, 0.0)
        diagonal = square.diagonal(dim1=1, dim2=2)
        diagonal.add_(torch.where(filled, ridge[places], 1.0))
        lower, info = _cholesky(square)
        left = lower.diagonal(dim1=1, dim2=2).square() > _DEPENDENT * diagonal
        return cls(width, places, filled, lower, (info > 0) | ~left.all(1))

    def solve(self, sides: Tensor) -> Tensor:
        """Solutions, (K, m), for right-hand sides of all columns."""
        inner = torch.where(self.filled, sides.gather(1, self.places), 0.0)
        solved = torch.cholesky_solve(inner[..., None], self.lower)[..., 0]
        return torch.zeros_like(sides).scatter_add_(1, self.places, torch.where(self.filled, solved, 0.0))


def _gathered(active: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Numbers of the active columns of each problem, (K, width), filled up with 0; and which are not filling."""
    rank = torch.where(active, active.cumsum(1) - 1, width)
    numbers = torch.arange(active.shape[1], device=active.device).expand_as(active)
    places = numbers.new_zeros(len(active), width + 1).scatter_(1, rank, numbers)[:, :width]
    return places, torch.arange(width, device=active.device) < active.sum(1, keepdim=True)


def _cholesky(square: Tensor) -> tuple[Tensor, Tensor]:
    if square.shape[1] < _LARGE:
        lower, info = torch.linalg.cholesky_ex(square)
        return lower, info
    parts = [torch.linalg.cholesky_ex(one) for one in square]
    return torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts])


def _largest(values: Tensor, counts: list[int]) -> Tensor:
    """Mask of the ``counts`` largest entries of each row."""
    order = values.argsort(1, descending=True).argsort(1)
    return order < torch.tensor(counts, device=values.device)[:, None]
