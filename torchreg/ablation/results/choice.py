"""Which strength to take: the best mean, the simplest within a standard error, the front of a trade-off."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from torchreg.ablation.results.grouping import grouped
from torchreg.ablation.results.metric_names import is_test
from torchreg.ablation.results.table import Table
from torchreg.text_table import printable

Rule = Literal["max", "min", "1se", "1se-min"]


def best(table: Table, axes: Sequence[str], metric: str, rule: Rule) -> Table:
    """The table of `Ablation.best`, of a summary whose columns are those of cells."""
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(map(repr, get_args(Rule)))}, got {rule!r}.")
    if is_test(metric):
        warnings.warn(
            f"best({metric!r}) chooses on the test data, so that {metric!r} at the choice flatters it; choose on a "
            "validation metric and report the test metric at that choice, which is in the same row.",
            UserWarning,
            stacklevel=3,
        )
    sign = -1.0 if rule.endswith("min") else 1.0
    rows = list(table)
    curves = grouped(rows, ("penalty", *axes, "mode"))
    chosen, empty = [], []
    for code, (penalty, *_) in enumerate(curves.keys):
        curve = [k for k in np.flatnonzero(curves.codes == code).tolist() if math.isfinite(rows[k][metric])]
        if curve:
            chosen.append(_choice(rows, curve, metric, sign, one_se=rule.startswith("1se")))
        else:
            empty.append(penalty)
    _tell_empty(empty, metric, nothing=not chosen)
    chosen.sort(key=lambda k: -sign * rows[k][metric])
    return Table(table.columns, tuple(table.rows[k] for k in chosen))


def _choice(rows: list[dict[str, Any]], curve: list[int], metric: str, sign: float, *, one_se: bool) -> int:
    """The best of the rows of one curve; of equal ones the larger alpha."""
    top = max(curve, key=lambda k: (sign * rows[k][metric], rows[k]["alpha"]))
    if not one_se:
        return top
    error = rows[top][f"{metric}.se"]
    if math.isnan(error):
        raise ValueError(
            f"The 1se rules need at least two seeds at the best alpha, got {rows[top][f'{metric}.n']} for "
            f"{rows[top]['penalty']} at alpha={rows[top]['alpha']:g}; run more seeds, or take rule='max' or 'min'."
        )
    near = [k for k in curve if sign * rows[k][metric] >= sign * rows[top][metric] - error]
    return max(near, key=lambda k: rows[k]["alpha"])


def _tell_empty(penalties: list[str], metric: str, *, nothing: bool) -> None:
    told = printable(", ".join(dict.fromkeys(penalties)))
    if nothing:
        raise ValueError(f"No mean of {metric!r} is finite ({told}); look at the rows: did every seed fail or diverge?")
    if penalties:
        warnings.warn(
            f"No mean of {metric!r} is finite for {told}, left out of the choice; look at its rows: did every alpha "
            "have a seed that diverged?",
            UserWarning,
            stacklevel=4,
        )


def pareto(table: Table, metrics: Sequence[str], minimize: Sequence[str]) -> Table:
    """The table of `Ablation.pareto`, of a summary."""
    points = np.array([table.column(name) for name in metrics], dtype=np.float64).T
    points *= [-1.0 if name in minimize else 1.0 for name in metrics]
    modes = np.array(table.column("mode"), dtype=object)
    chosen = np.zeros(len(table), bool)
    for mode in dict.fromkeys(modes):
        places = np.flatnonzero((modes == mode) & ~np.isnan(points).any(1))
        chosen[places[_front(points[places])]] = True
    order = np.flatnonzero(chosen)
    order = order[np.lexsort(-points[order].T[::-1])]
    return Table(table.columns, tuple(table.rows[k] for k in order.tolist()))


def _front(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of the points (k, metrics) that no other is as good as everywhere and better somewhere."""
    left, place = np.arange(len(points)), 0
    while place < len(left):
        here = points[left[place]]
        kept = (points[left] > here).any(1) | (points[left] == here).all(1)
        place = int(kept[:place].sum()) + 1
        left = left[kept]
    return left
