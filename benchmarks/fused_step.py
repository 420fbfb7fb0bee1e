"""What exact zeros add to a step: `ProxOptimizer` in one compiled pass, and in two steps, over the bare fused base.

    python benchmarks/fused_step.py [--quick] [--small] [--device cuda] [--threads N] [--rounds N] [--out FOLDER]

The bare base, ``fused=True`` and ``fused=False`` step the same tensors and the same state in turns, so each round is a
pair; a figure is the median of the rounds' ratios to the bare step of that round. Sizes: 95.8 million entries in 146
tensors, or with --quick a tenth of them, or with --small 100 matrices of 64 x 64, of which only rows are fused
(`torchreg.training.fused.candidates`). Matrices are penalised, vectors not.
Before anything is timed, a few steps of both ways from one start must give the same zeros. The seconds of the first
fused step, which compiles, stand beside the ratios; caches of the compiler make them shorter in a second run. One JSON
and one Markdown file go to benchmarks/results, or to --out.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import environment, shapes, verdict
from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer

from torchreg import L1, MCP, Group, Penalty, ProxOptimizer, attach, rows

Base = Callable[[list[Parameter]], Optimizer]
ADAMW: Base = lambda p: AdamW(p, lr=1e-5, fused=True)  # noqa: E731
MOMENTUM: Base = lambda p: SGD(p, lr=1e-5, momentum=0.9, fused=True)  # noqa: E731
CASES: dict[str, tuple[Base, Penalty, float]] = {  # the base, the penalty, the bar for fused=True
    "AdamW + L1": (ADAMW, L1(1e-6), 1.25),
    "SGD momentum + L1": (MOMENTUM, L1(1e-6), 1.2),
    "AdamW + MCP": (ADAMW, MCP(1e-6), 1.4),
    "AdamW + rows": (ADAMW, Group(L1(1e-6), by=rows), 2.2),
}
CHECKED = 5  # steps by which both ways are compared


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each way, at least 5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a tenth of the entries")
    size.add_argument("--small", action="store_true", help="100 matrices of 64 x 64")
    chosen = parser.parse_args()
    if chosen.rounds < 5:
        raise SystemExit(f"--rounds must be at least 5, got {chosen.rounds}")
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    return chosen


def sizes(chosen: argparse.Namespace) -> list[tuple[int, ...]]:
    if chosen.small:
        return [(64, 64)] * 100
    full = shapes()
    return [(max(1, shape[0] // 10), *shape[1:]) for shape in full] if chosen.quick else full


def parameters(chosen: argparse.Namespace) -> list[Parameter]:
    made = [Parameter(torch.randn(shape, device=chosen.device) * 0.02) for shape in sizes(chosen)]
    for p in made:
        p.grad = torch.randn_like(p) * 0.01
    return made


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], device: str) -> float:
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def around(base: Optimizer, penalty: Penalty, *, fused: bool) -> ProxOptimizer:
    """The base with a proximal step on its matrices; a term of its own, since one optimizer takes over a term."""
    matrices = {str(k): p for k, p in enumerate(base.param_groups[0]["params"]) if p.dim() == 2}
    return ProxOptimizer(base, attach(penalty, matrices), fused=fused)


def same_zeros(make: Base, penalty: Penalty, chosen: argparse.Namespace) -> bool:
    """Whether a few steps by both ways, from one start and at a strength that acts, zero the same entries."""
    scales = torch.logspace(-4, -2, 200, device=chosen.device)[:, None]  # so that some rows go and some stay
    first = [Parameter(torch.randn(200, 100, device=chosen.device) * scales) for _ in range(2)]
    second = [Parameter(p.detach().clone()) for p in first]
    acts = penalty.with_alpha(0.3)
    ways = [around(make(first), acts, fused=True), around(make(second), acts, fused=False)]
    for _ in range(CHECKED):
        for p, q in zip(first, second, strict=True):
            p.grad = torch.randn_like(p) * 0.01
            q.grad = p.grad.clone()
        for way in ways:
            way.step()
    zeros = [(p == 0) for p in first]
    alike = all(torch.equal(z, q == 0) for z, q in zip(zeros, second, strict=True))
    return alike and any(bool(z.any()) for z in zeros) and not all(bool(z.all()) for z in zeros)


def measure(make: Base, penalty: Penalty, chosen: argparse.Namespace) -> dict[str, Any]:
    base = make(parameters(chosen))
    base.step()  # makes the state
    ways = {
        "bare": base.step,
        "fused": around(base, penalty, fused=True).step,
        "unfused": around(base, penalty, fused=False).step,
    }
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        first = seconds(ways["fused"], chosen.device)
    for run in ways.values():
        run()
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(chosen.rounds):
        for way, run in ways.items():
            taken[way].append(seconds(run, chosen.device))
    ratios = {
        way: statistics.median(t / bare for t, bare in zip(taken[way], taken["bare"], strict=True))
        for way in ("fused", "unfused")
    }
    return {
        "milliseconds": {way: round(statistics.median(times) * 1e3, 3) for way, times in taken.items()},
        "ratio": {way: round(ratio, 3) for way, ratio in ratios.items()},
        "first fused step, seconds": round(first, 2),
        "notices": [str(told.message) for told in notices if "fused=True" in str(told.message)],
    }


def table(records: dict[str, dict[str, Any]], chosen: argparse.Namespace) -> str:
    where = environment(chosen)
    entries = sum(torch.Size(shape).numel() for shape in sizes(chosen))
    lines = [
        f"# Exact zeros over the bare fused step: {entries / 1e6:.1f} M entries in {len(sizes(chosen))} tensors",
        "",
        f"{where['device']}, {chosen.threads} threads, torch {where['torch']}, {chosen.rounds} paired rounds, medians.",
        "",
        "| what | fused=True | bar | | fused=False | bare step, ms | first fused step, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in records.items():
        ratio, bare = found["ratio"], found["milliseconds"]["bare"]
        fell = " (falls back)" if found["notices"] else ""
        lines.append(
            f"| {name}{fell} | {ratio['fused']:.2f} | {found['bar']} | {found['verdict']} | {ratio['unfused']:.2f} "
            f"| {bare:.1f} | {found['first fused step, seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    chosen, records = options(), {}
    for name, (make, penalty, bar) in CASES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not same_zeros(make, penalty, chosen):
                raise SystemExit(f"{name}: fused=True and fused=False give other zeros; nothing is measured.")
        found = measure(make, copy.copy(penalty), chosen)
        records[name] = found | {"bar": bar, "verdict": verdict(found["ratio"]["fused"], bar)}
        print(f"{name:20s} fused {found['ratio']['fused']:6.2f}   unfused {found['ratio']['unfused']:6.2f}   bar {bar}")
    size = "small" if chosen.small else "quick" if chosen.quick else "full"
    path = chosen.out / f"fused-step-{size}-{chosen.device.split(':')[0]}-{chosen.threads}threads"
    chosen.out.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(
        json.dumps({"environment": environment(chosen), "cases": records}, indent=2) + "\n"
    )
    path.with_suffix(".md").write_text(table(records, chosen))
    print(f"written to {path}.json and .md")


if __name__ == "__main__":
    main()
