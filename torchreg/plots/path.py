"""Coefficients against the penalty's strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from torchreg.plots.canvas import MUTED, PALETTE, Array, axes_or_new, figure_of, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COUNTS = 8  # numbers on the top axis, at the most
_LABELLED = 20  # more curves than this have no room for names
_DASHES = ("-", "--", ":")


class PathDisplay:
    """Coefficients against log alpha, with the number of non-zero ones on the top axis.

    Args:
        alphas: strengths, ascending, >= 0, shape (n,). From the least positive one down to 0 the
            axis is linear.
        coefs: coefficients at each alpha, shape (n, features).
        names: of the features; None for no names.

    Attributes:
        ax_, figure_: where it was drawn.
        lines_: one line per feature. top_: the axis of the counts. labels_: the names.

    Example:
        >>> from torchreg.plots import PathDisplay, panels
        >>> PathDisplay.from_coefs([0.1, 1.0], np.array([[0.5, -0.2], [0.3, 0.0]]), ax=panels()[1][0]).nonzeros
        array([2, 1])
    """

    def __init__(self, *, alphas: Array, coefs: Array, names: Sequence[str] | None = None) -> None:
        self.alphas, self.coefs = alphas, coefs
        self.names = None if names is None else tuple(names)

    @property
    def nonzeros(self) -> Array:
        """How many coefficients are not exactly zero, at each alpha."""
        return np.asarray(np.count_nonzero(self.coefs, axis=1))

    @classmethod
    def from_coefs(
        cls, alphas: Tensor | Array | Sequence[float], coefs: Tensor | Array, *, names: Sequence[str] | None = None,
        ax: Axes | None = None, **style: Any,
    ) -> Self:  # fmt: skip
        """Sort by alpha and draw.

        Args:
            alphas: strengths >= 0 in any order, shape (n,).
            coefs: coefficients at each alpha, shape (n, features).
            names: of the features.
            ax: axes to draw on; None makes a figure.
            style: for the curves, `matplotlib.axes.Axes.plot`.

        Raises:
            ValueError: if the shapes or the names do not fit, or an alpha is negative.
        """
        strengths, table = _array(alphas), _array(coefs)
        if strengths.ndim != 1 or table.ndim != 2 or len(strengths) != len(table):
            raise ValueError(
                f"PathDisplay needs alphas of shape (n,) and coefs of shape (n, features), got {strengths.shape} and "
                f"{table.shape}; transpose coefs if a row is a feature."
            )
        if names is not None and len(names) != table.shape[1]:
            raise ValueError(f"PathDisplay needs a name for each of {table.shape[1]} features, got {len(names)}.")
        if not (strengths >= 0).all() or not (strengths > 0).any():
            raise ValueError(f"PathDisplay needs alphas >= 0, one of them > 0, got {strengths.tolist()}.")
        order = np.argsort(strengths, kind="stable")
        return cls(alphas=strengths[order], coefs=table[order], names=names).plot(ax, **style)

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw on ``ax``, or on a new figure; ``style`` goes to the curves."""
        self.ax_ = ax = axes_or_new(ax)
        self.figure_ = figure_of(ax)
        self._scale(ax)
        ax.axhline(0.0, color=MUTED, linewidth=0.8, zorder=0)
        self.lines_ = [self._line(k, style) for k in range(self.coefs.shape[1])]
        self.labels_ = self._label() if self.names is not None and len(self.names) <= _LABELLED else []
        ax.set(xlabel="alpha", ylabel="coefficient", xlim=self._limits())
        self.top_ = self._count_axis()
        return self

    def _scale(self, ax: Axes) -> None:
        least, most = self.alphas[self.alphas > 0].min(), self.alphas[-1]
        if self.alphas[0] > 0:
            ax.set_xscale("log")
        else:
            decades = np.arange(np.ceil(np.log10(least)), np.floor(np.log10(most)) + 1)
            ax.set_xscale("symlog", linthresh=least)
            ax.set_xticks([0.0, *10.0**decades])
            ax.minorticks_off()

    def _limits(self) -> tuple[float, float]:
        """Of the alpha axis, with room for the names at its left."""
        transform = self.ax_.xaxis.get_transform()
        low, high = transform.transform(self.alphas[[0, -1]])
        room = (high - low) or 1.0
        left, right = transform.inverted().transform(
            np.array([low - (0.11 if self.labels_ else 0.03) * room, high + 0.03 * room])
        )
        return float(left), float(right)

    def _count_axis(self) -> Axes:
        places = self.ax_.xaxis.get_transform().transform(self.alphas)
        spaced = np.linspace(places[0], places[-1], _COUNTS)
        near = np.unique(np.abs(places[:, None] - spaced).argmin(0))
        shown = near[np.diff(places[near], prepend=-np.inf) > 0.5 * (spaced[1] - spaced[0])]
        top = self.ax_.twiny()
        self.figure_.sca(self.ax_)
        self._scale(top)
        top.set_xlim(self.ax_.get_xlim())
        top.set_xticks(self.alphas[shown], labels=[str(k) for k in self.nonzeros[shown]])
        top.minorticks_off()
        top.spines[["left", "right", "bottom"]].set_visible(False)
        top.spines["top"].set_edgecolor(self.ax_.spines["bottom"].get_edgecolor())
        top.set_xlabel("non-zero coefficients")
        return top

    def _line(self, k: int, style: dict[str, Any]) -> Any:
        turn, colour = divmod(k, len(PALETTE))
        chosen = {"color": PALETTE[colour], "linestyle": _DASHES[turn % len(_DASHES)], "linewidth": 1.6, **style}
        return self.ax_.plot(self.alphas, self.coefs[:, k], **chosen)[0]

    def _label(self) -> list[Any]:
        """Names beside the curves' left ends, moved apart where they would overlap."""
        ends = self.coefs[0]
        low, high = self.ax_.get_ylim()
        height = spread(ends, 0.052 * (high - low))
        return [
            self.ax_.annotate(
                name, (self.alphas[0], end), (-14, y), xycoords="data", textcoords=("offset points", "data"),
                ha="right", va="center", fontsize=8, color=line.get_color(),
                arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.6, "shrinkA": 1, "shrinkB": 1},
            )
            for name, end, y, line in zip(self.names or (), ends, height, self.lines_, strict=True)
        ]  # fmt: skip


def _array(values: Tensor | Array | Sequence[float]) -> Array:
    return values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
