"""Arrays of other libraries become tensors: without a copy where memory allows it, and with scikit-learn's errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

_PIECE = 1 << 20  # entries that are looked at together when a sum is not finite
_SHARED = "?", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1"  # dtypes that numpy and torch have in common


def tensor_of(values: Any) -> Tensor:
    """A dense array of numbers as a tensor that shares its memory, read-only memory too.

    Copied are only lists, negative strides, foreign byte orders and dtypes that torch lacks (to float64).

    Raises:
        ValueError: for strings and complex numbers, and where objects are no numbers.
        TypeError: for sparse matrices and other things that are no numbers.
    """
    if is_scipy_sparse(values):
        raise TypeError(
            "Sparse data was passed, but dense data is required. Use '.toarray()' to convert to a dense numpy array."
        )
    tensor = values.detach() if isinstance(values, Tensor) else from_dlpack(_plain(np.asarray(values)))
    if tensor.is_complex():
        raise ValueError(f"Complex data not supported\n{tensor}\n")
    return tensor


def is_scipy_sparse(values: Any) -> bool:
    """Whether ``values`` is a scipy sparse matrix or array; scipy is not imported for the question."""
    module = sys.modules.get("scipy.sparse")
    return module is not None and bool(module.issparse(values))


def there(device: torch.device | str) -> torch.device:
    """The device, if it is there and has float64.

    Raises:
        RuntimeError: if there is no such device.
        ValueError: if it does not compute in float64.
    """
    place = torch.device(device)
    if place.type == "mps":
        raise ValueError(f"device {str(place)!r} has no float64, in which fits are computed; use device='cpu'.")
    present = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if present is not None else 0
    names = ["cpu", *(f"{present}:{k}" for k in range(count))]
    if place.type != "cpu" and f"{place.type}:{place.index or 0}" not in names:
        raise RuntimeError(f"device {str(place)!r} is not there; available: {', '.join(names)}.")
    return place


def check_matrix(shape: tuple[int, ...], shown: Any) -> None:
    """Refuse what has not two dimensions, a row and a column.

    Raises:
        ValueError: with scikit-learn's words.
    """
    if len(shape) < 2:
        kind = "1D" if shape else "scalar"
        raise ValueError(
            f"Expected 2D array, got {kind} array instead:\narray={shown}.\n"
            "Reshape your data either using array.reshape(-1, 1) if your data has a single feature or "
            "array.reshape(1, -1) if it contains a single sample."
        )
    if len(shape) > 2:
        raise ValueError(f"Found array with dim {len(shape)}, while dim <= 2 is required.")
    for size, kind in zip(shape, ("sample", "feature"), strict=True):
        if not size:
            raise ValueError(f"Found array with 0 {kind}(s) (shape={tuple(shape)}) while a minimum of 1 is required.")


def check_finite(values: Tensor, name: str) -> None:
    """Refuse NaN and infinity, at the price of one sum; entries are looked at only where that is not finite.

    Raises:
        ValueError: with scikit-learn's words.
    """
    if not values.is_floating_point() or bool(values.sum().isfinite()):
        return
    infinite = False
    for piece in _pieces(values):
        if bool(piece.isnan().any()):
            raise ValueError(f"Input {name} contains NaN.")
        infinite = infinite or not bool(piece.isfinite().all())
    if infinite:
        dtype = str(values.dtype).removeprefix("torch.")
        raise ValueError(f"Input {name} contains infinity or a value too large for dtype({dtype!r}).")


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same numbers in memory that torch can share."""
    kind = array.dtype.kind
    if kind in "USV":
        raise ValueError(
            "dtype='numeric' is not compatible with arrays of bytes/strings."
            "Convert your data to numeric values explicitly instead."
        )
    if kind == "c":
        raise ValueError(f"Complex data not supported\n{array}\n")
    if kind not in "biufO":
        raise TypeError(f"Numbers are needed, got an array of dtype {array.dtype}; convert it to float64.")
    if array.dtype.newbyteorder("=") not in _SHARED or kind == "O":
        return array.astype(np.float64)
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    strides_fit = all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    return array if strides_fit else np.ascontiguousarray(array)


def _pieces(values: Tensor) -> Iterator[Tensor]:
    """Views of a vector or a matrix, cut along whichever dimension has the longer stride."""
    if values.dim() < 2:
        return iter(values.reshape(-1).split(_PIECE))
    long = values if values.stride(0) >= values.stride(1) else values.T
    return iter(long.split(max(1, _PIECE // max(1, long.shape[1]))))
