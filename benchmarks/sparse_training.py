"""What sparse training is worth: torchreg's methods and others on nine tasks, at 80, 90, 95 and 98 % zeros.

    python benchmarks/sparse_training.py            # everything; stop it at any time, the same line goes on
    python benchmarks/sparse_training.py --quick    # a few steps of each, into a directory of its own
    python benchmarks/sparse_training.py --report   # the report again, from the rows that are there

Each method on each task is an ablation of its own, by `torchreg.ablation.ablate`, in `runs/sparse_training`; remove
such a directory to run it anew. Where the code of a method or task has changed since, its rows are refused, unless
`--changed new` leaves them aside. Workers, each with one thread, take methods in the order of interest. Rows, report
and picture go to `benchmarks/results`. torchao's methods run where `pip install torchao` was done.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import sparse_plot
import sparse_report
import torch
from sparse_tasks import TASKS
from sparse_trial import METHODS, Bench, Row, plain_rows

HERE = Path(__file__).resolve().parent
FIRST = (0.9, 0.95, 0.925)
ORDER = ("dense", "target", "gradual", "torchao-count", "rigl", "l1", "torchao-l1", "loss", "one-shot")
LONGER = ("target", "gradual", "torchao-count", "rigl", "loss")  # compared in runs three times as long, too
SLOW = ("bytes",)  # where only these methods run:
ON_SLOW = (*ORDER, "target-projection", "target-feedback", "target-magnitude", "target-chosen", "dual")

Unit = tuple[Bench, tuple[float, ...]]


def units(chosen: argparse.Namespace) -> Iterator[Unit]:
    """What there is to do, of most interest first."""
    methods = [m for m in dict.fromkeys((*ORDER, *METHODS)) if m in chosen.methods and METHODS[m].available()]
    bench = Bench("", "", chosen.ledgers, tuple(range(chosen.seeds)), quick=chosen.quick, changed=chosen.changed)
    for first in (True, False):
        for method in methods:
            for name in chosen.tasks:
                task = TASKS[name]
                targets = tuple(t for t in task.targets if (t in FIRST) == first)
                if method == "dense":
                    targets = (0.0,) if first else ()
                if targets and METHODS[method].fits(task) and (name not in SLOW or method in ON_SLOW):
                    targets = targets[:1] if chosen.quick else targets
                    yield replace(bench, task=name, method=method), targets
        if chosen.quick:
            return
    for method in (m for m in methods if m in LONGER):
        for name in (name for name in chosen.tasks if name in SLOW):
            yield replace(bench, task=name, method=method, seeds=bench.seeds[:3], longer=3), (0.9,)


def end_with_parent() -> None:
    """A worker whose driver was killed ends, and leaves its cell to the next call."""
    driver = multiprocessing.parent_process()

    def watch() -> None:
        driver.join()
        os._exit(1)

    if driver is not None:
        threading.Thread(target=watch, daemon=True).start()


def run(unit: Unit) -> list[Row]:
    """Rows of one method on one task, with one thread."""
    torch.set_num_threads(1)
    bench, targets = unit
    return plain_rows(bench.rows(targets))


def keep(rows: list[Row], folder: Path) -> None:
    """Put rows into the file of their task, in place of those of the same method and share of zeros."""
    for task in {row["task"] for row in rows}:
        path = folder / f"{task}.jsonl"
        new = {(row["method"], row["target"]) for row in rows}
        old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        kept = [row for row in old if (row["method"], row["target"]) not in new] + rows
        names = list(METHODS)
        kept.sort(key=lambda row: (names.index(row["method"]), row["target"], row["seed"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in kept))
        part.replace(path)


def environment() -> dict[str, str]:
    """Versions that the report names."""
    found = {"Python": sys.version.split()[0], "torch": torch.__version__}
    for name in ("torchao", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def report(folder: Path) -> None:
    """Write the report and the picture of what is there."""
    print("written:", sparse_report.write(folder, environment()), sparse_plot.write(folder))


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), metavar="TASK")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes; 0 runs all in this one")
    parser.add_argument("--ledgers", type=Path, help="where runs are kept; runs/sparse_training")
    parser.add_argument("--results", type=Path, help="where rows and report go; benchmarks/results")
    parser.add_argument("--changed", default="error", choices=("error", "new"), help="what rows of other code mean")
    parser.add_argument("--quick", action="store_true", help="24 steps, 2 seeds, one share of zeros")
    parser.add_argument("--report", action="store_true", help="run nothing")
    chosen = parser.parse_args(given)
    runs = HERE.parent / "runs" / ("sparse_training_quick" if chosen.quick else "sparse_training")
    chosen.ledgers = chosen.ledgers or runs
    chosen.results = chosen.results or (runs / "results" if chosen.quick else HERE / "results")
    chosen.seeds = min(chosen.seeds, 2) if chosen.quick else chosen.seeds
    return chosen


def main(given: list[str] | None = None) -> int:
    """Run what is missing, and write the report; the number of methods that failed."""
    chosen = arguments(given)
    folder = chosen.results / "sparse_training"
    if chosen.report:
        report(folder)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    todo, start, failed = list(units(chosen)), time.time(), 0
    missing = [METHODS[m].about for m in chosen.methods if not METHODS[m].available()]
    print(f"{len(todo)} methods on tasks; not available: {', '.join(missing) or 'none'}", flush=True)

    def done(unit: Unit, rows: list[Row]) -> None:
        keep(rows, folder)
        bench, targets = unit
        print(f"{time.time() - start:7.0f} s  {bench.name:12s} {bench.method:18s} {targets}", flush=True)

    if chosen.workers == 0:
        for unit in todo:
            done(unit, run(unit))
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(chosen.workers, mp_context=context, initializer=end_with_parent) as pool:
            running = {pool.submit(run, unit): unit for unit in todo}
            try:
                for future in as_completed(running):
                    if future.exception() is None:
                        done(running[future], future.result())
                    else:
                        failed += 1
                        traceback.print_exception(future.exception())
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    report(folder)
    return failed


if __name__ == "__main__":
    sys.exit(main())
