"""A Gram matrix that grows by columns, in a buffer that doubles when it is full."""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST = 64  # columns of the first buffer


class GrowingGram:
    """A symmetric matrix that acts on coefficients of one or several outputs.

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
        self._room = torch.zeros(0, 0, dtype=dtype, device=device)
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
