"""Compare functions in one run: interleaved, medians, ratios to a reference, one result file.

An absolute time depends on the machine and on what else it does; a ratio of medians taken in turns
does so far less. Run each benchmark as a script, for instance ``python benchmarks/prox.py``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

import torchreg

RESULTS = Path(__file__).parent / "results"


def shapes() -> list[tuple[int, ...]]:
    """146 tensors, 95.8 million entries: a transformer of 12 layers and width 768."""
    layer = [(2304, 768), (768, 768), (3072, 768), (768, 3072), (2304,), (768,), (3072,), (768,), *[(768,)] * 4]
    return [(13000, 768), (1024, 768), *layer * 12]


def options(description: str, rounds: int = 11, **flags: str) -> argparse.Namespace:
    """The common options, and switches of this benchmark by name with their help."""
    parser = argparse.ArgumentParser(description=description)
    for name, words in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=words)
    parser.add_argument("--rounds", type=int, default=rounds, help="measurements of each candidate, at least 5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    return chosen


def tensors(device: str) -> list[torch.Tensor]:
    return [torch.randn(shape, device=device) * 0.02 for shape in shapes()]


def medians(candidates: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Milliseconds, the median over rounds in which the candidates take turns."""
    if rounds < 5:
        raise SystemExit(f"--rounds must be at least 5, got {rounds}")
    return {name: statistics.median(taken) for name, taken in turns(candidates, rounds, device).items()}


def turns(
    candidates: dict[str, Callable[[], object]], rounds: int, device: str, calls: int = 1
) -> dict[str, list[float]]:
    """Milliseconds of a call, in each of the rounds in which the candidates take turns; two rounds warm up.

    On CUDA the calls of a turn are queued behind one another, as in training, and timed by the device.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 2):
        for name, run in candidates.items():
            taken = _on_cuda(run, calls) if device.startswith("cuda") and calls > 1 else _on_host(run, device, calls)
            if turn >= 2:
                times[name].append(taken / calls)
    return times


def _on_host(run: Callable[[], object], device: str, calls: int) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _wait(device)
    return (time.perf_counter() - start) * 1e3


def _on_cuda(run: Callable[[], object], calls: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def report(name: str, times: dict[str, float], rows: list[tuple[str, str, str, float | None]], chosen: object) -> None:
    """Print and save rows of (label, candidate, reference, bar): ratio of candidate to reference."""
    table = []
    for label, candidate, reference, bar in rows:
        ratio = times[candidate] / times[reference]
        found = verdict(ratio, bar)
        table.append({"what": label, "ratio": round(ratio, 3), "bar": bar, "verdict": found})
        print(f"{label:58s} {ratio:6.2f}   bar {bar if bar is not None else '-':>5}   {found}")
    save(name, {"rows": table, "milliseconds": {k: round(v, 3) for k, v in times.items()}}, chosen)


def verdict(found: float, bar: float | None) -> str:
    """Whether a bar is met, and by how much it is missed; nothing without one."""
    if bar is None:
        return ""
    return "met" if found <= bar else f"missed by {found / bar - 1:.0%}"


def save(name: str, record: dict[str, object], chosen: object) -> None:
    """Write the result file of this benchmark, device and number of threads."""
    RESULTS.mkdir(exist_ok=True)
    path = result_file(name, chosen)
    path.write_text(json.dumps({"environment": environment(chosen)} | record, indent=2) + "\n")
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def result_file(name: str, chosen: object) -> Path:
    return RESULTS / f"{name}-{chosen.device.split(':')[0]}-{chosen.threads}threads.json"


def environment(chosen: object) -> dict[str, object]:
    cuda = chosen.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "threads": chosen.threads,
        "rounds": chosen.rounds,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    } | _commit()


def _commit() -> dict[str, object]:
    """The commit that was measured, and whether files beside the results differ from it; nothing without git."""
    root = Path(torchreg.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
