"""GroupLassoCV and SparseGroupLassoCV: alpha chosen by the mean squared error."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch

from torchreg.linear.estimators.arrays import Data, Matrix, regression_data
from torchreg.linear.estimators.group import group_lasso, sparse_group_lasso
from torchreg.linear.estimators.parameters import check_parameters
from torchreg.linear.estimators.quadratic_cv import SquaredErrorCV
from torchreg.penalties import Penalty


@dataclass(eq=False, repr=False)
class GroupLassoCV(SquaredErrorCV):
    """`GroupLasso` with alpha chosen by cross-validation along its path.

    ``minimise 1 / (2 sum_i s_i) * sum_i s_i (y_i - x_i w - b)^2 + alpha * sum_g v_g |w_g|`` with the
    Euclidean norm of each group's coefficients, sample weights s and group weights v.

    Args:
        groups: None, each feature alone; an integer, blocks of so many neighbouring features; or a
            label for each feature, (p,), numbers or strings.
        group_weights: v, >= 0; None for the square root of the group's size, a number, or one for
            each group in the order of the sorted labels; 0 = unpenalised, inf = forced to zero.
        eps: least alpha of the grid over the largest.
        alphas: number of alphas in the grid, or the alphas.
        fit_intercept: whether there is an intercept b, which is not penalised.
        max_iter: most iterations of the solver at each alpha; None for its own limit.
        tol: duality gap at which the solver stops, relative to the objective of the model without features.
        cv: number of folds, a splitter, or (train, test) index arrays; None for 5 folds, not shuffled.
        rule: "min" for the least mean loss; "1se" for the largest alpha whose mean loss is within one
            standard error of it; or a function of the `torchreg.linear.CVPath`.
        positive: whether coefficients must be >= 0.
        device: where to compute, "cuda" say; None for where X is.

    Attributes:
        alpha_: the alpha that was chosen.
        alphas_: the grid, descending, (a,).
        mse_path_: mean squared errors on the test rows, (a, folds).
        path_: the whole `torchreg.linear.CVPath`.
        coef_, intercept_, dual_gap_, n_iter_, alpha_max_: as in `GroupLasso`, at alpha_ on all rows.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Raises:
        ValueError: if a parameter, X, y or the weights are not allowed, in scikit-learn's words, or
            the groups do not fit the features.

    Source:
        Yuan and Lin, JRSS B 68, 2006.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import GroupLassoCV
        >>> X = np.random.default_rng(0).normal(size=(60, 4))
        >>> y = X @ [2.0, -1.0, 0.0, 0.0] + np.random.default_rng(100).normal(size=60)
        >>> print(GroupLassoCV(groups=2, rule="1se").fit(X, y).coef_ == 0)
        [False False  True  True]
    """

    _: KW_ONLY
    groups: Any = None
    group_weights: Any = None
    eps: float = 1e-3
    alphas: Any = 100
    fit_intercept: bool = True
    max_iter: int | None = 1000
    tol: float = 1e-4
    cv: Any = None
    rule: Any = "min"
    positive: bool = False
    device: str | torch.device | None = None

    def _training_data(self, X: Matrix, y: Any, sample_weight: Any) -> Data:
        check_parameters(self)
        return regression_data(self, X, y, sample_weight, several=False)

    def _penalties(self, data: Data) -> list[Penalty]:
        return [group_lasso(1.0, self, data)]


@dataclass(eq=False, repr=False)
class SparseGroupLassoCV(SquaredErrorCV):
    """`SparseGroupLasso` with alpha chosen by cross-validation along its path.

    ``minimise 1 / (2 sum_i s_i) * sum_i s_i (y_i - x_i w - b)^2
    + alpha * (l1_ratio * sum_j |w_j| + (1 - l1_ratio) * sum_g v_g |w_g|)`` with the Euclidean norm of
    each group's coefficients, sample weights s and group weights v.

    Args:
        l1_ratio: share of L1, between 0 and 1.
        groups: None, each feature alone; an integer, blocks of so many neighbouring features; or a
            label for each feature, (p,), numbers or strings.
        group_weights: v, >= 0; None for the square root of the group's size, a number, or one for
            each group in the order of the sorted labels; 0 = unpenalised, inf = forced to zero.
        eps: least alpha of the grid over the largest.
        alphas: number of alphas in the grid, or the alphas.
        fit_intercept: whether there is an intercept b, which is not penalised.
        max_iter: most iterations of the solver at each alpha; None for its own limit.
        tol: duality gap at which the solver stops, relative to the objective of the model without features.
        cv: number of folds, a splitter, or (train, test) index arrays; None for 5 folds, not shuffled.
        rule: "min" for the least mean loss; "1se" for the largest alpha whose mean loss is within one
            standard error of it; or a function of the `torchreg.linear.CVPath`.
        positive: whether coefficients must be >= 0.
        device: where to compute, "cuda" say; None for where X is.

    Attributes:
        alpha_: the alpha that was chosen.
        alphas_: the grid, descending, (a,).
        mse_path_: mean squared errors on the test rows, (a, folds).
        path_: the whole `torchreg.linear.CVPath`.
        coef_, intercept_, dual_gap_, n_iter_, alpha_max_: as in `SparseGroupLasso`, at alpha_ on all rows.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Raises:
        ValueError: if a parameter, X, y or the weights are not allowed, in scikit-learn's words, or
            the groups do not fit the features.

    Source:
        Simon et al., J. Computational and Graphical Statistics 22, 2013.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import SparseGroupLassoCV
        >>> X = np.random.default_rng(0).normal(size=(60, 4))
        >>> y = X @ [2.0, 0.0, 0.0, 0.0] + np.random.default_rng(100).normal(size=60)
        >>> print(SparseGroupLassoCV(groups=2, rule="1se").fit(X, y).coef_ == 0)
        [False  True  True  True]
    """

    _: KW_ONLY
    l1_ratio: float = 0.5
    groups: Any = None
    group_weights: Any = None
    eps: float = 1e-3
    alphas: Any = 100
    fit_intercept: bool = True
    max_iter: int | None = 1000
    tol: float = 1e-4
    cv: Any = None
    rule: Any = "min"
    positive: bool = False
    device: str | torch.device | None = None

    def _training_data(self, X: Matrix, y: Any, sample_weight: Any) -> Data:
        check_parameters(self)
        return regression_data(self, X, y, sample_weight, several=False)

    def _penalties(self, data: Data) -> list[Penalty]:
        return [sparse_group_lasso(1.0, self.l1_ratio, self, data)]
