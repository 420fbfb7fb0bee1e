"""One append-only file of rows for each process, so that no two processes ever write to one file."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import threading
from pathlib import Path

ROWS = "rows"
_ONE_AT_A_TIME = threading.Lock()  # of the threads of this process
_token = secrets.token_hex(4)  # process numbers come back, this does not


class LedgerError(OSError):
    """A row could not be made durable, or a ledger cannot be read."""


def append(ledger: Path, line: str) -> None:
    """Add a line to this process's file and wait until it is on the disk.

    A line that could not be written whole is taken back. This process writes no more to that file then, but to a new
    one: whatever was left at its end stays a torn last line, which readers leave out.

    Raises:
        LedgerError: if it could not be written, for instance because the disk is full.
    """
    global _token
    with _ONE_AT_A_TIME:
        path = ledger / ROWS / f"{_host()}-{os.getpid()}-{_token}.jsonl"
        try:
            _append(path, line.encode() + b"\n")
        except BaseException as error:  # Ctrl-C too
            _token = secrets.token_hex(4)
            if isinstance(error, OSError):
                raise LedgerError(
                    f"A row could not be written to {path}: {error.strerror or error}. Rows before it are safe; mend "
                    "the disk and run the same line again."
                ) from error
            raise


def _append(path: Path, data: bytes) -> None:
    new = not path.exists()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        before = os.fstat(file).st_size
        try:
            _write(file, data)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(file, before)
            raise
    finally:
        os.close(file)
    if new:
        sync_directory(path.parent)


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
    os.fsync(file)


def sync_directory(path: Path) -> None:
    """Make names in a directory durable."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())[:64] or "host"
