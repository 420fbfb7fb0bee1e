"""Cells run in worker processes of this machine, each in its own pool of one."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import BrokenExecutor, Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from torchreg.ablation.executors.base import CellExecutor, Function
from torchreg.ablation.executors.worker import Worker, WorkerError

_VISIBLE, _THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


class Processes(CellExecutor):
    """Worker processes, each reused until it dies; one that dies costs its own cell and is replaced.

    Each sees one GPU, in turn, where there are GPUs, and has its share of the cores as threads of torch and BLAS, at
    most as many as this process. None is started before there is work for it.
    """

    stops = True

    def __init__(self, workers: int) -> None:
        self.slots = workers
        self._idle: list[tuple[int, Worker | None]] = []
        self._busy: dict[Future[Any], tuple[int, Worker]] = {}

    def open(self, ledger: Path) -> None:
        self._ledger = ledger
        self._gpus = _visible_gpus()
        self._threads = max(1, min(torch.get_num_threads(), _cores() // self.slots))
        self._idle = [(place, None) for place in reversed(range(self.slots))]

    def submit(self, function: Function, argument: Any) -> Future[Any]:
        try:
            sent = pickle.dumps((function, argument))
        except Exception as error:
            raise WorkerError(f"A cell cannot be sent to workers: {error}.") from error
        place, worker = self._idle.pop()
        if worker is not None and not worker.alive:  # it died while it had nothing to do
            worker.kill()
            worker = None
        worker = worker or self._hired(place, sent)
        future = worker.submit(sent)
        self._busy[future] = place, worker
        return future

    def lost(self, error: BaseException) -> bool:
        return isinstance(error, BrokenExecutor)

    def began(self, future: Future[Any]) -> float | None:
        return self._busy[future][1].began()

    def stop(self, future: Future[Any]) -> None:
        self._busy[future][1].kill()

    def settle(self, future: Future[Any]) -> None:
        place, worker = self._busy.pop(future)
        error = None if future.cancelled() else future.exception()
        if error is None and not future.cancelled():
            self._idle.append((place, worker))
            return
        worker.kill()
        self._idle.append((place, None))
        if isinstance(error, BrokenExecutor):
            error.add_note(worker.end())

    def close(self) -> None:
        with ExitStack() as each:  # Ctrl-C in one does not spare the others
            for _, worker in (*self._idle, *self._busy.values()):
                if worker is not None:
                    each.callback(worker.kill)
        self._idle, self._busy = [], {}

    def _hired(self, place: int, example: bytes) -> Worker:
        environment = {_VISIBLE: self._gpus[place % len(self._gpus)]} if self._gpus else {}
        try:
            return Worker(self._ledger, self._threads, environment | {_THREADS: str(self._threads)}, example)
        except (OSError, RuntimeError) as error:  # what threads that cannot be started raise
            running = len(self._busy) + sum(worker is not None for _, worker in self._idle)
            raise WorkerError(
                f"Of {self.slots} workers {running} could be started ({error}); give fewer, or raise the limits of "
                "this process (`ulimit -n` for files, `ulimit -u` for processes and threads)."
            ) from error


def _cores() -> int:
    """The cores that this process may use: on a machine that a scheduler shares, not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _visible_gpus() -> list[str]:
    named = os.environ.get(_VISIBLE)
    return named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]
