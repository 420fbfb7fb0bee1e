"""Time and peak memory of fit_path and fit_cv over n and p in powers of two, each cell in a process of its own.

    python benchmarks/fit_memory.py                        # cells that the result file lacks
    python benchmarks/fit_memory.py --cells 4096x65536

Memory: the highest resident size during the fit (VmHWM, reset before it) above the resident size after the data
were made and a tiny fit had loaded the libraries. Allowance, in bytes beyond X: 1.5 X for p > n; 4 p^2 doubles for a
path with n >= p; (K + 4) p^2 doubles for K-fold cross-validation with n >= p (p > n: 1.5 X again, as a path).
Cells whose allowance is below 64 MiB are measured but not judged: there, the allocator's own pages decide.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from harness import result_file, save

FOLDS = 5
JUDGED = 64 * 2**20
SIZES = [2**k for k in range(8, 19)]


def main() -> None:
    chosen = options()
    if chosen.cell:
        print(json.dumps(measured(*chosen.cell.split(":"), chosen)))
        return
    path = result_file("fit-memory", chosen)
    cells = json.loads(path.read_text())["cells"] if path.exists() else {}
    start = time.monotonic()
    for cell in wanted(chosen, cells):
        if time.monotonic() - start > chosen.budget:
            print("out of --budget: run again to go on")
            break
        cells[cell] = in_new_process(cell, chosen)
        save("fit-memory", {"cells": cells}, chosen)  # after each, so that an interrupted run loses nothing
        print(text(cell, cells[cell]), flush=True)
    print_table(cells)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", help="n x p, for instance 4096x65536; measured even if there already")
    parser.add_argument("--largest", type=float, default=8.0, help="GiB of X")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for one cell")
    parser.add_argument("--budget", type=float, default=450.0, help="start no cell after so many seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.set_defaults(device="cpu", rounds=1)
    return parser.parse_args()


def wanted(chosen: argparse.Namespace, cells: dict[str, dict]) -> list[str]:
    pairs = [(n, p) for n in SIZES for p in SIZES if n * p * 8 <= chosen.largest * 2**30]
    if chosen.cells:
        pairs = [tuple(map(int, cell.split("x"))) for cell in chosen.cells]
    names = [f"{what}:{n}:{p}" for n, p in sorted(pairs, key=lambda pair: pair[0] * pair[1]) for what in ("path", "cv")]
    return names if chosen.cells else [name for name in names if name not in cells]


def in_new_process(cell: str, chosen: argparse.Namespace) -> dict[str, object]:
    command = [sys.executable, __file__, "--cell", cell, "--threads", str(chosen.threads)]
    env = os.environ | {f"{name}_NUM_THREADS": str(chosen.threads) for name in ("OMP", "MKL", "OPENBLAS")}
    try:
        shown = subprocess.run(command, capture_output=True, text=True, env=env, timeout=chosen.limit + 60, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"> {chosen.limit:g} s"}
    if shown.returncode:
        return {"error": (shown.stderr.strip().splitlines() or [f"exit code {shown.returncode}"])[-1][:300]}
    return json.loads(shown.stdout.strip().splitlines()[-1])


def measured(what: str, n_text: str, p_text: str, chosen: argparse.Namespace) -> dict[str, object]:
    """Runs in the cell's process."""
    import numpy as np
    import torch

    from torchreg import L1
    from torchreg.linear import fit_cv, fit_path

    torch.set_num_threads(chosen.threads)
    n, p = int(n_text), int(p_text)
    fit = fit_path if what == "path" else fit_cv
    rng = np.random.default_rng(0)
    tiny = rng.standard_normal((60, 20))
    fit(tiny, tiny[:, 0] + rng.standard_normal(60), L1(1.0), alphas=5)
    X = rng.standard_normal((p, n)).T
    y = X[:, :50] @ rng.standard_normal(50) + rng.standard_normal(n)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = status("VmRSS"), time.perf_counter()
    fit(X, y, L1(1.0), eps=1e-2 if p > n else 1e-3)
    taken = time.perf_counter() - start
    return judged(what, n, p) | {"seconds": taken, "bytes": status("VmHWM") - before}


def status(key: str) -> int:
    """Bytes, as the kernel counts them for this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def judged(what: str, n: int, p: int) -> dict[str, object]:
    doubles = 1.5 * n * p if p > n else (4 if what == "path" else FOLDS + 4) * p * p
    return {"what": what, "n": n, "p": p, "X": n * p * 8, "allowance": int(doubles * 8)}


def verdict(cell: dict) -> str:
    if cell["allowance"] < JUDGED:
        return ""
    share = cell["bytes"] / cell["allowance"]
    return "met" if share <= 1 else f"missed by {share - 1:.0%}"


def text(name: str, cell: dict) -> str:
    if "error" in cell:
        return f"| {name.replace(':', ' | ')} | - | - | - | {cell['error']} |"
    sizes = " | ".join(f"{cell[key] / 2**20:.1f}" for key in ("bytes", "allowance"))
    return f"| {name.replace(':', ' | ')} | {cell['seconds']:.3f} | {sizes} | {verdict(cell)} |"


def print_table(cells: dict[str, dict]) -> None:
    print("| fit | n | p | seconds | MiB beyond X | allowance | verdict |\n|---|---|---|---|---|---|---|")
    for name in sorted(cells, key=lambda name: [*map(int, name.split(":")[1:]), name]):
        print(text(name, cells[name]))


if __name__ == "__main__":
    main()
