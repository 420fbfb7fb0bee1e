"""Whole paths of solutions on a working set of coefficients, every point certified on all of them.

For a block of strengths, from the strongest penalty to the weakest:

1. screen: coefficients whose correlation, continued along the line through the last two points, comes near its
   strength join the working set;
2. solve the block on the working set, each strength from the solution of the one before;
3. certify: one pass over the data gives the correlations of all coefficients, for the whole block;
4. accept the points before the first whose gap is too large or that a coefficient outside of the set spoils;
5. the coefficients that spoil a point join the set, and the first point that was not accepted is solved alone, more
   and more accurately, until it is good enough or nothing helps any more;
6. go on from the last accepted point.

Source: Tibshirani et al., JRSS B 74, 2012 (sequential strong rule); Larsson and Wallin, arXiv 2104.13026, 2021
(screening along the path's direction).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic

import torch
from torch import Tensor

from torchreg.linear.objective.penalty_terms import C
from torchreg.linear.points import PathPoint

_SLACK = 1e-12  # of a correlation beyond its strength: less is rounding
_PASSES = 200  # over the data for one strength
_TIGHTER = 0.1  # than before: how accurately a point is solved again that nothing outside of the set spoils


@dataclass(frozen=True)
class Solved(Generic[C]):
    """A block of strengths, solved on a working set.

    Attributes:
        terms: their penalties, as a batch.
        slack: correlations of all coefficients less the ridge's part, (m, batch).
        certified: gives the points with their certificates.
        spent: whether the steps that were allowed are used up.
    """

    terms: C
    slack: Tensor
    certified: Callable[[], list[PathPoint]]
    spent: bool = False

    @cached_property
    def points(self) -> list[PathPoint]:
        """The points with their certificates, made when they are asked for."""
        return self.certified()


@dataclass(frozen=True)
class Continuation(Generic[C]):
    """Strengths to be solved instead of one alone, which is the last of them, and the penalties at them.

    Attributes:
        last: the strength that comes before them.
    """

    last: float
    alphas: list[float]
    penalties: list[C]


class Subsolver(ABC, Generic[C]):
    """Solves strengths on a working set of coefficients.

    Attributes:
        goal: the duality gap at which a point is good enough; nan where all are that nothing outside of the set spoils.
        keep: of its strength: a coefficient whose correlation is predicted to reach it joins the set.
        block: strengths for one pass over the data.
        reach: of the last strength: a block goes no farther.
        far: of the strength before: one below is solved alone, on a set that grows by `most` coefficients at once.
        chosen: which coefficients are in the set, (m,).
    """

    goal: float
    keep: float
    block: int
    reach: float
    far: float

    @property
    @abstractmethod
    def chosen(self) -> Tensor:
        """Which coefficients are in the working set, (m,)."""

    @abstractmethod
    def begin(self, terms: C) -> Tensor:
        """Open the working set for the first penalty; correlations less the ridge's part at the start, (m,)."""

    @abstractmethod
    def add(self, needed: Tensor, terms: C) -> None:
        """The coefficients of a mask (m,) join the working set, under a penalty."""

    @abstractmethod
    def solve(self, alphas: Sequence[float], penalties: Sequence[C], accuracy: float | None) -> Solved[C]:
        """Solve a block.

        Args:
            alphas: strengths, descending.
            penalties: at each of them.
            accuracy: None for a first attempt; of one strength that is solved again from where it is, the share of its
                first attempt's tolerance that is asked for now.
        """

    @abstractmethod
    def accept(self, count: int) -> None:
        """Go back to the last of the first ``count`` points of the block, or, for 0, to where the block began."""

    def most(self, *, far: bool) -> int | None:
        """How many coefficients may join at once; None for any number.

        Args:
            far: whether the strength is far below the last.
        """
        del far
        return None

    def forget(self, slack: Tensor, terms: C) -> None:
        """Coefficients may leave the working set that a penalty holds at zero by far."""
        del slack, terms

    def continuation(
        self, tried: PathPoint | None, alpha: float, terms: C, slack: Tensor, last: float
    ) -> Continuation[C] | None:
        """Strengths on the way to a far one, to which the solver would go astray; None where it would not.

        Args:
            tried: what was found there without them, None where it has not been tried.
            alpha: the strength.
            terms: the penalty.
            slack: correlations at the last point less the ridge's part, (m,).
            last: its strength; inf where there is none.
        """
        del tried, alpha, terms, slack, last
        return None


class PathFollower(Generic[C]):
    """Follows one path, from the strongest penalty to the weakest.

    Args:
        solver: of blocks of strengths on its working set.
    """

    def __init__(self, solver: Subsolver[C]) -> None:
        self._solver = solver
        self._alpha = self._alpha_before = math.inf

    def points(self, alphas: Sequence[float], penalties: Sequence[C]) -> Iterator[PathPoint]:
        """The solutions, one for each penalty.

        Args:
            alphas: strengths, descending; only their ratios matter.
            penalties: at each of them.
        """
        self._slack = self._before = self._solver.begin(penalties[0])
        yield from self._rest(alphas, penalties)

    def _rest(self, alphas: Sequence[float], penalties: Sequence[C]) -> Iterator[PathPoint]:
        """The solutions from the last one on."""
        solver, done, size = self._solver, 0, 1
        while done < len(penalties):
            end, nearest = done + 1, solver.reach * self._alpha
            self._far = alphas[done] < solver.far * self._alpha
            size = 1 if self._far else size
            while end < min(done + size, len(penalties)) and alphas[end] >= max(nearest, solver.far * alphas[end - 1]):
                end += 1
            self._screen(alphas[done:end], penalties[done:end])
            solve = self._block if end > done + 1 else self._alone
            found = solve(alphas[done:end], penalties[done:end])
            yield from found
            good = len(found) == end - done and not bool(found[-1].gap > solver.goal)
            size, done = solver.block if good or math.isnan(solver.goal) else 1, done + len(found)

    def _screen(self, alphas: Sequence[float], penalties: Sequence[C]) -> None:
        """Add the coefficients that a block will need, as far as one can tell."""
        span, slack, keep, terms = self._alpha - self._alpha_before, self._slack, self._solver.keep, penalties[-1]
        if math.isfinite(span) and span != 0.0 and not self._far:
            slack = slack + (alphas[-1] - self._alpha) / span * (self._slack - self._before)
        self._solver.forget(self._slack, terms)
        needed = terms.reached(slack, keep)
        if len(alphas) > 1:
            needed = needed | penalties[0].reached(self._slack, keep)
        self._add(needed, slack, terms)

    def _add(self, needed: Tensor, slack: Tensor, terms: C) -> None:
        """The coefficients of a mask join; of too many those whose correlations go farthest beyond their strengths."""
        needed, most = needed & ~self._solver.chosen, self._solver.most(far=self._far)
        if most is not None and int(needed.sum()) > most:
            farthest = torch.where(needed, terms.excess(slack), -torch.inf).topk(most).indices
            needed = torch.zeros_like(needed).index_fill_(0, farthest, True)
        self._solver.add(needed, terms)

    def _block(self, alphas: Sequence[float], penalties: Sequence[C]) -> list[PathPoint]:
        """Solve neighbours; the points before the first that is not good enough."""
        solver = self._solver
        found = solver.solve(alphas, penalties, None)
        beyond = self._beyond(found)
        gaps = torch.stack([point.gap for point in found.points])
        good = int((~beyond.any(0) & ~(gaps > solver.goal)).long().cumprod(0).sum())
        solver.accept(good)
        self._remember(found.slack[:, :good], alphas[:good])
        solver.add(beyond.any(1), penalties[0])
        return found.points[:good]

    def _alone(self, alphas: Sequence[float], penalties: Sequence[C]) -> list[PathPoint]:
        """Solve one strength until it is good enough, or nothing helps any more."""
        if self._far and (found_between := self._by_continuation(None, alphas[0], penalties[0])):
            return found_between
        solver, accuracy, gap = self._solver, 1.0, math.inf
        found, exact = solver.solve(alphas, penalties, None), math.isnan(solver.goal)
        for _ in range(_PASSES):
            if not exact and (float(found.points[0].gap) <= solver.goal or found.spent):
                break
            beyond = self._beyond(found)[:, 0]
            if not bool(beyond.any()):
                reached = float(found.points[0].gap)
                if exact or not reached < 0.5 * gap:  # nan where no conjugate is known
                    break
                gap, accuracy = reached, _TIGHTER * accuracy
            solver.forget(found.slack[:, 0], penalties[0])
            self._add(beyond, found.slack[:, 0], penalties[0])
            found = solver.solve(alphas, penalties, accuracy)
        if self._far and (found_between := self._by_continuation(found.points[0], alphas[0], penalties[0])):
            return found_between
        solver.accept(1)
        self._remember(found.slack, alphas)
        return found.points

    def _by_continuation(self, tried: PathPoint | None, alpha: float, terms: C) -> list[PathPoint]:
        """Solve one strength by way of others, where the solver asks for it; else nothing."""
        way = self._solver.continuation(tried, alpha, terms, self._slack, self._alpha)
        if way is None:
            return []
        self._alpha = way.last
        points = [*([] if tried is None else [tried]), *self._rest(way.alphas, way.penalties)]
        return [replace(points[-1], n_iter=sum(point.n_iter for point in points))]

    def _beyond(self, found: Solved[C]) -> Tensor:
        """Coefficients outside of the set whose correlations are too large, (m, batch)."""
        return found.terms.reached(found.slack, 1.0 + _SLACK) & ~self._solver.chosen[:, None]

    def _remember(self, slack: Tensor, alphas: Sequence[float]) -> None:
        if not alphas:
            return
        several = len(alphas) > 1
        self._before, self._alpha_before = (slack[:, -2], alphas[-2]) if several else (self._slack, self._alpha)
        self._slack, self._alpha = slack[:, -1], alphas[-1]
