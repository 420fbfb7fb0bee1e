"""Cells run in worker processes of this machine, each in its own pool of one."""

from __future__ import annotations

import os
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from typing import Any

import torch

from torchreg.ablation.engines.base import Engine, Function
from torchreg.ablation.engines.worker import Worker

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Processes(Engine):
    """Worker processes, each reused until it dies; one that dies costs its own cell and is replaced.

    Each sees one GPU, in turn, where there are GPUs, and has its share of the cores as torch's threads.
    """

    stops = True

    def __init__(self, workers: int) -> None:
        self.slots = workers
        self._idle: list[tuple[int, Worker]] = []
        self._busy: dict[Future[Any], tuple[int, Worker]] = {}

    def open(self, ledger: Path) -> None:
        self._ledger = ledger
        self._gpus = _visible_gpus()
        self._idle = [(place, self._hired(place)) for place in range(self.slots)]

    def submit(self, function: Function, argument: Any) -> Future[Any]:
        place, worker = self._idle.pop()
        try:
            future = worker.submit(function, argument)
        except Exception as error:  # it died while it had nothing to do
            worker.kill()
            self._idle.append((place, self._hired(place)))
            future = Future()
            future.set_exception(error)
            return future
        self._busy[future] = place, worker
        return future

    def lost(self, error: BaseException) -> bool:
        return isinstance(error, BrokenExecutor)

    def began(self, future: Future[Any]) -> float | None:
        return self._busy[future][1].began()

    def stop(self, future: Future[Any]) -> None:
        self._busy[future][1].kill()

    def settle(self, future: Future[Any]) -> None:
        if future not in self._busy:
            return
        place, worker = self._busy.pop(future)
        if future.cancelled() or future.exception() is not None:
            worker.kill()
            worker = self._hired(place)
        self._idle.append((place, worker))

    def close(self) -> None:
        for _, worker in (*self._idle, *self._busy.values()):
            worker.kill()
        self._idle, self._busy = [], {}

    def _hired(self, place: int) -> Worker:
        environment = {_VISIBLE: self._gpus[place % len(self._gpus)]} if self._gpus else {}
        return Worker(self._ledger, max(1, (os.cpu_count() or 1) // self.slots), environment)


def _visible_gpus() -> list[str]:
    named = os.environ.get(_VISIBLE)
    return named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]
