"""The kernel of a design: products of its rows with each other."""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.linear.designs.base import Design

_ROOM = 1 << 22  # entries of a strip of rows, written as columns: 32 MiB
_WIDEST = 256  # rows of a strip: more would be multiplied with themselves twice


def kernel_of(design: Design, scales: Tensor) -> Tensor:
    """``X~ diag(scales) X~'``, (n, n), exactly symmetric, by strips of rows against all that follow.

    Args:
        design: n rows and p columns.
        scales: of the columns, >= 0, (p,).
    """
    n = design.n
    square = scales.new_empty(n, n)
    width = max(1, min(_WIDEST, _ROOM // max(1, design.p)))
    for start in range(0, n, width):
        rows = slice(start, min(start + width, n))
        identity = torch.eye(rows.stop - start, dtype=scales.dtype, device=scales.device)
        strip = design.subset(rows).transposed(identity).mul_(scales[:, None])
        square[start:, rows] = design.subset(slice(start, n)).times(strip)
        corner = square[rows, rows]
        corner.copy_(0.5 * (corner + corner.T))
        square[rows, rows.stop :] = square[rows.stop :, rows].T
    return square
