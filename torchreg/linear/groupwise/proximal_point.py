"""Proximal point steps for a quadratic with a group penalty: slower than Newton's method, but they always lead on.

The dual of a step is smooth, so that Newton's method with a line search solves it from anywhere, however strongly
groups depend on each other; the steps grow longer until one suffices.
Source: Li, Sun and Toh, SIAM J. Optim. 28, 2018 (the method for L1); Zhang, Zhang, Sun and Toh, Math. Program. 179,
2020 (for groups); Rockafellar, SIAM J. Control Optim. 14, 1976.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchreg.linear.groupwise.model import inexact_direction, model_at
from torchreg.linear.groupwise.strengths import Strengths
from torchreg.linear.groupwise.system import ROUNDING, GroupSystem
from torchreg.linear.solvers.linear_algebra import ARMIJO, line_search

_STEPS = 50  # of Newton's method for one step
_INEXACT = 1e-2  # of the way: the error of a step
_FACTORED = 1500  # entries of the largest matrix to be factored
_ERROR = 1e-6  # of directions by conjugate gradients
_HALVINGS = 30
_TINY = 1e-300


def proximal_point(
    system: GroupSystem, strengths: Strengths, w: Tensor, curvature: float, limit: int
) -> tuple[Tensor, int]:
    """The minimiser of ``objective(x) + curvature / 2 ||x - w||^2``, up to an error that is small beside its way.

    Returns:
        Coefficients, and rounds of Newton's method: at most ``limit``.
    """
    return _Step(system, strengths, w, curvature).minimiser(limit)


@dataclass(frozen=True)
class _Dual:
    """The dual objective at v, and the proximal step x there, with its groups' norms."""

    v: Tensor
    image: Tensor
    height: float
    x: Tensor
    norms: Tensor


class _Step:
    """``argmin_x x' G x / 2 - cross' x + R(x) + curvature / 2 ||x - w||^2``.

    The minimiser of ``v' G v / 2 + h(y)``, ``y = curvature w + cross - G v``, where h is the conjugate of
    ``R + curvature / 2 ||.||^2`` and its gradient a proximal step x; at the minimum ``x = v``.
    """

    def __init__(self, system: GroupSystem, strengths: Strengths, w: Tensor, curvature: float) -> None:
        self._system, self._w, self._pull = system, w, system.cross + curvature * w
        ridge = torch.zeros_like(strengths.l1) if strengths.ridge is None else strengths.ridge
        self._steep = replace(strengths, ridge=ridge + curvature, free=None)

    def minimiser(self, limit: int) -> tuple[Tensor, int]:
        at, done = self._dual(self._w, self._system.gram.times(self._w)), 0
        while done < min(_STEPS, limit):
            done += 1
            at = self._improved(at)
            missed, way = (at.x - at.v).square().sum(), (at.x - self._w).square().sum()
            if not float(missed) > _INEXACT**2 * float(way):
                break
        return at.x, done

    def _dual(self, v: Tensor, image: Tensor) -> _Dual:
        steep, parts = self._steep, self._system.parts
        assert steep.ridge is not None
        left = steep.left(self._pull - image)
        size = parts.norms(left)
        kept = (size - steep.l1).clamp_(min=0.0)
        norms = kept / steep.ridge
        height = 0.5 * float((v * image).sum() + (kept * norms).sum())
        return _Dual(v, image, height, left * parts.spread(norms / size.clamp(min=_TINY)), norms)

    def _improved(self, at: _Dual) -> _Dual:
        """After one step of Newton's method, halved until the objective falls."""
        way = at.x - at.v
        taken = self._system.gram.times(way)
        rest = self._correction(at, taken)
        slope = taken + self._system.gram.times(rest)
        fall = float((slope * way).sum())
        if not fall > 0.0:  # by rounding: the proximal step alone is a direction of descent
            fall, rest, slope = float((taken * way).sum()), torch.zeros_like(way), taken
        way = way + rest

        def trial(step: float) -> _Dual | None:
            found = self._dual(at.v + step * way, at.image + step * slope)
            falls = found.height <= at.height - ARMIJO * step * fall + ROUNDING * self._system.energy
            return found if falls else None

        return line_search(trial, _HALVINGS) or at

    def _correction(self, at: _Dual, taken: Tensor) -> Tensor:
        """What Newton's direction adds to the proximal step, in groups where that is not zero."""
        model = model_at(self._steep, at.x, at.norms, self._pull)
        model = replace(model, slope=-taken * model.free)
        groups = at.norms.view(-1).nonzero().flatten()
        if not len(groups):
            return torch.zeros_like(at.x)
        if len(groups) * taken.numel() <= _FACTORED * len(at.norms):
            found = self._system.exact_direction(self._steep, model, groups)
            if found is not None:
                return found
        return inexact_direction(self._system.gram, self._system.diagonal, self._steep, model, _ERROR)
