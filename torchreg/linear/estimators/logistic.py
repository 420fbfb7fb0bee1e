"""LogisticRegression: two classes or more, L1 and L2."""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch

from torchreg.linear.datafits import Datafit, Logistic, Multinomial
from torchreg.linear.estimators.arrays import Data
from torchreg.linear.estimators.classifier import Labelled, SingleClassifier
from torchreg.linear.estimators.documentation import documented
from torchreg.linear.estimators.parameters import NONE, RULES, check_parameters, one_of
from torchreg.linear.estimators.penalised import entrywise
from torchreg.penalties import L1L2, Penalty

SOLVERS = ("lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga")
PENALTIES = one_of("l1", "l2", "elasticnet", "deprecated") | NONE


def likelihood(classes: int) -> Datafit:
    """The negative log likelihood of a number of classes."""
    return Logistic() if classes == 2 else Multinomial()


def share_of_l1(penalty: str | None, l1_ratio: float | None) -> float:
    """``l1_ratio``, unless scikit-learn's older parameter ``penalty`` says otherwise."""
    if penalty in ("l1", "l2"):
        return 1.0 if penalty == "l1" else 0.0
    return 0.0 if l1_ratio is None else float(l1_ratio)


def strength(C: float, total: float) -> float:
    """The engine's alpha that is scikit-learn's ``C`` for rows whose weights sum to ``total``."""
    return 0.0 if np.isinf(C) else 1.0 / (float(C) * total)


@documented
@dataclass(eq=False, repr=False)
class LogisticRegression(SingleClassifier):
    """Logistic regression with an elastic net penalty; multinomial for more than two classes.

    ``minimise C * sum_i s_i loss_i + sum_j c_j (l1_ratio |w_j| + (1 - l1_ratio) / 2 * w_j^2)`` with
    ``loss_i`` the negative log likelihood of the row's class, feature weights c, and s the sample
    weight times the weight of the class. The objective is that of scikit-learn's class of the same
    name: a sum, not a mean, so the penalty fades as rows are added.

    In the words of `SparseClassifier` it is ``L1L2(1 / (C * sum_i s_i), l1_ratio)``. The intercept
    is never penalised, also not for ``solver="liblinear"``. With L1 and more than two classes the
    coefficients have no reference class: each class has its own zeros.

    Args:
        penalty: scikit-learn's older way to say l1_ratio ("l1", "l2") or ``C=inf`` (None).
        C: inverse strength, > 0; inf for no penalty.
        l1_ratio: share of L1, between 0 and 1; only with a share there are exact zeros.

    Attributes:
        coef_: w, (1, p) for two classes, else (K, p); of X's kind and precision.
        intercept_: (1,) or (K,), in the latter case with mean 0; zeros without one.
        n_iter_: iterations of the solver, (1,).
        alpha_max_: the least ``1 / (C * sum_i s_i)`` at which all penalised coefficients are zero;
            inf for ``l1_ratio=0``.

    Source:
        Friedman, Hastie and Tibshirani, J. Statistical Software 33, 2010.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import LogisticRegression
        >>> X = np.array([[2.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-2.0, -1.0], [-0.5, 1.0], [0.5, -1.0]])
        >>> y = ["yes", "yes", "no", "no", "yes", "no"]
        >>> model = LogisticRegression(C=0.5, l1_ratio=1.0).fit(X, y)
        >>> print(model.coef_.round(2), model.predict([[3.0, 0.0]]))
        [[0.19 0.  ]] ['yes']
    """

    penalty: str | None = "deprecated"
    _: KW_ONLY
    C: float = 1.0
    l1_ratio: float | None = 0.0
    dual: bool = False
    tol: float = 1e-4
    fit_intercept: bool = True
    intercept_scaling: float = 1
    class_weight: Any = None
    random_state: Any = None
    solver: str = "lbfgs"
    max_iter: int | None = 100
    verbose: int = 0
    warm_start: bool = False
    n_jobs: int | None = None
    positive: bool = False
    penalty_weights: Any = None
    device: str | torch.device | None = None

    def _datafit(self, classes: int) -> Datafit:
        return likelihood(classes)

    def _check(self) -> None:
        check_parameters(self, solver=one_of(*SOLVERS), penalty=PENALTIES, l1_ratio=RULES["l1_ratio"] | NONE)
        if self.penalty == "elasticnet" and self.l1_ratio is None:
            raise ValueError("l1_ratio must be specified when penalty is elasticnet, between 0 and 1; got None.")
        self._warn_of_what_is_ignored()

    def _warn_of_what_is_ignored(self) -> None:
        """Say where scikit-learn's older parameter ``penalty`` overrides what another parameter was set to."""
        share = share_of_l1(self.penalty, self.l1_ratio)
        if self.penalty in ("l1", "l2") and self.l1_ratio not in (0.0, None, share):
            warnings.warn(
                f"l1_ratio parameter is only used when penalty is 'elasticnet'. Got (penalty={self.penalty}). "
                f"Inconsistent values: penalty={self.penalty} with l1_ratio={self.l1_ratio}; leave penalty out.",
                stacklevel=4,
            )
        if self.penalty is None and self.C != 1.0:
            warnings.warn(
                f"Setting penalty=None will ignore the C and l1_ratio parameters, here C={self.C}; leave penalty out, "
                "or C, which is inf where there is no penalty.",
                stacklevel=4,
            )

    @property
    def _inverse_strength(self) -> float:
        return np.inf if self.penalty is None else float(self.C)

    def _units(self, data: Data) -> float:
        return 1.0 if np.isinf(self._inverse_strength) else self._inverse_strength * data.total

    def _penalty(self, problem: Labelled) -> Penalty:
        alpha = strength(self._inverse_strength, problem.data.total)
        penalty = L1L2(alpha, share_of_l1(self.penalty, self.l1_ratio))
        return entrywise(penalty, self, problem.data, outputs=problem.outputs is not None)
