"""What belongs to the rows of X: targets, weights and offsets, validated."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchreg.linear.designs.arrays import check_finite, tensor_of
from torchreg.linear.designs.base import Design


def as_target(y: Any, design: Design) -> Tensor:
    """The target on the design's device, of its own dtype, (n,) or (n, K); the datafit checks what is in it.

    Raises:
        ValueError: if there is none, its entries are no numbers, or it has not as many rows as X.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    _refuse_text(y)
    target = tensor_of(y).to(design.device)
    _same_length("y", target, design)
    return target


def given_weights(sample_weight: Any, design: Design) -> Tensor:
    """Weights as they are given, (n,), float64; a number is that of each row, None is 1.

    Raises:
        ValueError: if a weight is negative or not finite, or there are not n of them.
    """
    weights = tensor_of(1.0 if sample_weight is None else sample_weight).to(design.device, torch.float64)
    if weights.dim() == 0:
        weights = weights.expand(design.n)
    if weights.dim() != 1:
        raise ValueError(
            f"Sample weights must be 1D array or scalar, got {weights.dim()}D array. "
            f"Expected either a scalar value or a 1D array of length {design.n}."
        )
    if len(weights) != design.n:
        raise ValueError(f"sample_weight.shape == {tuple(weights.shape)}, expected {(design.n,)}!")
    check_finite(weights, "sample_weight")
    if bool((weights < 0).any()):
        raise ValueError("Negative values in data passed to `sample_weight`; leave a row out by weight 0.")
    return weights


def normalised(weights: Tensor) -> Tensor:
    """Weights that add up to 1, (n,), from weights >= 0 of which one is positive."""
    weights = weights / weights.max()  # so that the sum neither overflows nor underflows
    return weights / weights.sum()


def as_offset(offset: Any, design: Design, outputs: int | None) -> Tensor | None:
    """The offset of each row, (n,) or (n, K), float64.

    Raises:
        ValueError: if its shape is another or an entry is not finite.
    """
    if offset is None:
        return None
    lift = tensor_of(offset).to(design.device, torch.float64)
    shape = (design.n,) if outputs is None else (design.n, outputs)
    if lift.shape != shape:
        raise ValueError(f"offset must have shape {shape}, got {tuple(lift.shape)}.")
    check_finite(lift, "offset")
    return lift


def _refuse_text(y: Any) -> None:
    text = np.asarray(y) if not isinstance(y, Tensor) else np.empty(0)
    found = next((entry for entry in text.flat if isinstance(entry, str)), None) if text.dtype.kind in "OUT" else None
    if found is not None:
        raise ValueError(
            f"y contains strings, such as {str(found)!r}, but a fit takes numbers; number the classes, by "
            "numpy.unique(y, return_inverse=True)[1], or use an estimator such as SparseClassifier, which takes labels."
        )


def _same_length(name: str, rows: Tensor, design: Design) -> None:
    if rows.dim() == 0:
        raise ValueError(f"{name} should be a 1d array, got an array of shape () instead.")
    if len(rows) != design.n:
        given = [design.n, len(rows)]
        raise ValueError(f"Found input variables with inconsistent numbers of samples: {given} (X, {name})")
