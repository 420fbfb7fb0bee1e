"""Two metrics of an ablation against each other, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from torchreg.plots.ablation_data import Curve, both, means_of, narrowed, points_of
from torchreg.plots.labels import legend, name_axes
from torchreg.plots.metric import look
from torchreg.plots.style import INK, Array, axes_or_new, figure_of, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torchreg.ablation import Ablation

_RING = 11.0  # points, of the rings around the front


class TradeoffDisplay:
    """A point for each penalty and alpha at its means of two metrics, with both intervals, and the Pareto front.

    The front is ringed: no other point is better in one metric and no worse in the other. It compares means;
    points whose intervals overlap may change places with other seeds. Points of a penalty are joined in the
    order of alpha.

    Args:
        x: means and intervals of the metric on the x axis, one for each penalty.
        y: of the other metric, with the same names and alphas.
        metrics: what the axes call them, x first.
        front: the front's points (x, y), shape (k, 2).

    Attributes:
        ax_, figure_: where it was drawn. lines_: the points of each penalty, by the curve's name.
        bars_: their intervals. front_: the rings, or None where there is no front. legend_: names them.

    Raises:
        ValueError: if there are no curves, or x and y differ in names or alphas.

    Example:
        >>> from torchreg.plots import Curve, TradeoffDisplay, panels
        >>> alphas, n, nan = np.array([0.1, 1.0]), np.array([1, 1]), np.full(2, np.nan)
        >>> sparsity = Curve("L1", alphas, np.array([0.5, 0.9]), nan, nan, n)
        >>> accuracy = Curve("L1", alphas, np.array([0.8, 0.7]), nan, nan, n)
        >>> front = np.array([[0.5, 0.8], [0.9, 0.7]])
        >>> display = TradeoffDisplay([sparsity], [accuracy], metrics=("sparsity", "accuracy"), front=front)
        >>> display.plot(panels()[1][0]).lines_["L1"].get_xydata().tolist()
        [[0.5, 0.8], [0.9, 0.7]]
    """

    def __init__(self, x: Sequence[Curve], y: Sequence[Curve], *, metrics: tuple[str, str], front: Array) -> None:
        if not x or [_shape(curve) for curve in x] != [_shape(curve) for curve in y]:
            raise ValueError(
                f"TradeoffDisplay needs curves of {metrics[0]!r} and {metrics[1]!r} with the same names and alphas, "
                f"got {[curve.name for curve in x]} and {[curve.name for curve in y]}."
            )
        self.x, self.y, self.metrics, self.front = tuple(x), tuple(y), metrics, front

    @classmethod
    def from_ablation(
        cls, ablation: Ablation, x: str, y: str, *, minimize: Sequence[str] = (),
        where: Mapping[str, Any] | None = None, ci: float = 0.95, ax: Axes | None = None, **style: Any,
    ) -> Self:  # fmt: skip
        """Draw two metrics of `torchreg.ablation.ablate`'s result.

        Args:
            ablation: its `summary` and `pareto` are drawn.
            x: the metric on the x axis.
            y: the metric on the y axis.
            minimize: those of the two where less is better.
            where: columns and the values that they must have, such as ``{"optimizer": "adam"}``; None draws all.
            ci: confidence of the intervals.
            ax: axes to draw on; None makes a figure.
            style: for the points, `matplotlib.axes.Axes.plot`.

        Raises:
            ValueError: if no finished cell has both metrics as numbers, or ``where`` leaves no cells.
        """
        chosen = narrowed(ablation, where)
        across, up = both(means_of(chosen, [x, y], ci), ablation.axes, x, y)
        front = points_of(chosen.pareto(x, y, minimize=minimize), x, y)
        return cls(across, up, metrics=(x, y), front=front).plot(ax, **style)

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw on ``ax``, or on a new figure; ``style`` goes to the points."""
        self.ax_ = ax = axes_or_new(ax)
        self.figure_ = figure_of(ax)
        self.lines_: dict[str, Any] = {}
        self.bars_: dict[str, Any] = {}
        for turn, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            line = ax.plot(
                finite(x.mean), finite(y.mean), **{**look(turn), "linewidth": 0.7, "markersize": 6.0, **style}
            )[0]
            self.lines_[x.name] = line
            self.bars_[x.name] = self._intervals(x, y, line.get_color())
        self.front_ = self._rings() if len(self.front) else None
        name_axes(ax, *self.metrics)
        rings = [self.front_] if self.front_ is not None else []
        self.legend_ = legend(ax, [*self.lines_.values(), *rings], [*self.lines_, *["Pareto front"][: len(rings)]])
        return self

    def _intervals(self, x: Curve, y: Curve, colour: Any) -> Any:
        errors = [np.abs(finite(np.stack([c.mean - c.low, c.high - c.mean]))) for c in (x, y)]
        return self.ax_.errorbar(
            finite(x.mean), finite(y.mean), xerr=errors[0], yerr=errors[1], fmt="none", ecolor=colour, elinewidth=0.7,
            alpha=0.5, zorder=1.5,
        )  # fmt: skip

    def _rings(self) -> Any:
        return self.ax_.plot(
            *self.front.T, linestyle="none", color=INK, marker="o", markersize=_RING, markerfacecolor="none",
            markeredgecolor=INK, markeredgewidth=1.1, zorder=3.0,
        )[0]  # fmt: skip


def _shape(curve: Curve) -> tuple[str, list[float]]:
    return curve.name, curve.alphas.tolist()
