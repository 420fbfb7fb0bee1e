"""GroupLassoCV and SparseGroupLassoCV: alpha chosen by the mean squared error."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch

from torchreg.linear.estimators.arrays import Data
from torchreg.linear.estimators.documentation import documented
from torchreg.linear.estimators.group import group_lasso, sparse_group_lasso
from torchreg.linear.estimators.quadratic_cv import SquaredErrorCV
from torchreg.penalties import Penalty


@documented
@dataclass(eq=False, repr=False)
class GroupLassoCV(SquaredErrorCV):
    """`GroupLasso` with alpha chosen by cross-validation along its path.

    ``minimise 1 / (2 sum_i s_i) * sum_i s_i (y_i - x_i w - b)^2 + alpha * sum_g v_g |w_g|`` with the
    Euclidean norm of each group's coefficients, sample weights s and group weights v.

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

    def _penalties(self, data: Data) -> list[Penalty]:
        return [group_lasso(1.0, self, data)]


@documented
@dataclass(eq=False, repr=False)
class SparseGroupLassoCV(SquaredErrorCV):
    """`SparseGroupLasso` with alpha chosen by cross-validation along its path.

    ``minimise 1 / (2 sum_i s_i) * sum_i s_i (y_i - x_i w - b)^2
    + alpha * (l1_ratio * sum_j |w_j| + (1 - l1_ratio) * sum_g v_g |w_g|)`` with the Euclidean norm of
    each group's coefficients, sample weights s and group weights v.

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

    def _penalties(self, data: Data) -> list[Penalty]:
        return [sparse_group_lasso(1.0, self.l1_ratio, self, data)]
