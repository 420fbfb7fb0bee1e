"""Lasso and ElasticNet: squared loss, L1 and L1 + L2."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.utils import Tags
from sklearn.utils.metadata_routing import UNUSED

from torchreg.linear.datafits import Datafit, Quadratic
from torchreg.linear.estimators.arrays import Data, Matrix, lifted, regression_data, to_numpy
from torchreg.linear.estimators.base import iterations, warn_unless_converged
from torchreg.linear.estimators.documentation import documented
from torchreg.linear.estimators.parameters import check_parameters
from torchreg.linear.estimators.penalised import entrywise
from torchreg.linear.estimators.regressor import Regressor
from torchreg.linear.path import Path
from torchreg.penalties import L1, L1L2, Penalty


class _EachTarget(Regressor):
    """Squared loss with a penalty of each coefficient, so that targets are fitted one by one."""

    alpha: float
    positive: bool
    warm_start: bool
    penalty_weights: Any

    __metadata_request__fit: ClassVar[dict[str, str]] = {"check_input": UNUSED}  # as in scikit-learn: no metadata

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @abstractmethod
    def _entry_penalty(self) -> L1 | L1L2:
        """The penalty of one coefficient."""

    def _datafit(self) -> Datafit:
        return Quadratic()

    def _training_data(self, X: Matrix, y: Any, sample_weight: Any) -> Data:
        check_parameters(self)
        return regression_data(self, X, y, sample_weight, several=True)

    def fit(
        self, X: Matrix, y: Any, sample_weight: Any = None, check_input: bool = True, *, offset: Any = None
    ) -> Self:
        """Fit to training data.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p); neither copied nor changed.
            y: responses, (n,), or (n, K), which are fitted one by one.
            sample_weight: weights of the rows, >= 0, one number or (n,).
            check_input: scikit-learn's, without effect: data are always checked.
            offset: added to the linear predictor, (n,), or (n, K).
        """
        del check_input
        data = self._training_data(X, y, sample_weight)
        data = data if offset is None else replace(data, y=lifted(data.y, -np.asarray(to_numpy(offset))))
        penalty = entrywise(self._entry_penalty(), self, data)
        if data.y.ndim == 1:
            start = self._start(data, None) if self.warm_start else None
            paths = [self._fit_path(data, penalty, self._datafit(), [self.alpha], start)]
            self._keep(data, paths[0], 0)
        else:
            paths = self._fit_columns(data, penalty)
        warn_unless_converged(type(self).__name__, *paths)
        return self

    def _fit_columns(self, data: Data, penalty: Penalty) -> list[Path]:
        count = data.y.shape[1]
        start = self._start(data, count) if self.warm_start else None
        starts = [None] * count if start is None else list(zip(start[0].T, start[1], strict=True))
        paths = [
            self._fit_path(replace(data, y=column), penalty, self._datafit(), [self.alpha], start)
            for column, start in zip(data.y.T, starts, strict=True)
        ]
        coefs = torch.stack([path.coef(0) for path in paths])
        intercepts = torch.stack([path.intercepts[0] for path in paths])
        gaps, counts = np.array([float(path.dual_gaps[0]) for path in paths]), [iterations(path, 0) for path in paths]
        self.coef_ = data.out(coefs if count > 1 else coefs[0])
        self.intercept_ = data.out(self._one_zero_without(intercepts))
        self.dual_gap_, self.n_iter_ = (gaps, counts) if count > 1 else (gaps[0], counts[0])
        self.alpha_max_ = max(float(path.alpha_max) for path in paths)
        return paths


@documented
@dataclass(eq=False, repr=False)
class Lasso(_EachTarget):
    """Least squares with an L1 penalty: the coefficients of useless features are exactly zero.

    ``minimise 1 / (2 sum_i s_i) * sum_i s_i (y_i - x_i w - b)^2 + alpha * sum_j c_j |w_j|``, with sample
    weights s and feature weights c. The objective is that of scikit-learn's class of the same name.

    ``tol`` bounds the duality gap by ``tol`` times the objective of the model without features;
    scikit-learn's bound is up to twice as large. Targets of a two-dimensional y are fitted one by one.

    Attributes:
        dual_gap_: by how much the objective may exceed its minimum, one or (K,).
        n_iter_: iterations of the solver, one or K.

    Source:
        Tibshirani, JRSS B 58, 1996.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import Lasso
        >>> X = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> model = Lasso(alpha=0.5).fit(X, y=[4.0, 0.1, -4.0, 0.1])
        >>> print(model.coef_)
        [3. 0.]
    """

    alpha: float = 1.0
    _: KW_ONLY
    fit_intercept: bool = True
    precompute: Any = False
    copy_X: bool = True
    max_iter: int | None = 1000
    tol: float = 1e-4
    warm_start: bool = False
    positive: bool = False
    random_state: Any = None
    selection: str = "cyclic"
    penalty_weights: Any = None
    device: str | torch.device | None = None

    def _entry_penalty(self) -> L1 | L1L2:
        return L1(self.alpha)


@documented
@dataclass(eq=False, repr=False)
class ElasticNet(_EachTarget):
    """Least squares with an L1 and an L2 penalty: exact zeros, and correlated features share their weight.

    ``minimise 1 / (2 sum_i s_i) * sum_i s_i (y_i - x_i w - b)^2
    + alpha * sum_j c_j (l1_ratio |w_j| + (1 - l1_ratio) / 2 * w_j^2)``, with sample weights s and
    feature weights c. The objective is that of scikit-learn's class of the same name.

    ``tol`` bounds the duality gap by ``tol`` times the objective of the model without features;
    scikit-learn's bound is up to twice as large. Targets of a two-dimensional y are fitted one by one.

    Args:
        l1_ratio: share of L1, between 0 and 1; at 0 it is ``Ridge(sum_i s_i * alpha)``.

    Attributes:
        dual_gap_: by how much the objective may exceed its minimum, one or (K,).
        n_iter_: iterations of the solver, one or K.
        alpha_max_: the least alpha at which all penalised coefficients are zero; inf for ``l1_ratio=0``.

    Source:
        Zou and Hastie, JRSS B 67, 2005.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import ElasticNet
        >>> X = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> model = ElasticNet(alpha=1.0, l1_ratio=0.5).fit(X, y=[4.0, 0.1, -4.0, 0.1])
        >>> print(model.coef_)
        [1.5 0. ]
    """

    alpha: float = 1.0
    _: KW_ONLY
    l1_ratio: float = 0.5
    fit_intercept: bool = True
    precompute: Any = False
    max_iter: int | None = 1000
    copy_X: bool = True
    tol: float = 1e-4
    warm_start: bool = False
    positive: bool = False
    random_state: Any = None
    selection: str = "cyclic"
    penalty_weights: Any = None
    device: str | torch.device | None = None

    def _entry_penalty(self) -> L1 | L1L2:
        return L1L2(self.alpha, self.l1_ratio)
