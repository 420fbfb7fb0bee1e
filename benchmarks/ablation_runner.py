"""What the runner of ablations costs beside the training: a cell's overhead, a long plan, two workers at once.

Overheads are of cells that do nothing, fsync of the row included; ``fsync`` is that of one line in a file of its own,
as the disk's share. Two cells that compute on one thread each are run by two warm workers and compared with one; the
same work in two bare processes tells how much of the ratio is the machine's, which others may use.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import torch
from harness import medians, options, save, verdict

from torchreg import L1
from torchreg.ablation.execute import Task, execute
from torchreg.ablation.json_values import dumps
from torchreg.ablation.ledger.ledger import Ledger
from torchreg.ablation.ledger.rows import read
from torchreg.ablation.ledger.shard import ROWS, append
from torchreg.ablation.plan import Plan
from torchreg.ablation.session import Session
from torchreg.ablation.user_function import arguments

CELLS, LONG = 200, 100_000
SECONDS = 20.0  # of a cell that computes
BARS = {"serial": 5.0, "1 warm worker": 20.0, "2 warm workers": 20.0}  # milliseconds a cell
TWO_BY_ONE = 1.15


def nothing(penalty: object, seed: int) -> dict[str, float]:
    """Ten metrics without work."""
    return {f"metric_{k}": seed + k / 10 for k in range(10)}


def compute(penalty: object, seed: int, rounds: int) -> dict[str, float]:
    """A fixed amount of work for one thread; matrices fit in the cache, so that cores share nothing."""
    torch.set_num_threads(1)
    a = torch.eye(64) + 1e-3
    x = torch.ones(64, 64)
    for _ in range(rounds):
        x = (a @ x).clamp_(-1.0, 1.0)
    return {"mean": x.mean().item()}


@contextmanager
def session(run: Callable[..., dict[str, float]], workers: int, axes: dict[str, list[int]]) -> Iterator[Callable]:
    """A function that runs so many new cells, with workers that are warm."""
    seeds = count()
    with tempfile.TemporaryDirectory() as out:
        held = Session(
            run, arguments(run, axes, 2), Path(out), workers=workers, executor=None, timeout=None, retries=0,
            on_change="error", progress=False,
        )  # fmt: skip
        with held:

            def cells(n: int) -> None:
                held.run(Plan.of(L1(1.0), [0.1], [next(seeds) for _ in range(n)], axes, None))

            cells(4 * max(workers, 1))
            yield cells


def overheads(rounds: int) -> dict[str, float]:
    """Milliseconds a cell."""
    line = "x" * 800
    with tempfile.TemporaryDirectory() as out, ExitStack() as open_:
        (Path(out) / ROWS).mkdir()
        serial, one, two = (open_.enter_context(session(nothing, workers, {})) for workers in (0, 1, 2))
        candidates = {
            "fsync": lambda: [append(Path(out), line) for _ in range(CELLS)],
            "serial": lambda: serial(CELLS),
            "1 warm worker": lambda: one(CELLS),
            "2 warm workers": lambda: two(CELLS),
        }
        return {name: taken / CELLS for name, taken in medians(candidates, rounds, "cpu").items()}


def long_plan(rounds: int) -> dict[str, float]:
    """Seconds to build a plan of 10^5 cells, and to find that all of them are done."""
    plan = Plan.of(L1(1.0), [k / 1000 for k in range(100)], range(LONG // 100), None, None)
    with tempfile.TemporaryDirectory() as out:
        write_done(Path(out), plan)
        held = Session(
            nothing, ("penalty", "seed"), out, workers=0, executor=None, timeout=None, retries=0, on_change="error",
            progress=False,
        )  # fmt: skip

        def check() -> None:
            with held:
                held.run(plan)

        times = medians({"read 10^5 rows": lambda: read(out), "10^5 cells, all done": check}, rounds, "cpu")
    return {name: taken / 1e3 for name, taken in times.items()}


def write_done(out: Path, plan: Plan) -> None:
    with Ledger(out, nothing, new=False) as ledger:
        ledger.begin(plan)
    cells = tuple(spec for chain in plan.chains() for spec in chain)
    done = execute(Task(nothing, ("penalty", "seed"), cells, out, "elsewhere", ledger.source, (1,) * len(cells)))
    (out / ROWS / "all.jsonl").write_text("".join(f"{dumps(row)}\n" for row in done.rows))


def two_by_one(rounds: int) -> dict[str, float]:
    begin = time.perf_counter()
    compute(None, 0, 20_000)
    steps = int(20_000 * SECONDS / (time.perf_counter() - begin))
    bare = [ProcessPoolExecutor(1, get_context("spawn")) for _ in range(2)]

    def without_us(n: int) -> None:
        for future in [pool.submit(compute, None, 0, steps) for pool in bare[:n]]:
            future.result()

    with session(compute, 2, {"rounds": [steps]}) as cells, bare[0], bare[1]:
        return medians(
            {
                "one cell": lambda: cells(1), "two cells": lambda: cells(2),
                "one bare": lambda: without_us(1), "two bare": lambda: without_us(2),
            },
            rounds, "cpu",
        )  # fmt: skip


def main() -> None:
    chosen = options(__doc__, rounds=5)
    rows = [
        {"what": what, "found": found, "unit": "ms a line" if what == "fsync" else "ms a cell", "bar": BARS.get(what)}
        for what, found in overheads(chosen.rounds).items()
    ]
    for what, found in long_plan(chosen.rounds).items():
        rows.append({"what": what, "found": found, "unit": "s", "bar": 3.0 if what.startswith("read") else None})
    taken = two_by_one(chosen.rounds)
    for kind, bar in (("cell", TWO_BY_ONE), ("bare", None)):
        ratio = taken["two bare" if kind == "bare" else "two cells"] / taken[f"one {kind}"]
        what = f"two of {SECONDS:g} s by one" + (", no runner" if kind == "bare" else "")
        rows.append({"what": what, "found": ratio, "unit": "", "bar": bar})
    for row in rows:
        row |= {"found": round(row["found"], 3), "verdict": verdict(row["found"], row["bar"])}
        print(f"{row['what']:26s} {row['found']:8.3f} {row['unit']:10s} bar {row['bar'] or '-':>5}   {row['verdict']}")
    save("ablation-runner", {"rows": rows}, chosen)


if __name__ == "__main__":
    main()
