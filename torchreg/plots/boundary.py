"""Decision boundaries of a classifier of two features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from torchreg.plots.style import INK, MARKERS, PALETTE, Array, axes_or_new, figure_of, rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TINT = 0.45  # opacity of a class's colour where the classifier is certain
_FEATURES = ("feature 1", "feature 2")


class BoundaryDisplay:
    """Where a classifier of two features changes its mind.

    The background takes the colour of the likeliest class with its lead and is white where two
    are equally likely; lines are the boundaries, points the data.

    Args:
        x0, x1: grids of the two features, shapes (n0,) and (n1,).
        probabilities: of each class on the grid, shape (n1, n0, classes).
        points: the data, shape (n, 2).
        labels: their classes, integers from 0, shape (n,).
        features: names of the two features.
        title: of the axes.

    Attributes:
        ax_, figure_: where it was drawn.
        image_, boundaries_, points_: the background, a contour set per line, a scatter per class.

    Example:
        >>> from torchreg.plots import BoundaryDisplay, panels
        >>> X, y = torch.tensor([[-1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1])
        >>> display = BoundaryDisplay.from_model(lambda x: x[:, 0], X, y, ax=panels()[1][0])
        >>> display.probabilities[0, 0].argmax()
        np.int64(0)
    """

    def __init__(
        self, *, x0: Array, x1: Array, probabilities: Array, points: Array, labels: Array,
        features: Sequence[str] = _FEATURES, title: str = "",
    ) -> None:  # fmt: skip
        self.x0, self.x1, self.probabilities = x0, x1, probabilities
        self.points, self.labels, self.features, self.title = points, labels, tuple(features), title

    @classmethod
    def from_model(
        cls, model: Callable[[Tensor], Tensor], points: Tensor, labels: Tensor, *, resolution: int = 200,
        features: Sequence[str] = _FEATURES, title: str = "", ax: Axes | None = None, **style: Any,
    ) -> Self:  # fmt: skip
        """Ask a model for its classes on a grid around the data, and draw them.

        Args:
            model: maps (n, 2) to logits: (n, classes), or (n,) or (n, 1) for two classes. A
                module is asked in evaluation mode and left in its own.
            points: the data, shape (n, 2), on the model's device and in its dtype.
            labels: their classes, integers from 0, shape (n,).
            resolution: grid points a side, >= 2.
            features: names of the two features.
            title: of the axes.
            ax: axes to draw on; None makes a figure.
            style: for the points, `matplotlib.axes.Axes.scatter`.

        Raises:
            ValueError: if there are not two features.
        """
        if points.dim() != 2 or points.shape[1] != 2:
            raise ValueError(
                f"BoundaryDisplay needs points of shape (n, 2), got {tuple(points.shape)}; choose 2 features."
            )
        low, high = points.amin(0), points.amax(0)
        share = torch.linspace(-0.1, 1.1, resolution, dtype=points.dtype, device=points.device)[:, None]
        x0, x1 = (low + share * (high - low)).T
        with _evaluating(model), torch.no_grad():
            logits = model(torch.cartesian_prod(x1, x0).flip(1))
        probabilities = _probabilities(logits).reshape(resolution, resolution, -1)
        a, b, p, xy, k = (t.detach().cpu().numpy() for t in (x0, x1, probabilities, points, labels))
        made = cls(x0=a, x1=b, probabilities=p, points=xy, labels=k, features=features, title=title)
        return made.plot(ax, **style)

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw on ``ax``, or on a new figure; ``style`` goes to the points."""
        self.ax_ = ax = axes_or_new(ax)
        self.figure_ = figure_of(ax)
        extent = (self.x0[0], self.x0[-1], self.x1[0], self.x1[-1])
        self.image_ = ax.imshow(
            self._colours(), extent=extent, origin="lower", aspect="auto", interpolation="bilinear", zorder=0
        )
        self.boundaries_ = [
            ax.contour(self.x0, self.x1, lead, levels=[0.0], colors=INK, linewidths=1.4)
            for lead in self._leads()
            if lead.min() < 0 < lead.max()
        ]
        self.points_ = [self._scatter(k, style) for k in range(self.probabilities.shape[2])]
        ax.set(xlabel=self.features[0], ylabel=self.features[1], title=self.title)
        return self

    def _colours(self) -> Array:
        top = np.sort(self.probabilities, axis=2)
        lead = (top[..., -1] - top[..., -2])[..., None]
        colours = np.stack([rgb(PALETTE[k % len(PALETTE)]) for k in range(self.probabilities.shape[2])])
        return np.asarray(1.0 - _TINT * lead * (1.0 - colours[self.probabilities.argmax(2)]))

    def _leads(self) -> list[Array]:
        """How far each class leads the best other one; two classes share one boundary."""
        p = self.probabilities
        leads = [p[..., k] - np.delete(p, k, axis=2).max(2) for k in range(p.shape[2])]
        return leads[:1] if len(leads) == 2 else leads

    def _scatter(self, k: int, style: dict[str, Any]) -> Any:
        look = {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)], "label": f"class {k}"}
        mine = self.points[self.labels == k]
        return self.ax_.scatter(*mine.T, **{"s": 22, "edgecolors": "white", "linewidths": 0.6, **look, **style})


def _probabilities(logits: Tensor) -> Tensor:
    if logits.dim() == 1 or logits.shape[1] == 1:
        logits = torch.stack([torch.zeros_like(logits.reshape(-1)), logits.reshape(-1)], 1)
    return logits.softmax(1)


@contextmanager
def _evaluating(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A module and its children in evaluation mode, each put back into its own mode."""
    training = [m for m in model.modules() if m.training] if isinstance(model, Module) else []
    try:
        for m in training:
            m.training = False
        yield
    finally:
        for m in training:
            m.training = True
