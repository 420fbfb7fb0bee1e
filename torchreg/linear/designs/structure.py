"""The structure of a sparse matrix: that every entry lies inside of it, before anything reads memory by its indices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchreg.linear.designs.arrays import is_scipy_sparse


def check_structure(X: Any) -> None:  # noqa: N803
    """Refuse a sparse matrix whose indices or pointers lead out of it; anything dense passes.

    scipy and torch trust them, so that one that is too large reads or writes foreign memory. The arrays are looked at
    where they lie, by a few reductions.

    Args:
        X: anything; looked at are scipy's CSR, CSC, BSR and COO, and torch's CSR, CSC and COO.

    Raises:
        ValueError: with the index that is wrong and what is allowed.

    Example:
        >>> import torch
        >>> place, value = torch.tensor([[0], [7]]), torch.tensor([1.0])
        >>> check_structure(torch.sparse_coo_tensor(place, value, (1, 3), check_invariants=False))
        Traceback (most recent call last):
        ValueError: X is sparse, (1, 3), and has an entry in column 7; columns run from 0 to 2. Build it anew.
    """
    if is_scipy_sparse(X) and len(X.shape) == 2:
        _check_scipy(X)
    elif isinstance(X, Tensor) and X.layout != torch.strided and X.dim() == 2:
        _check_torch(X.detach())


def _check_scipy(X: Any) -> None:  # noqa: N803
    shape = tuple(X.shape)
    if X.format == "coo":
        _check_inside(X.row, X.col, shape, shape)
    elif X.format in ("csr", "csc", "bsr"):
        height, width = X.blocksize if X.format == "bsr" else (1, 1)
        blocks = shape[0] // height, shape[1] // width
        used = int(X.indptr[-1]) if len(X.indptr) else 0  # scipy's arrays may be longer
        entries = min(used, len(X.data))
        _check_compressed(X.indptr, X.indices[: max(used, 0)], entries, blocks, shape, by_rows=X.format != "csc")


def _check_torch(X: Tensor) -> None:  # noqa: N803
    n, p = X.shape
    if X.layout == torch.sparse_coo:
        rows, columns = (
            X._indices()
        )  # of `indices` there are none before entries are put together by these very numbers
        _check_inside(rows, columns, (n, p), (n, p))
    elif X.layout == torch.sparse_csr:
        _check_compressed(X.crow_indices(), X.col_indices(), len(X.values()), (n, p), (n, p), by_rows=True)
    elif X.layout == torch.sparse_csc:
        _check_compressed(X.ccol_indices(), X.row_indices(), len(X.values()), (n, p), (n, p), by_rows=False)


def _check_compressed(
    starts: Any, indices: Any, entries: int, blocks: tuple[int, int], shape: tuple[int, int], *, by_rows: bool
) -> None:
    """Pointers that begin at 0, never fall and end at the number of entries; indices within the matrix."""
    lists = blocks[0] if by_rows else blocks[1]
    whole = len(starts) == lists + 1 and len(indices) == entries
    if not (
        whole and int(starts[0]) == 0 and int(starts[-1]) == entries and not bool((starts[1:] < starts[:-1]).any())
    ):
        raise ValueError(
            f"X is sparse, {shape}, and has pointers that do not lead from 0 to its {entries} entries in {lists} "
            f"steps, none backwards (indptr; crow_indices or ccol_indices in torch). Build it anew."
        )
    _check_inside(None if by_rows else indices, indices if by_rows else None, blocks, shape)


def _check_inside(rows: Any, columns: Any, sizes: tuple[int, int], shape: tuple[int, int]) -> None:
    for name, numbers, size in (("row", rows, sizes[0]), ("column", columns, sizes[1])):
        if numbers is None or not len(numbers):
            continue
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= size:
            raise ValueError(
                f"X is sparse, {shape}, and has an entry in {name} {low if low < 0 else high}; {name}s run from 0 to "
                f"{size - 1}. Build it anew."
            )
