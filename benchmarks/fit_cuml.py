"""cuML's loop over coordinates (cpp/src/solver/cd.cuh), re-written as one kernel launch for each operation."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softshrink


def coordinate_descent(X: Tensor, y: Tensor, alphas: Sequence[float], tol: float, seconds: float = math.inf) -> Tensor:
    """Coefficients (a, p) of the strengths that are done within so many seconds, the first one in any case.

    An emulation, not cuML: 5 launches a coordinate as there (axpy, dot, scale and shrink, store, axpy; cuML stores by a
    copy and shrinks in a kernel of one thread), no screening, stop when the largest change of an epoch is at most `tol`
    times the largest coefficient. Unlike cuML it starts each alpha from the last one's solution, which favours it.
    """
    until = time.monotonic() + seconds
    columns, residual, n = X.T.contiguous(), y.clone(), len(X)
    lengths = columns.square().sum(1).sqrt()
    inverse = torch.where(lengths > 0, 1 / lengths, 0.0)
    columns = columns * inverse[:, None]  # of length 1: their shrinkage threshold is alpha n / length
    w, thresholds, coefs = torch.zeros_like(lengths), (n * inverse).tolist(), []
    for alpha in alphas:
        if not _solve(columns, residual, w, [alpha * t for t in thresholds], tol, until if coefs else math.inf):
            break
        coefs.append(w * inverse)
    return torch.stack(coefs)


def _solve(columns: Tensor, residual: Tensor, w: Tensor, thresholds: list[float], tol: float, until: float) -> bool:
    """Whether it was done in time."""
    while True:
        before = w.clone()
        for x, w_j, threshold in zip(columns, w, thresholds, strict=True):
            residual.addcmul_(x, w_j)
            w_j.copy_(softshrink(x.dot(residual), threshold))
            residual.addcmul_(x, w_j, value=-1)
        if float((w - before).abs().max()) <= tol * float(w.abs().max()):
            return True
        if time.monotonic() > until:
            return False
