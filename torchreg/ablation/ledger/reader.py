"""Rows read back from a ledger's files: of whole lines only, and nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from torchreg.ablation.ledger.shard import ROWS, LedgerError
from torchreg.ablation.plain import loads

Row = dict[str, Any]
_KINDS = {
    "key": str, "penalty": str, "alpha": float, "seed": int, "axes": dict, "mode": str, "status": str,
    "metrics": dict, "seconds": float, "attempt": int, "source": str,
}  # fmt: skip
_KINDS_IN_ORDER, _in_order = list(_KINDS.values()), itemgetter(*_KINDS)
_AT_ONCE = 1000  # lines: they are parsed faster together, and share the strings of their names


class Reader:
    """Reads a ledger again and again while it grows, each line once.

    Args:
        ledger: its directory.
        source: sha256 of the function whose rows count.
    """

    def __init__(self, ledger: Path, source: str | None) -> None:
        self._folder, self._source = ledger / ROWS, source
        self._ends: dict[Path, int] = {}
        self._best: dict[str, Row] = {}

    def rows(self) -> dict[str, Row]:
        """By key, the row that counts, as it was written: one that is ok before any other, else the last attempt.

        Raises:
            LedgerError: if a line is no row.
        """
        for path in sorted(self._folder.glob("*.jsonl")):
            found, self._ends[path] = read_lines(path, _is_row, self._ends.get(path, 0))
            for row in found:
                if row["source"] == self._source:
                    held = self._best.get(row["key"])
                    if held is None or rank(row) > rank(held):
                        self._best[row["key"]] = row
        return self._best


def read_lines(path: Path, fits: Callable[[Any], bool], start: int = 0) -> tuple[list[Row], int]:
    """The lines of a file from a byte on, and the byte after them.

    What follows the last line's end was being written when its process died, or still is.

    Raises:
        LedgerError: if a line is no JSON, or does not fit.
    """
    with path.open("rb") as file:
        file.seek(start)
        whole = file.read().rpartition(b"\n")[0]
    if not whole:
        return [], start
    lines, found = whole.split(b"\n"), []
    for k in range(0, len(lines), _AT_ONCE):
        found += _parsed(path, lines[k : k + _AT_ONCE], fits)
    return found, start + len(whole) + 1


def _parsed(path: Path, lines: list[bytes], fits: Callable[[Any], bool]) -> list[Row]:
    try:
        found = loads(b"[%b]" % b",".join(lines))
        if len(found) == len(lines) and all(map(fits, found)):
            return found
    except (ValueError, RecursionError):
        pass
    return [_one(path, line, fits) for line in lines]


def _one(path: Path, line: bytes, fits: Callable[[Any], bool]) -> Row:
    try:
        row, why = loads(line), "it lacks what a row has"
    except (ValueError, RecursionError) as error:
        row, why = None, str(error)
    if not fits(row):
        number = path.read_bytes().split(b"\n").index(line) + 1
        raise LedgerError(f"Line {number} of {path} is no row ({why}); mend or remove that line.")
    return row


def _is_row(found: Any) -> bool:
    try:
        return list(map(type, _in_order(found))) == _KINDS_IN_ORDER and found["key"].isalnum()
    except (KeyError, TypeError):
        return False


def rank(row: Row) -> tuple[bool, int]:
    """Of two rows of a cell the one with the higher rank counts, the one that was read first if they are equal."""
    return row["status"] == "ok", row["attempt"]
