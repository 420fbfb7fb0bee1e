"""The way along a grid of strengths: where two lie far apart, stations between them are solved and forgotten."""

from __future__ import annotations

import math
from dataclasses import replace

from torchreg.linear.points import PathPoint
from torchreg.linear.progress import shown
from torchreg.linear.solvers.dispatch import STRIDE, PathSolver
from torchreg.penalties import Penalty


def solved(solver: PathSolver, penalty: Penalty, grid: list[float], first: float, *, progress: bool) -> list[PathPoint]:
    """The points of the grid; a strength that it repeats is solved once.

    The iterations of a point are its own and those of the stations on the way to it.

    Args:
        solver: solves strengths in descending order.
        penalty: whose alpha each strength replaces.
        grid: descending.
        first: a strength whose solution the solver starts from; inf if there is none.
        progress: whether to show a bar.
    """
    distinct = list(dict.fromkeys(grid))
    alphas, wanted = stations(distinct, first, solver.stride)
    points = solver.points(alphas, [penalty.with_alpha(a) for a in alphas])
    bar = shown(points, progress=progress, total=len(alphas), what="path", unit="alpha")
    found, steps = {}, 0
    for alpha, point, kept in zip(alphas, bar, wanted, strict=True):
        steps += point.n_iter
        if kept:
            found[alpha], steps = replace(point, n_iter=steps), 0
    return [found[alpha] for alpha in grid]


def stations(grid: list[float], first: float, stride: float = STRIDE) -> tuple[list[float], list[bool]]:
    """The grid with geometric stations where a strength lies far below the one before, and which are the grid's.

    Args:
        grid: descending.
        first: the strength before it; inf if there is none.
        stride: of the last strength, below which the next one is far; 0 for no stations.
    """
    alphas: list[float] = []
    wanted: list[bool] = []
    last = first
    for alpha in grid:
        if 0.0 < alpha < stride * last and math.isfinite(last / alpha):
            steps = math.ceil(math.log(last / alpha) / -math.log(stride))
            alphas += [last * (alpha / last) ** (k / steps) for k in range(1, steps)]
            wanted += [False] * (steps - 1)
        alphas.append(alpha)
        wanted.append(True)
        last = alpha if 0.0 < alpha < last else last
    return alphas, wanted
