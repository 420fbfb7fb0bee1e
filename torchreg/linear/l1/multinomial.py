"""Paths of models with several outputs and a penalty of type L1 on each coefficient: softmax regression.

Each step minimises the second-order model of the loss plus the penalty, exactly, by pivoting on a working set of
pairs of a column and an output, and searches along the way to its minimiser on the objective itself. The model is
kept while steps with it still shrink the violation well. Then one pass over X gives the correlations of all pairs:
they tell which must join the set, and the duality gap whether the point is good enough.

Source: Lee, Sun and Saunders, SIAM J. Optim. 24, 2014 (proximal Newton); Armijo, Pacific J. Mathematics 16, 1966;
Tibshirani et al., JRSS B 74, 2012 (sequential strong rule).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.certificate import dual_scale, gap_at, penalty_gap, violation
from torchreg.linear.intercept import best_shift, mean_of
from torchreg.linear.l1.pairs import Pairs, Strengths
from torchreg.linear.pivoting.solver import PivotSolver
from torchreg.linear.pivoting.subproblem import Subproblem
from torchreg.linear.points import PathPoint, nonzero_rows
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.linear_algebra import ARMIJO, line_search
from torchreg.linear.solvers.newton_coordinates import centred
from torchreg.penalties import L1Form, NoConjugate

_KEEP = 1.0  # of its strength: a correlation predicted to reach it joins the working set
_NEAR = 0.9  # of its strength: a correlation that does not reach it may be forgotten
_MANY = 0.7  # of the working set: more than this is not worth a smaller one
_SLACK = 1e-12  # of a correlation beyond its strength: less is rounding
_WELL = 0.2  # of the violation at most is left by a step, while the model is kept
_HALVINGS = 30  # of a step
_CURVED = 1e-9  # least curvature of a row relative to the largest, so that the model is regular
_STIFFER, _SOFTER = 100.0, 0.1  # what it is multiplied by after a step that had to be cut, or had not
_INSIDE = 0.2  # of the tolerance, for the gap on the working set
_FEW = 50  # pairs that may join at once, however few are active
_PASSES = 50  # looks at all pairs for one strength
_IDLE = 4  # steps that do not halve the violation: rounding
_NOISE = 1e-14  # of the objective, relative to the mean size of the rows' losses
_ROUNDING = 1e-15  # of a correlation, relative to the largest


@dataclass
class State:
    """Coefficients of the working set, (m,), intercepts (K,) for centred columns, and their predictor (n, K)."""

    w: Tensor
    shift: Tensor
    eta: Tensor


class MultinomialPath:
    """Follows one path, from the strongest penalty to the weakest.

    Args:
        problem: several outputs, of a datafit with a second derivative.
        start: (coef, intercept) to start from, or None.
        tol: a point is good enough when its gap is below ``tol`` times the null model's loss.
        max_iter: Newton steps for one strength.
    """

    def __init__(self, problem: Problem, start: tuple[Tensor, Tensor] | None, tol: float, max_iter: int) -> None:
        self._problem, self._max_iter = problem, max_iter
        self._goal = tol * float(problem.null_loss())
        self._design = centred(problem)
        self._mean = None if self._design is problem.design else self._design.mean
        self._pairs = Pairs(problem, self._design)
        self._start = start or (problem.no_coef(), problem.null_intercept())
        self._chosen = torch.zeros(problem.no_coef().numel(), dtype=torch.bool, device=problem.design.device)
        self._solver = self._new_solver()
        self._floor = _CURVED
        self._decrement = 0.0  # by the model, of the last step; kept where some pairs are free: their gap says nothing
        self._at = self._at_before = math.inf

    def points(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions, one for each form.

        Args:
            alphas: strengths, descending; only their ratios matter.
            forms: the penalty at each of them, each of type L1.
        """
        self._open(self._strengths(forms[0]))
        for alpha, form in zip(alphas, forms, strict=True):
            flat = self._strengths(form)
            self._l2 = flat.l2
            self._prune(flat, self._slack)
            self._screen(alpha, flat)
            yield self._solve(alpha, form, flat)

    def _open(self, flat: Strengths) -> None:
        """Go to the start, or to the nearest point that the penalty allows."""
        coef = torch.where(flat.l1 < math.inf, self._start[0].reshape(-1), 0.0).clamp(min=flat.lower)
        table = coef.view_as(self._start[0])
        shift = self._start[1] if self._mean is None else self._start[1] + self._mean @ table
        eta = self._problem.shifted(self._design.times(table), shift)
        self._state, self._l2 = State(coef[:0], shift, eta), flat.l2
        self._pairs.bend(eta, self._floor)
        self._add(coef.nonzero().flatten())
        if len(self._pairs.index):
            self._state.w = coef[self._pairs.index]
            self._solver.begin(self._state.w)
        self._slack = self._before = self._correlations(eta) - flat.l2 * coef

    def _strengths(self, form: L1Form) -> Strengths:
        """Those of all pairs, (p K,)."""
        like = self._problem.no_coef()
        l1, l2 = (torch.as_tensor(part, dtype=like.dtype, device=like.device) for part in (form.l1, form.l2))
        return Strengths(l1.expand(like.shape).reshape(-1), l2.expand(like.shape).reshape(-1), form.lower)

    def _screen(self, alpha: float, flat: Strengths) -> None:
        """Add the pairs that the strength will need, as far as one can tell."""
        span, ahead = self._at - self._at_before, self._slack
        if math.isfinite(span) and span != 0.0:
            ahead = ahead + (alpha - self._at) / span * (self._slack - self._before)
        self._add(self._worst(flat, ahead, _KEEP))

    def _worst(self, flat: Strengths, g: Tensor, least: float) -> Tensor:
        """Pairs outside of the set whose correlations reach ``least`` of their strength; the farthest of many.

        A set that grows by no more than its active part stays small where strengths are far apart.
        """
        found = ((flat.reach(g) >= least * flat.l1) & ~self._chosen).nonzero().flatten()
        most = max(_FEW, int((self._state.w != 0.0).sum()))
        if len(found) <= most:
            return found
        return found[(flat.reach(g)[found] - flat.l1[found]).topk(most).indices]

    def _add(self, new: Tensor) -> None:
        if len(new):
            block = self._pairs.append(new)
            self._solver.append(block, self._l2[new])
            self._chosen[new] = True
            self._state.w = torch.cat([self._state.w, self._state.w.new_zeros(len(new))])

    def _solve(self, alpha: float, form: L1Form, flat: Strengths) -> PathPoint:
        goal, steps, gap = _INSIDE * self._goal, 0, math.inf
        for _ in range(_PASSES):
            steps += self._descend(flat.at(self._pairs.index), goal, self._max_iter - steps)
            point, g = self._certified(form, steps)
            slack = g.reshape(-1) - flat.l2 * point.dense(len(g)).reshape(-1)
            found = self._worst(flat, slack, 1.0 + _SLACK)
            if float(point.gap) <= self._goal or steps >= self._max_iter:
                break
            if not len(found):
                if not float(point.gap) < 0.5 * gap:  # nan where no conjugate is known
                    break
                gap, goal = float(point.gap), 0.1 * goal
            self._prune(flat, slack)
            self._add(found)
        self._before, self._at_before = self._slack, self._at
        self._slack, self._at = slack, alpha
        return point

    def _descend(self, inside: Strengths, goal: float, limit: int) -> int:
        """Newton steps on the working set until its gap is below ``goal``; how many."""
        problem, stale, last, best, idle = self._problem, True, math.inf, math.inf, 0
        self._decrement = math.inf if bool(((inside.l1 == 0.0) & (inside.l2 == 0.0)).any()) else 0.0
        for step in range(max(limit, 1)):
            slopes = problem.datafit.grad(self._state.eta, problem.y)
            rows = problem.weights[:, None] * slopes
            g, top = -self._pairs.transposed(rows), -rows.sum(0) * float(problem.fit_intercept)
            worst = float(torch.maximum(violation(inside.form, self._state.w, g), top.abs().max()))
            if worst <= _ROUNDING * float(self._slack.abs().max()):
                return step
            if self._decrement <= goal and self._gap(inside, slopes, g, top, goal) <= goal:
                return step
            best, idle = (worst, 0) if worst < 0.5 * best else (best, idle + 1)
            if idle == _IDLE:
                return step
            if stale and worst > _WELL * last:
                self._renew()
                stale, last = False, math.inf
            moved = self._move(inside, g, top)
            stale, last = True, worst if moved else 0.0
        return limit

    def _renew(self) -> None:
        self._pairs.bend(self._state.eta, self._floor)
        if len(self._pairs.index):
            self._solver.replace(self._pairs.matrix(), self._l2[self._pairs.index])

    def _prune(self, flat: Strengths, g: Tensor) -> None:
        """Forget the pairs that are far from any part, if they are many."""
        index = self._pairs.index
        near = (self._state.w != 0.0) | (flat.reach(g)[index] >= _NEAR * flat.l1[index])
        if int(near.sum()) > _MANY * len(index):
            return
        kept = index[near]
        self._chosen.zero_()[kept] = True
        w = self._state.w[near]
        self._pairs = Pairs(self._problem, self._design)
        self._pairs.bend(self._state.eta, self._floor)
        self._solver = self._new_solver()
        self._solver.append(self._pairs.append(kept), self._l2[kept])
        self._solver.begin(w)
        self._state.w = w

    def _new_solver(self) -> PivotSolver:
        size = len(self._chosen)
        return PivotSolver(self._chosen.device, size, min(size, self._problem.y.numel()))

    def _gap(self, inside: Strengths, slopes: Tensor, g: Tensor, top: Tensor, goal: float) -> float:
        """The gap as if there were no other pairs, and what the intercepts may still gain; a bound if that is too much.

        The conjugate of a loss whose curvature is at most c bends by at least 1 / c. Without a conjugate the gap is
        inf: steps go on until they no longer help.
        """
        problem, scale = self._problem, dual_scale(inside.form, g)
        scale = torch.minimum(scale, problem.datafit.feasible(slopes, problem.y))
        rest = penalty_gap(inside.form, self._state.w, scale * g)
        rest = rest + (top * self._pairs.shift(top, torch.zeros_like(g))).sum()
        curvature = problem.datafit.curvature or math.inf
        least = rest + (1.0 - scale).square() * mean_of(slopes.square().sum(1), problem.weights) / (2.0 * curvature)
        if bool(least > goal):
            return float(least)
        try:
            data = problem.datafit.fenchel_gap(self._state.eta, scale * slopes, problem.y)
        except NoConjugate:
            return math.inf
        return float(rest + mean_of(data, problem.weights))

    def _move(self, inside: Strengths, g: Tensor, top: Tensor) -> bool:
        """To the minimiser of the model, or as far on the way as the objective falls; whether it does."""
        state, tableau, problem = self._state, self._solver.tableau, self._problem
        target = state.w
        if tableau.size:
            c = tableau.gram @ state.w + self._pairs.profiled(g, top)
            solved = self._solver.solve(Subproblem(c, inside.l1, inside.l2, inside.lower))
            target = solved.clamp(min=inside.lower)  # which pivoting meets to rounding
        way = target - state.w
        shift = self._pairs.shift(top, way)
        change = self._pairs.times(way) + shift
        losses = problem.datafit.value(state.eta, problem.y)
        before = mean_of(losses, problem.weights) + inside.value(state.w)
        noise = _NOISE * mean_of(losses.abs(), problem.weights)
        expected = inside.value(target) - inside.value(state.w) - (g * way).sum() - (top * shift).sum()
        if self._decrement > 0.0:
            self._decrement = -float(expected) / 2.0

        def trial(step: float) -> tuple[State, float] | None:
            w = target.clone() if step == 1.0 else state.w + step * way
            eta = state.eta + step * change
            falls = bool(problem.value(eta) + inside.value(w) <= before + ARMIJO * step * expected + noise)
            return (State(w, state.shift + step * shift, eta), step) if falls else None

        found = line_search(trial, _HALVINGS)
        stiffer = found is None or found[1] < 0.5
        self._floor = min(_STIFFER * self._floor, 1.0) if stiffer else max(_SOFTER * self._floor, _CURVED)
        self._state = state if found is None else found[0]
        return found is not None

    def _correlations(self, eta: Tensor) -> Tensor:
        return -self._design.transposed(self._problem.row_grad(eta)).reshape(-1)

    def _certified(self, form: L1Form, steps: int) -> tuple[PathPoint, Tensor]:
        """The point with the best intercept and its certificate, and the correlations of all pairs, (p, K)."""
        problem, state = self._problem, self._state
        lifted = problem.shifted(self._pairs.times(state.w))
        if problem.fit_intercept:
            state.shift = best_shift(problem.datafit, lifted, problem.y, problem.weights, state.shift)
        state.eta = lifted + state.shift
        coef = problem.no_coef()
        coef.view(-1)[self._pairs.index] = state.w
        g = self._correlations(state.eta).view_as(coef)
        kept = nonzero_rows(coef)
        intercept = state.shift if self._mean is None else state.shift - self._mean[kept] @ coef[kept]
        intercept = intercept if problem.fit_intercept else torch.zeros_like(intercept)
        gap = gap_at(problem, form, coef, state.eta, g)
        flat = self._strengths(form)
        worst = violation(flat.form, coef.view(-1), g.view(-1))
        return PathPoint(kept, coef[kept], problem.reported(intercept), gap, worst, problem.value(state.eta), steps), g
