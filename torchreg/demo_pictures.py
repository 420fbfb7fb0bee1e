"""The demo's pictures; they need matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torchreg.penalties import L1, L2
from torchreg.plots import BoundaryDisplay, GeometryDisplay, PathDisplay, WeightHistogramDisplay, panels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from torchreg.demo import Data, Result
    from torchreg.demo_linear import LinearProblem


def pictures(
    results: Sequence[Result], boundaries: Sequence[Result], points: Data, linear: LinearProblem
) -> dict[str, Figure]:
    """All pictures by file name.

    Args:
        results: the models of the table, for the histogram.
        boundaries: classifiers of ``points``.
        points: data with two features.
        linear: the regression whose L1 path is drawn.
    """
    return {
        "weights.png": weights_picture(results),
        "boundaries.png": boundaries_picture(boundaries, points),
        "geometry.png": geometry_picture(),
        "path.png": path_picture(linear),
    }


def weights_picture(results: Sequence[Result]) -> Figure:
    """A histogram of weights per model, zeros apart."""
    figure, axes = panels(len(results), size=(6.0, 7.0))
    WeightHistogramDisplay.from_weights({r.name: r.model for r in results}, ax=axes)
    return figure


def boundaries_picture(results: Sequence[Result], points: Data) -> Figure:
    """Decision boundaries of classifiers of the same points."""
    figure, axes = panels(2, (len(results) + 1) // 2, size=(8.0, 6.4))
    for ax, r in zip(axes, results, strict=False):
        title = f"{r.name}\ntest accuracy {r.test_score:.2f}, zeros {r.zeros / r.total:.0%}"
        BoundaryDisplay.from_model(r.model, points.X, points.y, title=title, ax=ax)
        ax.label_outer()
    return figure


def geometry_picture() -> Figure:
    """The diamond and the circle, with the same loss."""
    hessian, center = torch.tensor([[0.6, 0.3], [0.3, 1.2]]), torch.tensor([0.4, 1.6])
    figure, axes = panels(1, 2, size=(8.0, 5.0))
    for ax, penalty, title in zip(axes, (L1(1.0), L2(1.0)), ("L1: a weight is zero", "L2: none is"), strict=True):
        GeometryDisplay.from_quadratic(hessian, center, penalty, title=title, ax=ax)
        ax.label_outer()
    return figure


def path_picture(linear: LinearProblem) -> Figure:
    """L1 weights of the linear model against alpha."""
    figure, (ax,) = panels()
    alphas = torch.logspace(-3.0, 0.0, 100)
    PathDisplay.from_coefs(alphas, linear.path(alphas), names=linear.names, ax=ax)
    return figure
