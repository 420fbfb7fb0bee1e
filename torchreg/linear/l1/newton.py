"""Paths of generalised linear models with a penalty of type L1: proximal Newton steps solved by pivoting.

Each strength starts on the line through the last two solutions. A step minimises the second-order model of the loss
plus the penalty, exactly, on a working set of columns, and searches along the way to its minimiser. The matrix of the
model is kept while steps with it still shrink the violation well, so that most strengths need none of their own. Then
the correlations of all columns, for a block of strengths at once, tell which must join the set, and the duality gaps
whether the points are good enough; the first that is not is solved alone.

Source: Lee, Sun and Saunders, SIAM J. Optim. 24, 2014 (proximal Newton); Armijo, Pacific J. Mathematics 16, 1966.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchreg.linear.certificate import columns, dual_scale, penalty_gap, table, violation
from torchreg.linear.intercept import best_shift
from torchreg.linear.l1.working_model import WorkingModel
from torchreg.linear.points import PathPoint, nonzero_rows
from torchreg.linear.problem import Problem
from torchreg.penalties import L1Form, NoConjugate

_KEEP = 1.0  # of its strength: a correlation predicted to reach it joins the working set
_BLOCK = 8  # strengths for one look at all columns
_REACH = 0.8  # of the last strength: a block goes no farther
_SLACK = 1e-12  # of a correlation beyond its strength: less is rounding
_WELL = 0.1  # of the violation at most is left by a step, while the model's matrix is kept
_DECREASE = 1e-4  # Armijo's constant
_SHARES = tuple(0.5**k for k in range(30))  # of a step, tried in turn
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


class NewtonPath:
    """Follows one path, from the strongest penalty to the weakest.

    Args:
        problem: one output, of a datafit with a second derivative.
        start: (coef, intercept) to start from, or None.
        tol: a point is good enough when its gap is below ``tol`` times the null model's loss.
        max_iter: Newton steps for one strength.
    """

    def __init__(self, problem: Problem, start: tuple[Tensor, Tensor] | None, tol: float, max_iter: int) -> None:
        self._problem, self._max_iter = problem, max_iter
        self._null = float(problem.null_loss())
        self._goal = tol * self._null
        coef, intercept = (problem.no_coef(), problem.null_intercept()) if start is None else start
        eta, kept = problem.eta(coef, intercept), coef.nonzero().flatten()
        self._model = WorkingModel(problem, eta)
        if len(kept):
            self._model.add(kept)
        self._state = self._at(torch.cat([intercept.reshape(1), coef[kept]])[1 - self._model.head :], eta)
        self._has_gaps = problem.has_gaps()
        self._model.begin(self._state.w)
        self._trail: list[tuple[float, _State]] = []  # the last two solutions
        self._slack = self._before = -problem.gradient(eta)
        self._alpha = self._alpha_before = math.inf

    def points(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions, one for each form.

        Args:
            alphas: strengths, descending; only their ratios matter.
            forms: the penalty at each of them, each of type L1.
        """
        done, size = 0, 1
        while done < len(forms):
            end = done + 1
            while end < min(done + size, len(forms)) and alphas[end] >= _REACH * self._alpha:
                end += 1
            if end - done > 1:
                found = self._block(alphas[done:end], forms[done:end])
                size = _BLOCK if len(found) == end - done else 1
            else:
                found = [self._alone(alphas[done], forms[done])]
                size = 1 if bool(found[0].gap > self._goal) else _BLOCK
            yield from found
            done += len(found)

    def _block(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> list[PathPoint]:
        """Solve neighbours on the working set; the points before the first that is not good enough."""
        self._screen(alphas[-1], forms[-1])
        trail, steps = self._trail, []
        for alpha, form in zip(alphas, forms, strict=True):
            self._predict(alpha, form)
            steps.append(self._descend(form, _INNER * self._goal, self._max_iter))
            self._trail = [*self._trail[-1:], (alpha, self._centred())]
            trail = [*trail, self._trail[-1]]
        points, slack, beyond = self._certified([state for _, state in trail[-len(forms) :]], forms, steps)
        gaps = torch.stack([point.gap for point in points])
        good = int((~beyond.any(0) & ~(gaps > self._goal)).long().cumprod(0).sum())
        self._trail = trail[: len(trail) - len(forms) + good][-2:]
        self._state = self._widened(self._trail[-1][1])
        if good:
            self._remember(slack[:, :good], alphas[:good])
        self._add(beyond.any(1))
        return points[:good]

    def _alone(self, alpha: float, form: L1Form) -> PathPoint:
        """Solve one strength until it is good enough, or nothing helps any more."""
        self._screen(alpha, form)
        self._predict(alpha, form)
        goal, steps, gap = self._goal, 0, math.inf
        for _ in range(_PASSES):
            steps += self._descend(form, _INNER * goal, self._max_iter - steps)
            (point,), slack, beyond = self._certified([self._centred()], [form], [steps])
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

    def _screen(self, alpha: float, form: L1Form) -> None:
        """Add the columns that strengths down to this one will need, as far as one can tell."""
        span, slack = self._alpha - self._alpha_before, self._slack
        if math.isfinite(span) and span != 0.0:
            slack = slack + (alpha - self._alpha) / span * (self._slack - self._before)
        reach = torch.maximum(self._reach(form, slack), self._reach(form, self._slack))
        self._add((reach >= _KEEP * columns(form.l1, slack)) & ~self._model.chosen)

    def _predict(self, alpha: float, form: L1Form) -> None:
        """Continue the line through the last two solutions, if the objective is lower there."""
        if len(self._trail) < 2:
            return
        (first, before), (second, last) = self._trail
        ahead, here = (alpha - second) / (second - first), self._widened(last)
        w = here.w + ahead * (here.w - self._widened(before).w)
        guess, inside = self._at(w, here.eta + ahead * (here.eta - before.eta)), self._model.within(form)
        falls = guess.loss + _penalty(inside, guess.w) < here.loss + _penalty(inside, here.w)
        inside_bound = (guess.w[self._model.head :] >= form.lower).all()
        self._state = guess if bool(falls & inside_bound) else here

    def _remember(self, slack: Tensor, alphas: Sequence[float]) -> None:
        several = len(alphas) > 1
        self._before, self._alpha_before = (slack[:, -2], alphas[-2]) if several else (self._slack, self._alpha)
        self._slack, self._alpha = slack[:, -1], alphas[-1]

    def _reach(self, form: L1Form, g: Tensor) -> Tensor:
        return g if form.lower == 0.0 else g.abs()

    def _add(self, needed: Tensor) -> None:
        new = needed.nonzero().flatten()
        if len(new):
            self._model.add(new)
            self._state = self._widened(self._state)

    def _widened(self, state: _State) -> _State:
        """With zeros for columns that have joined the set since."""
        more = self._model.size - len(state.w)
        return replace(state, w=torch.cat([state.w, state.w.new_zeros(more)])) if more else state

    def _at(self, w: Tensor, eta: Tensor) -> _State:
        problem = self._problem
        losses = problem.datafit.value(eta, problem.y)
        slopes = problem.datafit.grad(eta, problem.y)
        return _State(w, eta, slopes, losses.dot(problem.weights), losses.abs().dot(problem.weights))

    def _descend(self, form: L1Form, goal: float, limit: int) -> int:
        """Newton steps on the working set until its gap is about ``goal``, or they do not help; how many."""
        inside, noise = self._model.within(form), float(self._slack.abs().max())
        ridge = bool((columns(inside.l2, self._state.w) > 0.0).any())
        positive = columns(inside.l1, self._state.w)
        least = float(torch.where(positive > 0.0, positive, torch.inf).amin()) if len(positive) else math.inf
        last, best, idle = math.inf, math.inf, 0
        for step in range(max(limit, 1)):
            state = self._state
            g = -self._model.transposed(self._problem.weights * state.slopes)
            worst = float(violation(inside, state.w, g))
            if worst <= _ROUNDING * noise or self._cost(worst, least) <= goal:
                return step
            best, idle = (worst, 0) if worst < 0.5 * best else (best, idle + 1)
            if idle >= (1 if worst <= _NEAR * noise else _IDLE):
                return step
            if worst > _WELL * last:
                self._model.renew(state.eta)
            fall = self._move(inside, g, ridge=ridge)
            idle = 0 if fall > _FALL * self._goal else idle
            last = 0.0 if fall < 0.0 else worst
        return limit

    def _cost(self, worst: float, least: float) -> float:
        """About the gap on the working set, from the violation there and the least strength; inf where it says nothing.

        To first order it is the violation times the norm of the coefficients (for the intercept, times the width of
        the predictor); what makes the rows' slopes feasible costs at most about its square times the null model's loss.
        That is nothing without gaps, nor where all is a ridge: coefficients at zero would cost nothing, however wrong.
        """
        if not self._has_gaps or math.isinf(least):
            return math.inf
        state, head = self._state, self._model.head
        width = state.w[head:].abs().sum()
        width = width + state.eta.abs().max() if head else width
        return worst * float(width) + (worst / least) ** 2 * self._null

    def _move(self, inside: L1Form, g: Tensor, *, ridge: bool) -> float:
        """To the minimiser of the model, or as far on the way as the objective falls; by how much, or -1."""
        state, weights = self._state, self._problem.weights
        target = self._model.minimiser(state.w, g, inside, ridge=ridge)
        way = target - state.w
        change = self._model.times(way)
        penalty = _penalty(inside, state.w)
        expected = _penalty(inside, target) - penalty - g @ way
        for share in _SHARES:
            w = target.clone() if share == 1.0 else state.w + share * way
            fresh = self._at(w, state.eta + share * change)
            fall = state.loss - fresh.loss + penalty - _penalty(inside, w)
            if bool(fall >= -_DECREASE * share * expected - _NOISE * state.size):
                self._state = fresh
                self._model.learn(change, weights * (fresh.slopes - state.slopes), share, ridge=ridge)
                return max(float(fall), 0.0)
        self._model.stiffen()
        return -1.0

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
        self, states: Sequence[_State], forms: Sequence[L1Form], steps: Sequence[int]
    ) -> tuple[list[PathPoint], Tensor, Tensor]:
        """The points and their certificates; correlations less the ridge's part, and which spoil what, (p, batch)."""
        head, index = self._model.head, self._model.index
        slopes = torch.stack([state.slopes for state in states])
        g = -self._problem.design.transposed((slopes * self._problem.weights).T)
        form, coef = table(forms, g), g.new_zeros(len(states), len(g))
        coef[:, index] = torch.stack([self._widened(state).w[head:] for state in states])
        gaps, off = self._gaps(form, coef.T, g, states, slopes), violation(form, coef.T, g)
        slack = g - form.l2 * coef.T
        beyond = (self._reach(form, slack) > (1.0 + _SLACK) * form.l1) & ~self._model.chosen[:, None]
        points = []
        for k, (state, w) in enumerate(zip(states, coef, strict=True)):
            kept, intercept = nonzero_rows(w), state.w[0] if head else state.w.new_zeros(())
            points.append(PathPoint(kept, w[kept], intercept, gaps[k], off[k], state.loss, steps[k]))
        return points, slack, beyond

    def _gaps(self, form: L1Form, coef: Tensor, g: Tensor, states: Sequence[_State], slopes: Tensor) -> Tensor:
        """Duality gaps, (batch,); nan without a conjugate."""
        datafit, y = self._problem.datafit, self._problem.y.repeat(len(states))  # datafits take one dimension
        scale = torch.minimum(dual_scale(form, g), datafit.feasible(slopes.flatten(), y))
        eta = torch.cat([state.eta for state in states])
        try:
            rows = datafit.fenchel_gap(eta, (scale[:, None] * slopes).flatten(), y)
        except NoConjugate:
            return torch.full_like(scale, torch.nan)
        return rows.view(len(states), -1) @ self._problem.weights + penalty_gap(form, coef, scale * g)


def _penalty(form: L1Form, w: Tensor) -> Tensor:
    return (columns(form.l1, w) * w.abs() + columns(form.l2, w) * w.square() / 2.0).sum()
