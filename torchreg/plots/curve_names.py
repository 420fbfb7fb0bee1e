"""Names beside the ends of curves, moved apart where they would overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from torchreg.plots.alpha_axis import points_high, points_wide
from torchreg.plots.style import Array, extent, figure_of, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT = 10.5  # points from one name to the next
_AWAY = 14.0  # points from a curve's end to its name
_ROUNDS = 4  # of growing limits, which need larger gaps
_LONGEST = 24  # letters, in axes that are wide enough for them
_LETTER, _SHARE = 4.6, 0.35  # points a letter is wide, about; the share of the axes that names may take
_LAYOUT = 1.08  # the layout widens axes at least so much


def name_ends(
    ax: Axes, x: float, ends: Array, names: Sequence[str], lines: Sequence[Any], *, side: Literal["left", "right"]
) -> list[Any]:
    """Write each name in the colour of its line, joined to the line's end.

    Args:
        ax: where the lines are; its y limits grow if the names need it.
        x: where all lines end.
        ends: the lines' heights there, shape (n,).
        names: of the lines.
        lines: give the colours.
        side: on which the names stand.
    """
    heights = _heights(ax, ends)
    longest = min(_LONGEST, int(_SHARE * points_wide(ax) / _LETTER))
    away, align, edge = (-_AWAY, "right", 1.0) if side == "left" else (_AWAY, "left", 0.0)
    return [
        ax.annotate(
            _short(name, longest), (x, end), (away, y), xycoords="data", textcoords=("offset points", "data"),
            ha=align, va="center", fontsize=8, color=line.get_color(),
            arrowprops={
                "arrowstyle": "-", "color": line.get_color(), "linewidth": 0.6, "shrinkA": 1, "shrinkB": 1,
                "relpos": (edge, 0.5),
            },
        )
        for name, end, y, line in zip(names, ends, heights, lines, strict=True)
    ]  # fmt: skip


def room_for(labels: Sequence[Any], ax: Axes) -> float:
    """The share of the curves' span that the widest name needs beside them."""
    figure = figure_of(ax)
    widest = max(extent(label).width for label in labels) * 72.0 / figure.dpi + _AWAY + 4.0
    width = _LAYOUT * points_wide(ax)
    return 1.03 * widest / max(width - widest, widest)


def names_that_fit(ax: Axes) -> int:
    """How many names have room above each other."""
    return int(points_high(ax) / _HEIGHT)


def _heights(ax: Axes, ends: Array) -> Array:
    """Where names stand, apart and within the y limits, which grow until they are."""
    heights = ends
    for _ in range(_ROUNDS):
        low, high = ax.get_ylim()
        gap = _HEIGHT / points_high(ax) * (high - low)
        heights = spread(ends, gap)
        ax.set_ylim(min([low, *(heights - gap / 2)]), max([high, *(heights + gap / 2)]))
    return heights


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
