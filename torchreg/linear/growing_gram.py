"""Gram matrices that grow by columns."""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST = 64  # columns of the first buffer


class GrowingGram:
    """A symmetric matrix that acts on coefficients of one or several outputs; its buffer doubles when it is full.

    Args:
        device: where it lies.
        outputs: K; vectors have an entry for each column and output, the outputs of a column together.
        limit: no more columns than this will ever come.
        dtype: of its entries.

    Attributes:
        matrix: (size, size).
    """

    def __init__(self, device: torch.device, outputs: int, limit: int, dtype: torch.dtype = torch.float64) -> None:
        self._outputs, self._limit = outputs, limit
        self.dtype, self._room = dtype, torch.zeros(0, 0, dtype=dtype, device=device)
        self.matrix = self._room

    def append(self, block: Tensor) -> None:
        """New columns: their products with all columns, old and new, (size + k, k)."""
        old, size = len(self.matrix), len(block)
        if size > len(self._room):
            wider = max(size, min(max(2 * old, _FIRST), self._limit))
            room = self._room.new_empty(wider, wider)
            room[:old, :old] = self.matrix
            self._room = room
        self.matrix = self._room[:size, :size]
        self.matrix[:, old:] = block
        self.matrix[old:, :old] = block[:old].T

    def times(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        """The product with a vector of any shape, in its shape; written to the flat ``out`` if that is given."""
        if self._outputs == 1:
            return torch.mv(self.matrix, v.view(-1), out=out).view(v.shape)
        product = (v.view(-1, self._outputs).T @ self.matrix).T
        return (product.reshape(-1) if out is None else out.view(product.shape).copy_(product)).view(v.shape)

    def rows_times(self, rows: Tensor, v: Tensor) -> Tensor:
        """The product with the vector whose entries ``v`` are those of some columns, the others zero; flat."""
        part = self.matrix.index_select(0, rows)
        if self._outputs == 1:
            return torch.mv(part.T, v)
        return (v.view(-1, self._outputs).T @ part).T.reshape(-1)

    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Some entries, (rows, columns)."""
        return self.matrix.index_select(0, rows).index_select(1, columns)


class ThinGram:
    """``B B'`` of rows ``B``, fewer numbers than the matrix has, which is never formed.

    Args:
        rows: B, (size, n).
        outputs: K, as in `GrowingGram`.
    """

    def __init__(self, rows: Tensor, outputs: int) -> None:
        self._outputs, self._rows = outputs, rows
        self.dtype = rows.dtype

    def append(self, rows: Tensor) -> None:
        """New rows of B, (k, n)."""
        self._rows = torch.cat([self._rows, rows.to(self.dtype)])

    def times(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        """As `GrowingGram.times`."""
        if self._outputs == 1:
            return torch.mv(self._rows, torch.mv(self._rows.T, v.view(-1)), out=out).view(v.shape)
        product = self._rows @ (v.view(-1, self._outputs).T @ self._rows).T
        return (product.reshape(-1) if out is None else out.view(product.shape).copy_(product)).view(v.shape)
