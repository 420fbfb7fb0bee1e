"""Means and intervals of metrics over the rows of each group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from torchreg.ablation.results.grouping import Column, Row, codes_of, grouped, numeric
from torchreg.ablation.results.intervals import KINDS, Means, check_confidence, means
from torchreg.ablation.results.metric_names import in_order
from torchreg.ablation.results.table import Table

Pairs = Iterator[tuple[str, Sequence[Any]]]


def cell_columns(axes: Iterable[str]) -> tuple[str, ...]:
    """What cells of one group share unless asked otherwise: all but the seed."""
    return ("penalty", "alpha", *axes, "mode")


def summary(
    rows: Sequence[Row], axes: Sequence[str], metrics: Iterable[str], by: Sequence[str] | None, ci: float
) -> Table:
    """The table of `Ablation.summary`."""
    check_confidence(ci)
    refuse_repeated(rows, axes)
    names = cell_columns(axes) if by is None else _checked(by, axes)
    groups = grouped(rows, names)
    ok = np.array([row["status"] == "ok" for row in rows], bool)
    codes, size = groups.codes[ok], len(groups.keys)
    found = numeric([row for row in rows if row["status"] == "ok"], in_order(metrics))

    def columns() -> Pairs:
        yield from zip(names, zip(*groups.keys, strict=True), strict=True)
        yield "n", np.bincount(codes, minlength=size).tolist()
        yield "n_failed", np.bincount(groups.codes[~ok], minlength=size).tolist()
        for metric, column in found.items():
            yield from mean_columns(metric, _means(column, codes, size, ci))

    return Table.of(columns())


def _means(column: Column, codes: Any, groups: int, ci: float) -> Means:
    return means(column.values[column.present], codes[column.present], groups, ci)


def mean_columns(name: str, means: Means) -> Pairs:
    """One metric's columns of a table of means."""
    yield name, means.mean.tolist()
    for kind in KINDS:
        yield f"{name}.{kind}", getattr(means, kind).tolist()


def refuse_repeated(rows: Sequence[Row], axes: Iterable[str]) -> None:
    """Refuse rows that say the same cell twice, which no statistic would notice.

    Raises:
        ValueError: if there are such rows, or none at all.
    """
    if not rows:
        raise ValueError("This ablation has no rows yet; let `ablate` finish a cell first.")
    names = (*cell_columns(axes), "seed")
    codes = codes_of(rows, names)
    counts = np.bincount(codes)
    if len(counts) < len(rows):
        twice = rows[int(np.argmax(counts[codes] > 1))]
        told = ", ".join(f"{name}={twice.get(name)!r}" for name in names)
        raise ValueError(f"Two rows are of one cell, {told}; a seed would count twice. Leave one of them out.")


def _checked(by: Sequence[str], axes: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys((by,) if isinstance(by, str) else by))
    known = (*cell_columns(axes), "seed")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"by has {unknown[0]!r}, by which rows are not grouped; choose of {', '.join(known)}.")
    return names if "mode" in names else (*names, "mode")


def checked_metric(table: Table, metric: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what has no mean in a table of means.

    Raises:
        ValueError: if there is no such metric, or it is no number.
    """
    known = [name for name in table.columns if f"{name}.low" in table.columns]
    if metric in known:
        return
    kinds = {type(row[metric]).__name__ for row in rows if row["status"] == "ok" and row.get(metric) is not None}
    what = f"is no number everywhere ({', '.join(sorted(kinds))})" if kinds else "is not there"
    raise ValueError(f"Metric {metric!r} {what}; metrics with a mean: {', '.join(known) or 'none'}.")
