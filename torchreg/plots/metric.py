"""A metric of an ablation against the penalty's strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from torchreg.plots.ablation_data import Curve, curves_of, means_of, narrowed
from torchreg.plots.alpha_axis import check_alphas, limit, name_close_alphas, scale_alpha
from torchreg.plots.labels import legend, name_axes
from torchreg.plots.style import INK, MARKERS, PALETTE, axes_or_new, figure_of, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torchreg.ablation import Ablation

_DASHES = ("-", (0, (1, 1)), (0, (6, 1, 1, 1)))
_BAND = 0.5  # opacity of all intervals together, each at most a third of it
_BASE = (0, (6, 3))


class MetricDisplay:
    """The mean of a metric over seeds against log alpha, with its interval, a line for each penalty.

    What alpha = 0 gave has no place on a logarithmic axis: it is a dashed horizontal line with its
    own band, once where all lines share it, else in each line's colour. Where a mean has no
    interval, since n < 2, it has no band.

    Args:
        curves: means and intervals, one for each line.
        metric: what the y axis calls it.
        ci: the intervals' confidence, such as 0.95.

    Attributes:
        ax_, figure_: where it was drawn.
        lines_: the means where alpha > 0, by the curve's name. bands_: their intervals; whiskers_: those
        of means whose neighbours have none. baselines_: the lines of alpha = 0, baseline_bands_ their
        intervals, by the curve's name, or by "" where it is common to all. legend_: names them all.

    Raises:
        ValueError: if there are no curves, an alpha is negative, or none is positive.

    Example:
        >>> from torchreg.plots import Curve, MetricDisplay, panels
        >>> mean = np.array([0.9, 0.8, 0.7])
        >>> curve = Curve("L1", np.array([0.0, 0.1, 1.0]), mean, mean - 0.1, mean + 0.1, np.array([5, 5, 5]))
        >>> display = MetricDisplay([curve], metric="accuracy").plot(panels()[1][0])
        >>> display.lines_["L1"].get_ydata()
        array([0.8, 0.7])
    """

    def __init__(self, curves: Sequence[Curve], *, metric: str, ci: float = 0.95) -> None:
        if not curves:
            raise ValueError(f"MetricDisplay got no curves of {metric!r}; finish some cells that return it.")
        check_alphas("MetricDisplay", np.unique(np.concatenate([curve.alphas for curve in curves])))
        self.curves, self.metric, self.ci = tuple(curves), metric, ci

    @classmethod
    def from_ablation(
        cls, ablation: Ablation, metric: str, *, where: Mapping[str, Any] | None = None, ci: float = 0.95,
        ax: Axes | None = None, **style: Any,
    ) -> Self:  # fmt: skip
        """Draw a metric of `torchreg.ablation.ablate`'s result.

        Cells that differ in more than alpha and seed are never averaged: each penalty, each value of an axis
        and each mode has a line of its own.

        Args:
            ablation: its `summary` is drawn.
            metric: the name of a number that cells returned.
            where: columns and the values that they must have, such as ``{"optimizer": "adam"}``; None draws all.
            ci: confidence of the intervals.
            ax: axes to draw on; None makes a figure.
            style: for the means, `matplotlib.axes.Axes.plot`.

        Raises:
            ValueError: if no finished cell has the metric as a number, none of them has alpha > 0, or ``where`` leaves
                no cells.
        """
        curves = curves_of(means_of(narrowed(ablation, where), [metric], ci), ablation.axes, metric)
        return cls(curves, metric=metric, ci=ci).plot(ax, **style)

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw on ``ax``, or on a new figure; ``style`` goes to the means."""
        self.ax_ = ax = axes_or_new(ax)
        self.figure_ = figure_of(ax)
        positive = np.unique(np.concatenate([curve.alphas[curve.alphas > 0] for curve in self.curves]))
        scale_alpha(ax, positive)
        self.lines_: dict[str, Any] = {}
        self.bands_: dict[str, Any] = {}
        self.whiskers_: dict[str, Any] = {}
        for turn, curve in enumerate(self.curves):
            self._draw(curve.take(curve.alphas > 0), {**look(turn), **style})
        self.baselines_, self.baseline_bands_ = self._baselines()
        name_axes(ax, "alpha", self.metric)
        limit(ax, positive)
        name_close_alphas(ax, positive)
        self.legend_ = self._legend()
        return self

    @property
    def _opacity(self) -> float:
        return _BAND / max(3, len(self.curves))

    def _draw(self, curve: Curve, chosen: dict[str, Any]) -> None:
        line = self.ax_.plot(curve.alphas, finite(curve.mean), **chosen)[0]
        low, high = finite(curve.low), finite(curve.high)
        faint: dict[str, Any] = {"color": line.get_color(), "linewidth": 0, "zorder": line.get_zorder() - 0.5}
        band = self.ax_.fill_between(curve.alphas, low, high, alpha=self._opacity, **faint)
        alone = _alone(np.isfinite(low) & np.isfinite(high))
        bars = self.ax_.vlines(curve.alphas[alone], low[alone], high[alone], colors=line.get_color(), linewidths=1.0)
        self.lines_[curve.name], self.bands_[curve.name], self.whiskers_[curve.name] = line, band, bars

    def _baselines(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Horizontal lines for alpha = 0 and their bands."""
        bases = {curve.name: curve.take(curve.alphas == 0) for curve in self.curves}
        values = {name: (c.mean[0], c.low[0], c.high[0]) for name, c in bases.items() if len(c.alphas)}
        if len(values) == len(bases) and len({str(value) for value in values.values()}) == 1:
            values = {"": next(iter(values.values()))}
        lines, bands = {}, {}
        for name, (mean, low, high) in values.items():
            colour = self.lines_[name].get_color() if name else INK
            if np.isfinite(mean):
                lines[name] = self.ax_.axhline(mean, color=colour, linewidth=1.2, linestyle=_BASE, zorder=1.8)
            if np.isfinite(low) and np.isfinite(high):
                bands[name] = self.ax_.axhspan(
                    low, high, color=colour, alpha=self._opacity / 2.0, linewidth=0, zorder=1.2
                )
        return lines, bands

    def _legend(self) -> Any:
        named = {name: line for name, line in self.lines_.items() if len(line.get_xdata())}
        handles, names = list(named.values()), list(named)
        if self.baselines_:
            handles.append(next(iter(self.baselines_.values())))
            names.append("alpha = 0")
        counts = np.concatenate([curve.n[np.isfinite(curve.low)] for curve in self.curves])
        if len(counts):
            few, many = int(counts.min()), int(counts.max())
            handles.append(next(iter(self.bands_.values())))
            names.append(f"{100.0 * self.ci:.4g} % interval, n = {few}" + (f" to {many}" if many > few else ""))
        return legend(self.ax_, handles, names)


def look(turn: int) -> dict[str, Any]:
    """Colour, marker and dashes of the curve whose turn it is: no two alike among the first 21."""
    dashes, colour = divmod(turn, len(PALETTE))
    return {
        "color": PALETTE[colour], "marker": MARKERS[colour], "linestyle": _DASHES[dashes % len(_DASHES)],
        "linewidth": 1.6, "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.6,
    }  # fmt: skip


def _alone(known: Any) -> Any:
    """True where neither neighbour is."""
    wide = np.concatenate([[False], known, [False]])
    return known & ~wide[:-2] & ~wide[2:]
