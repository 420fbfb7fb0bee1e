"""Compressed rows multiplied by torch: for sparse designs on a GPU, and on CPU where scipy is missing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torchreg.linear.designs.compressed import Compressed

_LAYOUTS = torch.sparse_csr, torch.sparse_csc, torch.sparse_coo
_BETA = "Sparse CSR tensor support"  # torch's note that its sparse CSR is in beta
_ROOM, _DEVICE_ROOM = 1 << 22, 1 << 25  # entries of a dense temporary: 32 MiB on a CPU, 256 on an accelerator


@dataclass(frozen=True, eq=False)
class TorchRows(Compressed):
    """Compressed rows on any device. A transposed product adds up atomically, so `times` is preferred."""

    values: Tensor
    indices: Tensor
    starts: Tensor
    width: int

    @property
    def scatters(self) -> bool:
        return False

    def times(self, w: Tensor) -> Tensor:
        return self._matrix @ w

    def transposed(self, v: Tensor) -> Tensor:
        parts = v[self.owners()] * (self.values[:, None] if v.dim() == 2 else self.values)
        return v.new_zeros(self.width, *v.shape[1:]).index_add_(0, self.indices, parts)

    def products(self, other: TorchRows) -> Tensor:
        height = max(1, (_ROOM if self.device.type == "cpu" else _DEVICE_ROOM) // max(1, self.width))
        room = self.values.new_empty(min(height, other.count), self.width)
        blocks = []
        for start in range(0, other.count, height):
            part = other.between(start, min(start + height, other.count))
            blocks.append(self.times(part.fill(room[: part.count]).T))
        return torch.cat(blocks, 1) if blocks else self.values.new_zeros(self.count, 0)

    def fill(self, out: Tensor) -> Tensor:
        return out.zero_().index_put_((self.owners(), self.indices.long()), self.values, accumulate=True)

    def flipped(self) -> TorchRows:
        places = torch.stack([self.indices.long(), self.owners()])
        turned = torch.sparse_coo_tensor(places, self.values, (self.width, self.count), check_invariants=False)
        return _packed(turned.coalesce(), self.indices.dtype)

    @cached_property
    def _matrix(self) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_BETA)
            return torch.sparse_csr_tensor(
                self.starts, self.indices, self.values, (self.count, self.width), check_invariants=False
            )


def torch_rows(matrix: Tensor) -> TorchRows:
    """The rows of a sparse tensor, sharing its memory if it is CSR and float64.

    Raises:
        TypeError: if its layout is none of CSR, CSC and COO.
    """
    _check_layout(matrix)
    if matrix.layout == torch.sparse_coo:
        return _packed(matrix.coalesce(), torch.int64)
    if matrix.layout == torch.sparse_csr:
        return TorchRows(matrix.values().double(), matrix.col_indices(), matrix.crow_indices(), matrix.shape[1])
    columns = TorchRows(matrix.values().double(), matrix.row_indices(), matrix.ccol_indices(), matrix.shape[0])
    return columns.flipped()


def in_csr(matrix: Tensor) -> Tensor:
    """A sparse tensor in CSR layout, of its own dtype; itself if it is.

    Raises:
        TypeError: if its layout is none of CSR, CSC and COO.
    """
    _check_layout(matrix)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_BETA)
        return matrix.to_sparse_csr()


def _check_layout(matrix: Tensor) -> None:
    if matrix.layout not in _LAYOUTS:
        raise TypeError(
            f"A sparse X is in CSR, CSC or COO layout, got {matrix.layout}; use X.to_dense().to_sparse_csr()."
        )


def _packed(matrix: Tensor, dtype: torch.dtype) -> TorchRows:
    """Compressed rows of a coalesced matrix."""
    owners, indices = matrix.indices()
    starts = torch.zeros(matrix.shape[0] + 1, dtype=dtype, device=matrix.device)
    starts[1:] = torch.bincount(owners, minlength=matrix.shape[0]).cumsum(0)
    return TorchRows(matrix.values().double(), indices.to(dtype), starts, matrix.shape[1])
