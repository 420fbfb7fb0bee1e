"""Axes that displays of a path share: the penalty's strength below, the number of non-zero coefficients above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchreg.plots.style import Array, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COUNTS = 8  # numbers on the top axis, at the most
_DIGIT = 6.4  # points, of a digit on an axis
_SHORT = 20.0  # a logarithmic axis that spans less may have one power of ten, or none
_ROUNDING = 1e-3  # a tick at the end of the places is not outside them


def as_array(values: Tensor | Array | Sequence[float]) -> Array:
    """Numbers as numpy's, from any device; tensors become float64."""
    return values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def check_alphas(owner: str, alphas: Array) -> None:
    """Refuse strengths that have no place on the axis.

    Raises:
        ValueError: if an alpha is negative or NaN, or none is positive.
    """
    if not (alphas >= 0).all() or not (alphas > 0).any():
        raise ValueError(f"{owner} needs alphas >= 0, one of them > 0, got {alphas.tolist()}.")


def scale_alpha(ax: Axes, alphas: Array) -> None:
    """A logarithmic x axis, linear from the least positive one of ascending alphas down to a 0 among them."""
    least, most = alphas[alphas > 0].min(), alphas[-1]
    if alphas[0] > 0:
        ax.set_xscale("log")
    else:
        decades = np.arange(np.ceil(np.log10(least)), np.floor(np.log10(most)) + 1)
        ax.set_xscale("symlog", linthresh=least)
        ax.set_xticks([0.0, *10.0**decades])
        ax.minorticks_off()


def limit(ax: Axes, places: Array, *, left: float = 0.03, right: float = 0.03) -> None:
    """End the x axis a little outside the places; ``left`` and ``right`` are shares of their span."""
    transform = ax.xaxis.get_transform()
    moved = transform.transform(places)
    low, high = moved.min(), moved.max()
    room = (high - low) or 1.0
    start, end = transform.inverted().transform(np.array([low - left * room, high + right * room]))
    ax.set_xlim(float(start), float(end))


def trim_ticks(ax: Axes, places: Array) -> None:
    """No ticks outside the places, where names stand."""
    transform = ax.xaxis.get_transform()
    ends = transform.transform(np.array([places.min(), places.max()]))
    slack = _ROUNDING * (ends[1] - ends[0])
    for minor in (True, False):
        ticks = ax.get_xticks(minor=minor)
        moved = transform.transform(ticks)
        ax.set_xticks(ticks[(moved >= ends[0] - slack) & (moved <= ends[1] + slack)], minor=minor)


def name_close_alphas(ax: Axes, alphas: Array) -> None:
    """Ticks at the alphas themselves on a logarithmic axis too short for powers of ten.

    Args:
        ax: whose limits are final.
        alphas: ascending, > 0, shape (n,).
    """
    if alphas[-1] >= _SHORT * alphas[0]:
        return
    names = [f"{alpha:.3g}" for alpha in alphas]
    low, high = np.log10(ax.get_xlim())
    shown = _apart(np.log10(alphas), (2 + max(map(len, names))) * _DIGIT / points_wide(ax) * (high - low))
    ax.set_xticks(alphas[shown], labels=[names[k] for k in shown])
    ax.minorticks_off()


def count_axis(ax: Axes, places: Array, counts: Array, label: str = "non-zero coefficients") -> Axes:
    """A top axis that shows some of the counts over their places on the x axis.

    Args:
        ax: whose x scale and limits are final.
        places: in data coordinates, shape (n,).
        counts: whole numbers, shape (n,).
        label: of the axis.
    """
    transform: Any = ax.xaxis.get_transform()
    moved = transform.transform(places)
    low, high = transform.transform(np.array(ax.get_xlim()))
    wide = len(str(counts.max())) * _DIGIT / points_wide(ax) * (high - low)
    space = 1.2 * wide + _DIGIT / points_wide(ax) * (high - low)
    fits = min(_COUNTS, 1 + int((moved.max() - moved.min()) / space))
    near = np.unique(np.abs(moved[:, None] - np.linspace(moved.min(), moved.max(), max(2, fits))).argmin(0))
    near = near[np.argsort(moved[near], kind="stable")]
    shown = near[_apart(moved[near], space / 1.2)]
    top = ax.twiny()
    figure_of(ax).sca(ax)
    symlog = ax.get_xscale() == "symlog"
    top.set_xscale(ax.get_xscale(), **({"linthresh": transform.linthresh} if symlog else {}))
    top.set_xlim(ax.get_xlim())
    top.set_xticks(places[shown], labels=[str(k) for k in counts[shown]])
    top.minorticks_off()
    top.spines[["left", "right", "bottom"]].set_visible(False)
    top.spines["top"].set_edgecolor(ax.spines["bottom"].get_edgecolor())
    top.set_xlabel(label)
    return top


def points_wide(ax: Axes) -> float:
    """The width of axes in points, about: the layout is not yet made."""
    return float(ax.get_position().width * figure_of(ax).get_figwidth() * 72.0)


def points_high(ax: Axes) -> float:
    """The height of axes in points, about: the layout is not yet made."""
    return float(ax.get_position().height * figure_of(ax).get_figheight() * 72.0)


def _apart(places: Array, gap: float) -> list[int]:
    """Indices of ascending places that are at least ``gap`` apart: the first and the last, and what fits between."""
    kept = [0]
    for k in range(1, len(places)):
        if places[k] - places[kept[-1]] >= gap:
            kept.append(k)
    last = len(places) - 1
    while len(kept) > 1 and kept[-1] != last and places[last] - places[kept[-1]] < gap:
        kept.pop()
    return kept if places[last] - places[kept[-1]] < gap else [*kept, last]
