"""The demo's pictures; they need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from torchreg.penalties import L1, L2
from torchreg.plots import BoundaryDisplay, GeometryDisplay, PathDisplay, WeightHistogramDisplay, panels

if TYPE_CHECKING:
    from torchreg.cli.demo.data import DemoData
    from torchreg.cli.demo.linear import LinearProblem
    from torchreg.cli.demo.results import Result


def draw(
    results: Sequence[Result], boundaries: Sequence[Result], points: DemoData, linear: LinearProblem, *, out: Path
) -> list[str]:
    """Write all pictures.

    Args:
        results: the models of the table, for the histogram.
        boundaries: classifiers of ``points``.
        points: data with two features.
        linear: the regression whose L1 path is drawn.
        out: an existing folder.

    Returns:
        The names of the files.
    """
    draw_weights(results, out / "weights.png")
    draw_boundaries(boundaries, points, out / "boundaries.png")
    draw_geometry(out / "geometry.png")
    draw_path(linear, out / "path.png")
    return ["weights.png", "boundaries.png", "geometry.png", "path.png"]


def draw_weights(results: Sequence[Result], path: Path) -> None:
    """A histogram of weights per model, zeros apart."""
    figure, axes = panels(len(results), size=(6.0, 7.0))
    WeightHistogramDisplay.from_weights({r.name: r.model for r in results}, ax=axes)
    figure.savefig(path)


def draw_boundaries(results: Sequence[Result], points: DemoData, path: Path) -> None:
    """Decision boundaries of classifiers of the same points."""
    figure, axes = panels(2, (len(results) + 1) // 2, size=(8.0, 6.4))
    for ax, r in zip(axes, results, strict=False):
        title = f"{r.name}\ntest accuracy {r.test_score:.2f}, zeros {r.zeros / r.total:.0%}"
        BoundaryDisplay.from_model(r.model, points.X, points.y, title=title, ax=ax)
        ax.label_outer()
    figure.savefig(path)


def draw_geometry(path: Path) -> None:
    """The diamond and the circle, with the same loss."""
    hessian, center = torch.tensor([[0.6, 0.3], [0.3, 1.2]]), torch.tensor([0.4, 1.6])
    figure, axes = panels(1, 2, size=(8.0, 5.0))
    for ax, penalty, title in zip(axes, (L1(1.0), L2(1.0)), ("L1: a weight is zero", "L2: none is"), strict=True):
        GeometryDisplay.from_quadratic(hessian, center, penalty, title=title, ax=ax)
        ax.label_outer()
    figure.savefig(path)


def draw_path(linear: LinearProblem, path: Path) -> None:
    """L1 weights of the linear model against alpha."""
    figure, (ax,) = panels()
    alphas = torch.logspace(-3.0, 0.0, 100)
    PathDisplay.from_coefs(alphas, linear.path(alphas), names=linear.names, ax=ax)
    figure.savefig(path)
