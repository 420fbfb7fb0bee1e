"""What a fit costs besides its arithmetic: the first path of a new process, and a tiny Lasso().fit."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from harness import options, save, verdict

FIRST = """
import time
import torch
import numpy as np
rng = np.random.default_rng(0)
X = rng.standard_normal((442, 10))
y = X @ rng.standard_normal(10) + rng.standard_normal(442)
start = time.perf_counter()
from torchreg import L1
from torchreg.linear import fit_path
imported = time.perf_counter()
fit_path(X, y, L1(1.0))
print(imported - start, time.perf_counter() - imported)
"""


def first_path(rounds: int) -> list[tuple[float, float]]:
    """Seconds of importing torchreg.linear and of the first path, each round in a new process."""
    found = []
    for _ in range(rounds):
        shown = subprocess.run(
            [sys.executable, "-c", FIRST], capture_output=True, text=True, check=True, env=os.environ
        )
        found.append(tuple(map(float, shown.stdout.split())))
    return found


def tiny_fit(rounds: int) -> list[float]:
    """Seconds of Lasso().fit on 442 x 10, after warming up."""
    from sklearn.datasets import load_diabetes

    from torchreg.linear import Lasso

    X, y = load_diabetes(return_X_y=True)
    times = []
    for _ in range(10 * rounds):
        start = time.perf_counter()
        Lasso().fit(X, y)
        times.append(time.perf_counter() - start)
    return times[rounds:]


def row(what: str, seconds: list[float], bar: float) -> dict[str, object]:
    median = statistics.median(seconds)
    found = verdict(median, bar)
    print(f"{what:60s} {median * 1e3:8.2f} ms   bar {bar * 1e3:g} ms   {found}")
    return {"what": what, "seconds": median, "min": min(seconds), "bar": bar, "verdict": found}


def main() -> None:
    chosen = options(__doc__)
    os.environ |= {f"{name}_NUM_THREADS": str(chosen.threads) for name in ("OMP", "MKL")}
    firsts = first_path(chosen.rounds)
    rows = [
        row("first fit_path of a new process beyond import torch", [sum(pair) for pair in firsts], 0.3),
        row("Lasso().fit on 442 x 10", tiny_fit(chosen.rounds), 3e-3),
    ]
    importing = statistics.median(pair[0] for pair in firsts)
    save("fit-overheads", {"rows": rows, "of which importing torchreg.linear, seconds": importing}, chosen)


if __name__ == "__main__":
    main()
