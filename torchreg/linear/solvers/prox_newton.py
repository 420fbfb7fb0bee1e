"""Generalised linear models by proximal Newton steps on a working set, for penalties of L1 or group type.

1. Each strength starts on the line through the last two solutions.
2. A step minimises the second-order model of the loss plus the penalty on the working set,
3. and searches along the way to its minimiser on the objective itself.
4. The matrix of the model is kept while steps with it still shrink the violation well, so that most strengths need none
   of their own.
5. Steps end where the gap on the working set is about what is asked for, or where they do not help any more.

Source: Lee, Sun and Saunders, SIAM J. Optim. 24, 2014 (proximal Newton).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from torchreg.linear.intercept import best_shift
from torchreg.linear.objective.penalty_terms import C
from torchreg.linear.points import PathPoint, nonzero_rows
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.linear_algebra import ARMIJO, line_search
from torchreg.linear.solvers.path_following import Solved, Subsolver
from torchreg.linear.solvers.working_model import WorkingModel
from torchreg.penalties import NoConjugate

_HALVINGS = 30  # of a step
_IDLE = 5  # steps that neither halve the violation nor lower the objective: rounding
_FALL = 0.1  # of the tolerance: a fall of the objective that counts
_INNER = 0.5  # of the tolerance, for the gap on the working set
_ROUNDING = 1e-15  # of a correlation, relative to the largest
_NOISE = 1e-14  # of the objective, relative to the mean size of the rows' losses
_NEAR = 1e-11  # of a correlation, relative to the largest: a step that does not help any more ends here
_HELD = 0.9  # of its strength: a correlation that does not reach it may be forgotten
_MANY = 0.7  # of the working set: more than this is not worth a smaller one
_FEW, _FEWER = 50, 10  # coefficients of several outputs, or of one, that may join at once, however few are active
_ROOM = 0.3  # of the coefficients of one output that the rank leaves room for: no more join at once


@dataclass(frozen=True)
class _State:
    """A solution in the making.

    Attributes:
        w: intercepts, if there are any, and coefficients of the working set, (head + m,).
        eta: linear predictor, (n,) or (n, K).
        slopes: derivative of each row's loss, of its shape.
        loss: the mean loss. size: the mean of the losses' absolute values. Both 0-d.
    """

    w: Tensor
    eta: Tensor
    slopes: Tensor
    loss: Tensor
    size: Tensor


class ProxNewton(Subsolver[C]):
    """Proximal Newton steps on a working set.

    For several outputs the matrix costs so much that the set is kept small: it grows by no more than its active part at
    once, and forgets.

    Args:
        problem: data, with a datafit that has a second derivative.
        model_at: makes an empty working model at a linear predictor.
        start: (coef, intercept) to start from, which the penalties allow, or None.
        tol: a point is good enough when its gap is below ``tol`` times the null model's loss.
        max_iter: steps for one strength.
    """

    reach = far = 0.8

    def __init__(
        self, problem: Problem, model_at: Callable[[Tensor], WorkingModel[C]], start: tuple[Tensor, Tensor] | None,
        tol: float, max_iter: int,
    ) -> None:  # fmt: skip
        self._problem, self._max_iter = problem, max_iter
        self._null = abs(float(problem.null_loss()))  # without a conjugate it can be negative
        self.goal = tol * self._null
        self._outputs = problem.K or 1
        self.block, self.keep = (8, 0.95) if problem.K is None else (1, 1.0)
        self._has_gaps = problem.has_gaps()
        self._start = (problem.no_coef(), problem.null_intercept()) if start is None else start
        eta = problem.eta(*self._start)
        self._model = model_at(eta)
        self._state = self._at(self._start[1].reshape(-1)[: self._model.head], eta)
        self._trail: list[tuple[float, _State]] = []  # the last two solutions
        self._solved: list[tuple[float, _State]] = []  # those of this block
        self._steps = 0

    @property
    def chosen(self) -> Tensor:
        return self._model.chosen

    def begin(self, terms: C) -> Tensor:
        coef = self._start[0].reshape(-1)
        self._model.add(coef != 0.0, terms)
        w = coef[self._model.index]
        self._model.begin(w)
        self._state = replace(self._state, w=torch.cat([self._state.w, w]))
        g = -self._problem.gradient(self._state.eta).reshape(-1)
        self._noise = float(g.abs().max())
        return terms.slack(coef, g)

    def add(self, needed: Tensor, terms: C) -> None:
        self._model.add(needed, terms)
        self._state = self._widened(self._state)

    def most(self, *, far: bool) -> int | None:
        active, design = int((self._coef(self._state) != 0.0).sum()), self._problem.design
        if self._problem.K is not None:
            return max(_FEW, active)
        return max(_FEWER, min(active, int(_ROOM * (min(design.n, design.p) - active)))) if far else None

    def forget(self, slack: Tensor, terms: C) -> None:
        if self._problem.K is None:
            return
        near = (self._coef(self._state) != 0.0) | terms.reached(slack, _HELD)[self._model.index]
        if int(near.sum()) > _MANY * len(near):
            return
        w = self._coef(self._state)[near]
        self._model.keep(near, self._state.eta, terms)
        self._model.begin(w)
        self._state = replace(self._state, w=torch.cat([self._state.w[: self._model.head], w]))
        self._trail = []  # it may have other coefficients

    def solve(self, alphas: Sequence[float], penalties: Sequence[C], accuracy: float | None) -> Solved[C]:
        if accuracy is None:
            self._solved, self._steps = [], 0
        steps, trail = [], self._trail
        for alpha, terms in zip(alphas, penalties, strict=True):
            if accuracy is None:
                self._predict(trail, alpha, terms)
            goal = _INNER * self.goal * (accuracy or 1.0)
            done = self._steps if len(alphas) == 1 else 0
            steps.append(done + self._descend(terms, goal, self._max_iter - done))
            trail = [*trail[-1:], (alpha, self._centred())]
            self._solved = [*self._solved, trail[-1]] if accuracy is None else [trail[-1]]
        self._steps = steps[-1]
        states = [state for _, state in self._solved]
        rows = torch.stack([self._weighted(state.slopes) for state in states]).movedim(0, -1)
        g = -self._problem.design.transposed(rows.flatten(1)).reshape(-1, len(states))
        coef = g.new_zeros(len(states), len(g))
        coef[:, self._model.index] = torch.stack([self._coef(self._widened(state)) for state in states])
        batch, coef = penalties[0].batch(penalties), coef.T
        slack = batch.slack(coef, g)
        self._noise = float(slack[:, -1].abs().max())
        points = partial(self._points, batch, states, coef, g, steps)
        return Solved(batch, slack, points, spent=steps[-1] >= self._max_iter)

    def accept(self, count: int) -> None:
        self._trail = [*self._trail, *self._solved[:count]][-2:]
        if self._trail:
            self._state = self._widened(self._trail[-1][1])

    def _predict(self, trail: list[tuple[float, _State]], alpha: float, terms: C) -> None:
        """Continue the line through the last two solutions, if the objective is lower there."""
        if len(trail) < 2:
            return
        (first, before), (second, last) = trail
        ahead, here = (alpha - second) / (second - first), self._widened(last)
        w = here.w + ahead * (here.w - self._widened(before).w)
        guess, inside = self._at(w, here.eta + ahead * (here.eta - before.eta)), terms.within(self._model.index)
        coef = self._coef(guess)
        falls = guess.loss + inside.change(self._coef(here), coef) < here.loss
        self._state = guess if bool(falls & (coef >= terms.lower).all()) else here

    def _coef(self, state: _State) -> Tensor:
        """Coefficients without the intercepts."""
        return state.w[self._model.head :]

    def _widened(self, state: _State) -> _State:
        """With zeros for coefficients that have joined the set since."""
        more = self._model.size - len(state.w)
        return replace(state, w=torch.cat([state.w, state.w.new_zeros(more)])) if more else state

    def _at(self, w: Tensor, eta: Tensor) -> _State:
        problem = self._problem
        losses = problem.datafit.value(eta, problem.y)
        slopes = problem.datafit.grad(eta, problem.y)
        return _State(w, eta, slopes, losses.dot(problem.weights), losses.abs().dot(problem.weights))

    def _weighted(self, rows: Tensor) -> Tensor:
        """Rows, (n,) or (n, K), times their weights."""
        weights = self._problem.weights
        return rows * (weights if rows.dim() == 1 else weights[:, None])

    def _descend(self, terms: C, goal: float, limit: int) -> int:
        """Newton steps on the working set until its gap is about ``goal``, or they do not help; how many."""
        inside = terms.within(self._model.index)
        last, best, idle = math.inf, math.inf, 0
        for step in range(max(limit, 1)):
            state = self._state
            g = -self._model.transposed(self._weighted(state.slopes))
            worst = self._violation(inside, g)
            if worst <= _ROUNDING * self._noise or self._cost(inside, g, worst) <= goal:
                return step
            best, idle = (worst, 0) if worst < 0.5 * best else (best, idle + 1)
            if idle >= (1 if worst <= _NEAR * self._noise else _IDLE):
                return step
            if worst > self._model.patience * last:
                self._model.renew(state.eta, inside)
            fall = self._move(inside, g)
            idle = 0 if fall > max(_FALL * self.goal, _NOISE * float(state.size)) else idle
            last = 0.0 if fall < 0.0 else worst
        return limit

    def _violation(self, inside: C, g: Tensor) -> float:
        """On the working set, the intercepts included."""
        head = self._model.head
        return float(torch.maximum(inside.violation(self._coef(self._state), g[head:]), g[:head].abs().sum()))

    def _cost(self, inside: C, g: Tensor, worst: float) -> float:
        """About the gap on the working set; inf where there is none, or where it says nothing.

        With a ridge it is the gap's sum over the coefficients. Without one that takes longer than a step may save: to
        first order it is at most the violation times the extent of the coefficients (for the intercept, times that of
        the predictor); what makes the rows' slopes feasible costs at most about the square of the violation, relative
        to the least strength, times the null model's loss.
        """
        coef, head = self._coef(self._state), self._model.head
        if not self._has_gaps:
            return math.inf
        if inside.ridge and not inside.free:
            scale = inside.scale(g[head:])
            rest = inside.gap(coef, scale * g[head:]) + (1.0 - scale).square() * self._null
            return float(rest + self._model.gain(g[:head]))
        if math.isinf(inside.least):
            return math.inf
        width = inside.extent(coef)
        width = width + self._state.eta.abs().max() if head else width
        share = worst / inside.least
        return worst * float(width) + share * share * self._null  # a power would raise where this overflows

    def _move(self, inside: C, g: Tensor) -> float:
        """To the minimiser of the model, or as far on the way as the objective falls; by how much, or -1."""
        state, head, ridge = self._state, self._model.head, inside.ridge
        target = self._model.minimiser(state.w, g, inside)
        way, coef = target - state.w, self._coef(state)
        moved = self._model.times(way)
        expected = inside.change(coef, target[head:]) - g @ way

        def trial(step: float) -> tuple[_State, Tensor, float] | None:
            w = target if step == 1.0 else state.w + step * way
            fresh = self._at(w, state.eta + step * moved)
            fall = state.loss - fresh.loss - inside.change(coef, w[head:])
            falls = bool(fall >= -ARMIJO * step * expected - _NOISE * state.size)
            return (fresh, fall, step) if falls else None

        found = line_search(trial, _HALVINGS)
        if found is None:
            self._model.stiffen()
            return -1.0
        self._state, fall, step = found
        bent = self._weighted(self._state.slopes - state.slopes)
        self._model.learn(moved, bent, step, ridge=ridge)
        return max(float(fall), 0.0)

    def _centred(self) -> _State:
        """The present state at its best intercepts; its linear predictor anew, without the rounding of many steps."""
        problem, old, head = self._problem, self._state.w, self._model.head
        w = torch.cat([torch.zeros_like(old[:head]), old[head:]])
        eta = problem.shifted(self._model.times(w))
        if head:
            start = old[:head].reshape(self._start[1].shape)
            w[:head] = shift = best_shift(problem.datafit, eta, problem.y, problem.weights, start)
            eta = eta + shift
        self._state = self._at(w, eta)
        return self._state

    def _points(
        self, terms: C, states: Sequence[_State], coef: Tensor, g: Tensor, steps: Sequence[int]
    ) -> list[PathPoint]:
        """One point for each of a batch of penalties, with coefficients and correlations of all columns."""
        problem, head, shape = self._problem, self._model.head, self._start[0].shape
        gaps, off, points = self._gaps(terms, coef, g, states), terms.violation(coef, g), []
        for k, (state, flat) in enumerate(zip(states, coef.T, strict=True)):
            w, shift = flat.view(shape), state.w[:head].reshape(shape[1:]) if head else flat.new_zeros(shape[1:])
            kept = nonzero_rows(w)
            points.append(PathPoint(kept, w[kept], problem.reported(shift), gaps[k], off[k], state.loss, steps[k]))
        return points

    def _gaps(self, terms: C, coef: Tensor, g: Tensor, states: Sequence[_State]) -> Tensor:
        """Duality gaps, (batch,); nan without a conjugate."""
        datafit, y = self._problem.datafit, torch.cat([self._problem.y] * len(states))  # datafits take one dimension
        eta, slopes = (torch.cat([getattr(state, name) for state in states]) for name in ("eta", "slopes"))
        scale = torch.minimum(terms.scale(g), datafit.feasible(slopes, y))
        scales = scale.repeat_interleave(len(self._problem.y))
        try:
            rows = datafit.fenchel_gap(eta, slopes * scales.view(-1, *[1] * (slopes.dim() - 1)), y)
        except NoConjugate:
            return torch.full_like(scale, torch.nan)
        return rows.view(len(states), -1) @ self._problem.weights + terms.gap(coef, scale * g)
