"""A dense design: X as one torch tensor of any strides, dtype and device, read where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchreg.linear.designs.base import Design, Selection, as_scale, deviation, divided
from torchreg.linear.designs.gram_blocks import (
    Correction,
    add_products,
    balanced,
    correction,
    longer,
    mirrored,
    split_weights,
)

_BLOCK = 1 << 19  # entries of a block: measured, longer ones leave the cache, shorter ones pay for dispatch
_ROOM = 1 << 22  # entries of a temporary outside the cache: 32 MiB
_LEAST_ROWS = 256  # of a chunk: shorter ones spend their time on adding up (p, p) results
_FAR = 1e3  # |mean| / deviation from which each pass subtracts the mean: a rank-one correction loses log10 of it digits
_NEAR = 8.0  # |mean| / deviation up to which a Gram matrix is corrected afterwards: it loses the square
_MULTIPLE = 4  # of a batch: 8 vectors cost half as much as 7
_MANY = 24  # vectors in a batch, from which one reading more or less does not count
_SAMPLE = 64  # rows from which a deviation is guessed
_FIRST_CAPACITY = 64  # columns of a selection


@dataclass(frozen=True, eq=False)
class Dense(Design):
    """A dense X, never copied.

    float64 goes straight into matrix products. Other dtypes, strides that BLAS does not take and
    columns whose mean is far larger than their deviation are read in blocks that stay in the cache.

    Shapes:
        X: (n, p), floating point.

    Attributes:
        X: the data.
        mean: of the columns, (p,), float64, or None.
        scale: of the columns, (p,), float64, or None.
        distance: the largest |mean| / deviation of a column; it decides how the mean is subtracted.

    Example:
        >>> X = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        >>> weights = torch.full((2,), 0.5, dtype=torch.float64)
        >>> Dense(X).standardised(weights, centre=True, scale=True).transposed(torch.tensor([0.0, 1.0]).double())
        tensor([1., 0.], dtype=torch.float64)
    """

    X: Tensor
    mean: Tensor | None = None
    scale: Tensor | None = None
    distance: float = 0.0

    @property
    def n(self) -> int:
        return self.X.shape[0]

    @property
    def p(self) -> int:
        return self.X.shape[1]

    @property
    def device(self) -> torch.device:
        return self.X.device

    def dense_rows(self, part: slice) -> Tensor:
        columns = self.X[part].T.to(torch.float64)
        columns = columns if self.mean is None else columns - self.mean[:, None]
        return divided(columns, self.scale)

    def gram(self, weights: Tensor) -> Tensor:
        square = self.X.new_zeros(self.p, self.p, dtype=torch.float64)
        factor, root = split_weights(weights)
        rest = Correction(None, None, self.scale)
        if self._is_direct and root is None and self.distance <= _NEAR:
            add_products(square, self.X)
            weighted = None if self.mean is None else replace(self, mean=None, scale=None).transposed(weights)
            rest = correction(self.mean, self.scale, weighted, weights.sum())
        else:
            for chunk in self._chunks(root):
                add_products(square, chunk)
        return mirrored(rest.apply(square.mul_(factor), slice(None), slice(None)))

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        guess = replace(self, mean=None, scale=None).transposed(weights)
        rest, squares = torch.zeros_like(guess), torch.zeros_like(guess)
        for rows, columns, block in replace(self, mean=guess, distance=torch.inf)._blocks():
            rest[columns].addmv_(block.T, weights[rows])
            squares[columns].addmv_(block.square_().T, weights[rows])
        return guess + rest, (squares - rest.square()).clamp_(min=0.0)

    def standardised(self, weights: Tensor, *, centre: bool, scale: bool) -> Dense:
        if not (centre or scale):
            return Dense(self.X)
        if centre and not scale:
            mean = replace(self, mean=None, scale=None).transposed(weights)
            distance = _distance(mean, self._sampled_deviation(weights))
            if distance <= _NEAR:
                return Dense(self.X, mean=mean, distance=distance)
        mean, variance = self.moments(weights)
        spread = deviation(mean, variance)
        distance = _distance(mean, torch.where(spread > 0, spread, spread.max())) if centre else 0.0
        return Dense(self.X, mean if centre else None, as_scale(spread) if scale else None, distance)

    def selection(self, weights: Tensor) -> DenseSelection:
        return DenseSelection(self, weights)

    def subset(self, rows: Tensor | slice) -> Dense:
        return replace(self, X=self.X[_as_range(rows)])

    def copies(self, rows: Tensor) -> bool:
        return not self._is_tall and isinstance(_as_range(rows), Tensor)

    def columns(self, index: Tensor, out: Tensor) -> None:
        """Write some columns of X~, (k, n): one a row."""
        if self.X.dtype == torch.float64 and not self._is_tall:
            torch.index_select(self.X.T, 0, index, out=out)
        elif self.X.dtype == torch.float64:
            torch.index_select(self.X, 1, index, out=out.T)
        else:
            out.copy_(self.X.index_select(1, index).T)
        if self.mean is not None:
            out.sub_(self.mean[index, None])
        if self.scale is not None:
            out.div_(self.scale[index, None])

    @property
    def _owed(self) -> Tensor | None:
        return None if self.distance > _FAR else self.mean

    @property
    def _is_tall(self) -> bool:
        """Whether the entries of a row lie closer together than those of a column."""
        return self.X.stride(0) >= self.X.stride(1)

    @property
    def _is_direct(self) -> bool:
        """Whether BLAS reads X as it is."""
        long, short = (0, 1) if self._is_tall else (1, 0)
        packed = self.X.stride(short) == 1 and self.X.stride(long) >= max(1, self.X.shape[short])
        return self.X.dtype == torch.float64 and packed

    def _times(self, w: Tensor) -> Tensor:
        if self._is_direct and self.distance <= _FAR:
            return _multiply(self.X, w)
        product = _zeros(self.n, w)
        for rows, columns, block in self._blocks():
            product[rows] += _multiply(block, w[columns])
        return product

    def _transposed(self, v: Tensor) -> Tensor:
        if self._is_direct and self.distance <= _FAR:
            return _multiply(self.X.T, v)
        product = _zeros(self.p, v)
        for rows, columns, block in self._blocks():
            product[columns] += _multiply(block.T, v[rows])
        return product

    def _sampled_deviation(self, weights: Tensor) -> Tensor:
        """Of a few rows that count, to tell columns of ordinary means; zeros where weights differ: these may not."""
        rows = weights.nonzero().flatten()
        if len(rows) < 2 or split_weights(weights[rows])[1] is not None:
            return weights.new_zeros(self.p)
        step = -(-len(rows) // _SAMPLE)
        some: Tensor | slice = slice(None, None, step) if len(rows) == self.n else rows[::step]
        sample = self.X[some].double()
        return (sample - sample.mean(0)).square_().mean(0).sqrt_()  # five times as fast as std

    def _blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns and float64 entries of X, the mean subtracted unless it is owed; each overwrites the last."""
        count, width = self.X.shape if self._is_tall else self.X.T.shape
        height = min(count, max(1, (_BLOCK if self.device.type == "cpu" else _ROOM) // max(1, width)))
        room = self.X.new_empty(height, width, dtype=torch.float64)
        for start in range(0, count, height):
            part, whole = slice(start, min(start + height, count)), slice(None)
            rows, columns = (part, whole) if self._is_tall else (whole, part)
            filled = room[: part.stop - start]
            block = (filled if self._is_tall else filled.T).copy_(self.X[rows, columns])
            if self.mean is not None and self._owed is None:
                block.sub_(self.mean[columns])
            yield rows, columns, block

    def _chunks(self, root: Tensor | None) -> Iterator[Tensor]:
        """Centred rows of X, each multiplied by its entry of ``root``; each chunk overwrites the last."""
        height = min(self.n, max(_LEAST_ROWS, _ROOM // max(1, self.p)))
        room = self.X.new_empty((height, self.p) if self._is_tall else (self.p, height), dtype=torch.float64)
        room = room if self._is_tall else room.T
        for start in range(0, self.n, height):
            rows = self.X[start : start + height]
            chunk = room[: len(rows)].copy_(rows)
            if self.mean is not None:
                chunk.sub_(self.mean)
            yield chunk if root is None else chunk.mul_(root[start : start + height, None])


class DenseSelection(Selection):
    """Columns of a dense design, gathered as rows of one buffer that doubles when it is full."""

    def __init__(self, design: Dense, weights: Tensor) -> None:
        self._design, self._weights = design, weights
        self._count, self._capacity = 0, 0
        self._room = weights.new_empty(0, design.n)
        self._numbers = torch.empty(0, dtype=torch.int64, device=design.device)

    @property
    def index(self) -> Tensor:  # type: ignore[override]
        return self._numbers[: self._count]

    def add(self, new: Tensor) -> None:
        start, self._count = self._count, self._count + len(new)
        self._reserve(start)
        self._numbers[start : self._count] = new
        self._design.columns(new, self._room[start : self._count])

    def append(self, new: Tensor) -> Tensor:
        self.add(new)
        columns = self._columns
        return balanced(columns @ (columns[len(columns) - len(new) :] * self._weights).T)

    def gram(self, weights: Tensor, start: int = 0) -> Tensor:
        columns = self._columns
        if start:
            return balanced(columns @ (columns[start:] * weights).T)
        factor, root = split_weights(weights)
        square = columns.new_zeros(self._count, self._count)
        width = max(_LEAST_ROWS, _ROOM // max(1, 4 * self._count))
        for first in range(0, columns.shape[1], width):
            part = columns[:, first : first + width]
            add_products(square, (part if root is None else part * root[first : first + width]).T)
        return mirrored(square).mul_(factor)

    def times(self, w: Tensor) -> Tensor:
        return _multiply(self._columns.T, w)

    def transposed(self, v: Tensor) -> Tensor:
        return _multiply(self._columns, v)

    def dense(self, places: Tensor) -> Tensor:
        return self._columns.index_select(0, places)

    @property
    def _columns(self) -> Tensor:
        return self._room[: self._count]

    def _reserve(self, filled: int) -> None:
        if self._count > self._capacity:
            lazy = _ROOM // max(1, self._design.n) if self._design.device.type == "cpu" else 0
            wanted = max(_FIRST_CAPACITY, lazy, 2 * self._capacity, self._count)
            self._capacity = max(self._count, min(self._design.p, wanted))
            self._room = longer(self._room, filled, self._capacity)
            self._numbers = longer(self._numbers, filled, self._capacity)


def _as_range(rows: Tensor | slice) -> Tensor | slice:
    """Rows that follow one another as a slice, which copies nothing."""
    if isinstance(rows, slice) or rows.dtype == torch.bool or not len(rows):
        return rows
    first = int(rows[0])
    consecutive = torch.arange(first, first + len(rows), device=rows.device)
    return slice(first, first + len(rows)) if torch.equal(rows, consecutive) else rows


def _distance(mean: Tensor, spread: Tensor) -> float:
    """The largest |mean| / deviation; a column of zeros has none."""
    return float((mean.abs() / spread).nan_to_num(nan=0.0).max())


def _multiply(matrix: Tensor, w: Tensor) -> Tensor:
    """``matrix @ w``; a batch is laid in rows, which BLAS reads about twice as fast."""
    if w.dim() == 1:
        return matrix @ w
    if w.shape[1] == 1:
        return (matrix @ w[:, 0])[:, None]
    return (_laid_in_rows(w) @ matrix.T)[: w.shape[1]].T


def _zeros(length: int, w: Tensor) -> Tensor:
    return w.new_zeros(length) if w.dim() == 1 else w.new_zeros(w.shape[1], length).T


def _laid_in_rows(batch: Tensor) -> Tensor:
    """The transposed batch, filled up with zeros: BLAS reads the matrix once more for each row beyond a multiple."""
    if batch.shape[1] >= _MANY and batch.T.is_contiguous():
        return batch.T
    count = -(-batch.shape[1] // _MULTIPLE) * _MULTIPLE
    rows = batch.new_zeros(count, batch.shape[0])
    rows[: batch.shape[1]] = batch.T
    return rows
