"""Gram matrices that grow by columns, and act on coefficients of one or several outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

_FIRST = 64  # columns of the first buffer


class Gram(ABC):
    """A symmetric matrix; vectors have an entry for each column and output, the outputs of a column together.

    Attributes:
        dtype: of its entries.
    """

    dtype: torch.dtype

    @abstractmethod
    def append(self, piece: Tensor) -> None:
        """New columns, k of them, by a piece of the form that the final class takes."""

    @abstractmethod
    def corner(self, piece: Tensor) -> Tensor:
        """The products of the columns of a piece with each other, (k, k)."""

    @abstractmethod
    def times(self, v: Tensor) -> Tensor:
        """The product with a vector of any shape, in its shape, contiguous."""

    @abstractmethod
    def times_some(self, columns: Tensor, v: Tensor) -> Tensor:
        """The product with the vector whose entries ``v`` are those of some columns, the others zero; flat."""

    @abstractmethod
    def some(self, columns: Tensor) -> Tensor:
        """The matrix of some columns."""


class FullGram(Gram):
    """A matrix in a buffer that doubles when it is full; a piece is (size + k, k), the products with all columns.

    Args:
        device: where it lies.
        outputs: K.
        limit: no more columns than this will ever come.
        dtype: of its entries.

    Attributes:
        matrix: (size, size).
    """

    def __init__(self, device: torch.device, outputs: int, limit: int, dtype: torch.dtype = torch.float64) -> None:
        self._outputs, self._limit, self.dtype = outputs, limit, dtype
        self.matrix = self._room = torch.zeros(0, 0, dtype=dtype, device=device)

    def append(self, piece: Tensor) -> None:
        old, size = len(self.matrix), len(piece)
        if size > len(self._room):
            wider = max(size, min(max(2 * old, _FIRST), self._limit))
            room = self._room.new_empty(wider, wider)
            room[:old, :old] = self.matrix
            self._room = room
        self.matrix = self._room[:size, :size]
        self.matrix[:, old:] = piece
        self.matrix[old:, :old] = piece[:old].T

    def corner(self, piece: Tensor) -> Tensor:
        return piece[len(piece) - piece.shape[1] :]

    def times(self, v: Tensor) -> Tensor:
        if self._outputs == 1:
            return torch.mv(self.matrix, v.view(-1)).view(v.shape)
        return (v.view(-1, self._outputs).T @ self.matrix).T.reshape(-1).view(v.shape)

    def times_some(self, columns: Tensor, v: Tensor) -> Tensor:
        part = self.matrix.index_select(0, columns)
        if self._outputs == 1:
            return torch.mv(part.T, v)
        return (v.view(-1, self._outputs).T @ part).T.reshape(-1)

    def some(self, columns: Tensor) -> Tensor:
        return self.block(columns, columns)

    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Some entries, (rows, columns)."""
        return self.matrix.index_select(0, rows).index_select(1, columns)


class ThinGram(Gram):
    """``B B'`` for rows B of fewer numbers than the matrix has, which is never formed; a piece is (k, n), rows of B.

    Args:
        device: where it lies.
        outputs: K.
        dtype: of B.
    """

    def __init__(self, device: torch.device, outputs: int, dtype: torch.dtype = torch.float64) -> None:
        self._outputs, self.dtype = outputs, dtype
        self._rows = torch.zeros(0, 0, dtype=dtype, device=device)

    def append(self, piece: Tensor) -> None:
        self._rows = torch.cat([self._rows, piece]) if len(self._rows) else piece

    def corner(self, piece: Tensor) -> Tensor:
        return piece @ piece.T

    def times(self, v: Tensor) -> Tensor:
        if self._outputs == 1:
            return torch.mv(self._rows, torch.mv(self._rows.T, v.view(-1))).view(v.shape)
        return (self._rows @ (v.view(-1, self._outputs).T @ self._rows).T).reshape(-1).view(v.shape)

    def times_some(self, columns: Tensor, v: Tensor) -> Tensor:
        part = self._rows.index_select(0, columns)
        if self._outputs == 1:
            return torch.mv(self._rows, torch.mv(part.T, v))
        return (self._rows @ (v.view(-1, self._outputs).T @ part).T).reshape(-1)

    def some(self, columns: Tensor) -> Tensor:
        part = self._rows.index_select(0, columns)
        return part @ part.T
