"""Gram matrices in blocks: half of the arithmetic, exact symmetry, and columns centred and scaled afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_STRIPS, _NARROWEST, _MULTIPLE = 8, 96, 32  # of columns: measured for p from 300 to 3000


@dataclass(frozen=True)
class Correction:
    """Turns products of raw columns into those of centred and scaled ones.

    ``(X - 1 m')' W (X - 1 m') = X' W X - m h' - h m'`` with ``h = X' W 1 - sum(W) m / 2``

    Attributes:
        mean: m, (p,), or None for columns that are not centred.
        half: h, (p,); not used without a mean.
        scale: what columns are divided by, (p,), or None.
    """

    mean: Tensor | None
    half: Tensor | None
    scale: Tensor | None

    def apply(self, products: Tensor, left: Tensor | slice, right: Tensor | slice) -> Tensor:
        """Correct the products of ``left`` columns with ``right`` ones, in place."""
        if self.mean is not None and self.half is not None:
            products.addr_(self.mean[left], self.half[right], alpha=-1.0)
            products.addr_(self.half[left], self.mean[right], alpha=-1.0)
        if self.scale is not None:
            products.div_(self.scale[left][:, None]).div_(self.scale[right])
        return products


def correction(mean: Tensor | None, scale: Tensor | None, weighted: Tensor | None, total: Tensor) -> Correction:
    """What remains to be done to products of raw columns; ``weighted`` is ``X' W 1``, ``total`` the sum of W."""
    half = None if mean is None or weighted is None else weighted - 0.5 * total * mean
    return Correction(mean, half, scale)


def split_weights(weights: Tensor) -> tuple[Tensor, Tensor | None]:
    """A common factor, and roots of what is left for each row: None where all rows weigh the same."""
    least, largest = torch.aminmax(weights)
    return (largest, None) if bool(least == largest) else (torch.ones_like(largest), weights.sqrt())


def strip(p: int) -> int:
    """The width of the strips in which p columns are multiplied."""
    return max(_NARROWEST, -(-p // (_STRIPS * _MULTIPLE)) * _MULTIPLE)


def add_products(square: Tensor, rows: Tensor) -> None:
    """Add ``rows.T @ rows`` to the upper triangle, and to a part of the lower one, of ``square``.

    Strips of columns against all that follow: 9/16 of the full product's arithmetic, in matrix
    products that are still large enough for BLAS.
    """
    p = rows.shape[1]
    for start in range(0, p, strip(p)):
        end = start + strip(p)
        square[start:end, start:].addmm_(rows[:, start:end].T, rows[:, start:])


def mirrored(square: Tensor) -> Tensor:
    """``square`` with its upper triangle copied to the lower one, in place."""
    width = strip(len(square))
    for start in range(0, len(square), width):
        end = start + width
        corner = square[start:end, start:end]
        corner.copy_(corner.triu() + corner.triu(1).T)
        square[end:, start:end] = square[start:end, end:].T
    return square


def balanced(products: Tensor) -> Tensor:
    """``products``, (m + k, k), with its last k rows made exactly symmetric in place."""
    corner = products[products.shape[0] - products.shape[1] :]
    corner.copy_(0.5 * (corner + corner.T))
    return products


def longer(old: Tensor, filled: int, length: int) -> Tensor:
    """A buffer of ``length`` entries of dim 0 that starts with the ``filled`` ones of ``old``."""
    new = old.new_empty(length, *old.shape[1:])
    new[:filled] = old[:filled]
    return new
