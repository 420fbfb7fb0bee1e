"""Ridge: squared loss and L2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from torchreg.linear.estimators.arrays import Data, to_numpy
from torchreg.linear.estimators.documentation import documented
from torchreg.linear.estimators.parameters import ARRAY, Rule, number, one_of
from torchreg.linear.estimators.penalised import Entrywise, entrywise, feature_weights
from torchreg.linear.estimators.regressor import SingleFit
from torchreg.penalties import L2, NonNegative, Penalty, Weighted

SOLVERS = ("auto", "svd", "cholesky", "lsqr", "sparse_cg", "sag", "saga", "lbfgs")


def ridge_rows(coef: Tensor) -> Tensor:
    """The engine's coefficients (p,) or (p, K) as ridge estimators have them: (p,) or (K, p), and (p,) for K = 1."""
    return coef.squeeze(1) if coef.shape[1:] == (1,) else coef.T if coef.dim() == 2 else coef


def ridge_penalty(alpha: Any, model: Entrywise, data: Data) -> Penalty:
    """The L2 penalty of scikit-learn's ``alpha``, one or one for each target, in the engine's units.

    Raises:
        ValueError: if there is not one alpha for each target, or one is negative or infinite.
    """
    alphas = np.asarray(to_numpy(alpha), dtype=np.float64) / (2.0 * data.total)
    if alphas.ndim == 0:
        return entrywise(L2(alphas.item()), model, data, outputs=data.y.ndim == 2)
    targets = data.y.shape[1] if data.y.ndim == 2 else 1
    if alphas.shape != (targets,):
        raise ValueError(f"Number of targets and number of penalties do not correspond: {alphas.size} != {targets}")
    if not (np.isfinite(alphas) & (alphas >= 0)).all():
        raise ValueError(f"The 'alpha' parameter of Ridge must be >= 0 and finite. Got {alpha!r} instead.")
    if data.y.ndim == 1:
        return entrywise(L2(alphas.item()), model, data)
    return _of_each_target(torch.as_tensor(alphas, device=data.on(model.device)), model, data)


def _of_each_target(alphas: Tensor, model: Entrywise, data: Data) -> Penalty:
    """L2 with strength 1, weighted by feature and target."""
    weights = alphas.expand(data.features, len(alphas))
    if model.penalty_weights is not None:
        factors = feature_weights(model.penalty_weights, data.features, alphas.device)[:, None]
        weights = torch.where(factors.isinf(), factors, factors * alphas)
    penalty = Weighted(L2(1.0), weights.contiguous())
    return NonNegative(penalty) if model.positive else penalty


@documented
@dataclass(eq=False, repr=False)
class Ridge(SingleFit):
    """Least squares with an L2 penalty, which shrinks all coefficients and sets none to zero.

    ``minimise sum_i s_i |y_i - x_i w - b|^2 + alpha * sum_j c_j |w_j|^2``, with sample weights s and
    feature weights c. The objective is that of scikit-learn's class of the same name: a sum, not a
    mean, so alpha grows with the number of rows.

    It is ``ElasticNet(alpha / sum_i s_i, l1_ratio=0)``, and
    ``SparseRegressor(L2(alpha / (2 * sum_i s_i)))``.

    Args:
        alpha: strength, >= 0, one or one for each target.
        positive: whether coefficients must be >= 0; those that would be negative are exactly zero.

    Attributes:
        alpha_max_: inf, since no alpha sets the coefficients to zero; 0 where there is nothing to fit.

    Source:
        Hoerl and Kennard, Technometrics 12, 1970.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import Ridge
        >>> X = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> model = Ridge(alpha=2.0, positive=True).fit(X, y=[4.0, -3.0, -4.0, 3.0])
        >>> print(model.coef_)
        [2. 0.]
    """

    alpha: Any = 1.0
    _: KW_ONLY
    fit_intercept: bool = True
    copy_X: bool = True
    max_iter: int | None = None
    tol: float = 1e-4
    solver: str = "auto"
    positive: bool = False
    random_state: Any = None
    warm_start: bool = False
    penalty_weights: Any = None
    device: str | torch.device | None = None

    _several = True
    _rules: ClassVar[Mapping[str, Rule]] = {"alpha": number(0.0) | ARRAY, "solver": one_of(*SOLVERS)}

    def _rows(self, coef: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        return ridge_rows(coef), self._one_zero_without(intercept)

    def _units(self, data: Data) -> float:
        return 2.0 * data.total

    def _penalty(self, data: Data) -> Penalty:
        return ridge_penalty(self.alpha, self, data)
