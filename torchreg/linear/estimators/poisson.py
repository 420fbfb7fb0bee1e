"""PoissonRegressor: counts with a log link, L2 and L1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from sklearn.metrics import d2_tweedie_score
from sklearn.utils import Tags

from torchreg.linear.datafits import Datafit, Poisson
from torchreg.linear.estimators.arrays import Data
from torchreg.linear.estimators.documentation import documented
from torchreg.linear.estimators.parameters import Rule, one_of
from torchreg.linear.estimators.penalised import entrywise
from torchreg.linear.estimators.regressor import SingleFit
from torchreg.penalties import L1L2, Penalty


@documented
@dataclass(eq=False, repr=False)
class PoissonRegressor(SingleFit):
    """Poisson regression of counts with a log link and an elastic net penalty.

    ``minimise 1 / sum_i s_i * sum_i s_i (exp(eta_i) - y_i eta_i)
    + alpha * sum_j c_j (l1_ratio |w_j| + (1 - l1_ratio) / 2 * w_j^2)`` with ``eta_i = x_i w + b``, sample
    weights s and feature weights c. The first term is half the mean deviance up to a constant; for
    ``l1_ratio=0`` the objective is that of scikit-learn's class of the same name.

    For counts over exposures ``e`` fit rates, ``fit(X, y / e, sample_weight=e)``, as in scikit-learn, or counts,
    ``fit(X, y, offset=log(e))``: with ``alpha`` times the mean exposure the coefficients are the same.

    Predictions are means, ``exp(eta)``; ``score`` is D^2, the share of the deviance explained.

    Args:
        l1_ratio: share of L1, between 0 and 1; only with a share there are exact zeros.

    Attributes:
        coef_: w, (p,); of X's kind and precision.
        intercept_: b; 0 without one.
        alpha_max_: the least alpha at which all penalised coefficients are zero; inf for ``l1_ratio=0``.

    Raises:
        ValueError: if a parameter, X, y (>= 0) or the weights are not allowed, in scikit-learn's words.

    Source:
        McCullagh and Nelder, Generalized Linear Models, 1989, chapter 6.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import PoissonRegressor
        >>> X = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> model = PoissonRegressor(alpha=0.5, l1_ratio=1.0).fit(X, y=[9, 3, 1, 3])
        >>> print(model.coef_.round(2))
        [0.79 0.  ]
    """

    _: KW_ONLY
    alpha: float = 1.0
    fit_intercept: bool = True
    solver: str = "lbfgs"
    max_iter: int | None = 100
    tol: float = 1e-4
    warm_start: bool = False
    verbose: int = 0
    l1_ratio: float = 0.0
    positive: bool = False
    penalty_weights: Any = None
    device: str | torch.device | None = None

    _rules: ClassVar[Mapping[str, Rule]] = {"solver": one_of("lbfgs", "newton-cholesky")}
    _explained = staticmethod(partial(d2_tweedie_score, power=1))

    @property
    def penalty(self) -> str:
        """What scikit-learn's `SelectFromModel` asks: "l1" says that zeros decide, as for its `ElasticNet`."""
        return "l1" if self.l1_ratio == 1.0 else "elasticnet"

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags

    def _datafit(self) -> Datafit:
        return Poisson()

    def _penalty(self, data: Data) -> Penalty:
        return entrywise(L1L2(self.alpha, self.l1_ratio), self, data)
