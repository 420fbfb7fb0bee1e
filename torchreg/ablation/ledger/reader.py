"""Rows read back from a ledger's files: of whole lines only, unchanged since they were written, and nothing twice."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from torchreg.ablation.grid import COLUMNS
from torchreg.ablation.json_values import dumps, loads
from torchreg.ablation.ledger.files import LedgerError, names, read_bytes
from torchreg.ablation.ledger.shard import ROWS

Row = dict[str, Any]
Fault = Callable[[bytes, Any], str | None]  # what is wrong with a line and the object in it
_KINDS = {
    "key": str, "penalty": str, "alpha": float, "seed": int, "axes": dict, "mode": str, "status": str,
    "metrics": dict, "seconds": float, "attempt": int, "source": str,
}  # fmt: skip
_KINDS_IN_ORDER, _in_order = list(_KINDS.values()), itemgetter(*_KINDS)
_WORDS = {"mode": ("independent", "path"), "status": ("ok", "failed")}
_AT_ONCE = 1000  # lines: they are parsed faster together, and share the strings of their names
_SUM, _DIGITS = "sum", 16  # of sha256, of the row's text without it


class Reader:
    """Reads a ledger again and again while it grows, each line once.

    Args:
        ledger: its directory.
        source: sha256 of the function whose rows count.

    Attributes:
        lines: how many rows it has read, of any source.
    """

    def __init__(self, ledger: Path, source: str | None) -> None:
        self._ledger, self._source = ledger, source
        self._ends: dict[str, int] = {}
        self._best: dict[str, Row] = {}
        self.lines = 0

    def rows(self) -> dict[str, Row]:
        """The row that counts of each key, as it was written: one that is ok before any other, else the last attempt.

        Raises:
            LedgerError: if a line is no row, or was changed since it was written.
        """
        for name in names(self._ledger, ROWS):
            if not name.endswith(".jsonl"):
                continue
            shard = f"{ROWS}/{name}"
            found, self._ends[shard] = read_lines(self._ledger, shard, _row_fault, self._ends.get(shard, 0))
            self.lines += len(found)
            for row in found:
                if row["source"] == self._source:
                    held = self._best.get(row["key"])
                    if held is None or rank(row) > rank(held):
                        self._best[row["key"]] = row
        return self._best


def as_line(row: Mapping[str, Any]) -> str:
    """A row as it is written, its checksum last."""
    text = dumps(row)
    return f'{text[:-1]},"{_SUM}":"{_digest(text.encode())}"}}'


def read_lines(ledger: Path, name: str, fault: Fault, start: int = 0) -> tuple[list[Row], int]:
    """The lines of a file from a byte on, and the byte after them.

    What follows the last line's end was being written when its process died, or still is.

    Args:
        ledger: a directory.
        name: the file's within it.
        fault: what is wrong with a line; None for nothing.
        start: where to begin.

    Raises:
        LedgerError: if a line is no JSON, is not as it was written, or has a fault.
    """
    whole = read_bytes(ledger, name, start).rpartition(b"\n")[0]
    if not whole:
        return [], start
    lines, found = whole.split(b"\n"), []
    for k in range(0, len(lines), _AT_ONCE):
        found += _parsed(ledger, name, lines[k : k + _AT_ONCE], fault)
    return found, start + len(whole) + 1


def _parsed(ledger: Path, name: str, lines: list[bytes], fault: Fault) -> list[Row]:
    try:
        found = loads(b"[%b]" % b",".join(lines))
        if len(found) == len(lines) and not any(map(fault, lines, found)):
            return found
    except (ValueError, RecursionError):
        pass
    return [_one(ledger, name, line, fault) for line in lines]


def _one(ledger: Path, name: str, line: bytes, fault: Fault) -> Row:
    try:
        row = loads(line)
        why = fault(line, row)
    except (ValueError, RecursionError) as error:
        why = str(error)
    if why:
        number = read_bytes(ledger, name).split(b"\n").index(line) + 1
        raise LedgerError(
            f"Line {number} of {ledger / name} is no row ({why}); mend or remove that line, "
            "or put back a copy of the file."
        )
    return row


def _is_whole(line: bytes, row: Row) -> bool:
    """Whether a row is as it was written. Those of earlier versions have no checksum, and are taken as they are.

    Takes the checksum out of the row.
    """
    told = row.pop(_SUM, None)
    if told is None:
        return True
    end = len(line) - _DIGITS - len(_SUM) - len(',"":""}')
    return told == _digest(line[:end] + b"}") or told == _digest(dumps(row).encode())  # who wrote the JSON otherwise


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:_DIGITS]


def _row_fault(line: bytes, found: Any) -> str | None:
    try:
        if not _is_whole(line, found):
            return "its checksum is of another text: it was changed after it was written"
        if list(map(type, _in_order(found))) != _KINDS_IN_ORDER or not found["key"].isalnum():
            return "it lacks what a row has"
        if not (0.0 <= found["alpha"] < math.inf):
            return f"its alpha is {found['alpha']!r}"
        if taken := [name for name in (*found["metrics"], *found["axes"]) if name in COLUMNS]:
            return f"it has {taken[0]!r} twice"
        error, before = found["error"], found.get("before")
        if not (error is None if found["status"] == "ok" else isinstance(error, str) and error):
            return f"its error is {error!r:.80}"
        if not (before is None or (isinstance(before, list) and all(type(alpha) is float for alpha in before))):
            return f"'before' is {before!r:.80}"
        odd = [name for name, words in _WORDS.items() if found[name] not in words]
        return f"{odd[0]!r} is {found[odd[0]]!r:.80}" if odd else None
    except (KeyError, TypeError, AttributeError):
        return "it lacks what a row has"


def rank(row: Row) -> tuple[bool, int]:
    """The rank of a row: of two of a cell the higher counts, the one that was read first if they are equal."""
    return row["status"] == "ok", row["attempt"]
