"""A sparse design: rows and columns in compressed form, centred and scaled by rank-one corrections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchreg.functional.blocking import LONG
from torchreg.linear.designs.base import Design, Selection, as_scale, deviation, divided, less_mean, less_total
from torchreg.linear.designs.compressed import Compressed
from torchreg.linear.designs.gram_blocks import (
    Correction,
    add_products,
    balanced,
    correction,
    longer,
    mirrored,
    split_weights,
    strip,
)

_ROOM = 1 << 22  # entries of a dense temporary: 32 MiB
_LEAST_ROWS = 256  # of a chunk that is made dense
_FAR = 8.0  # |mean| / deviation from which a column without zeros is copied: a Gram matrix loses the square of it
_ROUNDING = 8.0 * torch.finfo(torch.float64).eps  # of a sum of weights, for each root of their number
_DENSE = 0.05  # share of entries from which a Gram matrix is cheaper from chunks of rows made dense: measured


@dataclass(frozen=True, eq=False)
class Sparse(Design):
    """A sparse X, never made dense.

    Both its rows and its columns are kept, so it takes the memory of X a second time. Entries become
    float64. Centring happens by corrections of rank one, so a column whose mean is 10^k times its
    deviation loses k digits in products and 2 k in Gram matrices. A column of n entries none of which
    is left out, the only kind for which k exceeds log10(n) / 2, is centred entry by entry, in a copy.

    Attributes:
        rows: X, (n, p).
        columns: the transposed X, (p, n), without duplicates.
        mean: of the columns, (p,), float64, or None.
        scale: of the columns, (p,), float64, or None.
        rest: of the mean, what the entries still have where some columns are centred already; None for all of it.
    """

    rows: Compressed
    columns: Compressed
    mean: Tensor | None = None
    scale: Tensor | None = None
    rest: Tensor | None = None

    @property
    def n(self) -> int:
        return self.rows.count

    @property
    def p(self) -> int:
        return self.columns.count

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def gram(self, weights: Tensor) -> Tensor:
        square = torch.zeros(self.p, self.p, dtype=torch.float64, device=self.device)
        if self.columns.density > _DENSE:
            factor, root = split_weights(weights)
            for chunk in self._dense_chunks(root):
                add_products(square, chunk)
            square.mul_(factor)
        else:
            for start in range(0, self.p, strip(self.p)):
                end = min(start + strip(self.p), self.p)
                block = self.columns.between(start, end).weighted(weights)
                square[:end, start:end] = self.columns.between(0, end).products(block)
        return mirrored(self.correction(weights).apply(square, slice(None), slice(None)))

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        mean = self._transposed(weights)
        height = max(1, LONG * self.p // max(1, len(self.columns.values)))
        parts = [self._squares(start, min(start + height, self.p), mean, weights) for start in range(0, self.p, height)]
        if self.mean is not None and self.rest is not None:
            mean = mean + (self.mean - self.rest)
        return mean, torch.cat(parts)

    def standardised(self, weights: Tensor, *, centre: bool, scale: bool) -> Sparse:
        whole = self.columns.lengths() == self.n
        if not (scale or (centre and bool(whole.any()))):
            return Sparse(self.rows, self.columns, self._transposed(weights) if centre else None)
        mean, variance = self.moments(weights)
        spread = deviation(mean, variance)
        seen = Sparse(self.rows, self.columns, mean if centre else None, as_scale(spread) if scale else None)
        far = whole & (mean.abs() > _FAR * spread)
        return seen._nearer(torch.where(far, mean, 0.0), weights) if centre and bool(far.any()) else seen

    def selection(self, weights: Tensor) -> SparseSelection:
        return SparseSelection(self, weights)

    def copies(self, rows: Tensor) -> bool:
        del rows
        return False

    def subset(self, rows: Tensor | slice) -> Sparse:
        index = torch.arange(self.n, device=self.device)[rows]
        kept = self.rows.taken(index)
        return replace(self, rows=kept, columns=kept.flipped())

    def correction(self, weights: Tensor) -> Correction:
        """What remains to be done to weighted products of raw columns."""
        weighted = None if self._owed is None else self._transposed(weights)
        return correction(self._owed, self.scale, weighted, weights.sum())

    def _nearer(self, shift: Tensor, weights: Tensor) -> Sparse:
        """The same with a number subtracted from all entries of a column, (p,), which has to have all of them."""
        columns = self.columns.with_values(self.columns.values - shift.repeat_interleave(self.columns.lengths()))
        near = replace(self, rows=columns.flipped(), columns=columns)
        rest = near._transposed(weights)
        return replace(near, mean=shift + rest, rest=rest)

    @property
    def _owed(self) -> Tensor | None:
        return self.mean if self.rest is None else self.rest

    def _times(self, w: Tensor) -> Tensor:
        return _product(self.rows, self.columns, w)

    def _transposed(self, v: Tensor) -> Tensor:
        return _product(self.columns, self.rows, v)

    def _squares(self, start: int, end: int, mean: Tensor, weights: Tensor) -> Tensor:
        """Variances of some columns: stored entries one by one, zeros together, so that nothing cancels."""
        block = self.columns.between(start, end)
        centre = mean[start:end]
        apart = (block.values - centre.repeat_interleave(block.lengths())).square_()
        zeros = 1.0 - block.with_values(torch.ones_like(apart)).times(weights)
        zeros = torch.where(zeros > _ROUNDING * self.n**0.5, zeros, 0.0)
        return block.with_values(apart).times(weights) + zeros * centre.square()

    def _dense_chunks(self, root: Tensor | None) -> Iterator[Tensor]:
        """Rows multiplied by their entries of ``root``, a few at a time; each chunk overwrites the last."""
        height = min(self.n, max(_LEAST_ROWS, _ROOM // max(1, self.p)))
        room = torch.empty(height, self.p, dtype=torch.float64, device=self.device)
        for start in range(0, self.n, height):
            part = self.rows.between(start, min(start + height, self.n))
            chunk = part.fill(room[: part.count])
            yield chunk if root is None else chunk.mul_(root[start : start + height, None])


class SparseSelection(Selection):
    """Columns of a sparse design, still sparse, in buffers that double when they are full."""

    def __init__(self, design: Sparse, weights: Tensor) -> None:
        self._design, self._weights = design, weights
        self._correction = design.correction(weights)
        self._columns = design.columns.between(0, 0)
        self._values, self._indices = self._columns.values, self._columns.indices
        self.index = torch.empty(0, dtype=torch.int64, device=design.device)

    def add(self, new: Tensor) -> None:
        self.index = torch.cat([self.index, new])
        self._keep(self._design.columns.taken(new))

    def append(self, new: Tensor) -> Tensor:
        self.add(new)
        fresh = self._columns.between(self._columns.count - len(new), self._columns.count)
        products = self._columns.products(fresh.weighted(self._weights))
        return balanced(self._correction.apply(products, self.index, new))

    def gram(self, weights: Tensor, start: int = 0) -> Tensor:
        columns, mean = self._columns, self._chosen(self._design._owed)
        weighted = None if mean is None else columns.times(weights)
        rest = correction(mean, self._chosen(self._design.scale), weighted, weights.sum())
        products = columns.products(columns.between(start, columns.count).weighted(weights))
        return balanced(rest.apply(products, slice(None), slice(start, None)))

    def times(self, w: Tensor) -> Tensor:
        w = divided(w, self._chosen(self._design.scale))
        return less_mean(self._columns.transposed(w), self._chosen(self._design._owed), w)

    def transposed(self, v: Tensor) -> Tensor:
        mean, scale = self._chosen(self._design._owed), self._chosen(self._design.scale)
        return less_total(self._columns.times(v), mean, scale, v)

    def dense(self, places: Tensor) -> None:
        del places

    def _chosen(self, of_all: Tensor | None) -> Tensor | None:
        return None if of_all is None else of_all[self.index]

    def _keep(self, fresh: Compressed) -> None:
        old = self._columns
        filled, total = len(old.values), len(old.values) + len(fresh.values)
        if total > len(self._values):
            capacity = max(total, min(2 * total, len(self._design.columns.values)))
            self._values = longer(self._values, filled, capacity)
            self._indices = longer(self._indices, filled, capacity)
        self._values[filled:total], self._indices[filled:total] = fresh.values, fresh.indices
        starts = torch.cat([old.starts, fresh.starts[1:] + filled])
        self._columns = old.of(self._values[:total], self._indices[:total], starts)


def _product(straight: Compressed, flipped: Compressed, w: Tensor) -> Tensor:
    """``straight @ w``, by whichever of the two forms is faster."""
    longer_rows = straight.count <= flipped.count
    if straight.scatters and (w.dim() == 2 or not longer_rows):
        return flipped.transposed(w)
    return straight.times(w)
