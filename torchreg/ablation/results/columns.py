"""Metrics as columns of numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBERS = {bool, int, float}


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
    """Those of the metrics that are numbers wherever they have a value."""
    found = {}
    for name in metrics:
        values = [row.get(name) for row in rows]
        kinds = set(map(type, values))
        if kinds & _NUMBERS and kinds <= _NUMBERS | {type(None)}:
            present = np.array([v is not None for v in values]) if type(None) in kinds else np.ones(len(values), bool)
            with contextlib.suppress(OverflowError):  # an int beyond float64 has no mean
                found[name] = Column(np.array(values, dtype=np.float64), present)
    return found
