"""Minimisers of a quadratic with a group penalty by an inexact Newton method on the groups that are not zero.

Each round first takes a proximal step in the groups that it would change much: there it decides which are zero.
Then the penalty is smooth, and Newton's direction is taken, halved until the objective falls: of few entries by
Cholesky's factorisation, of many by conjugate gradients in single precision, since a direction needs few digits.
Before that, groups that have just come settle among themselves. Where this does not progress, proximal point steps
finish the work.

Source: Zhang, Zhang, Sun and Toh, Math. Program. 179, 2020 (semismooth Newton methods for groups); Yuan and Lin,
JRSS B 68, 2006.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from torchreg.linear.groupwise.model import dense_direction, inexact_direction, model_at, moved, same_group
from torchreg.linear.groupwise.proximal_point import proximal_point
from torchreg.linear.groupwise.strengths import Strengths
from torchreg.linear.groupwise.system import ROUNDING, GroupSystem
from torchreg.linear.solvers.linear_algebra import line_search

_DENSE = 160  # entries up to which a factorisation is cheaper than conjugate gradients
_YOUNG = 60  # entries of groups that settle among themselves
_CHANGE = 0.5  # of a group's norm: a proximal step that changes it more is taken
_DOUBLINGS = 40  # of a proximal step's curvature until the objective falls
_HALVINGS = 6  # of Newton's direction
_INNER = 4  # Newton steps within a few groups
_INNER_YOUNG = 2  # where the others are to move yet
_CLOSE = 1e-3  # relative change of a group: the next step of Newton would be its square
_ERROR = 0.02  # of a direction, at least
_SHARE = 0.3  # of what the gap must still fall: so much may a direction miss
_LONGER = 10.0  # a proximal point step than the one before
_LEAST = 1e-9  # of the curvature: a longer step is lost in rounding
_FIRST = 1e-3  # of the gap that is asked for: only so exact a guess is not improved
_PROGRESS = 0.9  # a round that leaves more of the gap is a failure


class GroupNewton:
    """Solves one problem over all groups of a system.

    Args:
        system: the quadratic.
        strengths: of the penalty.
        w: where to start, shaped.
        g: correlations there, shaped.
        young: groups of which little is known, shaped, boolean.

    Attributes:
        w, g: coefficients and correlations, shaped.
    """

    def __init__(self, system: GroupSystem, strengths: Strengths, w: Tensor, g: Tensor, young: Tensor) -> None:
        self._system, self._strengths, self._parts, self._young = system, strengths, system.parts, young
        self._curvature = 1.0
        self._slip = ROUNDING * system.energy
        self._move(w, g)

    def run(self, target: float, limit: int) -> int:
        """Improve until the duality gap over the groups is at most ``target``, or for ``limit`` rounds; how many."""
        done, last = 0, float("inf")
        while True:
            self._settle()
            gap = self._system.gap(self._strengths, self.w, self._norms, self.g)
            if gap <= (target if done else _FIRST * target) or done >= limit:
                return done
            done += 1
            if gap > _PROGRESS * last or not self._newton(max(_ERROR, _SHARE * target / gap)):
                if self._curvature < _LEAST:
                    return done
                done += self._proximal_point(limit - done)
                gap = float("inf")
            last = gap

    def _proximal_point(self, limit: int) -> int:
        """A step that leads on where Newton's method does not; the next one is longer. Rounds."""
        curvature = self._curvature * float(self._system.bound.mean())
        w, rounds = proximal_point(self._system, self._strengths, self.w, curvature, limit)
        self._try(w - self.w)
        self._curvature /= _LONGER
        return rounds

    def _move(self, w: Tensor, g: Tensor) -> None:
        self.w, self.g, self._norms = w, g, self._parts.norms(w)

    def _try(self, way: Tensor) -> bool:
        """Go there if the objective does not grow."""
        fresh, taken = self.w + way, self._system.gram.times(way)
        change = (way * (0.5 * taken - self.g)).sum() + self._strengths.change(self.w, self._norms, fresh)
        if not float(change) <= self._slip:
            return False
        self._move(fresh, self.g - taken)
        return True

    def _settle(self) -> None:
        """A proximal step in the groups, or entries, that it would change much."""
        spread, norms, curvature = self._parts.spread, self._parts.norms, self._system.bound
        for _ in range(_DOUBLINGS):
            fresh = self._strengths.prox(torch.addcmul(self.g, spread(curvature), self.w), curvature)
            way = fresh - self.w
            much = spread(norms(way) > _CHANGE * self._norms)
            if self._strengths.signed:
                much = much | ((fresh != 0.0) != (self.w != 0.0))
            if not bool(much.any()):
                return
            way = way * much
            if self._try(way):
                self._young = self._young | (norms(way) > 0.0)
                return
            curvature = 2.0 * curvature

    def _newton(self, error: float) -> bool:
        """A step of Newton's method; whether it led anywhere."""
        system, strengths, width = self._system, self._strengths, self.w.numel() / len(self._parts)
        alive = self._norms > 0.0
        if strengths.free is not None:
            alive = alive | (strengths.free > 0.0)
        if int(alive.sum()) * width <= _DENSE:
            return self._among(alive, _INNER)
        young, self._young = self._young & alive, torch.zeros_like(alive)
        if 0 < int(young.sum()) * width <= _YOUNG:
            self._among(young, _INNER_YOUNG)
        at = model_at(strengths, self.w, self._norms, self.g)
        way = inexact_direction(system.quick, system.diagonal, strengths, at, error)

        def trial(step: float) -> bool | None:
            return self._try(moved(strengths, self.w, step * way) - self.w) or None

        return bool(line_search(trial, _HALVINGS))

    def _among(self, chosen: Tensor, steps: int) -> bool:
        """Newton steps in some groups, the others held; whether they led anywhere."""
        groups = chosen.view(-1).nonzero().flatten()
        if not len(groups):
            return False
        entries, parts = self._parts.entries(groups), self._parts.part(groups)
        before, g = (v.view(-1).index_select(0, entries) for v in (self.w, self.g))
        strengths = self._strengths.part(groups, entries, parts)
        gram = self._system.entries_gram(entries)
        w = _few_steps(gram, strengths, parts.shaped(before), parts.shaped(g), self._slip, steps).view(-1)
        fresh = self.w.view(-1).index_copy(0, entries, w).view(self.w.shape)
        taken = self._system.gram.times_some(self._system.columns(entries), w - before)
        self._move(fresh, self.g - taken.view(self.g.shape))
        return not torch.equal(w, before)


def _few_steps(gram: Tensor, strengths: Strengths, w: Tensor, g: Tensor, slip: float, steps: int) -> Tensor:
    """Newton steps in the entries of ``gram``, from ``w`` with correlations ``g``; the coefficients."""
    parts, same = strengths.parts, same_group(strengths.parts)
    norms = parts.norms(w)
    for _ in range(steps):
        way = dense_direction(gram, same, strengths, model_at(strengths, w, norms, g))
        if way is None:
            return w
        found = line_search(partial(_moved_down, gram, strengths, w, g, norms, way, slip), _HALVINGS)
        if found is None:
            return w
        fresh, gone, taken = found
        if bool((parts.norms(gone) <= _CLOSE * norms).all()):
            return fresh
        w, g, norms = fresh, g - taken, parts.norms(fresh)
    return w


def _moved_down(
    gram: Tensor, strengths: Strengths, w: Tensor, g: Tensor, norms: Tensor, way: Tensor, slip: float, step: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Coefficients a step along ``way``, their change and what it takes from g; None if the objective grows."""
    fresh = moved(strengths, w, step * way)
    gone = fresh - w
    taken = torch.mv(gram, gone.view(-1)).view(gone.shape)
    change = (gone * (0.5 * taken - g)).sum() + strengths.change(w, norms, fresh)
    return (fresh, gone, taken) if float(change) <= slip else None
