"""SparseRegressor and SparseClassifier: any penalty, any data term."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.utils import Tags

from torchreg.linear.datafits import Datafit, Quadratic
from torchreg.linear.estimators.arrays import Data, Matrix, regression_data
from torchreg.linear.estimators.classifier import Labelled, SingleClassifier
from torchreg.linear.estimators.documentation import documented
from torchreg.linear.estimators.logistic import likelihood
from torchreg.linear.estimators.parameters import NONE, Rule, check_parameters
from torchreg.linear.estimators.regressor import SingleFit
from torchreg.penalties import Penalty

PENALTY = Rule("a torchreg penalty such as L1(0.1)", lambda v: isinstance(v, Penalty))
DATAFIT = Rule("a datafit of torchreg.linear", lambda v: isinstance(v, Datafit)) | NONE
_OF_CLASSES = "a datafit of classes, Logistic(), SquaredHinge(), Multinomial() or one of your own with classes = True"
CLASSES_DATAFIT = Rule(_OF_CLASSES, lambda v: isinstance(v, Datafit) and v.classes) | NONE


def targets_for(model: Any, X: Matrix, y: Any, sample_weight: Any) -> Data:
    """Regression data, with several targets where y has several columns; whether they may is the datafit's to say."""
    data = regression_data(model, X, y, sample_weight, several=model.datafit is None or np.shape(y)[1:] > (1,))
    return replace(data, y=data.y[:, 0]) if data.y.shape[1:] == (1,) else data


@documented
@dataclass(eq=False, repr=False)
class SparseRegressor(SingleFit):
    """A regression with a penalty and a data term of your choice, such as MCP, SCAD or Huber's loss.

    ``minimise 1 / sum_i s_i * sum_i s_i loss(x_i w + b, y_i) + penalty(w)`` with sample weights s.

    With ``L1(alpha)`` and the default data term it is ``Lasso(alpha)``. A penalty that is not
    convex, or whose conjugate is not known, has no duality gap: ``dual_gap_`` is NaN and the fit is a
    stationary point. Constraints, feature weights and groups are penalties too: ``NonNegative(L1(0.1))``,
    ``Weighted(L1(0.1), weights)``, ``Group(MCP(0.1), by=labels(index))``.

    scikit-learn's ``SelectFromModel`` keeps the features whose coefficients are not zero, as for its Lasso: at least
    1e-5 in size, or, with ``threshold=5e-324``, of any size. ``GridSearchCV`` reaches the fields of the penalty, by
    ``penalty__alpha`` say.

    Attributes:
        dual_gap_: by how much the objective may exceed its minimum, or NaN.
        alpha_max_: the least alpha of the penalty at which all penalised coefficients are zero.

    Source:
        Fan and Li, JASA 96, 2001 (SCAD); Zhang, Annals of Statistics 38, 2010 (MCP).

    Example:
        >>> import numpy as np
        >>> from torchreg import MCP
        >>> from torchreg.linear import SparseRegressor
        >>> X = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> model = SparseRegressor(MCP(0.5)).fit(X, y=[4.1, 3.9, -3.9, -4.1])
        >>> print(model.coef_)
        [4. 0.]
    """

    penalty: Penalty
    datafit: Datafit | None = None
    _: KW_ONLY
    fit_intercept: bool = True
    max_iter: int | None = None
    tol: float = 1e-6
    warm_start: bool = False
    device: str | torch.device | None = None

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = self.datafit is None
        return tags

    def _datafit(self) -> Datafit:
        return Quadratic() if self.datafit is None else self.datafit

    def _training_data(self, X: Matrix, y: Any, sample_weight: Any) -> Data:
        check_parameters(self, penalty=PENALTY, datafit=DATAFIT)
        return targets_for(self, X, y, sample_weight)

    def _penalty(self, data: Data) -> Penalty:
        return self.penalty


@documented
@dataclass(eq=False, repr=False)
class SparseClassifier(SingleClassifier):
    """A classifier with a penalty and a data term of your choice.

    ``minimise 1 / sum_i s_i * sum_i s_i loss_i + penalty(w)``, with s the sample weight times the
    weight of the class, and ``loss_i`` the negative log likelihood of the row's class unless another
    data term is given.

    ``LogisticRegression(C, l1_ratio)`` is ``SparseClassifier(L1L2(1 / (C * sum_i s_i), l1_ratio))``.
    More than two classes need a data term with several outputs, and the penalty acts on (p, K):
    ``Group(L1(0.1), by=rows)`` drops a feature from all classes at once. Where the penalty is not
    convex, or its conjugate is not known, ``dual_gap_`` is NaN.

    Args:
        datafit: a `torchreg.linear.Datafit` of classes, Logistic(), SquaredHinge() or Multinomial(); None for
            the likelihood.

    Attributes:
        coef_: w, (1, p) for two classes, else (K, p); of X's kind and precision.
        intercept_: (1,) or (K,); zeros without one.
        dual_gap_: by how much the objective may exceed its minimum, or NaN.
        alpha_max_: the least alpha of the penalty at which all penalised coefficients are zero.

    Source:
        Breheny and Huang, Annals of Applied Statistics 5, 2011.

    Example:
        >>> import numpy as np
        >>> from torchreg import L1
        >>> from torchreg.linear import SparseClassifier
        >>> X = np.array([[2.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-2.0, -1.0], [-0.5, 1.0], [0.5, -1.0]])
        >>> model = SparseClassifier(L1(1 / 3)).fit(X, y=[1, 1, 0, 0, 1, 0])
        >>> print(model.coef_.round(2))
        [[0.19 0.  ]]
    """

    penalty: Penalty
    datafit: Datafit | None = None
    _: KW_ONLY
    fit_intercept: bool = True
    max_iter: int | None = None
    tol: float = 1e-6
    class_weight: Any = None
    warm_start: bool = False
    device: str | torch.device | None = None

    def _datafit(self, classes: int) -> Datafit:
        return likelihood(classes) if self.datafit is None else self.datafit

    def _check(self) -> None:
        check_parameters(self, penalty=PENALTY, datafit=CLASSES_DATAFIT)

    def _penalty(self, problem: Labelled) -> Penalty:
        return self.penalty
