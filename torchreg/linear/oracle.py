"""Where a least-squares path gets its Gram blocks and correlations: from the data, or from one Gram matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from torchreg.linear.designs.base import Design
from torchreg.linear.designs.gram_blocks import balanced
from torchreg.linear.moments import Moments
from torchreg.linear.problem import Problem


class Oracle(ABC):
    """A least-squares problem ``sum_i weights_i (y_i - x_i' w)^2 / 2`` and a growing set of its columns.

    Attributes:
        cross: correlations ``X' W y`` at zero coefficients, (p,) or, for K targets, (p, K).
        energy: ``y' W y``, summed over targets, a 0-d tensor.
        chosen: the columns of the set in the order in which they came, (m,).
        rank: an upper bound of the rank of X.
    """

    cross: Tensor
    energy: Tensor
    chosen: Tensor
    rank: int

    @abstractmethod
    def append(self, new: Tensor) -> Tensor:
        """Add columns to the set.

        Args:
            new: column numbers that are not in the set, (k,).

        Returns:
            Gram matrix of the whole set with the new columns, (m + k, k).
        """

    @abstractmethod
    def add(self, new: Tensor) -> None:
        """Add columns to the set without their products; ``new`` as in `append`."""

    @abstractmethod
    def correlations(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """At several coefficient vectors over the set.

        Args:
            w: one vector a column, (m, batch) or, for K targets, (m, batch, K).

        Returns:
            ``X' W (y - X w)``, (p, batch[, K]), and the residual sums of squares, (batch,).
        """

    @abstractmethod
    def within(self, w: Tensor) -> Tensor:
        """Correlations of the set alone at one coefficient vector over it, (m,) or (m, K), in its shape."""

    @abstractmethod
    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """Entries of the Gram matrix of the set, by the places of two groups of columns in it, (l, r).

        Exactly symmetric where ``left`` ends with ``right``.
        """

    @abstractmethod
    def factor(self, places: Tensor) -> Tensor | None:
        """Rows ``B`` for which ``B B'`` is the Gram matrix of some columns, by their places in the set, (k, n).

        None where the data is sparse or not at hand.
        """


class DataOracle(Oracle):
    """Correlations by one pass over the data for a whole batch of vectors.

    Args:
        design: n rows and p columns.
        weights: of the rows, adding up to 1, (n,).
        y: target, (n,) or (n, K).
    """

    def __init__(self, design: Design, weights: Tensor, y: Tensor) -> None:
        self._design, self._weights, self._y = design, weights, y
        self._columns = design.selection(weights)
        weighted = weights * y if y.dim() == 1 else weights[:, None] * y
        self.cross = design.transposed(weighted)
        self.energy = (weighted * y).sum()
        self.rank = min(int(weights.count_nonzero()), design.p)

    @property
    def chosen(self) -> Tensor:  # type: ignore[override]
        return self._columns.index

    def append(self, new: Tensor) -> Tensor:
        return self._columns.append(new)

    def add(self, new: Tensor) -> None:
        self._columns.add(new)

    def correlations(self, w: Tensor) -> tuple[Tensor, Tensor]:
        shape = w.shape[1:]
        residuals = self._y[:, None] - self._columns.times(w.flatten(1)).unflatten(1, shape)
        weighted = self._weights.view(-1, *[1] * len(shape)) * residuals
        squares = (weighted * residuals).sum((0, *range(2, w.dim())))
        return self._design.transposed(weighted.flatten(1)).unflatten(1, shape), squares

    def within(self, w: Tensor) -> Tensor:
        residuals = self._y - self._columns.times(w)
        return self._columns.transposed((self._weights if w.dim() == 1 else self._weights[:, None]) * residuals)

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        rows, others = self.factor(left), self.factor(right)
        if rows is not None and others is not None:
            return balanced(rows @ others.T)
        unit = self._weights.new_zeros(len(self.chosen), len(right)).scatter_(0, right[None], 1.0)
        products = self._columns.transposed(self._weights[:, None] * self._columns.times(unit))
        return balanced(products.index_select(0, left))

    def factor(self, places: Tensor) -> Tensor | None:
        rows = self._columns.dense(places)
        return None if rows is None else rows * self._weights.sqrt()


class GramOracle(Oracle):
    """Correlations from the Gram matrix of all columns, without the data.

    Args:
        gram: ``X' W X``, (p, p).
        cross: ``X' W y``, (p,) or (p, K).
        energy: ``y' W y``, summed over targets, a 0-d tensor.
    """

    def __init__(self, gram: Tensor, cross: Tensor, energy: Tensor) -> None:
        self._gram, self.cross, self.energy = gram, cross, energy
        self.rank = len(cross)
        self.chosen = torch.zeros(0, dtype=torch.long, device=gram.device)

    def add(self, new: Tensor) -> None:
        self.chosen = torch.cat([self.chosen, new])

    def append(self, new: Tensor) -> Tensor:
        self.add(new)
        return self._gram.index_select(0, new).index_select(1, self.chosen).T

    def correlations(self, w: Tensor) -> tuple[Tensor, Tensor]:
        dense = w.new_zeros(len(self.cross), *w.shape[1:]).index_copy_(0, self.chosen, w)
        explained = (dense.flatten(1).T @ self._gram).T.unflatten(1, dense.shape[1:])  # BLAS is fast along rows
        taken = (dense * (2.0 * self.cross[:, None] - explained)).sum((0, *range(2, w.dim())))
        return self.cross[:, None] - explained, (self.energy - taken).clamp(min=0.0)

    def within(self, w: Tensor) -> Tensor:
        dense = torch.zeros_like(self.cross).index_copy_(0, self.chosen, w)
        return (self.cross - self._gram @ dense).index_select(0, self.chosen)

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        left, right = self.chosen.index_select(0, left), self.chosen.index_select(0, right)
        return self._gram.index_select(0, left).index_select(1, right)

    def factor(self, places: Tensor) -> None:
        del places


def oracle_of(problem: Problem, moments: Moments | None) -> Oracle:
    """Where correlations come from: the Gram matrix where it is at hand, else the data."""
    if moments is None:
        return DataOracle(problem.design, problem.weights, problem.y)
    return GramOracle(moments.gram, moments.cross, moments.energy)
