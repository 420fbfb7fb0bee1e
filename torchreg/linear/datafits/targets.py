"""What a target may be; its errors are in scikit-learn's words, so that its users know them."""

from __future__ import annotations

import torch
from torch import Tensor

_MANY = 6  # labels shown in an error


def real_target(y: Tensor, *, most_dims: int = 1) -> Tensor:
    """``y`` as float64, after refusing a wrong shape, no rows, complex numbers, NaN and inf.

    Raises:
        ValueError: with scikit-learn's words.
    """
    if y.is_complex():
        raise ValueError(f"Complex data not supported\n{y}\n")
    if most_dims == 1 and y.dim() != 1:
        raise ValueError(f"y should be a 1d array, got an array of shape {tuple(y.shape)} instead.")
    if not 1 <= y.dim() <= most_dims:
        raise ValueError(f"y should be a 1d or 2d array, got an array of shape {tuple(y.shape)} instead.")
    if not y.numel():
        raise ValueError(f"Found array with 0 sample(s) (shape={tuple(y.shape)}) while a minimum of 1 is required.")
    y = y.detach().double()
    if not bool(y.isfinite().all()):
        raise ValueError(
            "Input y contains NaN." if bool(y.isnan().any()) else "Input y contains infinity or a value too large."
        )
    return y


def binary_target(y: Tensor) -> Tensor:
    """Labels 0 and 1, -1 and 1, or False and True, as 0.0 and 1.0.

    Raises:
        ValueError: if there are other labels, or one class alone.
    """
    y = real_target(y)
    labels = class_labels(y)
    if len(labels) > 2:
        raise ValueError(
            "Only binary classification is supported. The type of the target is multiclass. "
            f"Got {_shown(labels)}; use Multinomial for more than two classes."
        )
    if not ({*labels} <= {0.0, 1.0} or {*labels} <= {-1.0, 1.0}):
        raise ValueError(f"Unknown label type: {_shown(labels)}; give labels 0 and 1, or -1 and 1.")
    return (y > 0).double()


def one_hot_target(y: Tensor) -> Tensor:
    """Class numbers 0 to K - 1 as rows of the identity, shape (n, K).

    Raises:
        ValueError: if a number is no integer, a class has no row, or there is one class alone.
    """
    y = real_target(y)
    labels = class_labels(y)
    if labels != [float(k) for k in range(len(labels))]:
        raise ValueError(
            f"Unknown label type: {_shown(labels)}; number the classes 0, 1, ..., K - 1, each with at least one row."
        )
    return torch.nn.functional.one_hot(y.long(), len(labels)).double()


def class_labels(y: Tensor) -> list[float]:
    """The distinct integers in ``y``, ascending.

    Raises:
        ValueError: if a label is no integer, or there is one class alone.
    """
    if bool((y != y.round()).any()):
        raise ValueError(
            "Unknown label type: continuous. Maybe you are trying to fit a classifier, which expects discrete classes "
            "on a regression target with continuous values."
        )
    labels: list[float] = y.unique().tolist()
    if len(labels) == 1:
        raise ValueError(
            "This solver needs samples of at least 2 classes in the data, but the data contains only one class: "
            f"{labels[0]:g}"
        )
    return labels


def count_target(y: Tensor) -> Tensor:
    """Numbers >= 0, as float64.

    Raises:
        ValueError: if one is negative.
    """
    y = real_target(y)
    if bool((y < 0).any()):
        raise ValueError(
            "Some value(s) of y are out of the valid range of the loss 'Poisson': "
            f"the least is {float(y.min()):g}; counts are >= 0."
        )
    return y


def _shown(labels: list[float]) -> str:
    some = ", ".join(f"{label:g}" for label in labels[:_MANY])
    return f"labels {some}" + (", ..." if len(labels) > _MANY else "")
