"""GroupLasso and SparseGroupLasso: squared loss, and groups of features that vanish whole."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol

import torch

from torchreg.linear.estimators.arrays import Data
from torchreg.linear.estimators.documentation import documented
from torchreg.linear.estimators.penalised import group_factors, grouped_by
from torchreg.linear.estimators.regressor import SingleFit
from torchreg.penalties import L1, Group, NonNegative, Penalty, Sum


class Grouped(Protocol):
    """The parameters that make groups of features."""

    groups: Any
    group_weights: Any
    positive: bool
    device: str | torch.device | None


def group_penalty(alpha: float, model: Grouped, data: Data) -> Group:
    """``alpha`` times the weighted norms of a model's groups of features."""
    device = data.on(model.device)
    by, count = grouped_by(model.groups, data.features, device)
    return Group(L1(alpha), by=by, weights=group_factors(model.group_weights, count, device))


def group_lasso(alpha: float, model: Grouped, data: Data) -> Penalty:
    """`group_penalty` with a model's sign constraint."""
    penalty = group_penalty(alpha, model, data)
    return NonNegative(penalty) if model.positive else penalty


def sparse_group_lasso(alpha: float, l1_ratio: float, model: Grouped, data: Data) -> Penalty:
    """``alpha * (l1_ratio * L1 + (1 - l1_ratio) * groups)`` with a model's sign constraint."""
    penalty = Sum((group_penalty(1.0 - l1_ratio, model, data), L1(l1_ratio)), alpha=alpha)
    return NonNegative(penalty) if model.positive else penalty


@documented
@dataclass(eq=False, repr=False)
class GroupLasso(SingleFit):
    """Least squares with groups of features that are used together or not at all.

    ``minimise 1 / (2 sum_i s_i) * sum_i s_i (y_i - x_i w - b)^2 + alpha * sum_g v_g |w_g|`` with the
    Euclidean norm of each group's coefficients, sample weights s and group weights v.

    Group weights are the square roots of the groups' sizes unless given, as in Yuan and Lin, adelie
    and grpreg; ``group_weights=1.0`` is the objective of celer and skglm.

    Attributes:
        coef_: w, (p,); of X's kind and precision.
        intercept_: b; 0 without one.
        alpha_max_: the least alpha at which all penalised groups are zero.

    Source:
        Yuan and Lin, JRSS B 68, 2006.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import GroupLasso
        >>> X = np.vstack([np.eye(4), -np.eye(4)])
        >>> y = np.array([6.0, 8.0, 0.1, 0.2, -6.0, -8.0, -0.1, -0.2])
        >>> print(GroupLasso(alpha=1.25, groups=2, group_weights=1.0).fit(X, y).coef_)
        [3. 4. 0. 0.]
    """

    alpha: float = 1.0
    _: KW_ONLY
    groups: Any = None
    group_weights: Any = None
    fit_intercept: bool = True
    max_iter: int | None = 1000
    tol: float = 1e-4
    warm_start: bool = False
    positive: bool = False
    device: str | torch.device | None = None

    def _penalty(self, data: Data) -> Penalty:
        return group_lasso(self.alpha, self, data)


@documented
@dataclass(eq=False, repr=False)
class SparseGroupLasso(SingleFit):
    """Least squares with groups that vanish whole, and zeros within the groups that stay.

    ``minimise 1 / (2 sum_i s_i) * sum_i s_i (y_i - x_i w - b)^2
    + alpha * (l1_ratio * sum_j |w_j| + (1 - l1_ratio) * sum_g v_g |w_g|)`` with the Euclidean norm of
    each group's coefficients, sample weights s and group weights v.

    At ``l1_ratio=1`` it is `Lasso`, at 0 `GroupLasso`.

    Attributes:
        coef_: w, (p,); of X's kind and precision.
        intercept_: b; 0 without one.

    Source:
        Simon et al., J. Computational and Graphical Statistics 22, 2013.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import SparseGroupLasso
        >>> X = np.vstack([np.eye(4), -np.eye(4)])
        >>> y = np.array([6.0, 0.1, 0.1, 0.2, -6.0, -0.1, -0.1, -0.2])
        >>> model = SparseGroupLasso(alpha=0.5, l1_ratio=0.5, groups=2, group_weights=1.0).fit(X, y)
        >>> print(model.coef_)
        [4. 0. 0. 0.]
    """

    alpha: float = 1.0
    _: KW_ONLY
    l1_ratio: float = 0.5
    groups: Any = None
    group_weights: Any = None
    fit_intercept: bool = True
    max_iter: int | None = 1000
    tol: float = 1e-4
    warm_start: bool = False
    positive: bool = False
    device: str | torch.device | None = None

    def _penalty(self, data: Data) -> Penalty:
        return sparse_group_lasso(self.alpha, self.l1_ratio, self, data)
