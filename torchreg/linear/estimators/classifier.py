"""What classifiers share: classes, decisions and chances."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from torchreg.linear.datafits import Datafit
from torchreg.linear.estimators.arrays import Array, Data, Matrix, dense, labelled_data, through, to_numpy
from torchreg.linear.estimators.base import Model, warn_unless_converged
from torchreg.linear.settings import at_its_own_strength
from torchreg.penalties import Penalty


@dataclass(frozen=True)
class Labelled:
    """Checked data of a classification problem.

    Args:
        data: y are class numbers; the weights are those of rows times those of classes.
        labels: the labels of the rows, numpy, (n,).
        classes: the distinct labels, sorted, numpy.
        row_weights: of the rows alone, or None.
    """

    data: Data
    labels: np.ndarray
    classes: np.ndarray
    row_weights: np.ndarray | None

    @property
    def outputs(self) -> int | None:
        """Linear predictors of a row: None for the one of two classes."""
        return len(self.classes) if len(self.classes) > 2 else None


class Classifier(ClassifierMixin, Model):  # type: ignore[misc]
    """A model of classes: one linear predictor for two classes, K for K > 2."""

    class_weight: Any
    classes_: Array

    @abstractmethod
    def _datafit(self, classes: int) -> Datafit:
        """The data term of a number of classes."""

    def _rows(self, coef: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        return coef.T if coef.dim() == 2 else coef[None], intercept.reshape(-1)

    def _labelled(self, X: Matrix, y: Any, sample_weight: Any) -> Labelled:
        """The data after all checks; sets the classes."""
        data = labelled_data(self, X, y, sample_weight)
        check_classification_targets(data.y)
        classes, numbers = np.unique(data.y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data contains only one class: "
                f"{classes[0]!r}"
            )
        self.classes_ = torch.as_tensor(classes, device=y.device) if isinstance(y, Tensor) else classes
        coded = replace(data, y=numbers)
        if self.class_weight is not None:
            known = {} if data.weights is None else {"sample_weight": data.weights}
            with np.errstate(divide="ignore"):
                factors = np.asarray(compute_class_weight(self.class_weight, classes=classes, y=data.y, **known), float)
            if isinstance(self.class_weight, str):
                factors[np.isinf(factors)] = 0.0  # "balanced" of a class whose rows all weigh 0, whatever its weight
            if not (np.isfinite(factors) & (factors >= 0)).all():
                raise ValueError(f"class_weight must have finite weights >= 0, got {self.class_weight!r}.")
            coded = coded.weighted_by(factors[numbers])
        return Labelled(coded, data.y, classes, data.weights)

    def sparsify(self) -> Self:
        """Make ``coef_`` a scipy sparse array, which saves memory where more than half of it is zero."""
        check_is_fitted(self)
        self.coef_ = csr_array(to_numpy(dense(self.coef_)))
        return self

    def densify(self) -> Self:
        """Make ``coef_`` a numpy array again, after `sparsify`."""
        check_is_fitted(self)
        self.coef_ = dense(self.coef_)
        return self

    def decision_function(self, X: Matrix) -> Array:
        """The linear predictor: for two classes, the evidence for the second.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p).

        Returns:
            (n,) for two classes, else (n, K); of X's kind, on its device.
        """
        eta = self._linear_predictor(X)
        return eta[:, 0] if eta.shape[1] == 1 else eta

    def predict(self, X: Matrix) -> Array:
        """The most probable class of each row.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p).

        Returns:
            (n,), entries of ``classes_``.
        """
        eta = self.decision_function(X)
        index = eta.argmax(1) if eta.ndim == 2 else eta > 0
        if isinstance(index, Tensor) and isinstance(self.classes_, Tensor):
            return self.classes_[index.long().to(self.classes_.device)].to(index.device)
        return to_numpy(self.classes_)[to_numpy(index).astype(np.intp)]

    def predict_proba(self, X: Matrix) -> Array:
        """The chance of each class.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p).

        Returns:
            (n, K), in the order of ``classes_``.
        """
        eta = self.decision_function(X)
        chances = through(self._datafit(len(self.classes_)).predict, eta)
        if chances.ndim == 2:
            return chances
        stack = torch.stack if isinstance(chances, Tensor) else np.stack
        return stack([1.0 - chances, chances], 1)

    def predict_log_proba(self, X: Matrix) -> Array:
        """The logarithm of the chance of each class, as `predict_proba` has them."""
        chances = self.predict_proba(X)
        return chances.log() if isinstance(chances, Tensor) else np.log(chances)


class Accurate(Classifier):
    """A classifier that is scored by its accuracy."""

    def score(self, X: Matrix, y: Any, sample_weight: Any = None) -> float:
        """The share of rows whose class is predicted.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p).
            y: the true classes, (n,).
            sample_weight: weights of the rows.
        """
        predicted = to_numpy(self.predict(X))
        return float(accuracy_score(to_numpy(y), predicted, sample_weight=to_numpy(sample_weight)))


class SingleClassifier(Accurate):
    """A classifier that is fitted at the one strength of its constructor."""

    warm_start: bool

    @abstractmethod
    def _check(self) -> None:
        """Check the parameters."""

    @abstractmethod
    def _penalty(self, problem: Labelled) -> Penalty:
        """The penalty, its alpha in the engine's units."""

    def _units(self, data: Data) -> float:
        """What the engine's objective is multiplied by to be this estimator's."""
        del data
        return 1.0

    def fit(self, X: Matrix, y: Any, sample_weight: Any = None) -> Self:
        """Fit to training data.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p); neither copied nor changed.
            y: labels of two classes or more, numbers or strings, (n,).
            sample_weight: weights of the rows, >= 0, one number or (n,).
        """
        self._check()
        problem = self._labelled(X, y, sample_weight)
        data, penalty = problem.data, at_its_own_strength(self._penalty(problem))
        init = self._start(data, problem.outputs) if self.warm_start else None
        datafit = self._datafit(len(problem.classes))
        path = self._fit_path(data, penalty, datafit, [float(penalty.alpha)], init)
        self._keep(data, path, 0, self._units(data))
        self.n_iter_ = np.array([self.n_iter_], dtype=np.int32)
        warn_unless_converged(type(self).__name__, path)
        return self
