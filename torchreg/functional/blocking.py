"""Views of a large CPU tensor that stay in cache, so that temporaries never leave it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

ENTRIES = 1 << 18  # for work with temporaries: with 1 MiB of L2 per core, longer pieces leave the cache
LONG = 1 << 20  # for a few passes without temporaries: shorter pieces pay for dispatch


def entry_pieces(w: Tensor, step: float | Tensor, size: int = ENTRIES) -> Iterable[tuple[Tensor, float | Tensor]]:
    """Flat views of ``w``, each with its part of a step per entry, or with the one step."""
    if not isinstance(step, Tensor) or step.numel() == 1:
        step = step.reshape(()) if isinstance(step, Tensor) else step
        return ((x, step) for x in w.view(-1).split(size)) if _worth(w, size) and w.is_contiguous() else [(w, step)]
    aligned = step.shape == w.shape and step.is_contiguous() and w.is_contiguous()
    if not (aligned and _worth(w, size)):
        return [(w, step)]
    return zip(w.view(-1).split(size), step.view(-1).split(size), strict=True)


def row_blocks(w: Tensor, size: int = ENTRIES) -> Iterable[Tensor]:
    """Views of whole slices of dim 0."""
    if not _worth(w, size) or not w.dim():
        return (w,)
    return w.split(max(1, size * w.shape[0] // w.numel()))


def _worth(w: Tensor, size: int) -> bool:
    return w.device.type == "cpu" and w.numel() > size and not torch.compiler.is_compiling()
