"""Result files of benchmarks/fits.py, and the table over them."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from fit_sweep import ABSENT, TARGETS, Bench, kind
from harness import RESULTS, save

OURS = ("torchreg", "torchreg cv")
NO_PEER = (*OURS, "torchreg resident", "cuml emulated")


def bar(bench: Bench, target: float) -> float | None:
    """Highest ratio to the best peer that the project accepts."""
    if bench.problem.name.startswith("gpu"):
        return 0.1
    if target == 1e-6:
        return None
    if target == 1e-4:
        return 1.5
    if kind(bench.problem) == "group":
        return 3.0
    easy = bench.problem.wide or bench.problem.sparse or bench.problem.loss != "quadratic"
    return 1.0 if easy else 1.5


def report(
    bench: Bench, times: dict[tuple[str, float], list[float]], cold: dict[str, float | str], chosen: argparse.Namespace
) -> None:
    """Print the comparison and write the workload's result file."""
    rows = [comparison(bench, target, times) for target in TARGETS]
    n, p = bench.problem.X.shape
    record = {
        "workload": {"name": bench.problem.name, "n": n, "p": p, "kind": kind(bench.problem), **bench.problem.notes},
        "protocol": {
            "limit_seconds": chosen.limit,
            "gap_of_best": bench.certificate(),
            "kernels": "BLAS kernels chosen by the library itself",
        },
        "rows": rows,
        "solvers": {name: solver_record(bench, name, times, cold) for name in bench.sweeps},
        "absent": ABSENT.get(kind(bench.problem), {}),
    }
    print("\n".join(summary_row(bench.problem.name, row) for row in rows))
    save(f"fits-{bench.problem.name}", record, chosen)


def comparison(bench: Bench, target: float, times: dict[tuple[str, float], list[float]]) -> dict[str, object]:
    medians = {name: statistics.median(times[name, tol]) for name, tol in bench.chosen()[target].items()}
    ours = next((medians[name] for name in OURS if name in medians), None)
    peers = {name: seconds for name, seconds in medians.items() if name not in NO_PEER}
    best = min(peers, key=peers.__getitem__, default=None)
    row = {"target": target, "torchreg": ours, "best_peer": best, "peer": peers.get(best), "bar": bar(bench, target)}
    ratio = ours / peers[best] if ours is not None and best is not None else None
    return row | {"ratio": ratio, "verdict": verdict(ratio, row["bar"], ours)}


def verdict(ratio: float | None, limit: float | None, ours: float | None) -> str:
    if ours is None:
        return "torchreg did not reach the target"
    if ratio is None:
        return "no peer reached the target"
    return "" if limit is None else "met" if ratio <= limit else f"missed by {ratio / limit - 1:.0%}"


def solver_record(
    bench: Bench, name: str, times: dict[tuple[str, float], list[float]], cold: dict[str, float | str]
) -> dict[str, object]:
    targets = {}
    for target, settings in bench.chosen().items():
        if name in settings:
            targets[f"{target:.0e}"] = {"tol": settings[name], **spread(times[name, settings[name]])}
    return {
        **bench.hellos.get(name, {}),
        "targets": targets,
        "cold_seconds": cold.get(name),
        "sweep": bench.rungs(name),
    }


def spread(seconds: list[float]) -> dict[str, float]:
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    return {"median": statistics.median(seconds), "min": min(seconds), "iqr": high - low, "runs": len(seconds)}


HEADER = "| workload | sub-optimality | torchreg | best peer | ratio | bar | verdict |\n|---|---|---|---|---|---|---|"


def summary_row(name: str, row: dict) -> str:
    ours = "-" if row["torchreg"] is None else f"{row['torchreg']:.3f} s"
    peer = "-" if row["best_peer"] is None else f"{row['best_peer']} {row['peer']:.3f} s"
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
    limit = "-" if row["bar"] is None else f"{row['bar']:g}"
    return f"| {name} | {row['target']:.0e} | {ours} | {peer} | {ratio} | {limit} | {row['verdict']} |"


def print_summary(device: str, folder: Path = RESULTS) -> None:
    """Markdown over all result files of the device."""
    print(HEADER)
    for path in sorted(folder.glob(f"fits-*-{device.split(':')[0]}-*threads.json")):
        record = json.loads(path.read_text())
        for row in record["rows"]:
            print(summary_row(record["workload"]["name"], row))
