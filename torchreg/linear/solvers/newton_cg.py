"""Paths of generalised linear models whose penalty has no kink, a ridge or nothing: Newton's method.

    minimise  sum_i weights_i f(eta_i, y_i) + sum_j l2_j w_j^2 / 2,  eta = X w + b + offset

1. Unknowns: the coefficients that may be other than zero; or, where conjugate gradients have taken as long as going
   over costs and rows are fewer than columns, coordinates of the row space of X.
2. Start where the line through the last two points, over the logarithm of the strength, leads, if that is lower.
3. Stop when the duality gap for these unknowns, at the best intercept, is below the goal.
4. Direction: Newton's equations by a Cholesky factor, or by conjugate gradients to a residual that the gap allows.
5. Line search along it on the objective itself; a step that had to be shortened damps those that follow.
6. Certify: the coefficients go back to X, and their gap and violation are computed there.

Source: Nocedal and Wright, Numerical Optimization, 2006, chapters 3 and 7; damping: Levenberg, Quart. Applied Math. 2,
1944; the row space: Hastie and Tibshirani, Biostatistics 5, 2004.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.certificate import gap_at, is_free
from torchreg.linear.intercept import best_shift, mean_of
from torchreg.linear.moments import per_row
from torchreg.linear.objective.entry_terms import violation
from torchreg.linear.points import PathPoint, nonzero_rows
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.linear_algebra import ARMIJO, line_search
from torchreg.linear.solvers.newton_coordinates import Coefficients, Features, Parametrisation, RowSpace
from torchreg.linear.solvers.newton_systems import Curvature, System, newton_direction, system_for
from torchreg.linear.solvers.ridge_pattern import Pattern, patterns_of
from torchreg.penalties import L1Form

_HALVINGS = 33  # of a step
_ROUNDING = 1e-15  # of an objective, relative to the sum of its absolute terms
_LOOSE = 0.3  # of the residual at most is left by conjugate gradients, less as the gap shrinks
_MARGIN = 0.1  # of the goal: what the residual left may cost
_STEPS = 500  # of conjugate gradients
_STALLED = 3  # steps without a smaller gap, where the objective cannot tell any more
_DAMPED = 1e-3  # of the typical curvature: the first damping
_DAMPING_FACTOR = 8.0  # from one step to the next
_AIM = 1e-10  # of the null model's loss: a gap that is always aimed at, since Newton's last steps cost little,
_BETTER = 1e-4  # unless the tolerance is larger by more than this
_UNSEEN = 1e-6  # of the gap, where none is known and violations, which are like its root, are looked at instead
_INSIDE = 0.2  # of the tolerance, for what rounding adds on the way back to X
_MEMORY_BOUND = 5.0  # time of an operation in products with vectors, relative to one in products of matrices
_MOST_ROWS = 4096  # of a row space


@dataclass
class State:
    """Unknowns, their linear predictor, the derivative of the mean loss with respect to theta, and Newton steps."""

    theta: Tensor
    eta: Tensor
    slope: Tensor
    steps: int = 0


class Newton:
    """Minimises ``mean loss(features theta + offset) + sum ridge theta^2 / 2``, by lines 3 to 5.

    Attributes:
        patience: steps of conjugate gradients after which `run` returns, whatever has been reached.

    Args:
        problem: the data term; its design is not used. features: the columns.
        system: how to solve Newton's equations. mask: 1 where theta may be other than zero, of theta's shape, or None.
    """

    def __init__(self, problem: Problem, features: Features, system: System, mask: Tensor | None) -> None:
        self._problem, self._features, self._system, self._mask = problem, features, system, mask
        self._damping, self._decrement = 0.0, 0.0
        self._inner = 0
        self.patience = math.inf
        self._unit = float(problem.null_loss()) or 1.0

    def state(self, theta: Tensor, eta: Tensor | None = None, steps: int = 0) -> State:
        """The state at ``theta``, whose linear predictor may be known."""
        eta = self._problem.shifted(self._features.times(theta)) if eta is None else eta
        slope = self._features.transposed(self._problem.row_grad(eta))
        return State(theta, eta, slope if self._mask is None else self._mask * slope, steps)

    def objective(self, theta: Tensor, eta: Tensor, ridge: Tensor) -> Tensor:
        """What is minimised, 0-d."""
        return self._problem.value(eta) + (ridge * theta.square()).sum() / 2.0

    def run(self, state: State, ridge: Tensor, goal: float, limit: int) -> State:
        """Go down until the gap is at most ``goal``, for ``limit`` steps, or as far as rounding allows."""
        least, stalled = math.inf, 0
        active = (ridge if self._mask is None else torch.where(self._mask > 0.0, ridge, 1.0))[: self._features.count]
        self._decrement = (
            0.0 if bool((active > 0.0).all()) else math.inf
        )  # then only a step tells how far the minimum is
        for _ in range(limit):
            gap = self._gap(state, ridge, goal)
            if max(gap, self._decrement) <= goal:
                state = self._at_best_intercept(state)
                gap = self._gap(state, ridge, goal)
                if gap <= goal:
                    break
            stalled = stalled + 1 if gap > 0.5 * least else 0
            least = min(least, gap)
            state, fell = self._step(state, ridge, gap, goal)
            self.patience -= self._inner
            if self.patience < 0.0 or (not fell and stalled >= _STALLED):
                break
        return self._at_best_intercept(state)

    def _gap(self, state: State, ridge: Tensor, goal: float) -> float:
        """The duality gap for these features, or a part of it that is above ``goal``.

        Where there is no ridge, it is what a slope of zero is away, to first order.
        """
        count, ridged = self._features.count, ridge > 0.0
        z = state.slope + ridge * state.theta
        gap = torch.where(ridged, z.square() / (2.0 * torch.where(ridged, ridge, 1.0)), (z * state.theta).abs())
        inner = float(gap[:count].sum())
        if inner > goal or not self._features.ones:
            return inner
        bend = mean_of(self._problem.datafit.hessian(state.eta, self._problem.y), self._problem.weights)
        return inner + float((state.slope[-1].square() / bend.clamp(min=torch.finfo(bend.dtype).tiny)).sum())

    def _at_best_intercept(self, state: State) -> State:
        """The dual point of a gap must sum to zero."""
        if not self._features.ones:
            return state
        problem, before = self._problem, state.theta[-1]
        lifted = state.eta - before
        shift = best_shift(problem.datafit, lifted, problem.y, problem.weights, before)
        if bool((shift == before).all()):
            return state
        return self.state(torch.cat([state.theta[:-1], shift[None]]), lifted + shift, state.steps)

    def _step(self, state: State, ridge: Tensor, gap: float, goal: float) -> tuple[State, bool]:
        """One Newton step, and whether the objective fell by more than rounding."""
        problem, side = self._problem, -(state.slope + ridge * state.theta)
        weights, bend = per_row(problem.weights, state.eta), problem.datafit.hessian(state.eta, problem.y)
        extra = self._damping * (problem.datafit.curvature or float(mean_of(bend, problem.weights).max()))
        second = problem.datafit.hessian_map(state.eta, problem.y)
        curvature = Curvature(weights * (bend + extra), lambda rows: weights * (second(rows) + extra * rows), ridge)
        self._system.prepare(curvature, self._inner)
        far = max(gap, min(self._decrement, self._unit), goal)
        tol = min(_LOOSE, max(far / self._unit, _MARGIN * goal / far) ** 0.5)
        way = newton_direction(self._features, self._system, curvature, side, self._mask, tol, _STEPS)
        self._inner = way.steps
        expected = float(-(side * way.step).sum())
        if self._decrement > 0.0:
            self._decrement = -expected / 2.0
        size = self._step_size(state, ridge, way.step, way.image, expected)
        if size < 1.0:
            self._damping = min(max(_DAMPING_FACTOR * self._damping, _DAMPED), 1.0)
        else:
            self._damping = self._damping / _DAMPING_FACTOR if self._damping > _DAMPED / _DAMPING_FACTOR else 0.0
        if size == 0.0:
            return State(state.theta, state.eta, state.slope, state.steps + 1), False
        fell = -size * expected > _ROUNDING * float(self.objective(state.theta, state.eta, ridge).abs())
        return self.state(state.theta + size * way.step, state.eta + size * way.image, state.steps + 1), fell

    def _step_size(self, state: State, ridge: Tensor, step: Tensor, image: Tensor, expected: float) -> float:
        """The longest halving of the step with a sufficient decrease; 0 if there is none."""
        losses = self._problem.datafit.value(state.eta, self._problem.y)
        penalty = (ridge * state.theta.square()).sum() / 2.0
        before = mean_of(losses, self._problem.weights) + penalty
        noise = _ROUNDING * (mean_of(losses.abs(), self._problem.weights) + penalty)

        def trial(size: float) -> float | None:
            after = self.objective(state.theta + size * step, state.eta + size * image, ridge)
            return size if bool(after <= before + ARMIJO * size * expected + noise) else None

        return line_search(trial, _HALVINGS) or 0.0


class NewtonCGPath:
    """Follows one path.

    Args:
        problem: a datafit with a second derivative.
        start: (coef, intercept) to start from, or None.
        tol: a point is good enough when its gap is below ``tol`` times the null model's loss; it will be better.
        max_iter: Newton steps for one strength.
    """

    def __init__(self, problem: Problem, start: tuple[Tensor, Tensor] | None, tol: float, max_iter: int) -> None:
        self._problem, self._max_iter = problem, max_iter
        self._goal = _INSIDE * min(tol, max(_AIM, _BETTER * tol)) * float(problem.null_loss())
        self._goal *= 1.0 if problem.has_gaps() else _UNSEEN
        self._coef, self._intercept = start or (problem.no_coef(), problem.null_intercept())
        self._patterns: list[Pattern] = []  # of the outputs; one where all have the same
        self._last: list[tuple[float, State]] = []

    def points(self, forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions, one for each form, none of which has a kink."""
        waiting: list[tuple[L1Form, State]] = []
        for form in forms:
            patterns = [pattern for pattern, _ in patterns_of(form, self._coef)]
            same = len(patterns) == len(self._patterns) and all(map(Pattern.fits, patterns, self._patterns))
            if not same or len(waiting) >= self._unknowns.together:
                yield from self._certified(waiting)
                waiting = []
            if not same:
                self._choose_unknowns(patterns)
            l2 = torch.as_tensor(form.l2, dtype=self._coef.dtype, device=self._coef.device)
            waiting.append((form, self._solve(l2.expand(self._coef.shape))))
        yield from self._certified(waiting)

    def _choose_unknowns(self, patterns: list[Pattern]) -> None:
        """Go on from where the path is in the coefficients that may be other than zero."""
        if self._last:
            self._coef, self._intercept = self._unknowns.outward(self._last[-1][1].theta)
        self._patterns = patterns
        kept, mask = patterns[0].kept, None
        if len(patterns) > 1:
            ones = torch.ones_like(self._coef[:, 0])
            mask = torch.stack([pattern.spread(pattern.taken(ones)) for pattern in patterns], 1)
            kept = mask.amax(1).nonzero().flatten()
        coef = self._coef if mask is None else mask * self._coef
        self._coef = coef if kept is None else torch.zeros_like(coef).index_copy_(0, kept, coef[kept])
        if mask is not None and kept is not None:
            ending = mask.new_ones(int(self._problem.fit_intercept), mask.shape[1])
            mask = torch.cat([mask[kept], ending])
        self._enter(Coefficients(self._problem, kept), mask)
        self._newton.patience = self._row_space_cost()

    def _enter(self, unknowns: Parametrisation, mask: Tensor | None) -> None:
        """Go on in these unknowns."""
        system = system_for(unknowns.features, self._problem.weights, self._problem.K)
        self._unknowns, self._newton = unknowns, Newton(self._problem, unknowns.features, system, mask)
        self._last = [(math.nan, self._newton.state(unknowns.inward(self._coef, self._intercept)))]

    def _row_space_cost(self) -> float:
        """Steps of conjugate gradients that take as long as going over to the row space; inf where it is no use."""
        n, pattern = self._problem.design.n, self._patterns[0]
        columns, free = pattern.count, len(pattern.free(self._problem.weights))
        if len(self._patterns) > 1 or n > _MOST_ROWS or n + free >= columns:
            return math.inf
        return (n * columns + 10.0 * n * n) / (_MEMORY_BOUND * 4.0 * columns * (self._problem.K or 1))

    def _solve(self, l2: Tensor) -> State:
        state = self._run(l2, self._max_iter)
        if self._newton.patience < 0.0:
            self._coef, self._intercept = self._unknowns.outward(state.theta)
            self._enter(RowSpace(self._problem, self._patterns[0]), None)
            done = state.steps
            state = self._run(l2, self._max_iter - done)
            state.steps += done
        return state

    def _run(self, l2: Tensor, limit: int) -> State:
        ridge = self._unknowns.ridge(l2)
        level = float(ridge.max()) if ridge.numel() else 0.0
        state = self._newton.run(self._started(level, ridge), ridge, self._goal, limit)
        self._last = [*self._last[-1:], (level, state)]
        return state

    def _started(self, level: float, ridge: Tensor) -> State:
        """The last point, or where the line through the last two, over the logarithm of the strength, leads."""
        before, now = self._last[0], self._last[-1]
        here = State(now[1].theta, now[1].eta, now[1].slope)
        if len(self._last) < 2 or not 0.0 < level < now[0] < before[0] < math.inf:
            return here
        ahead = min(1.0, math.log(level / now[0]) / math.log(now[0] / before[0]))
        theta = here.theta + ahead * (here.theta - before[1].theta)
        eta = here.eta + ahead * (here.eta - before[1].eta)
        lower = self._newton.objective(theta, eta, ridge) < self._newton.objective(here.theta, here.eta, ridge)
        return self._newton.state(theta) if bool(lower) else here

    def _certified(self, waiting: Sequence[tuple[L1Form, State]]) -> Iterator[PathPoint]:
        """The points of these states, with what X says of them."""
        if not waiting:
            return
        problem, outputs = self._problem, self._problem.K
        width = outputs or 1
        thetas = torch.cat([state.theta.reshape(-1, width) for _, state in waiting], 1)
        coefs, intercepts = self._unknowns.outward(thetas)
        products = self._unknowns.design.times(coefs)
        products = products + thetas[-1] if problem.fit_intercept else products
        parts = [slice(k * width, (k + 1) * width) if outputs else k for k in range(len(waiting))]
        etas = [problem.shifted(products[:, part]) for part in parts]
        rows = torch.cat([problem.row_grad(eta).reshape(-1, width) for eta in etas], 1)
        slopes = self._unknowns.design.transposed(rows)
        for (form, state), part, eta in zip(waiting, parts, etas, strict=True):
            coef, g = self._reported(coefs[:, part], form), -slopes[:, part]
            kept = nonzero_rows(coef)
            yield PathPoint(
                kept, coef[kept], problem.reported(intercepts[part]), gap_at(problem, form, coef, eta, g),
                violation(form, coef, g).max(), problem.value(eta), state.steps,
            )  # fmt: skip

    def _reported(self, coef: Tensor, form: L1Form) -> Tensor:
        """The coefficients; in a row without ridge, where only differences between outputs matter, those of mean 0."""
        if not self._problem.datafit.relative:
            return coef
        bare = is_free(form, coef).all(1, keepdim=True)
        return torch.where(bare, coef - coef.mean(1, keepdim=True), coef)
