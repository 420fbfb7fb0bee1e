"""Every figure that an ablation's rows allow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchreg.ablation.results.curves import lines
from torchreg.ablation.results.overview import SPARSITY, Overview
from torchreg.plots.ablation_data import (
    both,
    curves_of,
    is_number,
    layers_of,
    learning_of,
    points_of,
    with_layers,
)  # fmt: skip
from torchreg.plots.layers import LayerSparsityDisplay
from torchreg.plots.learning_curves import CurvesDisplay
from torchreg.plots.metric import MetricDisplay
from torchreg.plots.style import panels
from torchreg.plots.tradeoff import TradeoffDisplay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torchreg.ablation import Ablation

_WIDE, _HIGH = 6.4, 4.2  # inches
_ENTRY, _LAYER = 0.18, 0.22  # inches of a line of the legend, and of a layer's row
_TALLEST = 11.0  # inches, the height of a printed page
_POINT = ("penalty", "alpha", "seed", "mode", "epoch")
_LONGEST = 80  # letters of a file's name


@dataclass(frozen=True)
class Picture:
    """A figure with its words.

    Attributes:
        kind: a heading for figures of its kind.
        name: what it shows.
        figure: drawn.
        caption: what can be seen, in a sentence.
        contents: which lines, points or rows it has, for readers who do not see it.
    """

    kind: str
    name: str
    figure: Figure
    caption: str
    contents: str


def figures(ablation: Ablation) -> dict[str, Figure]:
    """Every figure that an ablation's rows allow, by names for files: small letters, digits, ``_`` and ``-``.

    Each metric against alpha, and against sparsity with the Pareto front; the zeros of each layer and the learning
    curves by penalty. Less is better of metrics whose names say so, such as ``val_loss``.

    Raises:
        ValueError: if the ablation has no rows.
    """
    found: dict[str, Figure] = {}
    for picture in pictures(ablation, Overview.of(ablation)):
        plain = re.sub("[^A-Za-z0-9_]+", "-", picture.name)[:_LONGEST].strip("-") or "figure"
        name, turn = plain, 1
        while name.lower() in found:
            turn += 1
            name = f"{plain}-{turn}"
        found[name.lower()] = picture.figure
    return found


def pictures(ablation: Ablation, overview: Overview) -> Iterator[Picture]:
    """Each metric against alpha and against sparsity, the layers' zeros, the learning curves."""
    yield from _metrics(ablation, overview)
    yield from _tradeoffs(ablation, overview)
    yield from _layers(ablation)
    yield from _curves(ablation)


def _metrics(ablation: Ablation, overview: Overview) -> Iterator[Picture]:
    for metric in overview.metrics:
        curves = curves_of(overview.table, ablation.axes, metric)
        if any((curve.alphas > 0).any() for curve in curves):
            figure, ax = _canvas(_ENTRY * len(curves))
            MetricDisplay(curves, metric=metric, ci=overview.ci).plot(ax)
            caption = f"{metric} against alpha: means over seeds, with {100.0 * overview.ci:.4g} % t-intervals."
            contents = f"Lines: {', '.join(curve.name for curve in curves)}."
            yield Picture("Metrics against alpha", metric, figure, caption, contents)


def _tradeoffs(ablation: Ablation, overview: Overview) -> Iterator[Picture]:
    for metric in overview.against_sparsity:
        x, y = both(overview.table, ablation.axes, SPARSITY, metric)
        if x:
            front = points_of(overview.front(metric), SPARSITY, metric)
            figure, ax = _canvas(_ENTRY * len(x))
            TradeoffDisplay(x, y, metrics=(SPARSITY, metric), front=front).plot(ax)
            wishes = f"{overview.wish(SPARSITY)} and {overview.wish(metric)}"
            rings = f" Ringed: the Pareto front for {wishes}." if len(front) else ""
            caption = (
                f"{metric} against {SPARSITY}: means over seeds, with {100.0 * overview.ci:.4g} % t-intervals.{rings}"
            )
            contents = f"Points: {', '.join(curve.name for curve in x)}."
            yield Picture("Trade-offs", f"{metric} against {SPARSITY}", figure, caption, contents)


def _layers(ablation: Ablation) -> Iterator[Picture]:
    for name, line in lines(with_layers(ablation), ablation.axes).items():
        alphas, layers, shares = layers_of(line)
        if shares.size:
            figure, ax = _canvas(_LAYER * len(layers) - _HIGH / 2)
            LayerSparsityDisplay(alphas, layers, shares, title=name).plot(ax)
            caption = f"{name}: zeros in each layer, in per cent, means over seeds."
            contents = f"A heat map of {len(layers)} layers and {len(alphas)} alphas."
            yield Picture("Sparsity of layers", f"layers {name}", figure, caption, contents)


def _curves(ablation: Ablation) -> Iterator[Picture]:
    points = [] if ablation.dir is None else ablation.curves()
    for name, line in lines(points, ablation.axes).items():
        found = dict.fromkeys(key for point in line for key, value in point.items() if is_number(value))
        for metric in (key for key in found if key not in (*_POINT, *ablation.axes)):
            alphas, epochs, means = learning_of([point for point in line if is_number(point.get(metric))], metric)
            figure, ax = _canvas(0.0)
            CurvesDisplay(alphas, epochs, means, metric=metric, title=name).plot(ax)
            caption = f"{name}: {metric} by epoch, means over seeds, coloured by alpha."
            yield Picture("Learning curves", f"{metric} by epoch {name}", figure, caption, f"{len(alphas)} curves.")


def _canvas(more: float) -> tuple[Figure, Any]:
    """A figure and its axes, so many inches higher than others."""
    figure, (ax,) = panels(size=(_WIDE, min(_TALLEST, _HIGH + max(0.0, more))))
    return figure, ax
