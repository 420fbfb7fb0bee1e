"""From an estimator's parameters to the penalty that the engine takes."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from torchreg.functional.groups import Groups, labels, rows
from torchreg.linear.designs.arrays import tensor_of
from torchreg.linear.estimators.arrays import Data, to_numpy
from torchreg.penalties import NonNegative, Penalty, Separable, Weighted


def feature_weights(given: Any, features: int, device: torch.device) -> Tensor:
    """One weight for each feature, >= 0 and float64; 0 = unpenalised, inf = forced to zero.

    Raises:
        ValueError: if the shape does not fit, or a weight is negative or NaN.
    """
    weights = tensor_of(np.asarray(to_numpy(given), dtype=np.float64))
    if weights.shape != (features,):
        raise ValueError(f"penalty_weights.shape == {tuple(weights.shape)}, expected {(features,)}!")
    if not bool((weights >= 0).all()):
        raise ValueError("penalty_weights must be >= 0 (0 = unpenalised, inf = forced to zero), got negative or NaN.")
    return weights.to(device)


class Entrywise(Protocol):
    """The parameters that change a penalty of single coefficients."""

    positive: bool
    penalty_weights: Any
    device: str | torch.device | None


def entrywise(penalty: Separable, model: Entrywise, data: Data, *, outputs: bool = False) -> Penalty:
    """``penalty`` with a model's feature weights and its sign constraint.

    ``outputs`` says that coefficients have a second dimension, over which weights are shared.
    """
    weighted: Penalty = penalty
    if model.penalty_weights is not None:
        weights = feature_weights(model.penalty_weights, data.features, data.on(model.device))
        weighted = Weighted(penalty, weights[:, None] if outputs else weights)
    return NonNegative(weighted) if model.positive else weighted


def grouped_by(groups: Any, features: int, device: torch.device) -> tuple[Groups, int]:
    """A grouper of features and its number of groups.

    Args:
        groups: None, each feature alone; an integer, blocks of so many neighbours; or a label for each feature,
            groups in the order of the sorted labels.
        features: how many there are.
        device: where the coefficients live.

    Raises:
        ValueError: if the groups do not fit the number of features, or are no labels of one kind.
    """
    if groups is None:
        return rows, features
    if isinstance(groups, int | np.integer):
        if features % int(groups):
            raise ValueError(
                f"groups={groups} does not divide the {features} features; give a label for each feature instead."
            )
        index = np.arange(features) // int(groups)
    else:
        index = _numbered(groups)
        if index.shape != (features,):
            raise ValueError(f"groups.shape == {index.shape}, expected {(features,)}!")
    return labels(torch.as_tensor(index, device=device)), int(index.max()) + 1


def _numbered(groups: Any) -> np.ndarray:
    """The place of each label among the sorted ones."""
    try:
        return np.unique(np.asarray(to_numpy(groups)), return_inverse=True)[1]
    except (TypeError, ValueError):  # of lists of unequal lengths, or labels that cannot be compared
        raise ValueError(
            f"groups takes a label for each feature, numbers or strings, such as [0, 0, 1], got {groups!r}; lists of "
            "the groups' features are not labels."
        ) from None


def group_factors(given: Any, count: int, device: torch.device) -> Tensor | float | None:
    """Weights of groups as `torchreg.Group` takes them: None for sqrt(size), a number, or one for each group.

    Raises:
        ValueError: if there is not one for each group, or one is negative or NaN.
    """
    if given is None:
        return None
    weights = tensor_of(np.asarray(to_numpy(given), dtype=np.float64)).to(device)
    if weights.dim() == 0:
        return float(weights)
    if weights.shape != (count,):
        raise ValueError(f"group_weights.shape == {tuple(weights.shape)}, expected {(count,)}!")
    if not bool((weights >= 0).all()):
        raise ValueError("group_weights must be >= 0 (0 = unpenalised, inf = forced to zero), got negative or NaN.")
    return weights
