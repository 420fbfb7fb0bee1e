"""Where a function of log alpha crosses a value: a bracket that widens, then bisection."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from torchreg.ablation.grid import rounded

_WIDER = 10.0  # how far the next strength outside the bracket is
_FINEST = 1e-3  # relative width of a bracket that is not halved any more: training is not smoother than that


class MeasuredAlpha(NamedTuple):
    """A strength, and the metric there."""

    alpha: float
    value: float


def crossing(
    measure: Callable[[float], float], target: float, *,
    tol: float, alphas: tuple[float, float] | None, start: float, most: int,
) -> tuple[MeasuredAlpha, MeasuredAlpha]:  # fmt: skip
    """Neighbouring points with the target between them; the same point twice if it is within ``tol``.

    Args:
        measure: the metric at a strength.
        target: its wanted value.
        tol: how far from it is near enough.
        alphas: the ends to begin at; None widens from ``start`` to where the target is between.
        start: without ``alphas``, the first strength.
        most: how often ``measure`` is called at most.

    Raises:
        RuntimeError: if the target is not between the values at the ends.
    """
    points: list[MeasuredAlpha] = []
    ends = [rounded(alpha) for alpha in alphas or (start,)]
    while len(points) < most and not (points and abs(points[-1].value - target) <= tol):
        sides = _sides(points, target)
        if len(points) < len(ends):
            alpha = ends[len(points)]
        elif sides is None and alphas is None:
            alpha = _further(points, target)
        elif sides is None or sides[1].alpha <= sides[0].alpha * (1.0 + _FINEST):
            break
        else:
            alpha = rounded(math.sqrt(sides[0].alpha) * math.sqrt(sides[1].alpha))
        points.append(MeasuredAlpha(alpha, measure(alpha)))
    if abs(points[-1].value - target) <= tol:
        return points[-1], points[-1]
    sides = _sides(points, target)
    if sides is None:
        raise RuntimeError(_not_reached(points, target))
    return sides


def _sides(points: list[MeasuredAlpha], target: float) -> tuple[MeasuredAlpha, MeasuredAlpha] | None:
    """The first neighbours that have the target between them."""
    pairs = pairwise(sorted(points))
    return next(((low, high) for low, high in pairs if (low.value < target) != (high.value < target)), None)


def _further(points: list[MeasuredAlpha], target: float) -> float:
    """The next strength outside; while the ends say nothing of the direction, on both sides in turn."""
    low, high = min(points), max(points)
    rises, turn = high.value > low.value, len(points) % 2 == 1
    upwards = turn if low.value == high.value else rises == (target > high.value)
    return rounded(high.alpha * _WIDER if upwards else low.alpha / _WIDER)


def _not_reached(points: list[MeasuredAlpha], target: float) -> str:
    nearest = min(points, key=lambda point: abs(point.value - target))
    ends = " and ".join(f"{p.value:.6g} at alpha={p.alpha:g}" for p in dict.fromkeys((min(points), max(points))))
    return (
        f"{target:g} is not between {ends}, the ends of what was looked at; of {len(points)} trials the nearest is "
        f"{nearest.value:.6g} at alpha={nearest.alpha:g}. Either it cannot be reached, or the metric goes up and down: "
        "give alphas=(low, high) on either side of the target."
    )
