"""One driver for each directory, and no driver while workers of a dead one still run."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from torchreg.ablation.ledger.shard import LedgerError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_DRIVER, _WORKERS = "lock", "workers"
_PATIENCE = 10.0  # seconds in which workers notice that their driver is gone
_held: set[int] = set()  # open files whose locks are this process's, and not those of processes that it forks


class LedgerBusy(RuntimeError):
    """Another driver works in this directory."""


class DriverLock:
    """Holds a ledger for one driver, until the process ends or the block is left.

    Advisory, by ``flock``: it binds those who ask, and the kernel takes it back from a process that dies.
    """

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._file = -1

    def __enter__(self) -> Self:
        path = self._ledger / _DRIVER
        try:
            self._file = _opened(path)
        except OSError as error:
            raise LedgerError(f"{path} cannot be opened: {error.strerror}; give another directory by `out`.") from error
        try:
            if not _taken(self._file):
                raise LedgerBusy(
                    f"{self._ledger} is in use by {_told(path)}; wait for it, or give another `out` and merge the two."
                )
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            self._wait_for_workers()
        except BaseException as error:
            _close(self._file)
            if isinstance(error, OSError):
                raise LedgerError(
                    f"{self._ledger} cannot be locked: {error.strerror}; give a directory on another disk by `out`."
                ) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._file, 0)
        _close(self._file)

    def _wait_for_workers(self) -> None:
        file = _opened(self._ledger / _WORKERS)
        try:
            end = time.monotonic() + _PATIENCE
            while not _taken(file):
                if time.monotonic() > end:
                    raise LedgerBusy(
                        f"Workers of an earlier driver still run in {self._ledger}, and would write rows beside yours; "
                        "end them first."
                    )
                time.sleep(0.05)
        finally:
            _close(file)


def hold_as_worker(ledger: Path) -> None:
    """Show, until this process ends, that a worker of this ledger is alive."""
    if fcntl is not None:
        fcntl.flock(_opened(ledger / _WORKERS), fcntl.LOCK_SH)


def _opened(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(file)
    return file


def _close(file: int) -> None:
    _held.discard(file)
    os.close(file)


def _let_go() -> None:
    """A lock is held as long as any process has the file open: a loader's worker must not outlive its driver as one."""
    for file in _held:
        os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def shown_as_worker(ledger: Path) -> Iterator[None]:
    """The same for as long as the block runs: by a worker that outlives the driver, and may not see the directory."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            file = os.open(ledger / _WORKERS, os.O_RDWR)
            held.callback(os.close, file)
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _taken(file: int) -> bool:
    if fcntl is None:  # pragma: no cover - Windows has no flock; its users keep to one driver themselves
        return True
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _told(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
