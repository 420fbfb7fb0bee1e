"""A process that holds one solver and one problem, and times it on demand.

    python fit_worker.py SOLVER FOLDER [DEVICE]

Reads lines "TOL SAVE", answers "ok SECONDS CPU-SECONDS" or "error MESSAGE"; its first line is "ready JSON".
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from fit_peers import SOLVERS, quiet, version
from fit_problem import Problem, write_coefs
from scipy import sparse


def main(name: str, folder: Path, device: str = "cpu") -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # whatever a library prints goes to stderr
    os.dup2(2, 1)
    library, solve = SOLVERS[name]
    quiet()
    start = time.perf_counter()
    importlib.import_module("torchreg.linear" if library == "torchreg" else library)
    imported = time.perf_counter() - start
    problem = Problem.load(folder)
    hello = {"library": library, "version": version(library), "import_seconds": imported, "blas": blas()}
    print("ready", json.dumps(hello), file=answers)
    for line in sys.stdin:
        tol, save = line.split()
        try:
            start, cpu = time.perf_counter(), time.process_time()
            found = solve(problem, float(tol)) if device == "cpu" else on_device(solve, problem, float(tol), device)
            taken, cpu = time.perf_counter() - start, time.process_time() - cpu
            if save == "1":
                write(str(folder / f"out-{name.replace(' ', '-')}"), found)
            print("ok", taken, cpu, file=answers)
        except Exception as error:
            print("error", f"{type(error).__name__}: {' '.join(str(error).split())}"[:500], file=answers)


def on_device(solve, problem: Problem, tol: float, device: str):
    import torch

    found = solve(problem, tol, device)
    torch.cuda.synchronize() if device.startswith("cuda") else None
    return found


def write(stem: str, found: object) -> None:
    """Coefficients per alpha, or the held-out losses (a, folds) of a cross-validation."""
    if hasattr(found, "coefs"):
        rows = (found.coef(k).cpu().numpy().reshape(1, -1) for k in range(len(found.alphas)))  # dense one by one
        found = sparse.vstack([sparse.csr_matrix(row) for row in rows]), found.intercepts.cpu().numpy()
    write_coefs(stem, found.cpu().numpy() if hasattr(found, "cpu") else found)


def blas() -> list[str]:
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    np.ones((2, 2)) @ np.ones((2, 2))
    keys = ("internal_api", "version", "architecture", "num_threads")
    return [" ".join(str(pool.get(key)) for key in keys if pool.get(key)) for pool in threadpool_info()]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
