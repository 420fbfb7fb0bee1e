"""One driver for each directory, and no driver while workers of a dead one still run."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torchreg.ablation.ledger.files import LedgerError, open_file, read_bytes

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_DRIVER, _WORKERS = "lock", "workers"
_PATIENCE = 10.0  # seconds in which workers notice that their driver is gone
_CREATE = os.O_RDWR | os.O_CREAT
_TOLD = re.compile(r"process [0-9]{1,9} on [\w.-]{1,255}")


class LedgerBusy(RuntimeError):
    """Another driver works in this directory."""


class _Opened(NamedTuple):
    """An open file, and which file it is: its number is given out again if somebody closes it."""

    number: int
    device: int
    inode: int

    @classmethod
    def of(cls, number: int) -> _Opened:
        found = os.fstat(number)
        return cls(number, found.st_dev, found.st_ino)

    @property
    def is_open(self) -> bool:
        with contextlib.suppress(OSError):
            return _Opened.of(self.number) == self
        return False

    def close(self) -> None:
        if self.is_open:
            os.close(self.number)
        _held.discard(self)


_held: set[_Opened] = set()  # whose locks are this process's, and not those of processes that it forks


class DriverLock:
    """Holds a ledger for one driver, from `take` until `release` or the end of the process.

    Advisory, by ``flock``: it binds those who ask, and the kernel takes it back from a process that dies.
    """

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._file: _Opened | None = None
        self._workers: _Opened | None = None

    def take(self) -> None:
        """Take the lock, and wait a while for workers of a driver that is gone.

        Raises:
            LedgerBusy: if another driver has it, or workers of an earlier one still run.
            LedgerError: if the directory cannot be locked.
        """
        with self._telling():
            self._lock()
            self._wait_for_workers()

    def _lock(self) -> None:
        path = self._ledger / _DRIVER
        try:
            self._file = _opened(self._ledger, _DRIVER)
        except LedgerError:
            raise
        except OSError as error:
            raise LedgerError(f"{path} cannot be opened: {error.strerror}; give another directory by `out`.") from error
        if not _taken(self._file):
            told = _processes(self._ledger, _DRIVER) or ["another process"]
            raise LedgerBusy(
                f"{self._ledger} is in use by {told[0]}; wait for it, or give another `out` and merge the two."
            )
        os.ftruncate(self._file.number, 0)
        os.pwrite(self._file.number, _me(), 0)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """What fails leaves no lock, and is told in the ledger's own words."""
        try:
            yield
        except BaseException as error:
            self.release()
            if isinstance(error, OSError) and not isinstance(error, LedgerError):
                raise LedgerError(
                    f"{self._ledger} cannot be locked: {error.strerror}; give a directory on another disk by `out`."
                ) from error
            raise

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        for file in (self._workers, self._file):
            if file is not None:
                file.close()

    def keep(self) -> None:
        """See that the lock is still held, and take it anew if its file was removed or closed meanwhile.

        Raises:
            LedgerBusy: if another driver has taken it since.
            LedgerError: if it cannot be taken.
        """
        assert self._file is not None, "it was taken"
        with contextlib.suppress(OSError):
            found = os.stat(self._ledger / _DRIVER, follow_symlinks=False)
            if self._file.is_open and (found.st_dev, found.st_ino) == self._file[1:]:
                return
        self._file.close()
        try:
            with self._telling():
                self._lock()  # workers are this driver's own
        except LedgerBusy as error:
            raise LedgerBusy(
                f"{error} This driver's own lock was removed or closed while it ran; all rows that it has written are "
                "kept."
            ) from error

    def _wait_for_workers(self) -> None:
        self._workers = file = _opened(self._ledger, _WORKERS)
        end = time.monotonic() + _PATIENCE
        while not _taken(file):
            if time.monotonic() > end:
                raise LedgerBusy(
                    f"Workers of an earlier driver still run in {self._ledger}, and would write rows beside yours: "
                    f"{_alive(self._ledger)}. End them first."
                )
            time.sleep(0.05)
        os.ftruncate(file.number, 0)  # none of those that it names is alive
        file.close()


def hold_as_worker(ledger: Path) -> None:
    """Show, until this process ends, that a worker of this ledger is alive."""
    if fcntl is not None:
        _show(_opened(ledger, _WORKERS))


@contextlib.contextmanager
def shown_as_worker(ledger: Path) -> Iterator[None]:
    """The same for as long as the block runs: by a worker that outlives the driver, and may not see the directory."""
    file = None
    with contextlib.suppress(OSError):
        file = _opened(ledger, _WORKERS, os.O_RDWR)
    try:
        if file is not None and fcntl is not None:
            _show(file)
        yield
    finally:
        if file is not None:
            file.close()


def _show(file: _Opened) -> None:
    fcntl.flock(file.number, fcntl.LOCK_SH)
    if _me() not in os.pread(file.number, os.fstat(file.number).st_size, 0):
        os.write(file.number, _me())


def _opened(ledger: Path, name: str, flags: int = _CREATE) -> _Opened:
    file = _Opened.of(open_file(ledger, name, flags | (os.O_APPEND if name == _WORKERS else 0)))
    _held.add(file)
    return file


def _let_go() -> None:
    """A lock is held as long as any process has the file open: a loader's worker must not outlive its driver as one."""
    for file in list(_held):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _taken(file: _Opened) -> bool:
    if fcntl is None:  # pragma: no cover - Windows has no flock; its users keep to one driver themselves
        return True
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _me() -> bytes:
    return f"process {os.getpid()} on {socket.gethostname()}\n".encode()


def _processes(ledger: Path, name: str) -> list[str]:
    """The lines of a lock's file that say who has it, and no others: whoever sent the ledger may have written them."""
    lines = read_bytes(ledger, name).decode(errors="replace").splitlines()
    return [line for line in dict.fromkeys(lines) if _TOLD.fullmatch(line)]


def _alive(ledger: Path) -> str:
    """The workers that have shown themselves, without those of this machine that have ended."""
    told, here = _processes(ledger, _WORKERS), socket.gethostname()
    there = [line for line in told if not line.endswith(f" on {here}") or _runs(line.split()[1])]
    return ", ".join(there) or "processes that left no name"


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
