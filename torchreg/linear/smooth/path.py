"""Paths of generalised linear models whose penalty has no kink: a ridge, or nothing.

    minimise  sum_i weights_i f(eta_i, y_i) + sum_j l2_j w_j^2 / 2,  eta = X w + b + offset

Newton's method, started where the line through the last two points leads, in coordinates that suit the data: the
coefficients where there are more rows than columns, else the row space of X, whose dimension is the number of rows.
Steps are solved by a Cholesky factor or by conjugate gradients; several outputs (softmax) always by the latter but for
a few unknowns. Each point has the gap of its coefficients for X itself.

Source: Nocedal and Wright, Numerical Optimization, 2006, chapters 3 and 7; the row space: Hastie and Tibshirani,
Biostatistics 5, 2004.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.certificate import gap_at
from torchreg.linear.objective.entry_terms import violation
from torchreg.linear.points import PathPoint, nonzero_rows
from torchreg.linear.problem import Problem
from torchreg.linear.smooth.charts import Chart, Plain, RowSpace
from torchreg.linear.smooth.descent import Descent, State
from torchreg.linear.smooth.systems import system_for
from torchreg.penalties import L1Form, NoConjugate

_AIM = 1e-10  # of the null model's loss: a gap that is always aimed at, since Newton's last steps cost little,
_BETTER = 1e-4  # unless the tolerance is larger by more than this
_UNSEEN = 1e-6  # of the gap, where none is known and violations, which are like its root, are looked at instead
_INSIDE = 0.2  # of the tolerance, for what rounding adds on the way back to X
_MEMORY_BOUND = 5.0  # time of an operation in products with vectors, relative to one in products of matrices
_MOST_ROWS = 4096  # of a row space
_SAME = 1e-12  # relative difference of shares that is rounding


@dataclass(frozen=True)
class Layout:
    """What the points of a path have in common.

    Attributes:
        closed: entries that must be zero, of the coefficients' shape, or None.
        shares: of the strongest ridge, (p,), inf at closed columns; None where they differ between outputs.
    """

    closed: Tensor | None
    shares: Tensor | None

    def fits(self, other: Layout) -> bool:
        """Whether the same coordinates serve both."""
        return _alike(self.closed, other.closed) and _alike(self.shares, other.shares)


def layout_of(form: L1Form, like: Tensor) -> tuple[Layout, Tensor]:
    """The layout of a penalty, and its strengths l2, of the shape of the coefficients ``like``."""
    l1, l2 = (_spread(part, like) for part in (form.l1, form.l2))
    closed = l1 > 0.0
    shared = bool((closed == closed[:, :1]).all() and (l2 == l2[:, :1]).all()) if like.dim() == 2 else True
    shares = None
    if shared:
        first, shut = (part if part.dim() == 1 else part[:, 0] for part in (l2, closed))
        top = torch.where(shut, 0.0, first).max()
        shares = torch.where(shut, math.inf, first / top if bool(top > 0.0) else torch.ones_like(first))
    return Layout(closed if bool(closed.any()) else None, shares), l2


class SmoothPath:
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
        if not has_conjugate(problem):
            self._goal *= _UNSEEN
        self._coef, self._intercept = start or (problem.no_coef(), problem.null_intercept())
        self._layout: Layout | None = None
        self._last: list[tuple[float, State]] = []

    def points(self, forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions, one for each form, none of which has a kink."""
        waiting: list[tuple[L1Form, State]] = []
        for form in forms:
            layout, l2 = layout_of(form, self._coef)
            if self._layout is None or not layout.fits(self._layout):
                yield from self._certified(waiting)
                waiting = []
                self._settle(layout)
            waiting.append((form, self._solve(l2)))
            if len(waiting) >= self._chart.together:
                yield from self._certified(waiting)
                waiting = []
        yield from self._certified(waiting)

    def _settle(self, layout: Layout) -> None:
        """Choose coordinates, and go on there from where the path is."""
        if self._last:
            self._coef, self._intercept = self._chart.outward(self._last[-1][1].theta)
        if layout.closed is not None:
            self._coef = torch.where(layout.closed, 0.0, self._coef)
        self._layout = layout
        open_rows = None if layout.closed is None else ~layout.closed
        mask = None
        if open_rows is not None and open_rows.dim() == 2:
            mask, open_rows = open_rows, open_rows.any(1)
        kept = None if open_rows is None or bool(open_rows.all()) else open_rows.nonzero().flatten()
        mask = None if mask is None else self._masked(mask if kept is None else mask[kept])
        self._enter(Plain(self._problem, kept), mask)
        self._descent.patience = self._row_space_cost(layout.shares)

    def _enter(self, chart: Chart, mask: Tensor | None) -> None:
        """Go on in these coordinates."""
        system = system_for(chart.features, self._problem.weights, self._problem.K)
        self._chart, self._descent = chart, Descent(self._problem, chart.features, system, mask)
        self._last = [(math.nan, self._descent.state(chart.inward(self._coef, self._intercept)))]

    def _masked(self, open_entries: Tensor) -> Tensor | None:
        if bool(open_entries.all()):
            return None
        mask = open_entries.to(self._coef.dtype)
        return torch.cat([mask, torch.ones_like(mask[:1])]) if self._problem.fit_intercept else mask

    def _row_space_cost(self, shares: Tensor | None) -> float:
        """Steps of conjugate gradients that take as long as going over to the row space; inf where it is no use."""
        n = self._problem.design.n
        if shares is None or n > _MOST_ROWS:
            return math.inf
        columns, free = int((shares < math.inf).sum()), int((shares == 0.0).sum())
        if n + free >= columns:
            return math.inf
        return (n * columns + 10.0 * n * n) / (_MEMORY_BOUND * 4.0 * columns * (self._problem.K or 1))

    def _solve(self, l2: Tensor) -> State:
        state, ridge = self._run(l2, self._max_iter)
        assert self._layout is not None
        if self._descent.patience < 0.0:
            self._coef, self._intercept = self._chart.outward(state.theta)
            assert self._layout.shares is not None
            self._enter(RowSpace(self._problem, self._layout.shares), None)
            done = state.steps
            state, ridge = self._run(l2, self._max_iter - done)
            state.steps += done
        level = float(ridge.max()) if ridge.numel() else 0.0
        self._last = [*self._last[-1:], (level, state)]
        return state

    def _run(self, l2: Tensor, limit: int) -> tuple[State, Tensor]:
        ridge = self._chart.ridge(l2)
        level = float(ridge.max()) if ridge.numel() else 0.0
        return self._descent.run(self._started(level, ridge), ridge, self._goal, limit), ridge

    def _started(self, level: float, ridge: Tensor) -> State:
        """The last point, or where the line through the last two, over the logarithm of the strength, leads."""
        before, now = self._last[0], self._last[-1]
        here = State(now[1].theta, now[1].eta, now[1].slope)
        if len(self._last) < 2 or not 0.0 < level < now[0] < before[0] < math.inf:
            return here
        ahead = min(1.0, math.log(level / now[0]) / math.log(now[0] / before[0]))
        theta = here.theta + ahead * (here.theta - before[1].theta)
        eta = here.eta + ahead * (here.eta - before[1].eta)
        objective = self._descent.objective
        if bool(objective(theta, eta, ridge) < objective(here.theta, here.eta, ridge)):
            return self._descent.state(theta)
        return here

    def _certified(self, waiting: Sequence[tuple[L1Form, State]]) -> Iterator[PathPoint]:
        """The points of these states, with what X says of them."""
        if not waiting:
            return
        problem, outputs = self._problem, self._problem.K
        width = outputs or 1
        thetas = torch.cat([state.theta.reshape(-1, width) for _, state in waiting], 1)
        coefs, intercepts = self._chart.outward(thetas)
        products = self._chart.design.times(coefs)
        products = products + thetas[-1] if problem.fit_intercept else products
        parts = [slice(k * width, (k + 1) * width) if outputs else k for k in range(len(waiting))]
        etas = [problem.shifted(products[:, part]) for part in parts]
        rows = torch.cat([problem.row_grad(eta).reshape(-1, width) for eta in etas], 1)
        slopes = self._chart.design.transposed(rows)
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
        bare = ((_spread(form.l2, coef) == 0.0) & (_spread(form.l1, coef) == 0.0)).all(1, keepdim=True)
        return torch.where(bare, coef - coef.mean(1, keepdim=True), coef)


def has_conjugate(problem: Problem) -> bool:
    """Whether a gap can be known."""
    try:
        problem.datafit.conjugate(torch.zeros_like(problem.y[:1]), problem.y[:1])
    except NoConjugate:
        return False
    return True


def _spread(part: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(part, dtype=like.dtype, device=like.device).expand(like.shape)


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.shape != other.shape:
        return False
    return bool((one == other).all()) or bool(torch.allclose(one.double(), other.double(), rtol=_SAME, atol=0.0))
