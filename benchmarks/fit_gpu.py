"""Large workloads for torchreg on CUDA against CPU peers, and an emulation of cuML's coordinate descent.

    python benchmarks/fits.py gpu-20000x100000 --device cuda --limit 300 --scale 1

`--scale 0.1` makes both sides of every design a tenth. Everything else is as in fit_workloads.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from fit_problem import Problem


def workloads(scale: float) -> dict[str, Callable[[str], Problem]]:
    from fit_workloads import gaussian, zipf

    def dense(n: int, p: int, folds: int = 0) -> Callable[[str], Problem]:
        return lambda name: gaussian(name, max(50, round(n * scale)), max(50, round(p * scale)), folds=folds)

    return {
        "gpu-20000x100000": dense(20_000, 100_000),
        "gpu-200000x5000": dense(200_000, 5_000),
        "gpu-sparse-1000000": lambda name: zipf(
            name, round(100_000 * scale), max(3000, round(1_000_000 * scale)), 100.0
        ),
        "gpucv-20000x100000": dense(20_000, 100_000, folds=5),
        "gpucv-200000x5000": dense(200_000, 5_000, folds=5),
    }


def emulated_cuml(problem: Problem, tol: float, device: str = "cpu"):
    """cuML's loop over coordinates (cpp/src/solver/cd.cuh), re-written as one kernel launch for each operation.

    An emulation, not cuML: 5 launches a coordinate as there (axpy, dot, scale and shrink, store, axpy; cuML stores by a
    copy and shrinks in a kernel of one thread), no screening, stop when the largest change of an epoch is at most `tol`
    times the largest coefficient. Unlike cuML it starts each alpha from the last one's solution, which favours it.
    """
    import torch

    if problem.sparse:
        raise NotImplementedError("cuML's coordinate descent takes dense X alone")
    X = torch.from_numpy(np.ascontiguousarray(problem.X.T)).to(device)
    residual, n = torch.tensor(problem.y, device=device), X.shape[1]
    squares = X.square().sum(1)
    inverse = torch.where(squares > 0, 1 / squares, 0.0)
    X_unit = X * inverse[:, None].sqrt()  # columns of length 1: their shrinkage threshold is alpha n / length
    lengths = squares.sqrt().tolist()
    w, coefs = torch.zeros(len(X), dtype=X.dtype, device=device), []
    for alpha in problem.alphas:
        _solve_alpha(X_unit, residual, w, [n * alpha / length if length else 0.0 for length in lengths], tol)
        coefs.append((w * inverse.sqrt()).cpu().numpy())
    return np.array(coefs)


def _solve_alpha(X, residual, w, thresholds: list[float], tol: float) -> None:
    from torch.nn.functional import softshrink

    before = w.clone()
    while True:
        for x, w_j, threshold in zip(X, w, thresholds, strict=True):
            residual.addcmul_(x, w_j)
            w_j.copy_(softshrink(x.dot(residual), threshold))
            residual.addcmul_(x, w_j, value=-1)
        if float((w - before).abs().max()) <= tol * float(w.abs().max()):
            return
        before.copy_(w)
