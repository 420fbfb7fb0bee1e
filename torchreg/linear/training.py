"""A path on the training rows of a fold; for least squares from the full Gram matrix less that of the test rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from torchreg.linear.engines import engine_for, fits_l1
from torchreg.linear.folds import Fold
from torchreg.linear.frame import Coordinates, Frame
from torchreg.linear.moments import remainder
from torchreg.linear.points import PathPoint
from torchreg.linear.stations import solved
from torchreg.penalties import Penalty


def training_points(
    frame: Frame, fold: Fold, penalty: Penalty, grid: list[float], *, tol: float, max_iter: int
) -> list[PathPoint]:
    """The solutions of one fold at the strengths of the full path, in the coordinates of X."""
    train, test = (rows.to(frame.raw.device) for rows in fold)
    complete = torch.equal(torch.cat([train, test]).sort().values, torch.arange(frame.raw.n, device=train.device))
    if complete and frame.moments is not None and fits_l1(frame.problem, penalty):
        return _by_subtraction(frame, test, penalty, grid)
    part = frame.subset(train)
    engine = engine_for(part.problem, penalty, start=None, tol=tol, max_iter=max_iter, moments=part.moments)
    return [part.coordinates.outward(point) for point in solved(engine, penalty, grid, grid[0], progress=False)]


def _by_subtraction(frame: Frame, test: Tensor, penalty: Penalty, grid: list[float]) -> list[PathPoint]:
    assert frame.moments is not None
    rest = remainder(frame.problem, frame.moments, test, centre=frame.fit_intercept, scale=frame.standardize)
    engine = engine_for(frame.problem, penalty, start=None, tol=0.0, max_iter=1, moments=rest.moments)
    back = frame.coordinates.nested(Coordinates(rest.mean, rest.scale, rest.shift))
    return [back.outward(point) for point in solved(engine, penalty, grid, grid[0], progress=False)]
