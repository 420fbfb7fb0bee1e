"""A process of its own for one cell at a time, which can be killed without harm to any other."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from multiprocessing import connection
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import torch

from torchreg.ablation.ledger.files import make_folder, open_file
from torchreg.ablation.ledger.lock import hold_as_worker

LOGS = "logs"
_PATIENCE = 5.0  # seconds for the kernel to end a process that was killed


class WorkerError(RuntimeError):
    """A worker could not start, or could not load what it was sent: no cell can run."""


class Worker:
    """One process, started afresh (spawn, since CUDA and threads do not survive a fork).

    Args:
        ledger: whose rows it writes.
        threads: of torch in this process.
        environment: variables that it begins with, beside this process's.
        example: what it will be sent, pickled; it loads it once, so that imports count as its start.
    """

    def __init__(self, ledger: Path, threads: int, environment: Mapping[str, str], example: bytes) -> None:
        context = _Remembering()
        self._logs = ledger / LOGS
        self._pool = ProcessPoolExecutor(1, context, _begin, (str(ledger), threads))
        self._ready_at: float | None = None
        self._given_at = 0.0
        try:
            with _born_with(environment):
                ready = self._pool.submit(_ready, example)
        except BaseException:
            self._pool.shutdown(wait=False)
            raise
        self._process = context.process
        ready.add_done_callback(self._note_ready)
        threading.Thread(target=_end_orphans, args=(self._process.pid,), daemon=True).start()

    def _note_ready(self, ready: Future[None]) -> None:
        if not ready.cancelled() and ready.exception() is None:
            self._ready_at = time.monotonic()

    def submit(self, sent: bytes) -> Future[Any]:
        """Give it a pickled function and argument; one at a time. Of one that has died, the future says so."""
        self._given_at = time.monotonic()
        try:
            return self._pool.submit(_call, sent)
        except BrokenExecutor as error:  # whoever looked a moment ago saw it alive
            lost: Future[Any] = Future()
            lost.set_exception(error)
            return lost

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        with contextlib.suppress(ChildProcessError):  # the pool has taken its end from the kernel
            return os.waitid(os.P_PID, self._process.pid or 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        return False

    def began(self) -> float | None:
        """When its work began: not before the process was up."""
        return None if self._ready_at is None else max(self._ready_at, self._given_at)

    def end(self) -> str:
        """How the process ended, after `kill`.

        Raises:
            WorkerError: if it ended by itself before it was up: so would the next.
        """
        code, log = self._exit_code(), self._logs / _log_name(self._process.pid)
        if self._ready_at is None and code is not None and code >= 0:
            raise WorkerError(
                f"A worker process ended before it could begin (exit code {code}); what it said is above, or in {log}. "
                "A script must call ablate under `if __name__ == '__main__':`, since each worker imports it; what "
                "stands at the top of the script, and of the module of `run`, must work in any process."
            )
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"{how}; what it printed is in {log}"

    def kill(self) -> None:
        """End the process and its children, whatever they do, and wait until it has ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.kill()  # it leads no group before it is up
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._process.join(_PATIENCE)

    def _exit_code(self) -> int | None:
        end = time.monotonic() + _PATIENCE  # the pool's thread may just be taking it from the kernel
        while self._process.exitcode is None and time.monotonic() < end:
            time.sleep(0.01)
        return self._process.exitcode


def _end_orphans(worker: int) -> None:
    """Children that a worker has forked hold the pipe by which a pool sees its end; it would wait for theirs."""
    with contextlib.suppress(ChildProcessError, ProcessLookupError, PermissionError):
        os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
        os.killpg(worker, signal.SIGKILL)


class _Remembering(SpawnContext):
    """Keeps the process that a pool makes by it, which the pool does not show."""

    process: SpawnProcess

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        self.process = SpawnProcess(*args, **kwargs)
        return self.process


@contextlib.contextmanager
def _born_with(environment: Mapping[str, str]) -> Iterator[None]:
    """A process that is started here has these variables from its first import on, and does not see Ctrl-C yet."""
    before = {name: os.environ[name] for name in environment if name in os.environ}
    with _interrupts_later():
        os.environ.update(environment)
        try:
            yield
        finally:
            for name in environment:
                del os.environ[name]
            os.environ.update(before)


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C is heard at the end: half a start would leave a process that waits for the other half.

    The signal is blocked too, which a new process inherits. That alone is not enough here: another thread may take
    the signal, and Python then interrupts the main one all the same.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    heard: list[int] = []
    usual = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread() and usual is not None
    if main:
        signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, usual)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if heard:
            signal.raise_signal(signal.SIGINT)


def _begin(ledger: str, threads: int) -> None:
    """Runs first in the new process."""
    os.setsid()  # a group of its own: its children die with it, and Ctrl-C reaches the driver alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that came while it started is forgotten, too
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _print_to(Path(ledger))
    hold_as_worker(Path(ledger))
    driver = multiprocessing.parent_process()
    assert driver is not None, "a worker has a parent"
    if connection.wait([driver.sentinel], 0):
        os.killpg(0, signal.SIGKILL)  # before the lock was held another driver may have begun
    threading.Thread(target=_die_with, args=(driver.sentinel,), daemon=True).start()
    torch.set_num_threads(threads)


def _load(sent: bytes) -> Any:
    try:
        return pickle.loads(sent)
    except Exception as error:
        raise WorkerError(
            f"A worker cannot load what it was sent ({type(error).__name__}: {error}). `run` and the classes of "
            "penalties must stand at the top of a module or script, above and not under `if __name__ == '__main__':`, "
            "and that module must be importable."
        ) from error


def _ready(sent: bytes) -> None:
    _load(sent)


def _call(sent: bytes) -> Any:
    function, argument = _load(sent)
    return function(argument)


def _print_to(ledger: Path) -> None:
    """What cells print goes to a file for each worker: a thousand lines of one must not hide the others' progress."""
    make_folder(ledger, LOGS)
    file = open_file(ledger, f"{LOGS}/{_log_name(os.getpid())}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.set_blocking(file, True)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the last lines before a kill are those that matter


def _log_name(pid: int | None) -> str:
    return f"{socket.gethostname()}-{pid}.log"


def _die_with(driver: int) -> None:
    """A worker whose driver was killed would wait for ever, or write rows that nobody expects."""
    connection.wait([driver])
    os.killpg(0, signal.SIGKILL)
