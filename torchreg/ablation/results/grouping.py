"""Rows in groups, those that agree in some columns, and metrics as columns of numbers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchreg.ablation.json_values import unified

Row = Mapping[str, Any]
_NUMBERS = {bool, int, float}
_UNEQUAL = {str, int, float}  # Python's equality is right among these, and they are hashable


@dataclass(frozen=True)
class Grouping:
    """Groups in ascending order of their keys.

    Attributes:
        keys: what the rows of each group have in the columns.
        codes: the group of each row, integers, (rows,).
    """

    keys: tuple[tuple[Any, ...], ...]
    codes: NDArray[np.int64]


def grouped(rows: Sequence[Row], by: Sequence[str]) -> Grouping:
    """Group rows by columns; a row that lacks a column has None there."""
    codes = codes_of(rows, by)
    _, first = np.unique(codes, return_index=True)
    return Grouping(tuple(tuple(rows[k].get(name) for name in by) for k in first.tolist()), codes)


def codes_of(rows: Sequence[Row], by: Sequence[str]) -> NDArray[np.int64]:
    """The group of each row, as in `grouped`, where no keys are needed."""
    codes = np.zeros(len(rows), np.int64)
    for name in by:
        ranks = _ranks([row.get(name) for row in rows])
        _, codes = np.unique(codes * (ranks.max(initial=0) + 1) + ranks, return_inverse=True)
    return codes


def _ranks(column: Sequence[Any]) -> NDArray[np.int64]:
    """The place of each value among all that occur."""
    as_they_are = set(map(type, column)) <= _UNEQUAL
    keys = column if as_they_are else list(map(_sortable, column))
    sortable = {key: _sortable(key) if as_they_are else key for key in dict.fromkeys(keys)}
    ranks = {value: rank for rank, value in enumerate(sorted(set(sortable.values())))}
    places = {key: ranks[value] for key, value in sortable.items()}
    return np.fromiter(map(places.__getitem__, keys), np.int64, len(keys))


def _sortable(value: Any) -> tuple[int, Any]:
    """Hashable and in an order, whatever JSON holds: a bool is no number, NaN equals itself."""
    if isinstance(value, str):
        return 3, value
    if isinstance(value, bool):
        return 0, value
    if isinstance(value, (int, float)):
        return (1, value) if value == value else (2, None)
    return 4, json.dumps(unified(value), sort_keys=True)


@dataclass(frozen=True)
class Column:
    """One metric of many rows, arrays of shape (rows,).

    Attributes:
        values: float64; bools are 0 and 1.
        present: False where a row has no value, which is not the same as NaN.
    """

    values: NDArray[np.float64]
    present: NDArray[np.bool_]


def numeric(rows: Sequence[Mapping[str, Any]], metrics: Iterable[str]) -> dict[str, Column]:
    """The metrics that are numbers wherever they have a value."""
    found = {}
    for name in metrics:
        values = [row.get(name) for row in rows]
        kinds = set(map(type, values))
        if kinds & _NUMBERS and kinds <= _NUMBERS | {type(None)}:
            present = np.array([v is not None for v in values]) if type(None) in kinds else np.ones(len(values), bool)
            with contextlib.suppress(OverflowError):  # an int beyond float64 has no mean
                found[name] = Column(np.array(values, dtype=np.float64), present)
    return found
