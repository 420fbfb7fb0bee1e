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
_TOKEN = secrets.token_hex(4)  # process numbers come back, this does not
_ONE_AT_A_TIME = threading.Lock()  # of the threads of this process


class LedgerError(OSError):
    """A row could not be made durable, or a ledger cannot be read."""


def append(ledger: Path, line: str) -> None:
    """Add a line to this process's file and wait until it is on the disk.

    A line that could not be written whole is taken back, so that the file stays readable.

    Raises:
        LedgerError: if it could not be written, for instance because the disk is full.
    """
    path = ledger / ROWS / f"{_host()}-{os.getpid()}-{_TOKEN}.jsonl"
    with _ONE_AT_A_TIME:
        try:
            _append(path, line.encode() + b"\n")
        except OSError as error:
            raise LedgerError(
                f"A row could not be written to {path}: {error.strerror or error}. Rows before it are safe; mend the "
                "disk and run the same line again."
            ) from error


def _append(path: Path, data: bytes) -> None:
    new = not path.exists()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        before = os.fstat(file).st_size
        try:
            _write(file, data)
        except OSError:
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
