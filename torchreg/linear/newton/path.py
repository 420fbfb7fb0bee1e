"""Paths of generalised linear models by proximal Newton steps, for penalties of L1 or group type.

Each strength starts on the line through the last two solutions. A step minimises the second-order model of the loss
plus the penalty on a working set of columns, and searches along the way to its minimiser. The matrix of the
model is kept while steps with it still shrink the violation well, so that most strengths need none of their own. Then
the correlations of all columns, for a block of strengths at once, tell which must join the set, and the duality gaps
whether the points are good enough; the first that is not is solved alone.

Source: Lee, Sun and Saunders, SIAM J. Optim. 24, 2014 (proximal Newton); Armijo, Pacific J. Mathematics 16, 1966.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic

import torch
from torch import Tensor

from torchreg.linear.intercept import best_shift
from torchreg.linear.newton.working_model import C, WorkingModel
from torchreg.linear.points import PathPoint, nonzero_rows
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.linear_algebra import ARMIJO, line_search
from torchreg.penalties import NoConjugate

_KEEP = 1.0  # of its strength: a correlation predicted to reach it joins the working set
_BLOCK = 8  # strengths for one look at all columns
_REACH = 0.8  # of the last strength: a block goes no farther
_SLACK = 1e-12  # of a correlation beyond its strength: less is rounding
_HALVINGS = 30  # of a step
_IDLE = 5  # steps that neither halve the violation nor lower the objective: rounding
_FALL = 0.1  # of the tolerance: a fall of the objective that counts
_INNER = 0.5  # of the tolerance, for the gap on the working set
_PASSES = 30  # looks at all columns for one strength
_ROUNDING = 1e-15  # of a correlation, relative to the largest
_NOISE = 1e-14  # of the objective, relative to the mean size of the rows' losses
_NEAR = 1e-11  # of a correlation, relative to the largest: a step that does not help any more ends here


@dataclass(frozen=True)
class _State:
    """A solution in the making.

    Attributes:
        w: coefficients of the working set, the intercept first if there is one, (m,).
        eta: linear predictor, (n,).
        slopes: derivative of each row's loss, (n,).
        loss: the mean loss. size: the mean of the losses' absolute values. Both 0-d.
    """

    w: Tensor
    eta: Tensor
    slopes: Tensor
    loss: Tensor
    size: Tensor


class NewtonPath(Generic[C]):
    """Follows one path, from the strongest penalty to the weakest.

    Args:
        problem: one output, of a datafit with a second derivative.
        model_at: makes an empty working model at a linear predictor (n,).
        start: (coef, intercept) to start from, which the penalties allow, or None.
        tol: a point is good enough when its gap is below ``tol`` times the null model's loss.
        max_iter: Newton steps for one strength.
    """

    def __init__(
        self, problem: Problem, model_at: Callable[[Tensor], WorkingModel[C]], start: tuple[Tensor, Tensor] | None,
        tol: float, max_iter: int,
    ) -> None:  # fmt: skip
        self._problem, self._max_iter = problem, max_iter
        self._null = abs(float(problem.null_loss()))  # without a conjugate it can be negative
        self._goal = tol * self._null
        coef, intercept = (problem.no_coef(), problem.null_intercept()) if start is None else start
        eta = problem.eta(coef, intercept)
        self._model = model_at(eta)
        self._model.add(coef != 0.0)
        first = torch.cat([intercept.reshape(1), coef[self._model.index]])
        self._state = self._at(first[1 - self._model.head :], eta)
        self._has_gaps = problem.has_gaps()
        self._model.begin(self._state.w)
        self._trail: list[tuple[float, _State]] = []  # the last two solutions
        self._slack = self._before = -problem.gradient(eta)
        self._alpha = self._alpha_before = math.inf

    def points(self, alphas: Sequence[float], penalties: Sequence[C]) -> Iterator[PathPoint]:
        """The solutions, one for each penalty.

        Args:
            alphas: strengths, descending; only their ratios matter.
            penalties: at each of them.
        """
        done, size = 0, 1
        while done < len(penalties):
            end = done + 1
            while end < min(done + size, len(penalties)) and alphas[end] >= _REACH * self._alpha:
                end += 1
            if end - done > 1:
                found = self._block(alphas[done:end], penalties[done:end])
                size = _BLOCK if len(found) == end - done else 1
            else:
                found = [self._alone(alphas[done], penalties[done])]
                size = 1 if bool(found[0].gap > self._goal) else _BLOCK
            yield from found
            done += len(found)

    def _block(self, alphas: Sequence[float], penalties: Sequence[C]) -> list[PathPoint]:
        """Solve neighbours on the working set; the points before the first that is not good enough."""
        self._screen(alphas[-1], penalties[-1])
        trail, steps = self._trail, []
        for alpha, penalty in zip(alphas, penalties, strict=True):
            self._predict(alpha, penalty)
            steps.append(self._descend(penalty, _INNER * self._goal, self._max_iter))
            self._trail = [*self._trail[-1:], (alpha, self._centred())]
            trail = [*trail, self._trail[-1]]
        points, slack, beyond = self._certified([state for _, state in trail[-len(penalties) :]], penalties, steps)
        gaps = torch.stack([point.gap for point in points])
        good = int((~beyond.any(0) & ~(gaps > self._goal)).long().cumprod(0).sum())
        self._trail = trail[: len(trail) - len(penalties) + good][-2:]
        self._state = self._widened(self._trail[-1][1])
        if good:
            self._remember(slack[:, :good], alphas[:good])
        self._add(beyond.any(1))
        return points[:good]

    def _alone(self, alpha: float, penalty: C) -> PathPoint:
        """Solve one strength until it is good enough, or nothing helps any more."""
        self._screen(alpha, penalty)
        self._predict(alpha, penalty)
        goal, steps, gap = self._goal, 0, math.inf
        for _ in range(_PASSES):
            steps += self._descend(penalty, _INNER * goal, self._max_iter - steps)
            (point,), slack, beyond = self._certified([self._centred()], [penalty], [steps])
            if float(point.gap) <= self._goal or steps >= self._max_iter:
                break
            if not bool(beyond.any()):
                if not float(point.gap) < 0.5 * gap:
                    break
                gap, goal = float(point.gap), 0.1 * goal
            self._add(beyond[:, 0])
        self._trail = [*self._trail[-1:], (alpha, self._state)]
        self._remember(slack, [alpha])
        return point

    def _screen(self, alpha: float, penalty: C) -> None:
        """Add the columns that strengths down to this one will need, as far as one can tell."""
        span, slack = self._alpha - self._alpha_before, self._slack
        if math.isfinite(span) and span != 0.0:
            slack = slack + (alpha - self._alpha) / span * (self._slack - self._before)
        self._add(penalty.reached(slack, _KEEP) | penalty.reached(self._slack, _KEEP))

    def _predict(self, alpha: float, penalty: C) -> None:
        """Continue the line through the last two solutions, if the objective is lower there."""
        if len(self._trail) < 2:
            return
        (first, before), (second, last) = self._trail
        ahead, here = (alpha - second) / (second - first), self._widened(last)
        w = here.w + ahead * (here.w - self._widened(before).w)
        guess, inside = self._at(w, here.eta + ahead * (here.eta - before.eta)), penalty.within(self._model.index)
        coef = self._coef(guess)
        falls = guess.loss + inside.change(self._coef(here), coef) < here.loss
        self._state = guess if bool(falls & (coef >= penalty.lower).all()) else here

    def _remember(self, slack: Tensor, alphas: Sequence[float]) -> None:
        several = len(alphas) > 1
        self._before, self._alpha_before = (slack[:, -2], alphas[-2]) if several else (self._slack, self._alpha)
        self._slack, self._alpha = slack[:, -1], alphas[-1]

    def _add(self, needed: Tensor) -> None:
        self._model.add(needed)
        self._state = self._widened(self._state)

    def _coef(self, state: _State) -> Tensor:
        """Coefficients without the intercept."""
        return state.w[self._model.head :]

    def _widened(self, state: _State) -> _State:
        """With zeros for columns that have joined the set since."""
        more = self._model.size - len(state.w)
        return replace(state, w=torch.cat([state.w, state.w.new_zeros(more)])) if more else state

    def _at(self, w: Tensor, eta: Tensor) -> _State:
        problem = self._problem
        losses = problem.datafit.value(eta, problem.y)
        slopes = problem.datafit.grad(eta, problem.y)
        return _State(w, eta, slopes, losses.dot(problem.weights), losses.abs().dot(problem.weights))

    def _descend(self, penalty: C, goal: float, limit: int) -> int:
        """Newton steps on the working set until its gap is about ``goal``, or they do not help; how many."""
        inside, noise = penalty.within(self._model.index), float(self._slack.abs().max())
        last, best, idle = math.inf, math.inf, 0
        for step in range(max(limit, 1)):
            state = self._state
            g = -self._model.transposed(self._problem.weights * state.slopes)
            worst = self._violation(inside, g)
            if worst <= _ROUNDING * noise or self._cost(inside, worst) <= goal:
                return step
            best, idle = (worst, 0) if worst < 0.5 * best else (best, idle + 1)
            if idle >= (1 if worst <= _NEAR * noise else _IDLE):
                return step
            if worst > self._model.patience * last:
                self._model.renew(state.eta)
            fall = self._move(inside, g)
            idle = 0 if fall > max(_FALL * self._goal, _NOISE * float(state.size)) else idle
            last = 0.0 if fall < 0.0 else worst
        return limit

    def _violation(self, inside: C, g: Tensor) -> float:
        """On the working set, the intercept included."""
        head = self._model.head
        return float(torch.maximum(inside.violation(self._coef(self._state), g[head:]), g[:head].abs().sum()))

    def _cost(self, inside: C, worst: float) -> float:
        """About the gap on the working set, from the violation there and the least strength; inf where it says nothing.

        To first order it is the violation times the extent of the coefficients (for the intercept, times that of the
        predictor); what makes the rows' slopes feasible costs at most about its square times the null model's loss.
        That is nothing without gaps, nor where all is a ridge: coefficients at zero would cost nothing, however wrong.
        """
        if not self._has_gaps or math.isinf(inside.least):
            return math.inf
        width = inside.extent(self._coef(self._state))
        width = width + self._state.eta.abs().max() if self._model.head else width
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
        bent = self._problem.weights * (self._state.slopes - state.slopes)
        self._model.learn(moved, bent, step, ridge=ridge)
        return max(float(fall), 0.0)

    def _centred(self) -> _State:
        """The present state at its best intercept; its linear predictor anew, without the rounding of many steps."""
        problem, state, head = self._problem, self._state, self._model.head
        w, eta = state.w.clone(), problem.shifted(self._model.times(state.w))
        if head:
            eta = eta - w[0]
            w[0] = best_shift(problem.datafit, eta, problem.y, problem.weights, state.w[0])
            eta = eta + w[0]
        self._state = self._at(w, eta)
        return self._state

    def _certified(
        self, states: Sequence[_State], penalties: Sequence[C], steps: Sequence[int]
    ) -> tuple[list[PathPoint], Tensor, Tensor]:
        """The points and their certificates; correlations less the ridge's part, and which spoil what, (p, batch)."""
        head, index = self._model.head, self._model.index
        slopes = torch.stack([state.slopes for state in states])
        g = -self._problem.design.transposed((slopes * self._problem.weights).T)
        penalty, coef = penalties[0].batch(penalties), g.new_zeros(len(states), len(g))
        coef[:, index] = torch.stack([self._coef(self._widened(state)) for state in states])
        gaps, off = self._gaps(penalty, coef.T, g, states, slopes), penalty.violation(coef.T, g)
        slack = penalty.slack(coef.T, g)
        beyond = penalty.reached(slack, 1.0 + _SLACK) & ~self._model.chosen[:, None]
        points = []
        for k, (state, w) in enumerate(zip(states, coef, strict=True)):
            kept, intercept = nonzero_rows(w), state.w[0] if head else state.w.new_zeros(())
            points.append(PathPoint(kept, w[kept], intercept, gaps[k], off[k], state.loss, steps[k]))
        return points, slack, beyond

    def _gaps(self, penalty: C, coef: Tensor, g: Tensor, states: Sequence[_State], slopes: Tensor) -> Tensor:
        """Duality gaps, (batch,); nan without a conjugate."""
        datafit, y = self._problem.datafit, self._problem.y.repeat(len(states))  # datafits take one dimension
        scale = torch.minimum(penalty.scale(g), datafit.feasible(slopes.flatten(), y))
        eta = torch.cat([state.eta for state in states])
        try:
            rows = datafit.fenchel_gap(eta, (scale[:, None] * slopes).flatten(), y)
        except NoConjugate:
            return torch.full_like(scale, torch.nan)
        return rows.view(len(states), -1) @ self._problem.weights + penalty.gap(coef, scale * g)
