"""A table of results as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchreg.ablation.results.intervals import KINDS
from torchreg.text_table import printable, text_table

_ROWS = 100
_WIDTH = 60  # of a cell


def as_text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns; what belongs to a mean stands beside it, or is left out where it says nothing."""
    names, texts = zip(*shown(columns, rows[:_ROWS]), strict=True)
    lines = [text_table(names, zip(*texts, strict=True))]
    if len(rows) > _ROWS:
        lines.append(f"... and {len(rows) - _ROWS} more rows; to_csv writes all.")
    return "\n".join(lines)


def shown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[tuple[str, list[str]]]:
    """The columns that are told, each with its name and a text for each row, all on one line."""
    cells = {name: [row[k] for row in rows] for k, name in enumerate(columns)}
    return [(_one_line(name), _texts(name, cells)) for name in columns if _is_told(name, cells)]


def _is_told(name: str, cells: dict[str, list[Any]]) -> bool:
    """False for what a mean's own cell shows, for counts of NaN that are 0, and for an n that is the group's."""
    mean, _, kind = name.rpartition(".")
    if kind not in KINDS or not _has_interval(mean, cells):
        return True
    return (kind == "nan" and any(cells[name])) or (kind == "n" and cells[name] != cells.get("n"))


def _texts(name: str, cells: dict[str, list[Any]]) -> list[str]:
    if not _has_interval(name, cells):
        return [_text(value) for value in cells[name]]
    triples = zip(cells[name], cells[f"{name}.low"], cells[f"{name}.high"], strict=True)
    return [f"{_text(mean)} [{_ends(low, high)}]" for mean, low, high in triples]


def _has_interval(name: str, cells: dict[str, list[Any]]) -> bool:
    return name in cells and f"{name}.low" in cells and f"{name}.high" in cells


def _ends(low: float, high: float) -> str:
    """A dash for an interval that there is not: of one number, or of NaN."""
    return "-" if low != low else f"{_text(low)}, {_text(high)}"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else _one_line(str(value))


def _one_line(text: str) -> str:
    """Cut to a cell's width, without what would move the cursor; user's text goes to a terminal here."""
    plain = printable(text)
    return plain if len(plain) <= _WIDTH else f"{plain[: _WIDTH - 3]}..."
