"""How a process on another machine knows that it sees the driver's directory, and not one of the same name."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from torchreg.ablation.ledger.files import LedgerError, read_bytes, replace

_NAME = "mark"
_BYTES = 16


def mark_anew(ledger: Path) -> str:
    """Give the directory a mark that no other has, nor a copy of it that was made before.

    Raises:
        LedgerError: if it cannot be written.
    """
    mark = secrets.token_hex(_BYTES)
    try:
        replace(ledger, _NAME, lambda file: file.write(mark.encode()))
    except OSError as error:
        raise LedgerError(f"{ledger / _NAME} could not be written: {error.strerror or error}.") from error
    return mark


def sees(ledger: Path, mark: str) -> bool:
    """Whether the directory of this name, seen from this process, is the one with the mark."""
    with contextlib.suppress(OSError):
        return read_bytes(ledger, _NAME) == mark.encode()
    return False
