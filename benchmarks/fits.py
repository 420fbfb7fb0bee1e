"""Regularisation paths: torchreg against its peers at equal accuracy, one result file a workload.

    python benchmarks/fits.py lasso-1000x5000 --adelie PYTHON --rscript Rscript
    python benchmarks/fits.py --summary

1. Sweep: each solver runs its ladder of tolerances once, from loose to exhaustion or the time limit. One evaluator
   (fit_evaluator.py) computes every objective. P* is the best of all solvers' objectives per alpha;
   sub-optimality is the largest (P - P*) / P(0) over the path. Sweeps are kept in --work for the next run.
2. Each solver's loosest tolerance that reaches 1e-4, 1e-6 and 1e-8 is timed again: solvers take turns, warm, in
   processes of their own, median of --rounds (2 where one run takes over 20 s); then once cold, in a new process.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fit_cross import bench_of
from fit_report import print_summary, report
from fit_session import Failed, Interpreters, free_kernels
from fit_sweep import TARGETS, Bench
from fit_workloads import WORKLOADS, gpu_workloads

SLOW = 20.0  # seconds: above it 2 rounds must do
PATIENCE = 3.0  # a setting that kept the limit in the sweep may take so many times it when timed again


def main() -> None:
    chosen = options()
    if chosen.summary:
        print_summary(chosen.device)
        return
    free_kernels()
    available = WORKLOADS | gpu_workloads(chosen.scale)
    for name in chosen.workloads or WORKLOADS:
        if name not in available:
            raise SystemExit(f"no workload {name!r}; there are: {', '.join(available)}")
        run(name, available, chosen)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help="default: all")
    parser.add_argument("--solvers", help="comma-separated; default: all that fit the workload")
    parser.add_argument("--adelie", metavar="PYTHON", help="python of an environment with adelie and threadpoolctl")
    parser.add_argument("--rscript", metavar="RSCRIPT", default=shutil.which("Rscript"), help="of an R with glmnet")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one run of a solver")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds after which a sweep stops, to be resumed")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "torchreg-fits")
    parser.add_argument("--fresh", metavar="SOLVERS", default="torchreg,torchreg cv", help="sweeps to do again")
    parser.add_argument("--scale", type=float, default=1.0, help="of the gpu-* workloads' sizes")
    parser.add_argument("--sweep-only", action="store_true", help="no timing, no result file")
    parser.add_argument("--intercept", action="store_true", help="every solver fits an unpenalised intercept")
    parser.add_argument("--device", default="cpu", help="where torchreg runs")
    parser.add_argument("--summary", action="store_true", help="print a table of the result files, run nothing")
    chosen = parser.parse_args()
    if chosen.rounds < 5:
        parser.error(f"--rounds must be at least 5, got {chosen.rounds}")
    chosen.deadline = time.monotonic() + chosen.budget
    return chosen


def run(name: str, available: dict[str, Callable], chosen: argparse.Namespace) -> None:
    interpreters = Interpreters(chosen.adelie, chosen.rscript)
    wanted = chosen.solvers.split(",") if chosen.solvers else None
    with bench_of(name, available, interpreters, chosen) as bench:
        bench.sweep(wanted, fresh=chosen.fresh.split(","))
        print(bench.table())
        if not chosen.sweep_only:
            times = interleaved(bench, chosen)
            report(bench, times, cold(bench, chosen), chosen)


def interleaved(bench: Bench, chosen: argparse.Namespace) -> dict[tuple[str, float], list[float]]:
    """Seconds of each setting that some target needs, in turns."""
    settings = sorted({(solver, tol) for rungs in bench.chosen().values() for solver, tol in rungs.items()})
    times: dict[tuple[str, float], list[float]] = {setting: [] for setting in settings}
    for solver, tol in dict(settings).items():  # warm up each process, at its loosest tolerance
        bench.once(solver, tol, patience=PATIENCE)
    for turn in range(chosen.rounds):
        for setting in settings:
            if turn < 2 or max(times[setting], default=0) < SLOW:
                times[setting].append(bench.once(*setting, patience=PATIENCE))
        print(f"round {turn + 1} of {chosen.rounds}", file=sys.stderr)
    return times


def cold(bench: Bench, chosen: argparse.Namespace) -> dict[str, float | str]:
    """Seconds of the first path of a new process, import and data loading aside, at the setting for 1e-6."""
    found: dict[str, float | str] = {}
    for solver, tol in bench.chosen()[TARGETS[1]].items():
        bench.close(solver)
        try:
            found[solver] = bench.once(solver, tol)
        except Failed as error:
            found[solver] = str(error)
    return found


if __name__ == "__main__":
    main()
