"""Least squares with a penalty of groups, over a working set: semismooth Newton, proximal points where it stalls.

Minimises ``w' G w / 2 - cross' w + R(w)``, with correlations ``g = cross - G w``:

1. Decide by a proximal step which groups and entries are zero: it is taken where it changes a group much.
2. Measure the duality gap; stop where it is small enough.
3. Model the penalty to second order on the groups that are not zero: the Hessian of ``l1 ||w_g||`` is
   ``l1 / ||w_g|| (I - u u')`` with ``u = w_g / ||w_g||``.
4. Solve Newton's equations for a direction, by Cholesky's factorisation or, of many entries, by conjugate gradients.
5. Search along it for a step size at which the objective falls; what would pass through zero becomes zero.
6. Where this makes no progress, as among nearly dependent groups, take a proximal point step: its dual is smooth, and
   Newton's method with a line search solves it from anywhere. The steps grow longer until one suffices.

Source: Zhang, Zhang, Sun and Toh, Math. Program. 179, 2020 (Newton's method and proximal points for groups); Li, Sun
and Toh, SIAM J. Optim. 28, 2018 (the same for L1); Rockafellar, SIAM J. Control Optim. 14, 1976 (proximal points).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchreg.linear.groupwise.conditions import GroupTerms
from torchreg.linear.solvers.group_quadratic import ROUNDING, GroupQuadratic
from torchreg.linear.solvers.linear_algebra import ARMIJO, conjugate_gradients, line_search, safe_cholesky

_TINY = 1e-300
_STEEPEST = 1e30  # curvature of a group that is nearly zero: single precision holds it
_LEAST = 1e-14  # of a group's curvature along u, relative to that across: less is rounding
_RIDGE = 1e-13  # of the largest diagonal entry, for singular matrices
_CG_STEPS = 500
_ERROR = 0.02  # of a direction by conjugate gradients, at least
_SHARE = 0.3  # of what the gap must still fall: so much may a direction miss
_CHANGE = 0.5  # of a group's norm: a proximal step that changes it more is taken
_DOUBLINGS = 40  # of a proximal step's curvature until the objective falls
_HALVINGS = 6  # of Newton's direction
_PROGRESS = 0.9  # a round that leaves more of the gap is a failure
_FIRST = 1e-3  # of the gap that is asked for: only so exact a warm start is not improved
_LONGER = 10.0  # a proximal point step than the one before
_LONGEST = 1e-9  # of the curvature: a longer step is lost in rounding
_INEXACT = 1e-2  # of the way: the error of a proximal point step
_DUAL_STEPS = 50  # of Newton's method for one proximal point step
_DUAL_HALVINGS = 30
_DUAL_ERROR = 1e-6  # of its directions by conjugate gradients


@dataclass(frozen=True)
class _Model:
    """Second-order model at one point; the penalty's Hessian is ``shift I - stiffness u u'`` in each group.

    Attributes:
        unit: u, zero in groups that are zero.
        stiffness: ``l1 / ||w_g||`` of each entry's group. shift: the same with the ridge.
        free: 1 where entries may move, else 0.
        slope: minus the gradient where entries may move, else 0.
    """

    unit: Tensor
    stiffness: Tensor
    shift: Tensor
    free: Tensor
    slope: Tensor


class GroupNewton:
    """Solves one problem over all groups of a quadratic.

    Args:
        quadratic: the data term.
        penalty: of its entries.
        w: where to start.
        g: correlations there.

    Attributes:
        w, g: coefficients and correlations.
    """

    def __init__(self, quadratic: GroupQuadratic, penalty: GroupTerms, w: Tensor, g: Tensor) -> None:
        self._quadratic, self._penalty, self._parts, self.w, self.g = quadratic, penalty, quadratic.parts, w, g
        self._slip, self._curvature = ROUNDING * quadratic.energy, 1.0

    def run(self, target: float, limit: int) -> int:
        """Improve until the duality gap over the groups is at most ``target``, or for ``limit`` rounds; how many."""
        rounds, last, gap = 0, float("inf"), float("inf")
        while True:
            self._decide_zeros()
            if not rounds and not self._quadratic.is_factored(self.w):
                gap = self._gap()
                if gap <= _FIRST * target:
                    return rounds
            rounds, moved = rounds + 1, self._newton_step(max(_ERROR, _SHARE * target / gap))
            gap = self._gap()
            if gap <= target or rounds >= limit:
                return rounds
            if not moved or gap > _PROGRESS * last:
                if self._curvature < _LONGEST:
                    return rounds
                rounds += self._proximal_point_step(limit - rounds)
                gap = float("inf")
            last = gap

    def _gap(self) -> float:
        return float(self._quadratic.gap(self._penalty, self.w, self.g))

    def _decide_zeros(self) -> None:
        """A proximal step in the groups, or entries, that it would change much."""
        penalty, curvature, before = self._penalty, self._quadratic.bound, self._parts.norms(self.w)
        for _ in range(_DOUBLINGS):
            y = torch.addcmul(self.g, self._parts.spread(curvature), self.w)
            way = penalty.prox(y, curvature) - self.w
            much = self._parts.spread(self._parts.norms(way) > _CHANGE * before)
            if penalty.signed:
                much = much | ((self.w + way != 0.0) != (self.w != 0.0))
            if not bool(much.any()) or self._move(way * much):
                return
            curvature = 2.0 * curvature

    def _move(self, way: Tensor) -> bool:
        """Go there if the objective does not grow."""
        fresh, taken = self.w + way, self._quadratic.gram.times(way)
        change = torch.dot(way, 0.5 * taken - self.g) + self._penalty.change(self.w, fresh)
        if not float(change) <= self._slip:
            return False
        self.w, self.g = fresh, self.g - taken
        return True

    def _newton_step(self, error: float) -> bool:
        """A step of Newton's method; whether it led anywhere."""
        way = self._direction(_model_at(self._penalty, self.w, self.g), error)
        return bool(line_search(lambda step: self._move(self._shortened(step * way)) or None, _HALVINGS))

    def _direction(self, model: _Model, error: float) -> Tensor:
        """Newton's direction, up to a relative error where it is iterated."""
        entries = model.free.nonzero().flatten()
        if self._quadratic.is_factored(entries):
            return self._factored(model, entries)
        return self._iterated(model, error)

    def _factored(self, model: _Model, entries: Tensor) -> Tensor:
        """Newton's direction by Cholesky's factorisation."""
        if not len(entries):
            return torch.zeros_like(self.w)
        gram, same = self._quadratic.block(entries)
        bent = (model.unit * model.stiffness.sqrt()).index_select(0, entries)
        matrix = torch.addcmul(gram, same * bent, bent[:, None], value=-1.0)
        ridge = model.shift.index_select(0, entries) + _RIDGE * gram.diagonal().max()
        factor, regular = safe_cholesky(matrix, ridge)
        side = model.slope.index_select(0, entries)
        found = torch.cholesky_solve(side[:, None], factor)[:, 0] if regular else torch.zeros_like(side)
        return torch.zeros_like(self.w).index_copy_(0, entries, found)

    def _iterated(self, model: _Model, error: float) -> Tensor:
        """Newton's direction up to a relative error, by conjugate gradients in single precision.

        Preconditioned by the inverse of the Hessian with G's diagonal for G: in each group a diagonal plus a matrix of
        rank one, inverted by the formula of Sherman and Morrison.
        """
        gram, along = self._quadratic.gram, self._parts.along
        inverse = model.free / (self._quadratic.diagonal + model.shift).clamp_(min=_TINY)
        bent = inverse * model.unit
        stiff = model.stiffness * model.unit
        back = bent * model.stiffness / (1.0 - along(model.stiffness, model.unit, bent)).clamp_(min=_LEAST)
        tensors = (model.slope, model.shift, model.unit, stiff, inverse, bent, back)
        side, shift, unit, stiff, inverse, bent, back = (v.float() for v in tensors)

        def times(p: Tensor) -> Tensor:
            return gram.times(p).addcmul_(shift, p).sub_(along(stiff, unit, p))

        def precondition(r: Tensor) -> Tensor:
            return along(back, bent, r).addcmul_(inverse, r)

        return conjugate_gradients(times, precondition, side, tol=error, limit=_CG_STEPS).x.to(model.slope)

    def _shortened(self, way: Tensor) -> Tensor:
        """The way to ``w + way``, zero in groups and entries that would pass through zero."""
        penalty, fresh = self._penalty, self.w + way
        if penalty.signed:
            fresh = torch.where(fresh * self.w > 0.0, fresh, 0.0)
        kept = self._parts.sums(self.w * fresh).sign_().clamp_(min=0.0)
        if penalty.unpenalised is not None and not penalty.signed:
            kept = torch.maximum(kept, penalty.unpenalised)
        return fresh.mul_(self._parts.spread(kept)).sub_(self.w)

    def _proximal_point_step(self, limit: int) -> int:
        """To about ``argmin_x objective(x) + c / 2 ||x - w||^2``; the next c is smaller. Rounds of Newton's method.

        It minimises ``v' G v / 2 + h(y)``, ``y = c w + cross - G v``, where h is the conjugate of
        ``R + c / 2 ||.||^2`` and its gradient a proximal step x; at the minimum ``x = v``.
        """
        quadratic, penalty = self._quadratic, self._penalty
        c = self._curvature * quadratic.bound.mean()
        l2 = c.expand_as(penalty.l1) if penalty.l2 is None else penalty.l2 + c
        steep, pull = replace(penalty, l2=l2, unpenalised=None), torch.add(quadratic.cross, self.w * c)
        at, rounds, off = _dual_at(steep, pull, self.w, quadratic.gram.times(self.w)), 0, True
        while off and rounds < min(_DUAL_STEPS, limit):
            rounds += 1
            at = self._improved(at, steep, pull)
            off = bool((at.x - at.v).square().sum() > _INEXACT**2 * (at.x - self.w).square().sum())
        self._move(at.x - self.w)
        self._curvature /= _LONGER
        return rounds

    def _improved(self, at: _Dual, steep: GroupTerms, pull: Tensor) -> _Dual:
        """After one step of Newton's method on the dual: the proximal step, and what Newton's direction adds to it."""
        gram, way = self._quadratic.gram, at.x - at.v
        taken = gram.times(way)
        model = _model_at(steep, at.x, pull)
        rest = self._direction(replace(model, slope=-taken * model.free), _DUAL_ERROR)
        slope = taken + gram.times(rest)
        fall = float(torch.dot(slope, way))
        if not fall > 0.0:  # by rounding: the proximal step alone is a direction of descent
            fall, rest, slope = float(torch.dot(taken, way)), torch.zeros_like(way), taken
        way = way + rest

        def trial(step: float) -> _Dual | None:
            found = _dual_at(steep, pull, at.v + step * way, at.image + step * slope)
            return found if found.height <= at.height - ARMIJO * step * fall + self._slip else None

        return line_search(trial, _DUAL_HALVINGS) or at


def _model_at(penalty: GroupTerms, w: Tensor, g: Tensor) -> _Model:
    """At coefficients with correlations ``g``."""
    spread, norms = penalty.parts.spread, penalty.parts.norms(w)
    alive = norms.sign()
    inverse = alive / norms.clamp(min=_TINY)
    stiffness = (penalty.l1 * inverse).clamp_(max=_STEEPEST)
    stiffness, shift = spread(stiffness), spread(stiffness if penalty.l2 is None else stiffness + penalty.l2)
    slope = torch.addcmul(g, w, shift, value=-1.0)
    if penalty.signed:
        free = w.sign().abs_()
        slope = slope if penalty.inner is None else slope - penalty.inner * w.sign()
    else:
        free = spread(alive if penalty.unpenalised is None else torch.maximum(alive, penalty.unpenalised))
    return _Model(w * spread(inverse), stiffness, shift, free, slope.mul_(free))


@dataclass(frozen=True)
class _Dual:
    """The dual objective of a proximal point step at v, and the proximal step x there; ``image`` is ``G v``."""

    v: Tensor
    image: Tensor
    height: float
    x: Tensor


def _dual_at(steep: GroupTerms, pull: Tensor, v: Tensor, image: Tensor) -> _Dual:
    x = steep.prox(pull - image, torch.zeros_like(steep.l1))
    assert steep.l2 is not None
    height = 0.5 * (torch.dot(v, image) + (steep.l2 * steep.parts.norms(x).square()).sum())
    return _Dual(v, image, float(height), x)
