"""A process of its own for one cell at a time, which can be killed without harm to any other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from torchreg.ablation.engines.base import Function
from torchreg.ablation.ledger.lock import hold_as_worker

LOGS = "logs"


class Worker:
    """One process, started afresh (spawn, since CUDA and threads do not survive a fork).

    Args:
        ledger: whose rows it writes.
        threads: of torch in this process.
        environment: variables to be set in it before it works.
    """

    def __init__(self, ledger: Path, threads: int, environment: Mapping[str, str]) -> None:
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _begin, (str(ledger), threads, dict(environment))
        )
        self._ready_at: float | None = None
        with _no_interrupts():
            self._pid = self._pool.submit(os.getpid)  # starts the process
        self._pid.add_done_callback(self._note_ready)
        self._given_at = 0.0

    def _note_ready(self, pid: Future[int]) -> None:
        self._ready_at = time.monotonic()

    def submit(self, function: Function, argument: Any) -> Future[Any]:
        """Give it work; one piece at a time."""
        self._given_at = time.monotonic()
        return self._pool.submit(function, argument)

    def began(self) -> float | None:
        """When its work began: not before the process was up."""
        return None if self._ready_at is None else max(self._ready_at, self._given_at)

    def kill(self) -> None:
        """End the process and its children, whatever they do."""
        if self._pid.done() and self._pid.exception() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid.result(), signal.SIGKILL)
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """A process that starts here does not hear of Ctrl-C before it has left the terminal's group."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(ledger: str, threads: int, environment: Mapping[str, str]) -> None:
    """Runs first in the new process."""
    os.setsid()  # a group of its own: its children die with it, and Ctrl-C reaches the driver alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _print_to(Path(ledger))
    hold_as_worker(Path(ledger))
    threading.Thread(target=_die_with_driver, daemon=True).start()
    os.environ.update(environment)
    torch.set_num_threads(threads)


def _print_to(ledger: Path) -> None:
    """What cells print goes to a file for each worker: a thousand lines of one must not hide the others' progress."""
    folder = ledger / LOGS
    folder.mkdir(exist_ok=True)
    file = os.open(folder / f"{socket.gethostname()}-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _die_with_driver() -> None:
    """A worker whose driver was killed would wait for ever, or write rows that nobody expects."""
    driver = multiprocessing.parent_process()
    assert driver is not None, "a worker has a parent"
    connection.wait([driver.sentinel])
    os.killpg(0, signal.SIGKILL)
