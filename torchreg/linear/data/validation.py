"""Validation of a fit's data, for `fit_path` and for estimators: X as a design, targets, weights and offsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchreg.linear.datafits import Datafit
from torchreg.linear.designs.arrays import check_finite, tensor_of
from torchreg.linear.designs.base import Design
from torchreg.linear.designs.inputs import as_design
from torchreg.linear.designs.tables import column_names


@dataclass(frozen=True)
class Validated:
    """The rows of a data set.

    Attributes:
        design: X. target: prepared by the datafit. lift: the offset, or None.
        scores: weights of the rows as they were given, not normalised, (n,).
        names: of the columns, where X is a data frame that has some.
    """

    design: Design
    target: Tensor
    scores: Tensor
    lift: Tensor | None
    names: tuple[str, ...] | None = None

    @property
    def weights(self) -> Tensor:
        """Those of the rows, of sum 1, (n,)."""
        return normalised(self.scores)

    @property
    def counting(self) -> Tensor | None:
        """Numbers of the rows whose weight is not zero; None where that is all of them."""
        positive = self.scores / self.scores.max() > 0  # a weight that vanishes beside the largest counts as 0
        return None if bool(positive.all()) else positive.nonzero().flatten()

    def taken(self, rows: Tensor) -> Validated:
        """Some of the rows."""
        lift = None if self.lift is None else self.lift[rows]
        return Validated(self.design.subset(rows), self.target[rows], self.scores[rows], lift, self.names)


def validated(
    X: Any, y: Any, datafit: Datafit, sample_weight: Any, offset: Any,  # noqa: N803
    device: torch.device | str | None,
) -> Validated:  # fmt: skip
    """Validate all rows, those of weight 0 too.

    Raises:
        ValueError: if shapes do not fit, something is not finite or y not of the datafit's form.
        TypeError: if the datafit's methods do not give a number for each row.
    """
    design = as_design(X, device)
    target = datafit.prepare(as_target(y, design))
    if not datafit.quadratic:
        _check_rows(datafit, target)
    scores = given_weights(sample_weight, design.n, design.device)
    check_total(float(scores.max()))
    return Validated(design, target, scores, as_offset(offset, design, datafit.outputs(target)), column_names(X))


def _check_rows(datafit: Datafit, target: Tensor) -> None:
    """Look at what the methods of a datafit give, which may be the caller's own."""
    outputs = datafit.outputs(target)
    eta = target.new_zeros(len(target) if outputs is None else (len(target), outputs))
    for method, shape, words in (
        (datafit.value, eta.shape[:1], "the loss of each row, neither summed nor averaged"),
        (datafit.grad, eta.shape, "the derivative of each row's loss, of eta's shape"),
    ):
        found = method(eta, target)
        if not isinstance(found, Tensor) or found.shape != shape:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(
                f"{type(datafit).__name__}.{method.__name__}(eta, y) must return {words}: a tensor of shape "
                f"{tuple(shape)}, got {got}."
            )


def as_target(y: Any, design: Design) -> Tensor:
    """The target on the design's device, of its own dtype, (n,) or (n, K); the datafit checks what is in it.

    Raises:
        ValueError: if there is none, its entries are no numbers, or it has not as many rows as X.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    text = np.asarray(y) if not isinstance(y, Tensor) else np.empty(0)
    found = next((entry for entry in text.flat if isinstance(entry, str)), None) if text.dtype.kind in "OUT" else None
    if found is not None:
        raise ValueError(
            f"y contains strings, such as {str(found)!r}, but a fit takes numbers; number the classes, by "
            "numpy.unique(y, return_inverse=True)[1], or use an estimator such as SparseClassifier, which takes labels."
        )
    target = tensor_of(y).to(design.device)
    if target.dim() == 0:
        raise ValueError("y should be a 1d array, got an array of shape () instead.")
    if len(target) != design.n:
        lengths = [design.n, len(target)]
        raise ValueError(f"Found input variables with inconsistent numbers of samples: {lengths} (X, y)")
    return target


def given_weights(sample_weight: Any, n: int, device: torch.device | str = "cpu") -> Tensor:
    """Weights as they are given, (n,), float64; a number is that of each row, None is 1.

    Raises:
        ValueError: if a weight is negative or not finite, or there are not n of them.
    """
    weights = tensor_of(1.0 if sample_weight is None else sample_weight).to(device, torch.float64)
    if weights.dim() == 0:
        weights = weights.expand(n)
    if weights.dim() != 1:
        raise ValueError(
            f"Sample weights must be 1D array or scalar, got {weights.dim()}D array. Expected either a scalar value "
            f"or a 1D array of length {n}."
        )
    if len(weights) != n:
        raise ValueError(f"sample_weight.shape == {tuple(weights.shape)}, expected {(n,)}!")
    check_finite(weights, "sample_weight")
    if bool((weights < 0).any()):
        raise ValueError("Negative values in data passed to `sample_weight`; leave a row out by weight 0.")
    return weights


def check_total(total: float) -> None:
    """Refuse weights of which none counts, where their sum, or the largest, is 0."""
    if total == 0.0:
        raise ValueError("Sample weights must contain at least one non-zero number.")


def normalised(weights: Tensor) -> Tensor:
    """Weights that add up to 1, (n,), from weights >= 0 of which one is positive."""
    weights = weights / weights.max()  # so that the sum neither overflows nor underflows
    return weights / weights.sum()


def check_offset(given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Refuse an offset of another shape than the linear predictor's."""
    if tuple(given) != tuple(wanted):
        raise ValueError(f"offset must have shape {tuple(wanted)}, got {tuple(given)}.")


def as_offset(offset: Any, design: Design, outputs: int | None) -> Tensor | None:
    """The offset of each row, (n,) or (n, K), float64.

    Raises:
        ValueError: if its shape is another or an entry is not finite.
    """
    if offset is None:
        return None
    lift = tensor_of(offset).to(design.device, torch.float64)
    check_offset(lift.shape, (design.n,) if outputs is None else (design.n, outputs))
    check_finite(lift, "offset")
    return lift
