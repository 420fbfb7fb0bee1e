"""Refits of chosen columns without a penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.engines import engine_for
from torchreg.linear.frame import Frame
from torchreg.linear.points import PathPoint
from torchreg.penalties import L1Form, Penalty
from torchreg.penalties.forms import Form
from torchreg.shrinkage import Scalar

_TOL = 1e-12
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


def unpenalised(frame: Frame, index: Tensor) -> PathPoint:
    """The least mean loss with only the columns ``index``, (k,); in the coordinates of X."""
    problem = frame.problem
    kept = torch.zeros(problem.design.p, dtype=torch.bool, device=problem.design.device)
    kept[index] = True
    penalty = _Support(kept)
    engine = engine_for(problem, penalty, start=None, tol=_TOL, max_iter=_MAX_ITER, moments=frame.moments)
    return frame.coordinates.outward(next(iter(engine.points([0.0], [penalty]))))
