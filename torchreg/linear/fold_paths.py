"""Paths on the training rows of folds: one by one, or all at once as one batch.

For least squares with many rows they come from the full Gram matrix less that of the test rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchreg.linear.fold_digits import keeps_digits
from torchreg.linear.folds import Fold
from torchreg.linear.frame import Coordinates, Frame
from torchreg.linear.intercept import mean_of
from torchreg.linear.kinks import is_smooth
from torchreg.linear.lockstep.fold_oracle import is_complete
from torchreg.linear.lockstep.path import lockstep_points
from torchreg.linear.moments import remainder
from torchreg.linear.points import PathPoint
from torchreg.linear.solvers.dispatch import grouped_rows, pivots, solver_for
from torchreg.linear.solvers.ridge import lost_digits
from torchreg.linear.stations import solved
from torchreg.penalties import Penalty

_SLACK = 1.0 + 1e-9  # engines stop at the same tolerance, reckoned in another order
_ROUNDING = 1e-14  # of the whole's energy: what is left of a target that is constant on the training rows
_SMALL = 150  # rank up to which one thread of a CPU spends more time on the number of problems than on their size


def training_paths(
    frame: Frame,
    folds: Sequence[Fold],
    penalty: Penalty,
    grid: list[float],
    *,
    tol: float,
    max_iter: int,
    lockstep: bool | None = None,
) -> Iterator[list[PathPoint]]:
    """For each fold the solutions at the strengths of the full path, in the coordinates of X.

    Args:
        frame: all rows.
        folds: pairs (train, test) of row numbers.
        penalty: whose alpha each strength replaces.
        grid: strengths, descending.
        tol: of iterative engines.
        max_iter: their limit.
        lockstep: whether all folds are solved at once where the problem allows it; None: on an accelerator, and where
            problems are so small that the time goes into their number.
    """
    folds = [(train.to(frame.raw.device), test.to(frame.raw.device)) for train, test in folds]
    wanted = _pays(frame) if lockstep is None else lockstep
    together: Iterator[list[PathPoint] | None] = (None for _ in folds)
    if wanted and _pivots(frame, penalty) and all(keeps_digits(frame, fold) for fold in folds):
        together = lockstep_points(frame, folds, penalty, grid)
    for fold, points in zip(folds, together, strict=True):
        yield points or training_points(frame, fold, penalty, grid, tol=tol, max_iter=max_iter)


def _pays(frame: Frame) -> bool:
    return frame.raw.device.type != "cpu" or min(frame.raw.n, frame.raw.p) <= _SMALL


def training_points(
    frame: Frame, fold: Fold, penalty: Penalty, grid: list[float], *, tol: float, max_iter: int
) -> list[PathPoint]:
    """The solutions of one fold at the strengths of the full path, in the coordinates of X."""
    train, test = (rows.to(frame.raw.device) for rows in fold)
    if _may_subtract(frame, (train, test), penalty):
        points = _by_subtraction(frame, test, penalty, grid, tol, max_iter)
        if not (is_smooth(penalty, frame.problem.no_coef()) and lost_digits(points, _energy(frame, train))):
            return points
    part = frame.weighing(train) if _spares_a_copy(frame, train, penalty) else frame.subset(train)
    solver = solver_for(part.problem, penalty, start=None, tol=tol, max_iter=max_iter, moments=part.moments)
    return [part.coordinates.outward(point) for point in solved(solver, penalty, grid, grid[0], progress=False)]


def _spares_a_copy(frame: Frame, train: Tensor, penalty: Penalty) -> bool:
    """Whether passes over all rows, the others weighing nothing, take no longer than a copy and passes over that."""
    return _pivots(frame, penalty) and frame.raw.n < frame.raw.p and frame.raw.copies(train)


def _pivots(frame: Frame, penalty: Penalty) -> bool:
    """Whether paths follow kinks by pivoting."""
    return pivots(frame.problem, penalty) and not is_smooth(penalty, frame.problem.no_coef())


class Verdict(NamedTuple):
    """How near the points of one fold are to its minima, (a,) each.

    Attributes:
        gaps: nan where none is known. violations: distances from optimality.
        allowed: the largest gap that is near enough; without a gap, the largest violation.
        converged: whether the points are near enough.
    """

    gaps: Tensor
    violations: Tensor
    allowed: Tensor
    converged: Tensor


def fold_verdict(frame: Frame, train: Tensor, points: Sequence[PathPoint], *, tol: float) -> Verdict:
    """Whether the points of one fold are as good as `fit_path` asks of its own on the training rows alone."""
    gaps, violations = torch.stack([p.gap for p in points]), torch.stack([p.violation for p in points])
    known, rows = gaps.isfinite(), train.to(frame.raw.device)
    if frame.problem.datafit.quadratic and bool(known.all()):
        allowed = (tol * _energy(frame, rows)).expand_as(gaps)
        enough = gaps <= _SLACK * allowed + _ROUNDING * frame.problem.null_loss()
        return Verdict(gaps, violations, allowed, enough)
    problem = frame.subset(rows).problem
    gap, slope = tol * problem.null_loss(), tol * problem.null_slope()
    allowed, reached = torch.where(known, gap, slope), torch.where(known, gaps, violations)
    return Verdict(gaps, violations, allowed, reached <= _SLACK * allowed)


def _energy(frame: Frame, rows: Tensor) -> Tensor:
    """The null model's loss on some rows of least squares, without a look at X."""
    weights, y = frame.weights[rows], frame.problem.y[rows]
    if frame.fit_intercept:
        y = y - mean_of(y, weights / weights.sum())
    return 0.5 * mean_of(y.square(), weights / weights.sum()).sum()


def _may_subtract(frame: Frame, fold: Fold, penalty: Penalty) -> bool:
    """Whether moments by subtraction are all that is needed, and exact enough."""
    if frame.moments is None or not is_complete(fold, frame.raw.n) or not _needs_moments_alone(frame, penalty):
        return False
    return keeps_digits(frame, fold)


def _needs_moments_alone(frame: Frame, penalty: Penalty) -> bool:
    return pivots(frame.problem, penalty) or grouped_rows(frame.problem, penalty) is not None


def _by_subtraction(
    frame: Frame, test: Tensor, penalty: Penalty, grid: list[float], tol: float, max_iter: int
) -> list[PathPoint]:
    problem, whole = frame.problem, frame.moments
    assert whole is not None
    rest = remainder(problem, whole, test, centre=frame.fit_intercept, scale=frame.standardize)
    tol *= float(torch.nan_to_num(rest.moments.energy / whole.energy, nan=1.0))  # the engine's is relative to the whole
    solver = solver_for(problem, penalty, start=None, tol=tol, max_iter=max_iter, moments=rest.moments)
    back = frame.coordinates.nested(Coordinates(rest.mean, rest.scale, rest.shift))
    return [back.outward(point) for point in solved(solver, penalty, grid, grid[0], progress=False)]
