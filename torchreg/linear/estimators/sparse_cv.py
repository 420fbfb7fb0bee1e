"""SparseRegressorCV and SparseClassifierCV: the alpha of any penalty, chosen by any metric."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import torch
from sklearn.utils import Tags

from torchreg.linear.datafits import Datafit, Quadratic
from torchreg.linear.estimators.arrays import Array, Data, Matrix
from torchreg.linear.estimators.base import warn_unless_converged
from torchreg.linear.estimators.classifier import Accurate
from torchreg.linear.estimators.cross_validated import CrossValidated, PathCV, folds_of, search, split_metadata
from torchreg.linear.estimators.documentation import documented
from torchreg.linear.estimators.logistic import likelihood
from torchreg.linear.estimators.parameters import check_parameters
from torchreg.linear.estimators.sparse import CLASSES_DATAFIT, DATAFIT, PENALTY, targets_for
from torchreg.penalties import Penalty


@documented
@dataclass(eq=False, repr=False)
class SparseRegressorCV(PathCV):
    """`SparseRegressor` with the penalty's alpha chosen by cross-validation along its path.

    ``minimise 1 / sum_i s_i * sum_i s_i loss(x_i w + b, y_i) + penalty(w)`` with sample weights s.

    The penalty's own alpha is replaced by those of the grid. A penalty that no alpha makes zero (L2)
    has no grid of its own: give ``alphas``.

    Attributes:
        loss_path_: losses on the test rows, (a, folds).

    Source:
        Breheny and Huang, Annals of Applied Statistics 5, 2011.

    Example:
        >>> import numpy as np
        >>> from torchreg import MCP
        >>> from torchreg.linear import SparseRegressorCV
        >>> X = np.random.default_rng(0).normal(size=(60, 4))
        >>> y = X @ [2.0, 0.0, 0.0, -1.0] + np.random.default_rng(1).normal(size=60)
        >>> print(SparseRegressorCV(MCP(1.0), rule="1se").fit(X, y).coef_ == 0)
        [False  True  True False]
    """

    penalty: Penalty
    datafit: Datafit | None = None
    _: KW_ONLY
    metric: Any = None
    eps: float = 1e-3
    alphas: Any = 100
    fit_intercept: bool = True
    max_iter: int | None = None
    tol: float = 1e-6
    cv: Any = None
    rule: Any = "min"
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

    def _penalties(self, data: Data) -> list[Penalty]:
        return [self.penalty]

    def _keep_losses(self, losses: Array) -> None:
        self.loss_path_ = losses


@documented
@dataclass(eq=False, repr=False)
class SparseClassifierCV(CrossValidated, Accurate):
    """`SparseClassifier` with the penalty's alpha chosen by cross-validation along its path.

    ``minimise 1 / sum_i s_i * sum_i s_i loss_i + penalty(w)``, with s the sample weight times the
    weight of the class, and ``loss_i`` the negative log likelihood of the row's class unless another
    data term is given.

    The penalty's own alpha is replaced by those of the grid. A penalty that no alpha makes zero (L2)
    has no grid of its own: give ``alphas``. Alphas are compared by the mean loss, not by accuracy.

    Args:
        datafit: a `torchreg.linear.Datafit` of classes, Logistic(), SquaredHinge() or Multinomial(); None for
            the likelihood.
        cv: number of folds, a splitter, or (train, test) index arrays; None for 5 folds of
            alike shares of classes, not shuffled.

    Attributes:
        alpha_: the alpha that was chosen.
        alphas_: the grid, descending, (a,).
        loss_path_: losses on the test rows, (a, folds).

    Source:
        Breheny and Huang, Annals of Applied Statistics 5, 2011.

    Example:
        >>> import numpy as np
        >>> from torchreg import L1
        >>> from torchreg.linear import SparseClassifierCV
        >>> X = np.random.default_rng(0).normal(size=(80, 3))
        >>> y = np.where(X[:, 0] + 0.3 * np.random.default_rng(1).normal(size=80) > 0, "yes", "no")
        >>> print(SparseClassifierCV(L1(1.0), alphas=20, rule="1se").fit(X, y).coef_ == 0)
        [[False  True  True]]
    """

    penalty: Penalty
    datafit: Datafit | None = None
    _: KW_ONLY
    metric: Any = None
    eps: float = 1e-3
    alphas: Any = 100
    fit_intercept: bool = True
    max_iter: int | None = None
    tol: float = 1e-6
    class_weight: Any = None
    cv: Any = None
    rule: Any = "min"
    device: str | torch.device | None = None

    def _datafit(self, classes: int) -> Datafit:
        return likelihood(classes) if self.datafit is None else self.datafit

    def fit(self, X: Matrix, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Cross-validate along the path, and keep the fit to all data at the alpha that is chosen.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p); neither copied nor changed.
            y: labels of two classes or more, numbers or strings, (n,).
            sample_weight: weights of the rows, >= 0, one number or (n,), in fits and in losses; the
                folds count alike.
            params: metadata for the splitter, groups say, where routing is on.
        """
        check_parameters(self, penalty=PENALTY, datafit=CLASSES_DATAFIT)
        problem = self._labelled(X, y, sample_weight)
        data, datafit = problem.data, self._datafit(len(problem.classes))
        split = split_metadata(self, sample_weight, params)
        folds = folds_of(self, data.X, problem.labels, split, classes=True)
        found = search(self, data, datafit, [self.penalty], folds, self.metric)
        self._keep(data, found.chosen.path, found.chosen.index)
        self.path_, self.alpha_ = found.chosen, found.chosen.alpha
        self.alphas_, self.loss_path_ = found.alphas(data), found.losses(data)
        warn_unless_converged(type(self).__name__, found.chosen.path, folds=found.converged)
        return self
