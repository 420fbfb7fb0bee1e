"""Refits of chosen columns without a penalty."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchreg.linear.after_fork import one_thread_after_fork
from torchreg.linear.engines import engine_for
from torchreg.linear.frame import Frame
from torchreg.linear.kinks import Start
from torchreg.linear.points import PathPoint
from torchreg.penalties import L1Form, Penalty
from torchreg.penalties.forms import Form
from torchreg.shrinkage import Scalar

_TOL = 1e-12
_ROUGH = 1e-8
_AWAY = 1.0  # in units of the linear predictor: more than the root of _ROUGH, less than log(_ROUGH / _TOL)
_MAX_ITER = 20_000


@dataclass(frozen=True, eq=False, repr=False)
class _Support(Penalty):
    """The constraint that only the rows in ``kept`` may be other than zero."""

    kept: Tensor
    alpha: Scalar = 1.0

    @property
    def convex(self) -> bool:
        return True

    def _closed(self, w: Tensor) -> Tensor:
        return ~(self.kept[:, None] if w.dim() == 2 else self.kept)

    def value(self, w: Tensor) -> Tensor:
        return torch.where((self._closed(w) & (w != 0)).any(), torch.inf, 0.0).to(w)

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        del step
        return torch.where(self._closed(w), 0.0, w)

    def form(self, w: Tensor) -> Form:
        return L1Form(torch.where(self._closed(w), torch.inf, 0.0).to(w))


@dataclass(frozen=True, eq=False)
class Refit:
    """A fit without a penalty.

    Attributes:
        point: the solution, in the coordinates of X.
        attained: False where the loss has no minimum, as for classes that some line separates: coefficients grow
            without end while the loss sinks to its bound, so that no small gap makes them a solution.
    """

    point: PathPoint
    attained: bool


def unpenalised(frame: Frame, index: Tensor) -> Refit:
    """The least mean loss with only the columns ``index``, (k,).

    A likelihood, whose linear predictor is a logarithm of odds or means, is first fitted less tightly. Towards a
    minimum the predictor then moves by about the root of that tolerance; away to infinity, where the loss sinks like
    exp(-eta), by the logarithm of the two tolerances' ratio, which is 9.

    Source:
        Albert and Anderson, Biometrika 71, 1984: where maximum likelihood estimates of logistic models exist.
    """
    one_thread_after_fork()
    problem = frame.problem
    kept = torch.zeros(problem.design.p, dtype=torch.bool, device=problem.design.device)
    kept[index] = True
    if not problem.datafit.likelihood:
        return Refit(frame.coordinates.outward(_fitted(frame, kept, None, _TOL)), attained=True)
    rough = _fitted(frame, kept, None, _ROUGH)
    start = rough.dense(problem.design.p), rough.intercept
    fine = _fitted(frame, kept, start, _TOL)
    moved = problem.eta(fine.dense(problem.design.p), fine.intercept) - problem.eta(*start)
    if problem.datafit.relative:
        moved = moved - moved.mean(-1, keepdim=True)
    weighted = problem.weights > 0.0
    return Refit(
        frame.coordinates.outward(replace(fine, n_iter=rough.n_iter + fine.n_iter)),
        attained=bool((moved[weighted].abs() < _AWAY).all()),
    )


def _fitted(frame: Frame, kept: Tensor, start: Start | None, tol: float) -> PathPoint:
    """The solution in the engine's coordinates, with only the columns in ``kept``."""
    penalty = _Support(kept)
    engine = engine_for(frame.problem, penalty, start=start, tol=tol, max_iter=_MAX_ITER, moments=frame.moments)
    return next(iter(engine.points([0.0], [penalty])))
