"""MultiTaskLasso: squared loss of several targets, which share their features."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from sklearn.utils import Tags

from torchreg.functional.groups import rows
from torchreg.linear.estimators.arrays import Data, Matrix
from torchreg.linear.estimators.documentation import documented
from torchreg.linear.estimators.penalised import feature_weights
from torchreg.linear.estimators.regressor import SingleFit
from torchreg.penalties import L1, Group, Penalty


def of_features(alpha: float, weights: Any, data: Data, device: str | torch.device | None) -> Penalty:
    """The L1 penalty of the norms of each feature's coefficients, weighted by feature."""
    factors = 1.0 if weights is None else feature_weights(weights, data.features, data.on(device))
    return Group(L1(alpha), by=rows, weights=factors)


def several_targets(data: Data, instead: str) -> Data:
    """The data, where y has a column for each target."""
    if data.y.ndim == 1:
        raise ValueError(f"For mono-task outputs, use {instead}")
    return data


@documented
@dataclass(eq=False, repr=False)
class MultiTaskLasso(SingleFit):
    """Least squares of several targets, with features that are used by all of them or by none.

    ``minimise 1 / (2 sum_i s_i) * sum_i s_i |y_i - W x_i - b|^2 + alpha * sum_j c_j |w_j|``, where
    ``w_j`` are the K coefficients of feature j, with sample weights s and feature weights c. The
    objective is that of scikit-learn's class of the same name.

    ``tol`` bounds the duality gap by ``tol`` times the objective of the model without features.

    Attributes:
        coef_: W, (K, p); of X's kind and precision.
        intercept_: b, (K,); 0 without one.

    Raises:
        ValueError: if a parameter, X, y (two-dimensional) or the weights are not allowed, in
            scikit-learn's words.

    Source:
        Obozinski, Taskar and Jordan, Statistics and Computing 20, 2010.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import MultiTaskLasso
        >>> X = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> Y = np.array([[6.0, 8.0], [0.1, 0.2], [-6.0, -8.0], [0.1, 0.2]])
        >>> print(MultiTaskLasso(alpha=2.5).fit(X, Y).coef_)
        [[3. 0.]
         [4. 0.]]
    """

    alpha: float = 1.0
    _: KW_ONLY
    fit_intercept: bool = True
    copy_X: bool = True
    max_iter: int | None = 1000
    tol: float = 1e-4
    warm_start: bool = False
    random_state: Any = None
    selection: str = "cyclic"
    penalty_weights: Any = None
    device: str | torch.device | None = None

    _several = True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = False
        return tags

    def _training_data(self, X: Matrix, y: Any, sample_weight: Any) -> Data:
        return several_targets(super()._training_data(X, y, sample_weight), "Lasso")

    def _penalty(self, data: Data) -> Penalty:
        return of_features(self.alpha, self.penalty_weights, data, self.device)
