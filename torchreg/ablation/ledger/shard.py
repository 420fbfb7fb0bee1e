"""One append-only file of rows for each process, so that no two processes ever write to one file."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import threading
from pathlib import Path

from torchreg.ablation.ledger.files import LedgerError, exists, folder, open_file, read_bytes

ROWS = "rows"
Place = tuple[str, int]  # a file's name within the ledger, and a byte in it
_ONE_AT_A_TIME = threading.Lock()  # of the threads of this process
_token = secrets.token_hex(4)  # process numbers come back, this does not


def append(ledger: Path, line: str) -> Place:
    """Add a line to this process's file and wait until it is on the disk.

    A line that could not be written whole is taken back. This process writes no more to that file then, but to a new
    one: whatever was left at its end stays a torn last line, which readers leave out.

    Returns:
        The file's name within the ledger, and where the line begins in it.

    Raises:
        LedgerError: if it could not be written, for instance because the disk is full.
    """
    global _token
    with _ONE_AT_A_TIME:
        name = f"{ROWS}/{_host()}-{os.getpid()}-{_token}.jsonl"
        try:
            begin = _append(ledger, name, line.encode() + b"\n")
        except BaseException as error:  # Ctrl-C too
            _token = secrets.token_hex(4)
            if isinstance(error, OSError):
                raise LedgerError(
                    f"A row could not be written to {ledger / name}: {error.strerror or error}. Rows before it are "
                    "safe; mend the disk and run the same line again."
                ) from error
            raise
        return name, begin


def is_there(ledger: Path, line: str, place: Place) -> bool:
    """Whether a line is where a process says that it wrote it, which may have been into a copy of this directory."""
    with contextlib.suppress(OSError):
        return read_bytes(ledger, *place).startswith(line.encode() + b"\n")
    return False


def _append(ledger: Path, name: str, data: bytes) -> int:
    new = not exists(ledger, name)
    file = open_file(ledger, name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
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
    if new:  # make its name durable too
        with folder(ledger, ROWS) as rows:
            os.fsync(rows)
    return before


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
    os.fsync(file)


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())[:64] or "host"
