"""Rows of one part of `gpu.sh`, written after each, so that what was measured outlives what fails after it."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "triton", "scipy", "scikit-learn", "cuml-cu12", "cuml-cu13", "torchao", "pytest")
LATE = 5.0  # seconds that what has begun in time may take beyond it
Row = dict[str, Any]
Bar = tuple[str, float]  # "<=" or ">=", and a number


class NotRunError(Exception):
    """Why something is not measured, which is no fault."""


def verdict(found: float, bar: Bar | None) -> str:
    """Whether a bar holds, and by how much it is missed; nothing without one."""
    if bar is None:
        return ""
    sense, limit = bar
    if found <= limit if sense == "<=" else found >= limit:
        return "holds"
    return f"missed by {abs(found / limit - 1):.0%}" if limit else f"missed by {found:g}"


def row(what: str, found: float, unit: str = "", bar: Bar | None = None, **more: object) -> Row:
    """One figure; `more` goes to the JSON file, and of it `note` to the table."""
    told = {"bar": f"{bar[0]} {bar[1]:g}"} if bar else {}
    return {"what": what, "found": float(f"{found:.4g}"), "unit": unit} | told | {"verdict": verdict(found, bar)} | more


@contextmanager
def interrupted_after(seconds: float | None) -> Iterator[None]:
    """Raise in the block, between two lines of Python, once so many seconds have passed."""

    def late(*_: object) -> None:
        raise NotRunError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1) if seconds is not None else 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Record:
    """What one part found. A measurement that fails, or for which no time is left, is a row that says so."""

    path: Path | None
    seconds: float
    began: float = field(default_factory=time.monotonic)
    rows: list[Row] = field(default_factory=list)
    environment: dict[str, object] = field(default_factory=dict)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def measure(
        self,
        what: str,
        run: Callable[[], list[Row]],
        *,
        needs: float = 1.0,
        at_most: float | None = None,
        **fixed: object,
    ) -> list[Row]:
        """Add the rows of `run`, which needs so many seconds and is interrupted where it takes too many."""
        began = time.monotonic()
        try:
            if self.left() < needs:
                raise NotRunError("out of time")
            with interrupted_after(None if at_most is None else min(at_most, self.left() + LATE)):
                found = run()
        except NotRunError as why:
            found = [{"what": what, "verdict": f"not run: {why}"}]
        except Exception as error:  # whatever it is, the other measurements go on
            traceback.print_exc()
            found = [{"what": what, "verdict": f"failed: {type(error).__name__}: {_first_line(error)}"}]
        self.add(found, fixed | {"took": round(time.monotonic() - began, 2)})
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return found

    def add(self, rows: list[Row], fixed: dict[str, object]) -> None:
        for new in rows:
            self.rows.append(new | fixed)
            value = f"{new['found']:g} {new['unit']}" if "found" in new else ""
            print(f"{new['what']:75s} {value:16s} {new.get('bar', ''):8s} {new['verdict']}", flush=True)
        self.save()

    def save(self) -> None:
        if self.path is not None:
            text = {"environment": self.environment, "rows": self.rows, "left": round(self.left(), 1)}
            partial = self.path.with_suffix(".part")
            partial.write_text(json.dumps(text, indent=1))
            partial.replace(self.path)  # never half a file


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def environment(devices: list[str]) -> dict[str, object]:
    """The machine, and the versions of what matters; a package that is missing says so."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found: dict[str, object] = {"card": card, "devices": devices, "cuda": torch.version.cuda, "cores": os.cpu_count()}
    if card:
        found["memory GiB"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return found | {"python": platform.python_version(), "packages": {name: version(name) for name in PACKAGES}}


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def device(name: str) -> torch.device:
    """A device by its name; "fake" is the pretended one of the tests, on which launches and waits are counted."""
    if name == "fake":
        sys.path.append(str(ROOT / "tests" / "support"))
        try:
            from fake_device import PRETENDS, install
        except ImportError as error:
            raise NotRunError(f"the pretended device needs {error.name}") from error
        if not PRETENDS:
            raise NotRunError("beside a GPU no device is pretended")
        return install()
    if name == "cuda" and not torch.cuda.is_available():
        raise NotRunError("torch sees no CUDA device")
    return torch.device(name)


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", default=["cuda"], choices=["cuda", "cpu", "fake"])
    parser.add_argument("--seconds", type=float, default=120.0, help="after them no further measurement begins")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: a rehearsal, whose times mean nothing")
    parser.add_argument("--json", type=Path, help="where the rows go")
    return parser.parse_args()


def run_part(chosen: argparse.Namespace, measure: Callable[[Record, torch.device, bool], None]) -> None:
    """Measure on each device; one that is not there is a row."""
    record = Record(chosen.json, chosen.seconds, environment=environment(chosen.devices))
    record.save()
    for name in chosen.devices:
        torch.manual_seed(0)
        try:
            place = device(name)
        except NotRunError as why:
            record.add([{"what": "everything", "verdict": f"not run: {why}"}], {"device": name})
            continue
        measure(record, place, chosen.tiny)
