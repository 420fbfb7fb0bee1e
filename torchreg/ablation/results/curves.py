"""Rows in lines: those that differ in alpha and seed alone, by names that tell the lines apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torchreg.ablation.json_values import unified

Row = Mapping[str, Any]
_R = TypeVar("_R", bound=Row)


def line_columns(axes: Iterable[str]) -> tuple[str, ...]:
    """What rows of one line share."""
    return ("penalty", *axes, "mode")


def lines(rows: Iterable[_R], axes: Sequence[str], where: Row | None = None) -> dict[str, list[_R]]:
    """Rows by line, in the order of the first row of each.

    Args:
        rows: mappings with the columns of `line_columns`; a row that lacks one has None there.
        axes: names of the grid's axes.
        where: columns and the values that rows must have.

    Raises:
        ValueError: if ``where`` names something that is no such column.
    """
    columns = line_columns(axes)
    if unknown := [name for name in where or {} if name not in columns]:
        raise ValueError(f"where has {unknown[0]!r}, by which lines are not chosen; choose of {', '.join(columns)}.")
    wanted = {name: _text(value) for name, value in (where or {}).items()}
    kept = [row for row in rows if all(_text(row.get(name)) == text for name, text in wanted.items())]
    name, found = namer(kept, axes), dict[str, list[_R]]()
    for row in kept:
        found.setdefault(name(row), []).append(row)
    return found


def namer(rows: Iterable[Row], axes: Sequence[str]) -> Callable[[Row], str]:
    """A function that names a row's line: its penalty, and what else varies among the rows.

    Args:
        rows: among which names must tell the lines apart.
        axes: names of the grid's axes.
    """
    seen: dict[str, dict[str, Any]] = {column: {} for column in line_columns(axes)[1:]}
    for row in rows:
        for column, values in seen.items():
            values.setdefault(_text(row.get(column)), row.get(column))
    varied = {column: values for column, values in seen.items() if len(values) > 1}
    words = {
        column: str if len(set(map(str, values.values()))) == len(values) else json.dumps  # "8" and 8 are two values
        for column, values in varied.items()
    }
    return lambda row: ", ".join(
        [
            row["penalty"],
            *(f"{column}={word(varied[column][_text(row.get(column))])}" for column, word in words.items()),
        ]
    )


def _text(value: Any) -> str:
    """The same for equal values alone: 0 and 0.0, but not False."""
    return json.dumps(unified(value), sort_keys=True, default=lambda odd: unified(getattr(odd, "item", odd.__str__)()))
