"""The columns that a smooth fit works with: those of X that may be other than zero, and one of ones."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from torchreg.linear.designs.base import Design

_FEW = 2048  # kept columns up to which a copy of them, and their Gram matrix, cost little


class Features(ABC):
    """Columns of a linear predictor ``eta = X theta[:count] + theta[count]``, the last only with an intercept.

    Shapes:
        theta: (width,) or (width, K); rows: (n,) or (n, K); bend: weights of rows >= 0, (n,).

    Attributes:
        count: columns of X.
        ones: whether there is a column of ones.
    """

    count: int
    ones: bool

    @property
    def width(self) -> int:
        """Columns, that of ones included."""
        return self.count + int(self.ones)

    def times(self, theta: Tensor) -> Tensor:
        """The linear predictor of ``theta``."""
        product = self._times(theta[: self.count])
        return product + theta[self.count] if self.ones else product

    def transposed(self, rows: Tensor) -> Tensor:
        """``X' rows``, and their sum."""
        product = self._transposed(rows)
        return torch.cat([product, rows.sum(0, keepdim=True)]) if self.ones else product

    def gram(self, bend: Tensor) -> Tensor:
        """``X' diag(bend) X`` with ones, (width, width)."""
        inner = self._gram(bend)
        if not self.ones:
            return inner
        edge = self._transposed(bend)
        last = torch.cat([edge, bend.sum()[None]])
        return torch.cat([torch.cat([inner, edge[None]]), last[:, None]], 1)

    def squares(self, weights: Tensor) -> Tensor:
        """The diagonal of ``gram(weights)``, (width,); ``weights`` add up to 1."""
        inner = self._squares(weights)
        return torch.cat([inner, inner.new_ones(1)]) if self.ones else inner

    @abstractmethod
    def _times(self, w: Tensor) -> Tensor:
        """``X w``."""

    @abstractmethod
    def _transposed(self, rows: Tensor) -> Tensor:
        """``X' rows``."""

    @abstractmethod
    def _gram(self, bend: Tensor) -> Tensor:
        """``X' diag(bend) X``."""

    @abstractmethod
    def _squares(self, weights: Tensor) -> Tensor:
        """Its diagonal."""


class WholeFeatures(Features):
    """All columns of a design, or most of them: the others are multiplied by zero."""

    def __init__(self, design: Design, kept: Tensor | None, ones: bool) -> None:
        self._design, self._kept, self.ones = design, kept, ones
        self.count = design.p if kept is None else len(kept)

    def _times(self, w: Tensor) -> Tensor:
        if self._kept is not None:
            w = w.new_zeros(self._design.p, *w.shape[1:]).index_copy_(0, self._kept, w)
        return self._design.times(w)

    def _transposed(self, rows: Tensor) -> Tensor:
        return self._taken(self._design.transposed(rows))

    def _gram(self, bend: Tensor) -> Tensor:
        square = self._design.gram(bend)
        return square if self._kept is None else square[self._kept[:, None], self._kept]

    def _squares(self, weights: Tensor) -> Tensor:
        design = self._design
        mean, squares = design.moments(weights)
        off = mean if design.mean is None else mean - design.mean
        squares = squares + off.square()
        return self._taken(squares if design.scale is None else squares / design.scale.square())

    def _taken(self, columns: Tensor) -> Tensor:
        return columns if self._kept is None else columns[self._kept]


class FewFeatures(Features):
    """A copy of some columns of a design."""

    def __init__(self, design: Design, kept: Tensor, ones: bool, weights: Tensor) -> None:
        self._columns, self.ones, self.count = design.selection(weights), ones, len(kept)
        self._diagonal = self._columns.append(kept).diagonal()

    def _times(self, w: Tensor) -> Tensor:
        return self._columns.times(w)

    def _transposed(self, rows: Tensor) -> Tensor:
        return self._columns.transposed(rows)

    def _gram(self, bend: Tensor) -> Tensor:
        square = self._columns.gram(bend, 0)
        return 0.5 * (square + square.T)

    def _squares(self, weights: Tensor) -> Tensor:
        return self._diagonal


def features_of(design: Design, kept: Tensor | None, ones: bool, weights: Tensor) -> Features:
    """The features of the columns ``kept``, (m,), or of all."""
    if kept is not None and len(kept) <= min(_FEW, design.n, design.p // 2):
        return FewFeatures(design, kept, ones, weights)
    return WholeFeatures(design, kept, ones)
