"""Newton's method for mean loss and ridge, with a search along each step on the objective itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.intercept import best_shift, mean_of
from torchreg.linear.problem import Problem
from torchreg.linear.smooth.features import Features
from torchreg.linear.smooth.systems import Curve, System, newton_direction
from torchreg.linear.solvers.linear_algebra import ARMIJO, line_search

_HALVINGS = 33  # of a step
_ROUNDING = 1e-15  # of an objective, relative to the sum of its absolute terms
_LOOSE = 0.3  # of the residual at most is left by conjugate gradients, less as the gap shrinks
_MARGIN = 0.1  # of the goal: what the residual left may cost
_STEPS = 500  # of conjugate gradients
_STALLED = 3  # steps without a smaller gap, where the objective cannot tell any more
_DAMPED = 1e-3  # of the typical curvature: the first damping
_TAMER = 8.0  # factor of damping from one step to the next


@dataclass
class State:
    """Where the iteration is.

    Attributes:
        theta: coefficients, and the intercept. eta: their linear predictor, offset included.
        slope: derivative of the mean loss with respect to theta.
        steps: Newton steps so far.
    """

    theta: Tensor
    eta: Tensor
    slope: Tensor
    steps: int = 0


class Descent:
    """Minimises ``mean loss(features theta + offset) + sum ridge theta^2 / 2``.

    Steps are damped, by curvature added to every row, only after one that had to be shortened.

    Attributes:
        patience: steps of conjugate gradients after which `run` returns, whatever has been reached.

    Args:
        problem: the data term; its design is not used.
        features: the columns.
        system: how to solve Newton's equations.
        mask: 1 where theta may be other than zero, of theta's shape, or None.

    Source:
        Armijo, Pacific J. Mathematics 16, 1966; damping: Levenberg, Quart. Applied Math. 2, 1944.
    """

    def __init__(self, problem: Problem, features: Features, system: System, mask: Tensor | None) -> None:
        self._problem, self._features, self._system, self._mask = problem, features, system, mask
        self._damping, self._decrement = 0.0, 0.0
        self._inner = 0
        self.patience = math.inf
        self._unit = float(problem.null_loss()) or 1.0

    def state(self, theta: Tensor) -> State:
        """The state at ``theta``."""
        eta = self._problem.shifted(self._features.times(theta))
        return State(theta, eta, self._slope(eta))

    def objective(self, theta: Tensor, eta: Tensor, ridge: Tensor) -> Tensor:
        """What is minimised, 0-d."""
        return self._problem.value(eta) + (ridge * theta.square()).sum() / 2.0

    def run(self, state: State, ridge: Tensor, goal: float, limit: int) -> State:
        """Go down until the gap is at most ``goal``, for ``limit`` steps, or as far as rounding allows."""
        least, stalled = math.inf, 0
        self._decrement = math.inf if self._has_bare(ridge) else 0.0
        for _ in range(limit):
            gap = self._gap(state, ridge, goal)
            if max(gap, self._decrement) <= goal:
                state = self._centred(state)
                gap = self._gap(state, ridge, goal)
                if gap <= goal:
                    break
            stalled = stalled + 1 if gap > 0.5 * least else 0
            least = min(least, gap)
            state, fell = self._step(state, ridge, gap, goal)
            self.patience -= self._inner
            if self.patience < 0.0 or (not fell and stalled >= _STALLED):
                break
        return self._centred(state)

    def _has_bare(self, ridge: Tensor) -> bool:
        """Whether some columns have no ridge: then only a Newton step tells how far the minimum is."""
        bare = (ridge == 0.0) if self._mask is None else (ridge == 0.0) & (self._mask > 0.0)
        return bool(bare[: self._features.count].any())

    def _gap(self, state: State, ridge: Tensor, goal: float) -> float:
        """The duality gap for these features, or a part of it that is above ``goal``.

        Where there is no ridge, it is what a slope of zero is away, to first order.
        """
        z = state.slope + ridge * state.theta
        ridged = z.square() / (2.0 * torch.where(ridge > 0.0, ridge, 1.0))
        gap = torch.where(ridge > 0.0, ridged, (z * state.theta).abs())
        if self._features.ones:
            gap = gap[:-1]
        inner = float(gap.sum())
        return inner if inner > goal else inner + float(self._lost(state))

    def _lost(self, state: State) -> Tensor:
        """What the intercept may still gain, by the rows' curvature."""
        if not self._features.ones:
            return state.theta.new_zeros(())
        bend = mean_of(self._problem.datafit.hessian(state.eta, self._problem.y), self._problem.weights)
        return (state.slope[-1].square() / bend.clamp(min=torch.finfo(bend.dtype).tiny)).sum()

    def _centred(self, state: State) -> State:
        """At the best intercept: the dual point of a gap must sum to zero."""
        if not self._features.ones:
            return state
        problem, before = self._problem, state.theta[-1]
        lifted = state.eta - before
        shift = best_shift(problem.datafit, lifted, problem.y, problem.weights, before)
        if bool((shift == before).all()):
            return state
        theta = torch.cat([state.theta[:-1], shift[None]])
        eta = lifted + shift
        return State(theta, eta, self._slope(eta), state.steps)

    def _slope(self, eta: Tensor) -> Tensor:
        slope = self._features.transposed(self._problem.row_grad(eta))
        return slope if self._mask is None else self._mask * slope

    def _curve(self, state: State, ridge: Tensor) -> Curve:
        problem = self._problem
        weights = problem.weights if state.eta.dim() == 1 else problem.weights[:, None]
        bend = problem.datafit.hessian(state.eta, problem.y)
        typical = problem.datafit.curvature or float(mean_of(bend, problem.weights).max())
        extra = self._damping * typical
        second = problem.datafit.hessian_map(state.eta, problem.y)

        def times(rows: Tensor) -> Tensor:
            return weights * (second(rows) + extra * rows)

        return Curve(weights * (bend + extra), times, ridge)

    def _step(self, state: State, ridge: Tensor, gap: float, goal: float) -> tuple[State, bool]:
        """One Newton step, and whether the objective fell by more than rounding."""
        curve = self._curve(state, ridge)
        side = -(state.slope + ridge * state.theta)
        self._system.prepare(curve, self._inner)
        far = max(gap, min(self._decrement, self._unit), goal)
        share = min(_LOOSE, max(far / self._unit, _MARGIN * goal / far) ** 0.5)
        way = newton_direction(self._features, self._system, curve, side, self._mask, share, _STEPS)
        self._inner = way.steps
        expected = float(-(side * way.step).sum())
        if self._decrement > 0.0:
            self._decrement = -expected / 2.0
        length = self._length(state, ridge, way.step, way.image, expected)
        self._tame(length)
        if length == 0.0:
            return State(state.theta, state.eta, state.slope, state.steps + 1), False
        theta, eta = state.theta + length * way.step, state.eta + length * way.image
        fell = -length * expected > _ROUNDING * float(self.objective(state.theta, state.eta, ridge).abs())
        return State(theta, eta, self._slope(eta), state.steps + 1), fell

    def _tame(self, length: float) -> None:
        if length < 1.0:
            self._damping = min(max(_TAMER * self._damping, _DAMPED), 1.0)
        else:
            self._damping = self._damping / _TAMER if self._damping > _DAMPED / _TAMER else 0.0

    def _length(self, state: State, ridge: Tensor, step: Tensor, image: Tensor, expected: float) -> float:
        """The longest halving of the step with a sufficient decrease; 0 if there is none."""
        problem = self._problem
        losses, strain = problem.datafit.value(state.eta, problem.y), (ridge * state.theta.square()).sum() / 2.0
        before = mean_of(losses, problem.weights) + strain
        noise = _ROUNDING * (mean_of(losses.abs(), problem.weights) + strain)

        def trial(share: float) -> float | None:
            after = self.objective(state.theta + share * step, state.eta + share * image, ridge)
            return share if bool(after <= before + ARMIJO * share * expected + noise) else None

        return line_search(trial, _HALVINGS) or 0.0
