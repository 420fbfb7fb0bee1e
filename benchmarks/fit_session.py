"""Processes that hold a solver and a problem each, so that solvers take turns, time out and start cold apart."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
THREAD_VARIABLES = ("OMP", "MKL", "OPENBLAS", "RAYON", "NUMBA")
START = 600  # seconds: import and loading the data
SETTLE = 0.25  # seconds: idle threads of the last solver's pool stop spinning


class Failed(Exception):
    """The solver said no; str() is its own message."""


class TooSlow(Failed):
    """The solver was stopped after the limit."""


class Interpreters(NamedTuple):
    """Where the peers live; None: not given."""

    adelie: str | None
    rscript: str | None

    def command(self, solver: str) -> list[str]:
        if solver.startswith("glmnet"):
            return [_required(self.rscript, "--rscript"), str(HERE / "fit_glmnet.R")]
        python = _required(self.adelie, "--adelie") if solver.startswith("adelie") else sys.executable
        return [python, str(HERE / "fit_worker.py")]


def _required(path: str | None, option: str) -> str:
    if path is None:
        raise Failed(f"not run: no {option} given")
    return path


class Worker:
    """One process. `solve` returns the seconds that it measured itself; `cpu_seconds` are of all its threads."""

    cpu_seconds = 0.0

    def __init__(self, solver: str, folder: Path, interpreters: Interpreters, threads: int, device: str = "cpu"):
        self.stem = str(folder / f"out-{solver.replace(' ', '-')}")
        self.errors = Path(f"{self.stem}.err").open("w")  # noqa: SIM115
        extra = [device] if device != "cpu" else []
        command = [*interpreters.command(solver), solver, str(folder), *extra]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, env=environment(threads), **pipes)
        self.hello = json.loads(self._answer(START, "ready"))

    def solve(self, tol: float, limit: float, *, save: bool = False) -> float:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{tol!r} {int(save)}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"process ended with code {self.process.poll()}: {self._last_words()}") from None
        seconds, self.cpu_seconds = map(float, self._answer(limit, "ok").split())
        return seconds

    def _answer(self, limit: float, expected: str) -> str:
        assert self.process.stdout is not None
        end, text = time.monotonic() + limit, b""
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            if not ready:
                self.close()
                raise TooSlow(f"> {limit:g} s")
            piece = os.read(self.process.stdout.fileno(), 65536)
            if not piece:
                raise Failed(f"process ended with code {self.process.wait()}: {self._last_words()}")
            text += piece
        word, _, rest = text.decode().strip().partition(" ")
        if word != expected:
            raise Failed(rest)
        return rest

    def _last_words(self) -> str:
        lines = Path(self.errors.name).read_text().strip().splitlines()
        return lines[-1][:300] if lines else "(it said nothing)"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()


def environment(threads: int) -> dict[str, str]:
    """This process's own, with every library's number of threads set."""
    return os.environ | {f"{name}_NUM_THREADS": str(threads) for name in THREAD_VARIABLES}


def free_kernels() -> None:
    """Start anew without settings that force a BLAS kernel: each library chooses its own."""
    forced = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    if any(name in os.environ for name in forced):
        for name in forced:
            os.environ.pop(name, None)
        os.execv(sys.executable, [sys.executable, *sys.argv])
