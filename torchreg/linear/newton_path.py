"""Paths of generalised linear models with a penalty of type L1: proximal Newton steps solved by pivoting.

Each step minimises the second-order model of the loss plus the penalty, exactly, on a working set of columns, and
searches along the way to its minimiser. The matrix of the model is kept while steps with it still shrink the
violation well, so that most strengths need none of their own. Then the correlations of all columns tell which must
join the set, and the duality gap whether the point is good enough.

Source: Lee, Sun and Saunders, SIAM J. Optim. 24, 2014 (proximal Newton); Armijo, Pacific J. Mathematics 16, 1966.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.certificate import columns, dual_scale, gap_at, penalty_gap, violation
from torchreg.linear.intercept import best_shift, mean_of
from torchreg.linear.pivoting import PivotSolver
from torchreg.linear.points import PathPoint, nonzero_rows
from torchreg.linear.problem import Problem
from torchreg.linear.subproblem import Subproblem
from torchreg.penalties import L1Form, NoConjugate

_KEEP = 0.95  # of its strength: a correlation predicted to reach it joins the working set
_SLACK = 1e-12  # of a correlation beyond its strength: less is rounding
_WELL = 0.1  # of the violation at most is left by a step, while the model's matrix is kept
_CURVED = 1e-8  # least curvature of a row relative to the largest, so that the matrix is regular
_STIFFER, _SOFTER = 100.0, 0.1  # what the least curvature is multiplied by after a step that had to be cut, or had not
_DECREASE = 1e-4  # Armijo's constant
_SHARES = tuple(0.5**k for k in range(30))  # of a step, tried in turn
_FULL = 0.5  # of a step: where less of it is taken, the model was too soft
_IDLE = 5  # steps that neither halve the violation nor lower the objective: rounding
_FALL = 0.1  # of the tolerance: a fall of the objective that counts
_INNER = 0.2  # of the tolerance, for the gap on the working set
_PASSES = 30  # looks at all columns for one strength
_ROUNDING = 1e-15  # of a correlation, relative to the largest
_NOISE = 1e-14  # of the objective, relative to the mean size of the rows' losses
_NEAR = 1e-11  # of a correlation, relative to the largest: a step that does not help any more ends here


@dataclass
class _State:
    """Coefficients of the working set, the intercept first if there is one, and their linear predictor."""

    w: Tensor
    eta: Tensor


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
        self._goal = tol * float(problem.null_loss())
        self._first = int(problem.fit_intercept)  # columns of the tableau before those of X
        self._columns = problem.design.selection(problem.weights)
        self._solver = PivotSolver(
            problem.design.device, problem.design.p + 1, min(problem.design.n, problem.design.p + 1)
        )
        self._chosen = torch.zeros(problem.design.p, dtype=torch.bool, device=problem.design.device)
        self._curvature, self._floor = problem.weights, _CURVED
        self._open(start)

    def _open(self, start: tuple[Tensor, Tensor] | None) -> None:
        problem = self._problem
        coef, intercept = (problem.no_coef(), problem.null_intercept()) if start is None else start
        kept = coef.nonzero().flatten()
        if len(kept):
            self._columns.append(kept)
            self._chosen[kept] = True
        head = intercept.reshape(1) if self._first else intercept.new_zeros(0)
        eta = problem.eta(coef, intercept)
        self._state = _State(torch.cat([head, coef[kept]]), eta)
        self._curvature = self._bend(eta)
        if len(self._state.w):
            gram = self._gram()
            self._solver.append(gram, torch.zeros_like(self._state.w))
            self._solver.begin(self._state.w)
        self._slack = self._before = -problem.gradient(eta)
        self._at = self._at_before = math.inf

    def points(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions, one for each form.

        Args:
            alphas: strengths, descending; only their ratios matter.
            forms: the penalty at each of them, each of type L1.
        """
        for alpha, form in zip(alphas, forms, strict=True):
            self._screen(alpha, form)
            yield self._solve(alpha, form)

    def _screen(self, alpha: float, form: L1Form) -> None:
        span, last = self._at - self._at_before, self._slack
        if math.isfinite(span) and span != 0.0:
            last = last + (alpha - self._at) / span * (self._slack - self._before)
        l1 = columns(form.l1, last)
        needed = torch.maximum(self._reach(form, last), self._reach(form, self._slack)) >= _KEEP * l1
        self._add((needed & ~self._chosen).nonzero().flatten())

    def _reach(self, form: L1Form, g: Tensor) -> Tensor:
        return g if form.lower == 0.0 else g.abs()

    def _add(self, new: Tensor) -> None:
        """New columns, measured with the curvature of the model that is in use."""
        if not len(new):
            return
        self._columns.append(new)
        self._chosen[new] = True
        block = self._columns.gram(self._curvature, len(self._columns.index) - len(new))
        if self._first:
            head = self._columns.transposed(self._curvature)[-len(new) :]
            block = torch.cat([head[None], block])
        self._solver.append(block, torch.zeros_like(block[0]))
        self._state.w = torch.cat([self._state.w, self._state.w.new_zeros(len(new))])

    def _bend(self, eta: Tensor) -> Tensor:
        """Weighted curvature of the rows, (n,), bounded away from zero."""
        problem = self._problem
        bend = problem.weights * problem.datafit.hessian(eta, problem.y)
        return bend.clamp(min=self._floor * bend.max())

    def _gram(self) -> Tensor:
        """The model's matrix over the working set, intercept first."""
        bend = self._curvature
        gram = self._columns.gram(bend, 0)
        if not self._first:
            return gram
        head = self._columns.transposed(bend)
        return torch.cat([torch.cat([bend.sum()[None], head])[None], torch.cat([head[:, None], gram], 1)])

    def _strengths(self, form: L1Form) -> tuple[Tensor, Tensor]:
        """l1 and l2 over the working set; nothing for the intercept."""
        none = self._state.w.new_zeros(self._first)
        parts = (columns(s, self._slack).expand(len(self._slack))[self._columns.index] for s in (form.l1, form.l2))
        l1, l2 = (torch.cat([none, part]) for part in parts)
        return l1, l2

    def _solve(self, alpha: float, form: L1Form) -> PathPoint:
        goal, steps, gap = self._goal, 0, math.inf
        for _ in range(_PASSES):
            steps += self._descend(form, _INNER * goal, self._max_iter - steps)
            point, g = self._certified(form, steps)
            slack = g - columns(form.l2, g) * point.dense(len(g))
            beyond = (self._reach(form, slack) > (1.0 + _SLACK) * columns(form.l1, g)) & ~self._chosen
            found = beyond.nonzero().flatten()
            if float(point.gap) <= self._goal or steps >= self._max_iter:
                break
            if not len(found):
                if not float(point.gap) < 0.5 * gap:
                    break
                gap, goal = float(point.gap), 0.1 * goal
            self._add(found)
        self._before, self._at_before = self._slack, self._at
        self._slack, self._at = slack, alpha
        return point

    def _descend(self, form: L1Form, goal: float, limit: int) -> int:
        """Newton steps on the working set until its gap is below ``goal``; how many."""
        stale, last, best, idle = True, math.inf, math.inf, 0
        for step in range(max(limit, 1)):
            g, (l1, l2) = self._correlations(), self._strengths(form)
            inside = L1Form(l1, l2, form.lower)
            worst = float(violation(inside, self._state.w, g))
            if self._inner_gap(inside, g) <= goal or worst <= _ROUNDING * float(self._slack.abs().max()):
                return step
            best, idle = (worst, 0) if worst < 0.5 * best else (best, idle + 1)
            if idle == (1 if worst <= _NEAR * float(self._slack.abs().max()) else _IDLE):
                return step
            if stale and worst > _WELL * last:
                self._renew()
                stale, last = False, math.inf
            fall = self._move(inside, g)
            if fall > _FALL * self._goal:
                idle = 0
            stale, last = True, 0.0 if fall < 0.0 else worst
        return limit

    def _renew(self) -> None:
        self._curvature = self._bend(self._state.eta)
        if self._solver.tableau.size:
            self._solver.replace(self._gram(), torch.zeros_like(self._state.w))

    def _correlations(self) -> Tensor:
        """Minus the gradient over the working set, intercept first."""
        rows = self._problem.row_grad(self._state.eta)
        inner = -self._columns.transposed(rows)
        return torch.cat([-rows.sum()[None], inner]) if self._first else inner

    def _inner_gap(self, form: L1Form, g: Tensor) -> float:
        """The gap as if there were no other columns; the intercept's slope counts by the width of the predictor.

        Without a conjugate it is inf: steps go on until they no longer help.
        """
        problem, eta = self._problem, self._state.eta
        scale = dual_scale(form, g)
        rows = problem.datafit.grad(eta, problem.y)
        scale = torch.minimum(scale, problem.datafit.feasible(rows, problem.y))
        try:
            data = mean_of(problem.datafit.fenchel_gap(eta, scale * rows, problem.y), problem.weights)
        except NoConjugate:
            return math.inf
        gap = data + penalty_gap(form, self._state.w, scale * g)
        return float(gap + g[: self._first].abs().sum() * eta.abs().max())

    def _move(self, form: L1Form, g: Tensor) -> float:
        """To the minimiser of the model, or as far on the way as the objective falls; by how much, or -1."""
        state, tableau = self._state, self._solver.tableau
        if not tableau.size:
            return -1.0
        c = tableau.gram @ state.w + g
        target, _ = self._solver.solve(Subproblem(c, columns(form.l1, g), columns(form.l2, g), form.lower))
        way = target - state.w
        change = self._columns.times(way[self._first :])
        if self._first:
            change = change + way[0]
        before = self._objective(form, state.w, state.eta)
        noise = _NOISE * self._problem.weights.dot(self._problem.datafit.value(state.eta, self._problem.y).abs())
        expected = _penalty(form, target) - _penalty(form, state.w) - (g * way).sum()
        for share in _SHARES:
            w, eta = (target.clone() if share == 1.0 else state.w + share * way), state.eta + share * change
            fall = before - self._objective(form, w, eta)
            if bool(fall >= -_DECREASE * share * expected - noise):
                self._state = _State(w, eta)
                self._floor = min(_STIFFER * self._floor, 1.0) if share < _FULL else max(_SOFTER * self._floor, _CURVED)
                return max(float(fall), 0.0)
        self._floor = min(_STIFFER * self._floor, 1.0)
        return -1.0

    def _objective(self, form: L1Form, w: Tensor, eta: Tensor) -> Tensor:
        return self._problem.value(eta) + _penalty(form, w)

    def _certified(self, form: L1Form, steps: int) -> tuple[PathPoint, Tensor]:
        """The point with the best intercept and its certificate, and the correlations of all columns."""
        problem, state = self._problem, self._state
        if self._first:
            lifted = state.eta - state.w[0]
            shift = best_shift(problem.datafit, lifted, problem.y, problem.weights, state.w[0])
            self._state = state = _State(torch.cat([shift[None], state.w[1:]]), lifted + shift)
        g = -problem.gradient(state.eta)
        coef = torch.zeros_like(g).index_copy_(0, self._columns.index, state.w[self._first :])
        gap = gap_at(problem, form, coef, state.eta, g)
        kept = nonzero_rows(coef)
        intercept = state.w[0] if self._first else state.w.new_zeros(())
        loss = problem.value(state.eta)
        return PathPoint(kept, coef[kept], intercept, gap, violation(form, coef, g), loss, steps), g


def _penalty(form: L1Form, w: Tensor) -> Tensor:
    return (columns(form.l1, w) * w.abs() + columns(form.l2, w) * w.square() / 2.0).sum()
