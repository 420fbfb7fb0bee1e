"""The tests marked gpu, with a limit of time for all of them, as one part of gpu.sh.

    python benchmarks/gpu_tests.py            # where there is a GPU: also what is tested on any accelerator
    python benchmarks/gpu_tests.py --tiny     # a rehearsal: a few tests on the pretended device

Each file runs by itself, so that one that cannot be imported, for a package that the machine lacks, is one row.
"""

from __future__ import annotations

import importlib.util
import re
import time
from collections import Counter
from pathlib import Path

import torch
from gpu_record import ROOT, NotRunError, Record, Row, arguments, row, run_part

# The shortest and most telling first; then every other file that has such tests.
FIRST = [
    "tests/training/test_compiled_step.py",
    "tests/training/test_sparse_layers.py",
    "tests/training/test_devices.py",
]
MARKED = re.compile(r"pytest\.mark\.gpu|def test_\w+\([^)]*\b(?:accelerator|device)\b")
MISSING = re.compile(r"ModuleNotFoundError: No module named '(\w+)")
LONGEST = 100  # seconds of a test; one that hangs ends this part, not the others


class Outcomes:
    """Counts tests by outcome, keeps what failed, and ends the run when the time is over."""

    def __init__(self, until: float) -> None:
        self.until, self.counts, self.failed, self.chosen = until, Counter(), {}, 0

    def pytest_collection_finish(self, session) -> None:
        self.chosen = len(session.items)

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr).strip().splitlines()[-1][:300]

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.counts["failed"] += 1
            self.failed[report.nodeid] = str(report.longrepr).strip().splitlines()[-1][:300]

    def pytest_runtest_teardown(self, item, nextitem) -> None:
        if time.monotonic() > self.until:
            item.session.shouldstop = "out of time"


def files() -> list[str]:
    """Test files with tests marked gpu, or on any accelerator."""
    found = [
        str(p.relative_to(ROOT)) for p in sorted((ROOT / "tests").rglob("test_*.py")) if MARKED.search(p.read_text())
    ]
    return [name for name in FIRST if name in found] + [name for name in found if name not in FIRST]


def run_file(record: Record, name: str, chosen: list[str]) -> list[Row]:
    import pytest

    seen = Outcomes(time.monotonic() + record.left())
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "--tb=short", "-o", "addopts=--strict-markers"]
    # a plugin that is missing leaves its options in pyproject.toml unknown to pytest
    options += ["-o", f"timeout={LONGEST}", "-W", "ignore::pytest.PytestConfigWarning"]
    pytest.main([str(ROOT / name), *options, *chosen], plugins=[seen])
    counted = {"passed": seen.counts["passed"], "skipped": seen.counts["skipped"], "failed": seen.counts["failed"]}
    left = seen.chosen - sum(counted.values())
    if not seen.chosen:
        if missing := [found[1] for why in seen.failed.values() if (found := MISSING.search(why))]:
            raise NotRunError(f"{missing[0]} is not installed")
        if not seen.failed:  # none of its tests is chosen
            return []
    note = ", ".join(f"{n} {what}" for what, n in counted.items() if n) + (
        f", {left} not run: out of time" if left > 0 else ""
    )
    judged = (
        "failed: " + "; ".join(f"{Path(k).name}: {why}" for k, why in seen.failed.items()) if seen.failed else "holds"
    )
    found = row(name, counted["passed"], "passed", note=note, failures=seen.failed, counts=counted)
    return [found | {"verdict": judged[:500]}]


def measure(record: Record, device: torch.device, tiny: bool) -> None:
    if importlib.util.find_spec("pytest") is None:
        record.add([{"what": "tests marked gpu", "verdict": "not run: pytest is not installed"}], {})
        return
    on_card = device.type == "cuda"
    names = files() if on_card or not tiny else ["tests/training/test_devices.py"]
    chosen = ["-m", "gpu"] if on_card else ["-k", "schedule_fills or moved_after_attach"]
    for name in names:
        record.measure(name, lambda n=name: run_file(record, n, chosen), needs=1.0, device=device.type)


if __name__ == "__main__":
    run_part(arguments(__doc__), measure)
