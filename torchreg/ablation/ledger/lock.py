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

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_DRIVER, _WORKERS = "lock", "workers"
_PATIENCE = 10.0  # seconds in which workers notice that their driver is gone


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
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _taken(self._file):
                raise LedgerBusy(
                    f"{self._ledger} is in use by {_told(path)}; wait for it, or give another `out` and merge the two."
                )
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            self._wait_for_workers()
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._file, 0)
        os.close(self._file)

    def _wait_for_workers(self) -> None:
        file = os.open(self._ledger / _WORKERS, os.O_RDWR | os.O_CREAT, 0o644)
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
            os.close(file)


def hold_as_worker(ledger: Path) -> None:
    """Show, until this process ends, that a worker of this ledger is alive."""
    if fcntl is not None:
        fcntl.flock(os.open(ledger / _WORKERS, os.O_RDWR | os.O_CREAT, 0o644), fcntl.LOCK_SH)


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
