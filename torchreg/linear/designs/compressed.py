"""Compressed sparse rows, the layout of every sparse design, whatever library multiplies them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor


class Compressed(ABC):
    """A sparse matrix as one list of entries after another, one list a row.

    Shapes:
        values, indices: (entries,). starts: (count + 1,).

    Attributes:
        values: the entries, float64.
        indices: the column of each entry, integers.
        starts: where in ``values`` each row begins, and the last one ends.
        width: number of columns.
    """

    values: Tensor
    indices: Tensor
    starts: Tensor
    width: int

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.starts) - 1

    @property
    def device(self) -> torch.device:
        """Where the entries live."""
        return self.values.device

    @property
    def density(self) -> float:
        """The share of stored entries."""
        return len(self.values) / max(1, self.count * self.width)

    def lengths(self) -> Tensor:
        """The number of entries of each row, (count,)."""
        return self.starts.diff()

    def between(self, start: int, end: int) -> Self:
        """Rows ``start`` to ``end``: views, no copies of entries."""
        starts = self.starts[start : end + 1]
        first, last = int(starts[0]), int(starts[-1])
        return self.of(self.values[first:last], self.indices[first:last], starts - first)

    def taken(self, index: Tensor) -> Self:
        """The numbered rows, in that order."""
        lengths = self.lengths()[index]
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0).to(lengths.dtype)])
        entries = int(starts[-1])
        offset = (self.starts[index] - starts[:-1]).long()
        where = torch.arange(entries, device=self.device) + offset.repeat_interleave(lengths, output_size=entries)
        return self.of(self.values[where], self.indices[where], starts)

    def of(self, values: Tensor, indices: Tensor, starts: Tensor) -> Self:
        """Other rows of the same width."""
        return replace(self, values=values, indices=indices, starts=starts)  # type: ignore[type-var]

    def with_values(self, values: Tensor) -> Self:
        """Other entries at the same places."""
        return self.of(values, self.indices, self.starts)

    def weighted(self, weights: Tensor) -> Self:
        """Each column multiplied by its weight, (width,)."""
        return self.with_values(self.values * weights[self.indices])

    def owners(self) -> Tensor:
        """The row of each entry, (entries,)."""
        return torch.arange(self.count, device=self.device).repeat_interleave(
            self.lengths(), output_size=len(self.values)
        )

    @property
    @abstractmethod
    def scatters(self) -> bool:
        """Whether `transposed` is at least as fast as `times` of the flipped matrix."""

    @abstractmethod
    def times(self, w: Tensor) -> Tensor:
        """The matrix times ``w``, (width,) or (width, batch)."""

    @abstractmethod
    def transposed(self, v: Tensor) -> Tensor:
        """The transposed matrix times ``v``, (count,) or (count, batch)."""

    @abstractmethod
    def products(self, other: Self) -> Tensor:
        """Inner products of these rows with those of ``other``, dense, (count, other.count)."""

    @abstractmethod
    def fill(self, out: Tensor) -> Tensor:
        """Write the matrix with its zeros into ``out``, (count, width)."""

    @abstractmethod
    def flipped(self) -> Self:
        """The transposed matrix: rows sorted, duplicates added up."""
