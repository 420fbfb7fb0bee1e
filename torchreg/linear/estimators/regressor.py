"""What regressors share: one fit to numbers, the mean response, R^2."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
from scipy.sparse import csr_array
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags
from torch import Tensor

from torchreg.linear.datafits import Datafit, Quadratic
from torchreg.linear.estimators.arrays import Array, Data, Matrix, lifted, regression_data, through, to_numpy
from torchreg.linear.estimators.base import Model, warn_unless_converged
from torchreg.linear.estimators.parameters import Rule, check_parameters
from torchreg.linear.settings import at_its_own_strength
from torchreg.penalties import Penalty


class Regressor(RegressorMixin, Model):  # type: ignore[misc]
    """A model of numbers: ``predict`` is the mean response."""

    _explained: ClassVar[Callable[..., float]] = staticmethod(r2_score)
    _several: ClassVar[bool] = False  # whether y may have a column for each of several targets
    _rules: ClassVar[Mapping[str, Rule]] = {}  # of parameters, where they are not those of all estimators

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = self._several
        return tags

    def _datafit(self) -> Datafit:
        """The data term."""
        return Quadratic()

    def _training_data(self, X: Matrix, y: Any, sample_weight: Any) -> Data:
        """The data, after all checks of data and parameters."""
        check_parameters(self, **self._rules)
        return regression_data(self, X, y, sample_weight, several=self._several)

    @property
    def sparse_coef_(self) -> csr_array:
        """``coef_`` as a scipy sparse array, (1, p) or (K, p)."""
        return csr_array(np.atleast_2d(to_numpy(self.coef_)))

    def _rows(self, coef: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        return coef.T if coef.dim() == 2 else coef, self._one_zero_without(intercept)

    def _one_zero_without(self, intercept: Tensor) -> Tensor:
        """The intercept; without one a single 0 for all targets, as in scikit-learn."""
        return intercept if self.fit_intercept else intercept.new_zeros(())

    def predict(self, X: Matrix, offset: Any = None) -> Array:
        """The mean response.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p).
            offset: added to the linear predictor, of the shape of the predictions.

        Returns:
            (n,), or (n, K) for K targets; of X's kind, on its device.
        """
        return through(self._datafit().predict, lifted(self._linear_predictor(X), offset))

    def score(self, X: Matrix, y: Any, sample_weight: Any = None, offset: Any = None) -> float:
        """The share of the variance (`PoissonRegressor`: of the deviance) that the predictions explain; 1 is best.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p).
            y: the true responses, (n,) or (n, K).
            sample_weight: weights of the rows.
            offset: as for `predict`.
        """
        predicted = to_numpy(self.predict(X, offset))
        return float(self._explained(to_numpy(y), predicted, sample_weight=to_numpy(sample_weight)))


class SingleFit(Regressor):
    """A regressor that is fitted at the one alpha of its constructor."""

    warm_start: bool

    @abstractmethod
    def _penalty(self, data: Data) -> Penalty:
        """The penalty, its alpha in the engine's units."""

    def _units(self, data: Data) -> float:
        """What the engine's objective is multiplied by to be this estimator's."""
        del data
        return 1.0

    def fit(self, X: Matrix, y: Any, sample_weight: Any = None, *, offset: Any = None) -> Self:
        """Fit to training data.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p); neither copied nor changed.
            y: responses, (n,), or (n, K) where several targets are allowed.
            sample_weight: weights of the rows, >= 0, one number or (n,).
            offset: added to the linear predictor, (n,), or (n, K): the logarithm of exposures under a log link.
        """
        data = replace(self._training_data(X, y, sample_weight), offset=offset)
        penalty = at_its_own_strength(self._penalty(data))
        init = self._start(data, data.y.shape[1] if data.y.ndim == 2 else None) if self.warm_start else None
        path = self._fit_path(data, penalty, self._datafit(), [float(penalty.alpha)], init)
        self._keep(data, path, 0, self._units(data))
        warn_unless_converged(type(self).__name__, path)
        return self
