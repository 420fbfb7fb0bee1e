"""Why L1 gives zeros and L2 does not: a penalty's ball, and the loss's contours that touch it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from torchreg.penalties import Penalty
from torchreg.plots.constrained_qp import check, constrained_minimiser, region
from torchreg.plots.style import INK, MUTED, PALETTE, Array, axes_or_new, figure_of, halo

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 361  # of a contour
_RADII = (0.6, 1.0, 1.35)  # of the contours, as shares of the touching one's


class GeometryDisplay:
    """A quadratic loss of two weights, minimised within a penalty's budget.

    ``minimise (w - center)' hessian (w - center) / 2  subject to  penalty(w) <= budget``; the contour
    through the solution touches the region. At a corner of the region a weight is exactly zero.

    Args:
        hessian: the loss's Hessian, shape (2, 2).
        center: where the loss is least, shape (2,).
        solution: the constrained minimiser, shape (2,).
        multiplier: the Lagrange multiplier: the solution minimises loss + multiplier * penalty.
        budget: the bound on the penalty.
        region: the closed boundary of ``penalty(w) <= budget``, shape (n, 2).
        title: of the axes.

    Attributes:
        ax_, figure_: where it was drawn.
        region_: the filled polygon. contours_: one line per loss level, the second touches.
        center_, solution_: the two points, lines of one marker.

    Example:
        >>> from torchreg import L1
        >>> from torchreg.plots import GeometryDisplay, panels
        >>> H, center = torch.tensor([[0.6, 0.3], [0.3, 1.2]]), torch.tensor([0.4, 1.6])
        >>> GeometryDisplay.from_quadratic(H, center, L1(1.0), ax=panels()[1][0]).solution
        array([0., 1.])
    """

    def __init__(
        self,
        *,
        hessian: Array,
        center: Array,
        solution: Array,
        multiplier: float,
        budget: float,
        region: Array,
        title: str = "",
    ) -> None:
        self.hessian, self.center, self.solution = hessian, center, solution
        self.multiplier, self.budget, self.region, self.title = multiplier, budget, region, title

    @classmethod
    def from_quadratic(
        cls,
        hessian: Tensor,
        center: Tensor,
        penalty: Penalty,
        *,
        budget: float = 1.0,
        title: str = "",
        ax: Axes | None = None,
        **style: Any,
    ) -> Self:
        """Solve the constrained problem to rounding, in float64 on the CPU, and draw it.

        Args:
            hessian: symmetric and positive definite, shape (2, 2).
            center: where the loss is least, shape (2,).
            penalty: a convex penalty of a tensor of shape (2,).
            budget: the bound on the penalty's value, > 0.
            title: of the axes.
            ax: axes to draw on; None makes a figure.
            style: for the contours, `matplotlib.axes.Axes.plot`.

        Raises:
            ValueError: if the penalty is not convex, or hessian, center or budget are not as above.
        """
        hessian, center = (t.detach().to("cpu", torch.float64) for t in (hessian, center))
        check(hessian, center, penalty, budget)
        solution, multiplier = constrained_minimiser(hessian, center, penalty, budget)
        boundary = region(center, penalty, budget)
        display = cls(
            hessian=hessian.numpy(), center=center.numpy(), solution=solution.numpy(), multiplier=multiplier,
            budget=budget, region=boundary.numpy(), title=title,
        )  # fmt: skip
        return display.plot(ax, **style)

    def plot(self, ax: Axes | None = None, **style: Any) -> Self:
        """Draw on ``ax``, or on a new figure; ``style`` goes to the contours."""
        self.ax_ = ax = axes_or_new(ax)
        self.figure_ = figure_of(ax)
        ax.axhline(0.0, color=MUTED, linewidth=0.8, zorder=0)
        ax.axvline(0.0, color=MUTED, linewidth=0.8, zorder=0)
        (self.region_,) = ax.fill(*self.region.T, facecolor=PALETTE[0] + "33", edgecolor=PALETTE[0], linewidth=1.6)
        self.contours_ = [self._contour(radius, style) for radius in _RADII]
        (self.center_,) = ax.plot(*self.center, "o", color=PALETTE[1])
        (self.solution_,) = ax.plot(*self.solution, "D", color=INK, zorder=4)
        self._label()
        ax.margins(0.09)  # room for the names at the top and the bottom
        ax.set(xlabel="$w_1$", ylabel="$w_2$", title=self.title, aspect="equal")
        return self

    def _label(self) -> None:
        """Each thing's name beside it, where a legend would cover the picture."""
        outer = self.contours_[-1].get_xydata()
        middle = (self.region.min(0) + self.region.max(0)) / 2
        place = ", ".join("0" if w == 0 else f"{w:.2g}" for w in self.solution)
        self._write("loss contours", outer[outer[:, 1].argmax()], PALETTE[1], shift=7)
        self._write("minimum", self.center, PALETTE[1], shift=8)
        self._write(f"penalty ≤ {self.budget:g}", self.region[self.region[:, 1].argmin()], PALETTE[0], shift=-8)
        leader = {"arrowstyle": "-", "color": INK, "linewidth": 0.7}
        self._write(f"({place})", middle + 0.45 * (self.solution - middle), INK, tip=self.solution, arrowprops=leader)

    def _write(self, text: str, at: Any, colour: str, *, shift: float = 0.0, tip: Any = None, **options: Any) -> None:
        if tip is None:
            options |= {"xytext": (0.0, shift), "textcoords": "offset points"}
        else:
            options |= {"xytext": tuple(at)}
        self.ax_.annotate(
            text, tuple(at if tip is None else tip), ha="center", va="center", fontsize=8, color=colour,
            path_effects=[halo()], zorder=5, **options,
        )  # fmt: skip

    def _contour(self, radius: float, style: dict[str, Any]) -> Any:
        """The ellipse of the loss level whose size is ``radius`` times the touching one's."""
        gap = self.solution - self.center
        level = float(gap @ self.hessian @ gap) or float(self.center @ self.hessian @ self.center) / 4
        angles = np.linspace(0.0, 2.0 * math.pi, _POINTS)
        values, vectors = np.linalg.eigh(self.hessian)
        circle = np.stack([np.cos(angles), np.sin(angles)])
        points = self.center[:, None] + vectors @ (circle * radius * math.sqrt(level) / np.sqrt(values)[:, None])
        touches = radius == 1.0
        chosen = {"color": PALETTE[1], "linewidth": 1.8 if touches else 1.0, "alpha": 1.0 if touches else 0.6, **style}
        return self.ax_.plot(*points, **chosen)[0]
