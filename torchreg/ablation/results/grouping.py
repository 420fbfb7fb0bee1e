"""Rows in groups: those that agree in some columns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]
_INT = np.int64


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
    codes = np.zeros(len(rows), _INT)
    for name in by:
        ranks = _ranks([row.get(name) for row in rows])
        _, codes = np.unique(codes * (ranks.max(initial=0) + 1) + ranks, return_inverse=True)
    _, first = np.unique(codes, return_index=True)
    return Grouping(tuple(tuple(rows[k].get(name) for name in by) for k in first.tolist()), codes)


def _ranks(column: Sequence[Any]) -> NDArray[np.int64]:
    """The place of each value among all that occur."""
    found: dict[tuple[int, Any], int] = {}
    places = [found.setdefault(_sortable(value), len(found)) for value in column]
    ranks = np.empty(len(found), _INT)
    ranks[[found[value] for value in sorted(found)]] = np.arange(len(found))
    return ranks[places]


def _sortable(value: Any) -> tuple[int, Any]:
    """Hashable and in an order, whatever JSON holds: a bool is no number, NaN equals itself."""
    if isinstance(value, str):
        return 3, value
    if isinstance(value, bool):
        return 0, value
    if isinstance(value, (int, float)):
        return (2, None) if math.isnan(value) else (1, value)
    return 4, json.dumps(value, sort_keys=True)
