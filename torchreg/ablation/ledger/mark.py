"""How a process on another machine knows that it sees the driver's directory, and not one of the same name."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from torchreg.ablation.ledger.shard import LedgerError

_NAME = "mark"
_LENGTH = 32


def marked(ledger: Path) -> str:
    """The directory's mark, which is made if it is not there, or was not written whole.

    Raises:
        LedgerError: if it cannot be written.
    """
    path = ledger / _NAME
    if not path.exists() or len(path.read_text()) != _LENGTH:
        try:
            path.write_text(secrets.token_hex(_LENGTH // 2))
        except OSError as error:
            raise LedgerError(f"{path} could not be written: {error.strerror or error}.") from error
    return path.read_text()


def sees(ledger: Path, mark: str) -> bool:
    """Whether the directory of this name, seen from this process, is the one with the mark."""
    with contextlib.suppress(OSError):
        return (ledger / _NAME).read_text() == mark
    return False
