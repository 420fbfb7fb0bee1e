"""Proximal gradient for any penalty and any datafit: accelerated where convex, always going down where not.

One iteration takes one product with X and one with X'. Nothing in it waits for the device: a step
that turns out too long is undone by ``where``, and the host looks only every tenth iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchreg.functional.shrinkage import filled
from torchreg.linear.problem import Problem
from torchreg.linear.smooth_part import GramTerm, Point, RowTerm, Smooth, largest
from torchreg.penalties import Penalty

_CHECK = 10  # iterations between two looks of the host
_SAFE = 0.95  # a new step, relative to the inverse of the steepness seen
_SHORTEST = 0.1  # of a step that was too long, at most; also where the loss overflowed
_GROWTH = 2.0  # of the step at a check, at most, where the moves since the last met less curvature
_SLACK = 1e-9  # relative excess of the steepness that is no reason to shorten the step


@dataclass(frozen=True)
class Solution:
    """Where the iteration stopped.

    Attributes:
        coef: (p,) or (p, K), with exact zeros.
        intercept: 0-d or (K,), 0 if there is none.
        violation: ``max |coef - prox(coef - step * gradient, step)| / step``, 0-d.
        n_iter: proximal steps, those that were undone included.
        eta: linear predictor, offset included, (n,) or (n, K); None on a Gram matrix, which has no rows.
        gradient: of the mean loss at ``coef``, of its shape.
        step: the step of the violation, 0-d; a good first step for a neighbouring problem.
        converged: whether the tolerance was met.
    """

    coef: Tensor
    intercept: Tensor
    violation: Tensor
    n_iter: int
    eta: Tensor | None
    gradient: Tensor
    step: Tensor
    converged: bool


@torch.no_grad()
def proximal_gradient(
    problem: Problem,
    penalty: Penalty,
    *,
    tol: float,
    max_iter: int,
    coef: Tensor | None = None,
    intercept: Tensor | None = None,
    step: Tensor | float | None = None,
    scale: Tensor | float | None = None,
    gap: Callable[[Tensor, Tensor | None], Tensor] | None = None,
    gap_tol: float = 0.0,
    gram: Tensor | None = None,
    cross: Tensor | None = None,
) -> Solution:
    """Minimise ``mean loss(X coef + intercept + offset) + penalty(coef)``.

    For a convex penalty: FISTA with restart whenever momentum points uphill. For any other: the
    same extrapolated step where it lowers the objective, a plain proximal step where it does not,
    so that the objective never rises. The first step is ``1 / L``, with L from the datafit's
    curvature, or else its second derivative at the start, and power iteration; later ones are as
    long as the curvature met on the way allows, and a step that turns out too long is undone.

    The answer for a penalty that is not convex depends on where the iteration starts.

    Args:
        problem: data and datafit.
        penalty: anything with ``value`` and ``prox``.
        tol: stop when the violation is at most ``tol * scale``, or the rounding of the gradient.
        max_iter: proximal steps at most.
        coef: where to start, (p,) or (p, K); None for zero.
        intercept: where to start, 0-d or (K,); None for the best one at ``coef``.
        step: first step, > 0; None to estimate it.
        scale: what ``tol`` is relative to; None for the largest entry of the null model's gradient.
        gap: duality gap at (coef, eta), 0-d; where it is at most ``gap_tol`` the iteration also stops.
        gap_tol: absolute tolerance of ``gap``.
        gram: ``X' W X`` of centred columns, (p, p): iterate on it for a quadratic datafit, without rows.
        cross: ``X' W (y - offset)``, of coef's shape, with ``gram``.

    Raises:
        ValueError: if one of ``gram`` and ``cross`` is given alone, or the datafit is not quadratic.

    Source:
        Beck and Teboulle, SIAM J. Imaging Sciences 2, 2009 (FISTA); O'Donoghue and Candes,
        Foundations of Computational Mathematics 15, 2015, eq. 12 (restart); Li and Lin, NeurIPS
        2015, algorithm 1 (the monotone variant).

    Example:
        >>> import torch
        >>> from torchreg import MCP
        >>> from torchreg.linear.datafits import Quadratic
        >>> from torchreg.linear.designs.inputs import as_design
        >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
        >>> y = Quadratic().prepare(4.0 * X[:, 0] + 0.1 * X[:, 1] + 7.0)
        >>> weights = torch.full((4,), 0.25, dtype=torch.float64)
        >>> problem = Problem(as_design(X), y, weights, None, Quadratic(), fit_intercept=True)
        >>> solution = proximal_gradient(problem, MCP(0.5), tol=1e-12, max_iter=1000)
        >>> solution.coef.round(decimals=9), solution.intercept
        (tensor([4., 0.], dtype=torch.float64), tensor(7., dtype=torch.float64))
    """
    smooth = _smooth(problem, gram, cross)
    state = _start(smooth, penalty, coef, intercept, step)
    scale = _null_slope(smooth, state) if scale is None else scale
    count = 0
    while True:
        state, report = _checked(smooth, penalty, state)
        eta = None if gram is not None else report.point.eta
        enough = torch.maximum(filled(tol * scale, report.floor).to(report.floor), report.floor)
        done = report.violation <= enough
        if gap is not None:
            done = done | (gap(state.coef, eta) <= gap_tol)
        converged = bool(done)
        if converged or count >= max_iter:
            break
        for _ in range(min(_CHECK, max_iter - count)):
            state = _advanced(smooth, penalty, state)
        count += min(_CHECK, max_iter - count)
    intercept = state.shift - smooth.moved(state.coef)
    reported = problem.reported(intercept)
    eta = None if eta is None else eta + (reported - intercept)
    return Solution(state.coef, reported, report.violation, count, eta, report.gradient, report.step, converged)


class _State(NamedTuple):
    """All that an iteration hands to the next; ``ahead`` is the extrapolated point."""

    coef: Tensor
    image: Tensor
    shift: Tensor
    objective: Tensor
    ahead: Tensor
    ahead_image: Tensor
    theta: Tensor
    step: Tensor
    steepest: Tensor


class _Report(NamedTuple):
    point: Point
    gradient: Tensor
    violation: Tensor
    step: Tensor
    floor: Tensor


def _smooth(problem: Problem, gram: Tensor | None, cross: Tensor | None) -> Smooth:
    if gram is None and cross is None:
        return RowTerm(problem)
    if gram is None or cross is None or not problem.datafit.quadratic:
        raise ValueError(
            f"A fit on a Gram matrix needs gram and cross and a quadratic datafit, got {problem.datafit} and "
            f"{'no gram' if gram is None else 'no cross' if cross is None else 'both'}; leave both out to use the rows."
        )
    return GramTerm(gram, cross)


def _start(
    smooth: Smooth, penalty: Penalty, coef: Tensor | None, intercept: Tensor | None, step: Tensor | float | None
) -> _State:
    coef = smooth.no_coef if coef is None else coef
    image = smooth.image(coef)
    shift = smooth.settled(image, None if intercept is None else intercept + smooth.moved(coef))
    point = smooth.at(coef, image, shift)
    steepest = smooth.steepest(point) if step is None else 1.0 / filled(step, coef).to(coef)
    first = torch.where(steepest > 0, _SAFE / steepest, 1.0) if step is None else 1.0 / steepest
    one = torch.ones_like(first)
    objective = point.value + penalty.value(coef)
    return _State(coef, image, shift, objective, coef, image, one, first, 0.0 * one)


def _null_slope(smooth: Smooth, state: _State) -> Tensor:
    image = torch.zeros_like(state.image)
    point = smooth.at(smooth.no_coef, image, smooth.settled(image, None))
    return largest(smooth.gradient(point))


def _checked(smooth: Smooth, penalty: Penalty, state: _State) -> tuple[_State, _Report]:
    """The best intercept at ``coef``, the violation there, and a longer step where the loss has room."""
    shift = smooth.settled(state.image, state.shift)
    point = smooth.at(state.coef, state.image, shift)
    gradient = smooth.gradient(point)
    moved = penalty.prox(state.coef - state.step * gradient, state.step)
    violation = largest(state.coef - moved) / state.step
    report = _Report(point, gradient, violation, state.step, smooth.floor(point, 1.0 / state.step))
    longer = torch.clamp(_SAFE / state.steepest, min=state.step, max=_GROWTH * state.step)
    step = torch.where(state.steepest > 0, longer, state.step)
    objective = point.value + penalty.value(state.coef)
    return state._replace(shift=shift, objective=objective, step=step, steepest=0.0 * step), report


def _advanced(smooth: Smooth, penalty: Penalty, state: _State) -> _State:
    """One proximal step from ``ahead``: kept, or undone if it was too long or, where not convex, went up."""
    here = smooth.at(state.ahead, state.ahead_image, state.shift, refit=True)
    coef = penalty.prox(state.ahead - state.step * smooth.gradient(here), state.step)
    there = smooth.at(coef, smooth.image(coef), here.shift)
    steepness = smooth.steepness(here, there, coef - state.ahead)
    fits = steepness * state.step <= (1.0 + _SLACK if penalty.convex else 1.0)
    objective = there.value + penalty.value(coef)
    kept = fits if penalty.convex else fits & ((objective <= state.objective) | (state.theta == 1.0))
    return _choose(kept, _onward(state, coef, there, objective, steepness), _undone(state, fits, steepness))


def _onward(state: _State, coef: Tensor, there: Point, objective: Tensor, steepness: Tensor) -> _State:
    """Extrapolate, unless the last move turned against the step."""
    delta = coef - state.coef
    uphill = ((state.ahead - coef) * delta).sum() > 0
    theta = (1.0 + (1.0 + 4.0 * state.theta.square()).sqrt()) / 2.0
    momentum = torch.where(uphill, 0.0, (state.theta - 1.0) / theta)
    return _State(
        coef,
        there.image,
        there.shift,
        objective,
        coef + momentum * delta,
        there.image + momentum * (there.image - state.image),
        torch.where(uphill, 1.0, theta),
        state.step,
        torch.maximum(state.steepest, steepness),
    )


def _undone(state: _State, fits: Tensor, steepness: Tensor) -> _State:
    """From the same point with a shorter step; or, where the step fitted, from the last point without momentum."""
    ratio = (_SAFE / (steepness * state.step)).nan_to_num(_SHORTEST, _SHORTEST).clamp(_SHORTEST, _SAFE)
    shorter = state._replace(step=state.step * ratio)
    plain = state._replace(ahead=state.coef, ahead_image=state.image, theta=torch.ones_like(state.theta))
    return _choose(fits, plain, shorter)


def _choose(condition: Tensor, yes: _State, no: _State) -> _State:
    return _State(*(a if a is b else torch.where(condition, a, b) for a, b in zip(yes, no, strict=True)))
