"""Learning curves of an ablation, coloured by the penalty's strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from torchreg.plots.ablation_data import is_number, learning_of, only_line
from torchreg.plots.labels import name_axes, write
from torchreg.plots.style import INK, Array, axes_or_new, colour_steps, figure_of, finite, rgba, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torchreg.ablation import Ablation

_BASE = (0, (5, 2))


class CurvesDisplay:
    """A metric against the epoch, mean over seeds, a curve for each alpha: dark is weak, bright is strong.

    alpha = 0 is a dashed black curve.

    Args:
        alphas: ascending, shape (n,).
        epochs: at which each alpha's curve is known, n arrays.
        means: the metric there, n arrays.
        metric: what the y axis calls it.
        title: of the axes, such as the penalty's name.

    Attributes:
        ax_, figure_: where it was drawn. lines_: one for each alpha. bar_: names the colours.

    Raises:
        ValueError: if there are no curves, or their numbers do not fit.

    Example:
        >>> from torchreg.plots import CurvesDisplay, panels
        >>> epochs, losses = [np.arange(3)] * 2, [np.array([1.0, 0.5, 0.4]), np.array([1.0, 0.7, 0.6])]
        >>> display = CurvesDisplay(np.array([0.0, 0.1]), epochs, losses, metric="loss").plot(panels()[1][0])
        >>> display.lines_[1].get_ydata()
        array([1. , 0.7, 0.6])
    """

    def __init__(
        self, alphas: Array, epochs: Sequence[Array], means: Sequence[Array], *, metric: str, title: str = ""
    ) -> None:
        if not len(alphas) == len(epochs) == len(means) > 0:
            raise ValueError(
                f"CurvesDisplay needs epochs and means for each alpha, got {len(epochs)} and {len(means)} for "
                f"{len(alphas)} alphas."
            )
        self.alphas, self.epochs, self.means = alphas, tuple(epochs), tuple(means)
        self.metric, self.title = metric, title

    @classmethod
    def from_ablation(
        cls, ablation: Ablation, metric: str, *, where: Mapping[str, Any] | None = None, ax: Axes | None = None,
        **style: Any,
    ) -> Self:  # fmt: skip
        """Draw what the cells of `torchreg.ablation.ablate` reported while they ran.

        A mean is drawn at the epochs that every seed of its alpha has reached, so that it never jumps because
        another set of seeds is averaged.

        Args:
            ablation: its `curves` are drawn.
            metric: the name of a number that cells reported.
            where: columns and the values that they must have, so that one penalty and value of each axis is
                left, such as ``{"penalty": "L1"}``.
            ax: axes to draw on; None makes a figure.
            style: for the curves, `matplotlib.axes.Axes.plot`.

        Raises:
            ValueError: if no cell reported the metric as a number, or what is left is more than one line.
        """
        points = [point for point in ablation.curves() if is_number(point.get(metric))]
        title, line = only_line(points, ablation.axes, where, f"cells that reported {metric!r}")
        return cls(*learning_of(line, metric), metric=metric, title=title).plot(ax, **style)

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw on ``ax``, or on a new figure; ``style`` goes to the curves."""
        self.ax_ = ax = axes_or_new(ax)
        self.figure_ = figure_of(ax)
        positive = self.alphas > 0
        colours = np.tile(rgba(INK), (len(positive), 1))
        colours[positive] = shades(int(positive.sum()))
        self.lines_ = [
            ax.plot(epochs, finite(means), **{**_look(alpha, epochs), "color": colour, **style})[0]
            for alpha, epochs, means, colour in zip(self.alphas, self.epochs, self.means, colours, strict=True)
        ]
        self.bar_ = colour_steps(ax, colours, [f"{alpha:.3g}" for alpha in self.alphas], "alpha")
        ax.locator_params(axis="x", integer=True)
        name_axes(ax, "epoch", self.metric)
        write(ax.title, self.title)
        return self


def _look(alpha: float, epochs: Array) -> dict[str, Any]:
    """Dashes for alpha = 0, in front; a marker for a curve of one epoch, which has no line."""
    base = {"linestyle": _BASE, "zorder": 3.0} if alpha == 0 else {"zorder": 2.0}
    return {"linewidth": 1.4, "marker": "o" if len(epochs) == 1 else "", "markersize": 3.5, **base}
