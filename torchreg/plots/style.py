"""The one place that imports matplotlib: the palette, and axes in the style of all our pictures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox
except ImportError as error:
    raise ImportError(f"torchreg.plots needs matplotlib ({error}); pip install matplotlib.") from error

Array = NDArray[Any]

# Told apart under each common colour blindness: Okabe and Ito, "Color Universal Design", 2008.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#222222"
MUTED = "#777777"
FAINT = "#C0C0C0"
_BRIGHTEST = 0.85  # of viridis; its end is yellow, which cannot be seen on white
_STEPS = 16  # names beside a bar of colours, at the most

_STYLE: Any = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "savefig.dpi": 150,
    "xtick.color": INK,
    "ytick.color": INK,
}


def panels(rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (6.0, 4.0)) -> tuple[Figure, list[Axes]]:
    """A figure outside pyplot, which never opens a window and need not be closed, and its axes.

    Args:
        rows: rows of axes; all share the x and the y axis.
        columns: columns of axes.
        size: width and height of the figure in inches.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained", dpi=150)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    return figure, list(grid.flat)


def axes_or_new(ax: Axes | None) -> Axes:
    """The caller's axes, or those of a new pyplot figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    with mpl.rc_context(_STYLE):
        return plt.subplots(figsize=(6.0, 4.0), layout="constrained")[1]


def figure_of(ax: Axes) -> Figure:
    """The figure on which axes stand."""
    return cast(Figure, ax.get_figure(root=True))


def svg(figure: Figure) -> bytes:
    """A figure as an SVG file, its letters as shapes: equal figures give equal bytes, on any machine's fonts."""
    file = BytesIO()
    with warnings.catch_warnings(), mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "torchreg"}):
        warnings.filterwarnings(
            "ignore", r"Glyph \d+ .* missing", UserWarning
        )  # a name in letters that no font here has
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def shades(count: int) -> Array:
    """Colours from dark to bright, none too bright for a white ground, shape (count, 4).

    They keep their order in grey and under each common colour blindness, as viridis does: Smith and van
    der Walt, "A better default colormap for matplotlib", 2015.
    """
    return np.asarray(mpl.colormaps["viridis"](np.linspace(0.0, _BRIGHTEST, count)))


def colour_steps(ax: Axes, colours: Array, names: Sequence[str], label: str) -> Any:
    """A bar beside the axes with a step for each colour, and the names of as many as have room.

    Args:
        ax: beside which it stands.
        colours: shape (n, 4).
        names: of the colours.
        label: of the bar.
    """
    count = len(colours)
    steps = ScalarMappable(BoundaryNorm(np.arange(count + 1) - 0.5, count), ListedColormap(colours))
    every = -(-count // _STEPS)
    bar = figure_of(ax).colorbar(steps, ax=ax, label=label, ticks=np.arange(0, count, every))
    bar.ax.set_yticklabels(names[::every])
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    return bar


def finite(values: Array) -> Array:
    """Values with NaN for those that are infinite, which have no place on an axis."""
    return np.where(np.isfinite(values), values, np.nan)


def many_lines(ax: Axes, curves: Array, **style: Any) -> LineCollection:
    """Any number of curves as one collection, which draws far faster than a line for each.

    Args:
        ax: where to draw them.
        curves: points, shape (curves, points, 2).
        style: for the collection, `matplotlib.collections.LineCollection`.
    """
    lines = LineCollection(list(curves), **style)
    ax.add_collection(lines, autolim=False)
    ax.update_datalim(curves.reshape(-1, 2))
    ax.autoscale_view()
    return lines


def mark(ax: Axes, x: float, text: str, **style: Any) -> Any:
    """A vertical line with its name upright beside it."""
    line = ax.axvline(x, **{"color": INK, "linewidth": 1.0, "linestyle": (0, (6, 3)), "zorder": 1.5, **style})
    ax.annotate(
        text, (x, 0.02), (4, 0), xycoords=ax.get_xaxis_transform(), textcoords="offset points",
        rotation=90, ha="left", va="bottom", fontsize=8, color=INK, path_effects=[halo()],
    )  # fmt: skip
    return line


def halo() -> Any:
    """A white outline that keeps text readable on lines."""
    return withStroke(linewidth=2.5, foreground="white")


def extent(text: Text) -> Bbox:
    """Where the letters of a text or an annotation stand, in pixels, without its arrow."""
    return Text.get_window_extent(text)


def rgb(colour: str) -> Array:
    """A colour as three numbers between 0 and 1."""
    return np.asarray(mpl.colors.to_rgb(colour))


def rgba(colour: str) -> Array:
    """A colour as three numbers between 0 and 1, and its opacity."""
    return np.asarray(mpl.colors.to_rgba(colour))


def spread(places: Array, gap: float) -> Array:
    """Places in the same order, at least ``gap`` apart, moved as little as pairs need.

    Args:
        places: where labels should stand, shape (n,).
        gap: the least distance of two labels, > 0.
    """
    order = np.argsort(places, kind="stable")
    blocks: list[tuple[float, int]] = []  # (mean, size) of labels packed together
    for place in places[order]:
        mean, size = float(place), 1
        while blocks and mean - blocks[-1][0] < gap * (size + blocks[-1][1]) / 2:
            above, count = blocks.pop()
            mean, size = (mean * size + above * count) / (size + count), size + count
        blocks.append((mean, size))
    packed = [mean + gap * (k - (size - 1) / 2) for mean, size in blocks for k in range(size)]
    moved = np.empty(len(packed))
    moved[order] = packed
    return moved
