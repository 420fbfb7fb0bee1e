"""Cholesky factors of the active columns of several Gram matrices, as one batch padded by the identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.lockstep.exchanges import Sides
from torchreg.linear.pivoting.limits import DEPENDENT

_LARGE = 1024  # columns of a matrix that fills a device by itself: a batch of such is factored one by one


@dataclass(frozen=True)
class Factor:
    """Cholesky factors of the active columns of each problem, padded by the identity.

    Attributes:
        width: of the matrices; < 0 where there are none.
        places: of the active columns, (K, width). filled: which of them are not padding, (K, width).
        rows: of the Gram matrices, those of the active columns, (K, width, m).
        lower: the factors, (K, width, width).
        failed: whether a problem's active columns are dependent, (K,).
    """

    width: int
    places: Tensor
    filled: Tensor
    rows: Tensor
    lower: Tensor
    failed: Tensor

    @classmethod
    def none(cls) -> Factor:
        empty = torch.empty(0)
        return cls(-1, empty, empty, empty, empty, empty)

    @classmethod
    def of(cls, gram: Tensor, ridge: Tensor, sides: Sides) -> Factor:
        """Of ``gram + diag(ridge)``, (K, m, m) and (m,)."""
        width = max(1, *sides.counts)
        places, filled = _gathered(sides.active, width)
        rows = gram.new_empty(len(gram), width, gram.shape[1])
        for matrix, mine, room in zip(gram, places, rows, strict=True):
            torch.index_select(matrix, 0, mine, out=room)
        square = rows.gather(2, places[:, None, :].expand(-1, width, -1))
        square = torch.where(filled[:, :, None] & filled[:, None, :], square, 0.0)
        diagonal = square.diagonal(dim1=1, dim2=2)
        diagonal.add_(torch.where(filled, ridge[places], 1.0))
        lower, info = _cholesky(square)
        left = lower.diagonal(dim1=1, dim2=2).square() > DEPENDENT * diagonal
        return cls(width, places, filled, rows, lower, (info > 0) | ~left.all(1))

    def solve(self, sides: Tensor) -> tuple[Tensor, Tensor]:
        """Solutions for right-hand sides of all columns, and the products of the Gram matrices with them, (K, m)."""
        inner = torch.where(self.filled, sides.gather(1, self.places), 0.0)
        solved = torch.cholesky_solve(inner[..., None], self.lower)[..., 0]
        solved = torch.where(self.filled, solved, 0.0)
        spread = torch.zeros_like(sides).scatter_add_(1, self.places, solved)
        return spread, torch.bmm(solved[:, None], self.rows)[:, 0]


def _gathered(active: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Numbers of the active columns of each problem, (K, width), filled up with 0; and which are not filling."""
    rank = torch.where(active, active.cumsum(1) - 1, width)
    numbers = torch.arange(active.shape[1], device=active.device).expand_as(active)
    places = numbers.new_zeros(len(active), width + 1).scatter_(1, rank, numbers)[:, :width]
    return places, torch.arange(width, device=active.device) < active.sum(1, keepdim=True)


def _cholesky(square: Tensor) -> tuple[Tensor, Tensor]:
    if square.shape[1] < _LARGE:
        lower, info = torch.linalg.cholesky_ex(square)
        return lower, info
    parts = [torch.linalg.cholesky_ex(one) for one in square]
    return torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts])
