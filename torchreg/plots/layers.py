"""How many weights of each layer are zero, against the penalty's strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from torchreg.plots.ablation_data import layers_of, only_line, with_layers
from torchreg.plots.alpha_axis import points_high, points_wide
from torchreg.plots.labels import plain, write
from torchreg.plots.style import INK, Array, axes_or_new, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torchreg.ablation import Ablation

_LINE, _DIGIT = 10.0, 6.4  # points from one line to the next, and of a digit
_CELL = (24.0, 11.0)  # points that a number in a cell needs, wide and high
_DARK = 0.55  # shares above it are drawn so dark that black letters cannot be read
_NAME = 32  # letters of a layer's name


class LayerSparsityDisplay:
    """A heat map of zeros in per cent: a row for each layer, a column for each alpha, at equal distances.

    A layer that no cell reported at an alpha is white. Numbers stand in the cells where there is room: 0 and 100
    only where all seeds have exactly none or all zeros.

    Args:
        alphas: ascending, shape (n,).
        layers: names, from the top down.
        shares: of zeros, mean over seeds, between 0 and 1, or NaN; shape (layers, n).
        title: of the axes, such as the penalty's name.

    Attributes:
        ax_, figure_: where it was drawn. image_: the heat map. bar_: its colour bar. texts_: the numbers in
        the cells, row by row; empty where there are too many cells.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> from torchreg.plots import LayerSparsityDisplay, panels
        >>> shares = np.array([[0.0, 0.5], [0.1, 1.0]])
        >>> display = LayerSparsityDisplay(np.array([0.0, 0.1]), ["conv", "head"], shares)
        >>> [text.get_text() for text in display.plot(panels()[1][0]).texts_]
        ['0', '50', '10', '100']
    """

    def __init__(self, alphas: Array, layers: Sequence[str], shares: Array, *, title: str = "") -> None:
        if shares.shape != (len(layers), len(alphas)) or not shares.size:
            raise ValueError(
                f"LayerSparsityDisplay needs shares of shape (layers, alphas), got {shares.shape} for "
                f"{len(layers)} layers and {len(alphas)} alphas."
            )
        self.alphas, self.layers, self.shares, self.title = alphas, tuple(layers), shares, title

    @classmethod
    def from_ablation(
        cls, ablation: Ablation, *, where: Mapping[str, Any] | None = None, ax: Axes | None = None, **style: Any
    ) -> Self:
        """Draw the metric ``layers`` of `torchreg.ablation.ablate`'s result: a dict layer -> share of zeros.

        Args:
            ablation: its finished rows are drawn.
            where: columns and the values that they must have, so that one penalty, mode and value of each
                axis is left, such as ``{"penalty": "L1"}``.
            ax: axes to draw on; None makes a figure.
            style: for the heat map, `matplotlib.axes.Axes.imshow`.

        Raises:
            ValueError: if no finished cell has the metric ``layers``, or what is left is more than one line.
        """
        title, rows = only_line(with_layers(ablation), ablation.axes, where, "finished cells with the metric 'layers'")
        return cls(*layers_of(rows), title=title).plot(ax, **style)

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw on ``ax``, or on a new figure; ``style`` goes to the heat map."""
        self.ax_ = ax = axes_or_new(ax)
        self.figure_ = figure_of(ax)
        chosen = {"cmap": "cividis_r", "interpolation": "nearest", "aspect": "auto", **style}
        self.image_ = ax.imshow(100.0 * self.shares, vmin=0.0, vmax=100.0, **chosen)
        self.bar_ = self.figure_.colorbar(self.image_, ax=ax, label="zeros, %")
        self.bar_.outline.set_visible(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        self._name_columns()
        self._name_rows()
        write(ax.title, self.title)
        self.texts_ = self._numbers()
        return self

    def _name_columns(self) -> None:
        names = [f"{alpha:.3g}" for alpha in self.alphas]
        wide = points_wide(self.ax_) / len(names)
        upright = wide < _DIGIT * (max(map(len, names)) + 1)
        every = max(1, int(np.ceil(_LINE / wide))) if upright else 1
        places = np.arange(0, len(names), every)
        self.ax_.set_xticks(places, labels=names[::every], rotation=90 if upright else 0)
        self.ax_.set_xlabel("alpha")

    def _name_rows(self) -> None:
        every = max(1, int(np.ceil(_LINE * len(self.layers) / points_high(self.ax_))))
        places = np.arange(0, len(self.layers), every)
        self.ax_.set_yticks(places, labels=[plain(self.layers[place], _NAME) for place in places], fontsize=8)
        for tick in self.ax_.yaxis.get_major_ticks():
            tick.label1.set_parse_math(False)
            tick.label2.set_parse_math(False)

    def _numbers(self) -> list[Any]:
        rows, columns = self.shares.shape
        if points_wide(self.ax_) < _CELL[0] * columns or points_high(self.ax_) < _CELL[1] * rows:
            return []
        return [
            self.ax_.text(
                column, row, _percent(share), ha="center", va="center", fontsize=7,
                color="white" if share > _DARK else INK,
            )
            for (row, column), share in np.ndenumerate(self.shares)
        ]  # fmt: skip


def _percent(share: float) -> str:
    """A share in whole per cent that never rounds to none or all."""
    if np.isnan(share):
        return ""
    if 0.0 < share < 0.01:
        return "<1"
    return ">99" if 0.99 < share < 1.0 else f"{100.0 * share:.0f}"
