"""What a solver asks of the data: products with columns that are seen centred and scaled."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Design(ABC):
    """n rows and p columns of data, seen centred and scaled.

    ``X~ = (X - 1 mean') / scale``

    X~ is never formed, X is never written to, and every result is float64. A final class supplies
    products with ``X - 1 centre'``; what its `_owed` says is missing from the mean follows by a
    rank-one correction here.

    Shapes:
        w: (p,) or (p, batch); v: (n,) or (n, batch); weights: (n,).

    Attributes:
        n: number of rows.
        p: number of columns.
        device: where X lives.
        mean: of the columns, (p,), float64, None where they are not centred.
        scale: of the columns, (p,), float64, None where they are not scaled.
    """

    mean: Tensor | None
    scale: Tensor | None

    @property
    @abstractmethod
    def n(self) -> int:
        """The number of rows."""

    @property
    @abstractmethod
    def p(self) -> int:
        """The number of columns."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where X lives."""

    def times(self, w: Tensor) -> Tensor:
        """``X~ w``, (n,) or (n, batch)."""
        w = divided(w, self.scale)
        return less_mean(self._times(w), self._owed, w)

    def transposed(self, v: Tensor) -> Tensor:
        """``X~' v``, (p,) or (p, batch); ``v`` need not add up to 0."""
        return less_total(self._transposed(v), self._owed, self.scale, v)

    def dense_rows(self, part: slice) -> Tensor:
        """Some rows of X~, dense, one a column, (p, k)."""
        some = self.subset(part)
        return some.transposed(torch.eye(some.n, dtype=torch.float64, device=self.device))

    @abstractmethod
    def gram(self, weights: Tensor) -> Tensor:
        """``X~' diag(weights) X~``, (p, p), exactly symmetric; ``weights`` are not negative."""

    @abstractmethod
    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted mean and variance of the columns of X itself, (p,) each; ``weights`` add up to 1."""

    @abstractmethod
    def standardised(self, weights: Tensor, *, centre: bool, scale: bool) -> Design:
        """The same X, seen centred, scaled, both or neither; a constant column gets scale 1."""

    @abstractmethod
    def selection(self, weights: Tensor) -> Selection:
        """An empty set of columns, to grow."""

    @abstractmethod
    def subset(self, rows: Tensor | slice) -> Design:
        """Some of the rows, of the same mean and scale; ``rows`` numbers them or is a mask."""

    @abstractmethod
    def copies(self, rows: Tensor) -> bool:
        """Whether a subset of rows, (m,) numbers, costs a copy that gathers single entries."""

    @property
    @abstractmethod
    def _owed(self) -> Tensor | None:
        """The part of the mean that `_times` and `_transposed` have not subtracted, (p,)."""

    @abstractmethod
    def _times(self, w: Tensor) -> Tensor:
        """``X w``, the mean subtracted or owed."""

    @abstractmethod
    def _transposed(self, v: Tensor) -> Tensor:
        """``X' v``, the mean subtracted or owed."""


class Selection(ABC):
    """A growing set of columns of a design.

    Attributes:
        index: numbers of the columns in the order in which they came, (m,), int64.
    """

    index: Tensor

    @abstractmethod
    def add(self, new: Tensor) -> None:
        """Add columns without their products; ``new`` as in `append`."""

    @abstractmethod
    def append(self, new: Tensor) -> Tensor:
        """Add columns.

        Args:
            new: numbers of columns that are not in the set, (k,), int64.

        Returns:
            ``X~_W' diag(weights) X~_new`` for the set W with the new columns at its end, (m + k, k);
            the last k rows are exactly symmetric.
        """

    @abstractmethod
    def gram(self, weights: Tensor, start: int = 0) -> Tensor:
        """``X~_W' diag(weights) X~_W[start:]`` for any weights >= 0 of the rows, (m, m - start).

        The last m - start rows are exactly symmetric.
        """

    @abstractmethod
    def times(self, w: Tensor) -> Tensor:
        """``X~_W w`` for ``w`` of shape (m,) or (m, batch); the rows are not weighted."""

    @abstractmethod
    def dense(self, places: Tensor) -> Tensor | None:
        """Some columns by their places in the set, one a row, (k, n), not weighted; None where they are sparse."""

    @abstractmethod
    def transposed(self, v: Tensor) -> Tensor:
        """``X~_W' v``, (m,) or (m, batch); the rows are not weighted."""


_ROUNDING = 10.0 * torch.finfo(torch.float64).eps  # a column that varies by less than this part of its mean is constant


def divided(w: Tensor, scale: Tensor | None) -> Tensor:
    """Each row of ``w``, (p,) or (p, batch), divided by its scale."""
    if scale is None:
        return w
    return w / (scale[:, None] if w.dim() == 2 else scale)


def deviation(mean: Tensor, variance: Tensor) -> Tensor:
    """Standard deviation of each column, exactly 0 where the variance is rounding."""
    spread = variance.clamp(min=0.0).sqrt()
    return torch.where(spread <= _ROUNDING * mean.abs(), 0.0, spread)


def as_scale(spread: Tensor) -> Tensor:
    """What to divide columns by: 1 for a constant one."""
    return torch.where(spread > 0, spread, 1.0)


def less_mean(product: Tensor, mean: Tensor | None, w: Tensor) -> Tensor:
    """``(X - 1 mean') w`` from ``X w``, in place."""
    return product if mean is None else product.sub_(mean @ w)


def less_total(product: Tensor, mean: Tensor | None, scale: Tensor | None, v: Tensor) -> Tensor:
    """``((X - 1 mean') / scale)' v`` from ``X' v``, in place."""
    if mean is not None:
        column = mean[:, None] if v.dim() == 2 else mean
        product.addcmul_(column, v.sum(0), value=-1.0)
    if scale is not None:
        product.div_(scale[:, None] if v.dim() == 2 else scale)
    return product
