"""Words from users on pictures: drawn as they are, never as formulas, and as long as there is room for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torchreg.plots.alpha_axis import points_high, points_wide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

_LETTER = 5.0  # points a letter of a legend is wide, about
_LARGE = 6.4  # points of a letter beside an axis
_HANDLE = 40.0  # points of the sample before it, and of the room after it
_LONGEST = 48  # letters of a name


def plain(word: str, longest: int = _LONGEST) -> str:
    """A name without letters that cannot be drawn, its middle left out where it is too long."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in word)
    if len(shown) <= longest:
        return shown
    head = (longest - 1) // 2
    return f"{shown[:head]}…{shown[len(shown) - (longest - 1 - head) :]}"


def write(text: Text, word: str, longest: int = _LONGEST) -> Text:
    """Let a text show a name; ``$`` and ``_`` have no meaning in it."""
    text.set_parse_math(False)
    text.set_text(plain(word, longest))
    return text


def name_axes(ax: Axes, x: str, y: str) -> None:
    """Say what stands on both axes, in as many letters as they are long."""
    write(ax.xaxis.label, x, max(8, int(points_wide(ax) / _LARGE)))
    write(ax.yaxis.label, y, max(8, int(points_high(ax) / _LARGE)))


def legend(ax: Axes, handles: Sequence[Any], names: Sequence[str]) -> Any:
    """Samples with their names above the axes, where they cover nothing.

    Args:
        ax: whose width the names share.
        handles: artists that show the look of each.
        names: of the handles.
    """
    room = max(points_wide(ax), 1.0)
    longest = min(_LONGEST, max(8, int((room - _HANDLE) / _LETTER)))
    widest = max(len(plain(name, longest)) for name in names)
    columns = max(1, int(room / (_LETTER * widest + _HANDLE)))
    drawn = ax.legend(
        handles, ["?"] * len(names), loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.3, borderpad=0.0,
        ncols=math.ceil(len(names) / math.ceil(len(names) / columns)), fontsize=8, frameon=False,
    )  # fmt: skip
    for text, name in zip(drawn.get_texts(), names, strict=True):
        write(text, name, longest)
    return drawn
