"""Compressed rows multiplied by scipy: the fastest on CPU, sharing memory with the user's matrix.

This module alone imports scipy, and only when it is asked to multiply.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from torchreg.linear.designs.compressed import Compressed


@dataclass(frozen=True, eq=False)
class ScipyRows(Compressed):
    """Compressed rows on CPU.

    scipy multiplies a batch by scattering two to four times as fast as by gathering, and one vector
    at least as fast.
    """

    values: Tensor
    indices: Tensor
    starts: Tensor
    width: int

    @property
    def scatters(self) -> bool:
        return True

    def times(self, w: Tensor) -> Tensor:
        return torch.from_numpy(self._matrix @ w.numpy())

    def transposed(self, v: Tensor) -> Tensor:
        return torch.from_numpy(self._matrix.T @ v.numpy())

    def products(self, other: ScipyRows) -> Tensor:
        return torch.from_numpy((self._matrix @ other._matrix.T).toarray(order="C"))

    def fill(self, out: Tensor) -> Tensor:
        self._matrix.toarray(out=out.zero_().numpy())
        return out

    def flipped(self) -> ScipyRows:
        matrix = self._matrix.tocsc()
        matrix.sum_duplicates()
        return ScipyRows(*_arrays(matrix), self.count)

    @cached_property
    def _matrix(self) -> Any:
        from scipy.sparse import csr_array

        parts = (self.values.numpy(), self.indices.numpy(), self.starts.numpy())
        return csr_array(parts, shape=(self.count, self.width))


def scipy_rows(matrix: Any) -> tuple[ScipyRows, ScipyRows]:
    """The rows and the columns of a scipy matrix of any format, sharing what is float64 and in order already."""
    from scipy.sparse import csc_array, csr_array

    if matrix.format == "csc":
        columns = csc_array(_as_double(matrix), shape=matrix.shape)
        if not columns.has_canonical_format:
            columns = columns.copy()
            columns.sum_duplicates()
        shared = ScipyRows(*_arrays(columns), matrix.shape[0])
        return shared.flipped(), shared
    matrix = matrix if matrix.format == "csr" else matrix.tocsr()
    rows = ScipyRows(*_arrays(csr_array(_as_double(matrix), shape=matrix.shape)), matrix.shape[1])
    return rows, rows.flipped()


def _as_double(matrix: Any) -> tuple[Any, Any, Any]:
    used = slice(int(matrix.indptr[-1]))  # the arrays may be longer
    return matrix.data[used].astype("float64", copy=False), matrix.indices[used], matrix.indptr


def _arrays(matrix: Any) -> tuple[Tensor, Tensor, Tensor]:
    values, indices, starts = (from_dlpack(part) for part in (matrix.data, matrix.indices, matrix.indptr))
    return values, indices, starts
