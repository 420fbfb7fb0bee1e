"""Which versions of Python and torch the package runs on: the fast part of its tests, with this interpreter.

    python benchmarks/versions.py [--out FOLDER]

A run replaces the row of its Python and torch in versions.json, and versions.md is written anew from all rows. What is
declared in pyproject.toml are ranges of recorded runs. No package beyond torch, numpy, tqdm, pytest, hypothesis and
scikit-learn is needed; tests that need more skip themselves.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "scikit-learn", "hypothesis", "pytest")
# About 4 minutes of one core: formulas and gradients of all penalties, fits against scikit-learn and oracles,
# terms, schedules, steps in torch's own tests of optimizers, torch.compile, tables of ablations.
FAST = """laws/test_value_laws training/test_schedules laws/test_textbook training/test_terms
    training/test_penalty_scheduler penalties/test_spec training/test_lr_schedulers
    penalties/test_structure training/test_violation training/test_sparsity
    training/test_torch_optimizers training/test_common_step laws/test_autograd linear/test_fit_cv
    linear/test_smooth_path training/test_compiled_step ablation/test_ablation_results
    functional/test_isotonic architecture/test_front_door""".split()  # noqa: SIM905


class Outcomes:
    """Counts tests by outcome, and keeps the names of those that failed."""

    def __init__(self) -> None:
        self.counts, self.failed = {"passed": 0, "failed": 0, "skipped": 0}, []

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._count(report)

    def pytest_collectreport(self, report) -> None:
        if report.outcome != "passed":
            self._count(report)

    def _count(self, report) -> None:
        self.counts[report.outcome] += 1
        if report.failed:
            self.failed.append(report.nodeid)


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def run() -> dict[str, object]:
    import pytest

    seen, began = Outcomes(), time.monotonic()
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=--strict-markers",
        "-W",
        "ignore::pytest.PytestConfigWarning",
    ]
    pytest.main([*(str(ROOT / "tests" / f"{name}.py") for name in FAST), *options], plugins=[seen])
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    return (
        versions
        | seen.counts
        | {"failures": seen.failed, "seconds": round(time.monotonic() - began), "commit": commit()}
    )


def commit() -> str:
    if told := os.environ.get("COMMIT"):  # where there is no git
        return told
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def table(rows: list[dict]) -> str:
    names = ["python", *PACKAGES, "passed", "failed", "skipped", "commit"]
    lines = [
        "# Versions on which the fast part of the tests was run",
        "",
        "Made by `python benchmarks/versions.py`, which says which part that is, with each interpreter; not by hand.",
        "",
        "| " + " | ".join(names) + " |",
        "|" + "---|" * len(names),
        *("| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows),
    ]
    for row in rows:
        if row["failures"]:
            lines += ["", f"Failed with torch {row['torch']} on Python {row['python']}:", ""]
            tests: dict[str, int] = {}
            for name in row["failures"]:
                tests[name.split("[")[0]] = tests.get(name.split("[")[0], 0) + 1
            lines += [f"- `{name}`" + (f", {n} cases" if n > 1 else "") for name, n in tests.items()]
    return "\n".join(lines) + "\n"


def order(row: dict) -> list[int]:
    return [int(part) for text in (row["torch"].split("+")[0], row["python"]) for part in text.split(".")[:3]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    new, path = run(), chosen.out / "versions.json"
    old = json.loads(path.read_text()) if path.exists() else []
    rows = [row for row in old if (row["python"], row["torch"]) != (new["python"], new["torch"])]
    rows = sorted([*rows, new], key=order)
    chosen.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
