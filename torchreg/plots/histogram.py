"""Weights of one or several models: a histogram, with a bar of its own for exact zeros."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from torchreg.plots.style import INK, MUTED, PALETTE, Array, axes_or_new, figure_of
from torchreg.selection.selectors import weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Weights = Tensor | Module | Mapping[str, Tensor] | Iterable[Tensor]


class WeightHistogramDisplay:
    """Histograms of weights that are not zero, and bars for those that are exactly zero.

    Counts are on a logarithmic axis: a few bins hold most weights. The bars of zeros stand to the
    left of the histogram; each says which share of its set they are.

    Args:
        edges: edges of the bins, shape (bins + 1,).
        counts: non-zero weights in each bin, shape (bins,), by the set's name.
        zeros: weights that equal 0, by the set's name.

    Attributes:
        axes_: where it was drawn, one or one per set; ax_ is the first. figure_: their figure.
        steps_, bars_: the histogram and the bar of zeros of each set, by its name.

    Example:
        >>> from torchreg.plots import WeightHistogramDisplay, panels
        >>> WeightHistogramDisplay.from_weights({"w": torch.tensor([0.0, 1.0, -0.0])}, ax=panels()[1][0]).zeros
        {'w': 2}
    """

    def __init__(self, *, edges: Array, counts: Mapping[str, Array], zeros: Mapping[str, int]) -> None:
        self.edges, self.counts, self.zeros = edges, dict(counts), dict(zeros)

    @classmethod
    def from_weights(
        cls, sets: Mapping[str, Weights], *, bins: int = 60, ax: Axes | Sequence[Axes] | None = None, **style: Any
    ) -> Self:
        """Count the weights of each set in common bins, symmetric about 0, and draw.

        Args:
            sets: by name, a module (its `weights`), a tensor, or a dict or iterable of tensors.
            bins: number of bins.
            ax: axes to draw all sets on, or one for each; None makes a figure.
            style: for the histograms, `matplotlib.axes.Axes.stairs`.

        Raises:
            ValueError: if there are no sets, or a weight is NaN or infinite.
        """
        if not sets:
            raise ValueError("WeightHistogramDisplay got no weights; pass a dict such as {'L1': model}.")
        flat = {name: _flat(of) for name, of in sets.items()}
        bad = [name for name, w in flat.items() if not np.isfinite(w).all()]
        if bad:
            raise ValueError(f"WeightHistogramDisplay needs finite weights, got NaN or infinity in {bad}.")
        top = max((float(np.abs(w).max(initial=0.0)) for w in flat.values()), default=0.0) or 1.0
        edges = np.linspace(-top, top, bins + 1)
        counts = {name: np.histogram(w[w != 0], edges)[0] for name, w in flat.items()}
        zeros = {name: int((w == 0).sum()) for name, w in flat.items()}
        return cls(edges=edges, counts=counts, zeros=zeros).plot(ax, **style)

    def plot(self, ax: Axes | Sequence[Axes] | None = None, **style: Any) -> Self:
        """Draw all sets on ``ax`` or on a new figure, or each on its own of a sequence of axes.

        Raises:
            ValueError: if the number of axes is not that of the sets.
        """
        self.axes_ = list(ax) if isinstance(ax, (Sequence, np.ndarray)) else [axes_or_new(ax)]
        if len(self.axes_) not in (1, len(self.counts)):
            raise ValueError(
                f"{len(self.counts)} sets of weights need 1 or {len(self.counts)} axes, got {len(self.axes_)}."
            )
        self.ax_ = self.axes_[0]
        self.figure_ = figure_of(self.ax_)
        self.steps_: dict[str, Any] = {}
        self.bars_: dict[str, Any] = {}
        together = len(self.axes_) == 1
        for k, name in enumerate(self.counts):
            place = (k, len(self.counts)) if together else (0, 1)
            self._draw(name, self.axes_[0 if together else k], PALETTE[k % len(PALETTE)], place, style)
        for one in self.axes_:
            self._finish(one)
        self.axes_[-1].set_xlabel("weight")
        return self

    def _draw(self, name: str, ax: Axes, colour: str, place: tuple[int, int], style: dict[str, Any]) -> None:
        k, of = place
        chosen = {"color": colour, "fill": of == 1, "linewidth": 1.4, "label": name, **style}
        self.steps_[name] = ax.stairs(self.counts[name], self.edges, **chosen)
        width = self._strip / of
        x = self._left + width * (k + 0.5)
        (self.bars_[name],) = ax.bar([x], [self.zeros[name]], 0.85 * width, color=colour)
        total = self.zeros[name] + int(self.counts[name].sum())
        share = f"{self.zeros[name] / max(total, 1):.0%}" if self.zeros[name] else "0"
        ax.annotate(share, (x, max(self.zeros[name], 0.6)), (0, 2), textcoords="offset points", ha="center", fontsize=8)

    @property
    def _strip(self) -> float:
        return 0.12 * float(self.edges[-1] - self.edges[0])

    @property
    def _left(self) -> float:
        return float(self.edges[0]) - 1.6 * self._strip

    def _finish(self, ax: Axes) -> None:
        most = max(*self.zeros.values(), *(int(c.max(initial=0)) for c in self.counts.values()), 1)
        ax.set_ylim(0.5, 4.0 * most)  # first, since a logarithmic axis warns where all counts are 0
        ax.set_yscale("log")
        ax.axvline(self._left + 1.25 * self._strip, color=MUTED, linewidth=0.8, linestyle=":")
        ticks = [t for t in ax.get_xticks() if self.edges[0] <= t <= self.edges[-1]]
        names = [f"{t:g}".replace("-", "\N{MINUS SIGN}") for t in ticks]
        ax.set_xticks([self._left + self._strip / 2, *ticks], labels=["= 0", *names])
        ax.set_xlim(self._left - 0.1 * self._strip, float(self.edges[-1]) + 0.1 * self._strip)
        ax.set_ylabel("count")
        ax.legend(loc="upper right", fontsize=8, frameon=False, labelcolor=INK)


def _flat(of: Weights) -> Array:
    """All weights of a set as one vector; half precision becomes float32, which holds it exactly."""
    if isinstance(of, Tensor):
        of = [of]
    named = weights(of) if isinstance(of, Module) else of
    tensors = named.values() if isinstance(named, Mapping) else named
    parts = [w.detach().reshape(-1).cpu() for w in tensors]
    joined = torch.cat([w if w.dtype == torch.float64 else w.float() for w in parts]) if parts else torch.empty(0)
    return np.asarray(joined.numpy())
