"""Whole paths by proximal gradient: any datafit with any penalty, with a duality gap where the conjugates are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from torchreg.linear.certificate import full_gap
from torchreg.linear.designs.base import divided
from torchreg.linear.intercept import mean_of
from torchreg.linear.kinks import Start
from torchreg.linear.moments import Moments
from torchreg.linear.points import PathPoint, nonzero_rows
from torchreg.linear.problem import Problem
from torchreg.linear.proximal_gradient import proximal_gradient
from torchreg.penalties import Penalty

_ROUNDING = 1e-13  # of the largest correlation that there can be: an unpenalised coefficient's may be rounding


def proximal_points(
    problem: Problem,
    penalties: Sequence[Penalty],
    *,
    start: Start | None,
    tol: float,
    max_iter: int,
    moments: Moments | None,
) -> Iterator[PathPoint]:
    """The solutions, one for each penalty, each from the solution and the step of the one before.

    Args:
        problem: data and datafit.
        penalties: of descending strengths.
        start: (coef, intercept) to start from; None for the null model's.
        tol: gap relative to the null model's objective or, without a gap, violation relative to its steepest slope.
        max_iter: proximal steps for one penalty.
        moments: of a quadratic problem, where they pay.
    """
    coef, intercept = start or (problem.no_coef(), problem.null_intercept())
    gram, cross = (None, None) if moments is None else (moments.gram, moments.cross)
    null, scale = problem.null_loss(), problem.null_slope()
    unexplained = tol * scale + _ROUNDING * _reach(problem)
    step: Tensor | None = None
    for penalty in penalties:
        known = bool(full_gap(problem, penalty, coef, problem.eta(coef, intercept)).isfinite())

        def gap(w: Tensor, eta: Tensor | None, penalty: Penalty = penalty) -> Tensor:
            eta = problem.eta(w) if eta is None else eta
            return full_gap(problem, penalty, w, eta, unexplained=unexplained)

        found = proximal_gradient(
            problem, penalty, tol=1e-12 if known else tol, max_iter=max_iter, coef=coef, intercept=intercept,
            step=step, scale=scale, gap=gap if known else None, gap_tol=float(tol * null) if known else 0.0,
            gram=gram, cross=cross,
        )  # fmt: skip
        coef, intercept, step = found.coef, found.intercept, found.step
        eta, kept = problem.eta(coef, intercept), nonzero_rows(coef)
        yield PathPoint(kept, coef[kept], intercept, gap(coef, eta), found.violation, problem.value(eta), found.n_iter)


def _reach(problem: Problem) -> Tensor:
    """What no correlation exceeds with all coefficients zero, 0-d: Cauchy and Schwarz, columns not centred."""
    mean, variance = problem.design.moments(problem.weights)
    width = divided((mean.square() + variance).sqrt(), problem.design.scale).amax()
    slopes = problem.datafit.grad(problem.null_eta(), problem.y)
    return width * mean_of(slopes.square(), problem.weights).sum().sqrt()
