"""LassoCV, ElasticNetCV and MultiTaskLassoCV: alpha chosen by the mean squared error."""

from __future__ import annotations

from abc import ABC
from dataclasses import KW_ONLY, dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils import Tags, column_or_1d

from torchreg.linear.estimators.arrays import Array, Data, Matrix, regression_data, to_numpy
from torchreg.linear.estimators.cross_validated import PathCV
from torchreg.linear.estimators.documentation import documented
from torchreg.linear.estimators.multitask import of_features, several_targets
from torchreg.linear.estimators.parameters import ARRAY, RULES, check_parameters
from torchreg.linear.estimators.penalised import entrywise
from torchreg.penalties import L1, L1L2, Penalty


class SquaredErrorCV(PathCV, ABC):
    """Squared loss, and the mean squared error of each fold."""

    mse_path_: Array

    def _keep_losses(self, losses: Array) -> None:
        self.mse_path_ = losses


def one_target(data: Data) -> Data:
    """The data, where y has one target."""
    if data.y.ndim > 1 and data.y.shape[1] > 1:
        raise ValueError("For multi-task outputs, use MultiTaskLassoCV")
    return replace(data, y=column_or_1d(data.y, warn=True))


@documented
@dataclass(eq=False, repr=False)
class LassoCV(SquaredErrorCV):
    """`Lasso` with alpha chosen by cross-validation along its path.

    ``minimise 1 / (2 sum_i s_i) * sum_i s_i (y_i - x_i w - b)^2 + alpha * sum_j c_j |w_j|``, with sample
    weights s and feature weights c. Objective, grid, folds and mean squared errors are those of
    scikit-learn's class of the same name.

    Source:
        Breiman et al., Classification and Regression Trees, 1984, section 3.4 (one standard error).

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import LassoCV
        >>> X = np.random.default_rng(0).normal(size=(60, 4))
        >>> y = X @ [2.0, 0.0, 0.0, -1.0] + np.random.default_rng(1).normal(size=60)
        >>> print(LassoCV(rule="1se").fit(X, y).coef_ == 0)
        [False  True  True False]
    """

    _: KW_ONLY
    eps: float = 1e-3
    alphas: Any = 100
    fit_intercept: bool = True
    precompute: Any = "auto"
    max_iter: int | None = 1000
    tol: float = 1e-4
    copy_X: bool = True
    cv: Any = None
    verbose: Any = False
    n_jobs: int | None = None
    positive: bool = False
    random_state: Any = None
    selection: str = "cyclic"
    rule: Any = "min"
    penalty_weights: Any = None
    device: str | torch.device | None = None

    def _training_data(self, X: Matrix, y: Any, sample_weight: Any) -> Data:
        check_parameters(self)
        return one_target(regression_data(self, X, y, sample_weight, several=True))

    def _penalties(self, data: Data) -> list[Penalty]:
        return [entrywise(L1(1.0), self, data)]


@documented
@dataclass(eq=False, repr=False)
class ElasticNetCV(SquaredErrorCV):
    """`ElasticNet` with alpha, and l1_ratio where several are given, chosen by cross-validation.

    ``minimise 1 / (2 sum_i s_i) * sum_i s_i (y_i - x_i w - b)^2
    + alpha * sum_j c_j (l1_ratio |w_j| + (1 - l1_ratio) / 2 * w_j^2)``, with sample weights s and
    feature weights c. Objective, grid, folds and mean squared errors are those of scikit-learn's
    class of the same name.

    ``rule`` chooses alpha; l1_ratio is always the one with the least mean loss.

    Args:
        l1_ratio: share of L1, between 0 and 1, one or several; at 0 ``alphas`` must be given.
        alphas: number of alphas in the grid of each l1_ratio, or the alphas.

    Attributes:
        alpha_, l1_ratio_: those that were chosen.
        alphas_: the grid, descending, (a,), or (l1_ratios, a) where several l1_ratio have a grid each.
        mse_path_: mean squared errors on the test rows, (a, folds), or (l1_ratios, a, folds).
        path_: the whole `torchreg.linear.CVPath` at l1_ratio_.

    Source:
        Zou and Hastie, JRSS B 67, 2005.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import ElasticNetCV
        >>> X = np.random.default_rng(0).normal(size=(60, 4))
        >>> y = X @ [2.0, 0.0, 0.0, -1.0] + np.random.default_rng(1).normal(size=60)
        >>> print(ElasticNetCV(l1_ratio=[0.5, 0.9], rule="1se").fit(X, y).coef_ == 0)
        [False  True  True False]
    """

    _: KW_ONLY
    l1_ratio: Any = 0.5
    eps: float = 1e-3
    alphas: Any = 100
    fit_intercept: bool = True
    precompute: Any = "auto"
    max_iter: int | None = 1000
    tol: float = 1e-4
    cv: Any = None
    copy_X: bool = True
    verbose: Any = 0
    n_jobs: int | None = None
    positive: bool = False
    random_state: Any = None
    selection: str = "cyclic"
    rule: Any = "min"
    penalty_weights: Any = None
    device: str | torch.device | None = None

    def _training_data(self, X: Matrix, y: Any, sample_weight: Any) -> Data:
        check_parameters(self, l1_ratio=RULES["l1_ratio"] | ARRAY)
        return one_target(regression_data(self, X, y, sample_weight, several=True))

    @property
    def _l1_ratios(self) -> list[float]:
        shares = [float(ratio) for ratio in np.atleast_1d(to_numpy(self.l1_ratio))]
        if not shares:
            raise ValueError(f"l1_ratio must be one number between 0 and 1 or more, got {self.l1_ratio!r}.")
        if 0.0 in shares and isinstance(self.alphas, Integral):
            raise ValueError(
                "Automatic alpha grid generation is not supported for l1_ratio=0. Please supply a grid by providing "
                "your estimator with the appropriate `alphas=` argument."
            )
        return shares

    def _penalties(self, data: Data) -> list[Penalty]:
        return [entrywise(L1L2(1.0, ratio), self, data) for ratio in self._l1_ratios]

    def _keep_choice(self, best: int) -> None:
        self.l1_ratio_ = self._l1_ratios[best]


@documented
@dataclass(eq=False, repr=False)
class MultiTaskLassoCV(SquaredErrorCV):
    """`MultiTaskLasso` with alpha chosen by cross-validation along its path.

    ``minimise 1 / (2 sum_i s_i) * sum_i s_i |y_i - W x_i - b|^2 + alpha * sum_j c_j |w_j|``, where
    ``w_j`` are the K coefficients of feature j, with sample weights s and feature weights c.
    Objective, grid, folds and mean squared errors are those of scikit-learn's class of the same name.

    Attributes:
        mse_path_: squared errors on the test rows, averaged over rows and targets, (a, folds).

    Raises:
        ValueError: if a parameter, X, y (two-dimensional) or the weights are not allowed, in
            scikit-learn's words.

    Source:
        Obozinski, Taskar and Jordan, Statistics and Computing 20, 2010.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import MultiTaskLassoCV
        >>> X = np.random.default_rng(0).normal(size=(60, 3))
        >>> Y = X[:, :1] @ [[2.0, -1.0]] + np.random.default_rng(1).normal(size=(60, 2))
        >>> print(MultiTaskLassoCV(rule="1se").fit(X, Y).coef_ == 0)
        [[False  True  True]
         [False  True  True]]
    """

    _: KW_ONLY
    eps: float = 1e-3
    alphas: Any = 100
    fit_intercept: bool = True
    max_iter: int | None = 1000
    tol: float = 1e-4
    copy_X: bool = True
    cv: Any = None
    verbose: Any = False
    n_jobs: int | None = None
    random_state: Any = None
    selection: str = "cyclic"
    rule: Any = "min"
    penalty_weights: Any = None
    device: str | torch.device | None = None

    _several = True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = False
        return tags

    def _training_data(self, X: Matrix, y: Any, sample_weight: Any) -> Data:
        return several_targets(super()._training_data(X, y, sample_weight), "LassoCV")

    def _penalties(self, data: Data) -> list[Penalty]:
        return [of_features(1.0, self.penalty_weights, data, self.device)]
