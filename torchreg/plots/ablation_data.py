"""What displays draw of an ablation: its rows by line, as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from torchreg.ablation.results.curves import line_columns, lines
from torchreg.ablation.results.summary import checked_metric
from torchreg.plots.style import Array

if TYPE_CHECKING:
    from torchreg.ablation import Ablation
    from torchreg.ablation.results.table import Table

LAYERS = "layers"  # the metric that is a dict, layer -> share of zeros
Row = Mapping[str, Any]
_R = TypeVar("_R", bound=Row)


@dataclass(frozen=True, eq=False)
class Curve:
    """Means of a metric over seeds at each alpha, with their intervals.

    Args:
        name: of the line, such as the penalty's.
        alphas: ascending, >= 0, shape (n,).
        mean: shape (n,).
        low: the interval's lower end, NaN where there is none, shape (n,).
        high: its upper end, likewise.
        n: how many seeds the mean is of, shape (n,).
    """

    name: str
    alphas: Array
    mean: Array
    low: Array
    high: Array
    n: Array

    def take(self, chosen: Array) -> Self:
        """The curve where a mask is true."""
        parts = (self.alphas, self.mean, self.low, self.high, self.n)
        return type(self)(self.name, *(part[chosen] for part in parts))


def narrowed(ablation: Ablation, where: Row | None) -> Ablation:
    """An ablation of those rows that have the values of ``where`` in its columns.

    Raises:
        ValueError: if there are none, or ``where`` names something that is no column.
    """
    if not where:
        return ablation
    rows = [row for line in lines(ablation.rows, ablation.axes, where).values() for row in line]
    if not rows:
        raise ValueError(f"No cell has {dict(where)}; there are {list(lines(ablation.rows, ablation.axes))}.")
    return replace(ablation, rows=tuple(rows))


def means_of(ablation: Ablation, metrics: Iterable[str], ci: float) -> Table:
    """The summary of an ablation, in which metrics have means.

    Raises:
        ValueError: if one has none.
    """
    means = ablation.summary(ci=ci)
    for metric in metrics:
        checked_metric(means, metric, ablation.rows)
    return means


def curves_of(means: Table, axes: Sequence[str], metric: str) -> list[Curve]:
    """The means and intervals of a metric, by line; none where no finished cell has it.

    Args:
        means: what `Ablation.summary` returns.
        axes: names of the grid's axes.
        metric: the name of a metric with a mean.
    """
    keys = ("alpha", metric, f"{metric}.low", f"{metric}.high", f"{metric}.n")
    found = {name: [row for row in line if row[f"{metric}.n"]] for name, line in lines(means, axes).items()}
    return [
        Curve(name, *(np.array([row[key] for row in line]) for key in keys)) for name, line in found.items() if line
    ]


def both(means: Table, axes: Sequence[str], x: str, y: str) -> tuple[list[Curve], list[Curve]]:
    """Curves of two metrics, at those alphas of each line that have both."""
    across, up = ({curve.name: curve for curve in curves_of(means, axes, metric)} for metric in (x, y))
    pairs = [(across[name], up[name]) for name in across if name in up]
    cut = [(one.take(np.isin(one.alphas, two.alphas)), two.take(np.isin(two.alphas, one.alphas))) for one, two in pairs]
    kept = [(one, two) for one, two in cut if len(one.alphas)]
    return [one for one, _ in kept], [two for _, two in kept]


def points_of(table: Table, x: str, y: str) -> Array:
    """Two columns of numbers as points, shape (rows, 2)."""
    return np.array([table.column(x), table.column(y)], dtype=np.float64).T


def with_layers(ablation: Ablation) -> list[dict[str, Any]]:
    """The finished rows that tell the sparsity of layers."""
    return [row for row in ablation.rows if row["status"] == "ok" and isinstance(row.get(LAYERS), Mapping)]


def layers_of(rows: Sequence[Row]) -> tuple[Array, list[str], Array]:
    """Alphas, layers in the order in which rows name them, and shares of zeros, mean over seeds, (layers, alphas).

    Args:
        rows: finished ones of one line with the metric ``layers``.
    """
    layers = list(dict.fromkeys(layer for row in rows for layer in row[LAYERS]))
    alphas = np.unique([float(row["alpha"]) for row in rows])
    known: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        for layer, share in row[LAYERS].items():
            if is_number(share):
                known.setdefault((layer, row["alpha"]), []).append(float(share))
    shares = [[np.mean(known.get((layer, alpha), [np.nan])) for alpha in alphas] for layer in layers]
    return alphas, layers, np.array(shares)


def learning_of(points: Sequence[Row], metric: str) -> tuple[Array, list[Array], list[Array]]:
    """Alphas, and for each the epochs that all its seeds have, and the metric's means there.

    Args:
        points: of one line, with the metric as a number. Of two points of a cell at one epoch the later counts.
        metric: the name of a metric.
    """
    cells: dict[float, dict[int, dict[float, float]]] = {}
    for point in points:
        cells.setdefault(point["alpha"], {}).setdefault(point["seed"], {})[point["epoch"]] = float(point[metric])
    alphas = sorted(cells)
    epochs = [sorted(set.intersection(*map(set, cells[alpha].values()))) for alpha in alphas]
    means = [
        np.array([np.mean([seed[epoch] for seed in cells[alpha].values()]) for epoch in known])
        for alpha, known in zip(alphas, epochs, strict=True)
    ]
    return np.array(alphas), [np.array(known) for known in epochs], means


def only_line(rows: Iterable[_R], axes: Sequence[str], where: Row | None, what: str) -> tuple[str, list[_R]]:
    """The one line that ``where`` leaves, and its name.

    Raises:
        ValueError: if it leaves none, or more than one.
    """
    found = lines(rows, axes, where)
    if not found:
        raise ValueError(f"There are no {what}{f' with {dict(where)}' if where else ''}.")
    if len(found) > 1:
        columns = ", ".join(line_columns(axes))
        raise ValueError(f"There are {what} of {list(found)}; choose one of them by where, a dict of {columns}.")
    return next(iter(found.items()))


def is_number(value: Any) -> bool:
    """Whether a metric can be drawn; bools are 0 and 1."""
    return isinstance(value, int | float)
