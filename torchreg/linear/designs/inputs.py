"""The door for X: arrays of any library become a validated design on one device."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from torchreg.linear.after_fork import one_thread_after_fork
from torchreg.linear.designs.arrays import check_finite, check_matrix, is_scipy_sparse, tensor_of, there
from torchreg.linear.designs.base import Design
from torchreg.linear.designs.compressed import Compressed
from torchreg.linear.designs.dense import Dense
from torchreg.linear.designs.scipy_rows import ScipyRows, scipy_rows
from torchreg.linear.designs.sparse import Sparse
from torchreg.linear.designs.structure import check_structure
from torchreg.linear.designs.tables import is_table, table_numbers
from torchreg.linear.designs.torch_rows import TorchRows, torch_rows


def as_design(X: Any, device: torch.device | str | None = None) -> Design:  # noqa: N803
    """The design that reads ``X`` where it lies.

    A dense floating-point X on its own device is not copied, read-only memory included; integers and
    booleans become float64, which is a copy. A sparse X is kept by rows and by columns, with float64
    entries: what is not there in one of these forms is added.

    Args:
        X: (n, p); numpy or what numpy can convert, torch (dense, or sparse CSR, CSC, COO), scipy sparse, a data frame.
        device: where to compute; None for where X is.

    Raises:
        ValueError: for NaN, infinity, complex numbers, strings, no rows or columns, or not two dimensions, and for a
            sparse X with an index beyond its rows or columns.
        RuntimeError: if the device is not there.

    Example:
        >>> import numpy as np
        >>> as_design(np.eye(3)).times(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
        tensor([1., 0., 2.], dtype=torch.float64)
    """
    one_thread_after_fork()
    place = None if device is None else there(device)
    check_structure(X)
    if is_scipy_sparse(X):
        return _from_scipy(X, place or torch.device("cpu"))
    if isinstance(X, Tensor) and X.layout != torch.strided:
        return _from_torch_sparse(X, place or X.device)
    values = tensor_of(table_numbers(X) if is_table(X) else X)
    check_matrix(tuple(values.shape), values)
    check_finite(values, "X")
    return Dense(values.to(place, None if values.is_floating_point() else torch.float64))


def _from_scipy(matrix: Any, device: torch.device) -> Sparse:
    if matrix.dtype.kind == "c":
        raise ValueError(f"Complex data not supported\n{matrix}\n")
    check_matrix(matrix.shape, matrix)
    rows, columns = scipy_rows(matrix)
    return _checked(*(part if device.type == "cpu" else _moved(part, device) for part in (rows, columns)))


def _from_torch_sparse(matrix: Tensor, device: torch.device) -> Sparse:
    if matrix.is_complex():
        raise ValueError(f"Complex data not supported\n{matrix}\n")
    check_matrix(tuple(matrix.shape), matrix)
    rows: Compressed = _moved(torch_rows(matrix.detach()), device)
    if device.type == "cpu" and find_spec("scipy") is not None:
        rows = ScipyRows(rows.values, rows.indices, rows.starts, rows.width)
    return _checked(rows, rows.flipped())


def _checked(rows: Compressed, columns: Compressed) -> Sparse:
    check_finite(columns.values, "X")
    return Sparse(rows, columns)


def _moved(part: Compressed, device: torch.device) -> TorchRows:
    return TorchRows(part.values.to(device), part.indices.to(device), part.starts.to(device), part.width)
