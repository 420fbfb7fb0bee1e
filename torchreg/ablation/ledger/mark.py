"""How a process on another machine knows that it sees the driver's directory, and not one of the same name."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

_NAME = "mark"


def marked(ledger: Path) -> str:
    """The directory's mark, which is made if it is not there."""
    path = ledger / _NAME
    if not path.exists():
        path.write_text(secrets.token_hex(16))
    return path.read_text()


def sees(ledger: Path, mark: str) -> bool:
    """Whether the directory of this name, seen from this process, is the one with the mark."""
    with contextlib.suppress(OSError):
        return (ledger / _NAME).read_text() == mark
    return False
