"""Cross-validation by scikit-learn's scorers, where the strength of a penalty depends on the fold."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import make_scorer
from torch import Tensor

from torchreg.linear.cv import CVPath
from torchreg.linear.datafits import Datafit
from torchreg.linear.estimators.arrays import Data, Matrix, to_numpy
from torchreg.linear.estimators.base import Model
from torchreg.linear.path import Path
from torchreg.penalties import Penalty

Scorer = Callable[..., float]


@dataclass(frozen=True)
class Ordered:
    """A path at the alphas that were asked for, in the order in which they were.

    Args:
        path: at the same alphas, descending.
        places: where each of the alphas that were asked for stands in the path.
    """

    path: Path
    places: np.ndarray

    @property
    def converged(self) -> np.ndarray:
        """Whether each fit converged, in the order in which the alphas were asked for, (a,)."""
        return self.path.converged.cpu().numpy()[self.places]

    def chosen(self, mean: np.ndarray, cross_validated: CVPath) -> int:
        """Which of the alphas a rule chooses: by "min" the first with the least mean loss, (a,)."""
        if isinstance(cross_validated.rule, str) and cross_validated.rule == "min":
            return int(mean.argmin())
        return int(np.flatnonzero(self.places == cross_validated.index)[0])


def fit_in_order(model: Model, data: Data, penalty: Penalty, datafit: Datafit, alphas: Sequence[float]) -> Ordered:
    """The path of a penalty at alphas in any order."""
    order = np.argsort(-np.asarray(alphas), kind="stable")
    return Ordered(model._fit_path(data, penalty, datafit, [alphas[i] for i in order]), np.argsort(order))


def cross_validated_path(fitted: Ordered, losses: np.ndarray, converged: np.ndarray, folds: Any, rule: Any) -> CVPath:
    """The path with losses and verdicts (folds, a), which are in the order in which the alphas were asked for."""
    order = np.argsort(fitted.places)
    sorted_losses, verdicts = torch.from_numpy(losses[:, order]), torch.from_numpy(converged[:, order])
    numbers = np.arange(fitted.path.n_samples)
    pairs = tuple(
        (torch.from_numpy(numbers[np.asarray(train)]), torch.from_numpy(numbers[np.asarray(test)]))
        for train, test in folds or ()
    )
    return CVPath(path=fitted.path, losses=sorted_losses, folds=pairs, converged=verdicts, rule=rule)


def takes_weights(scorer: Scorer) -> bool:
    """Whether a scorer takes ``sample_weight``."""
    parameters = inspect.signature(getattr(scorer, "_score_func", scorer)).parameters.values()
    return any(p.name == "sample_weight" or p.kind is p.VAR_KEYWORD for p in parameters)


def knowing(scorer: Scorer, classes: np.ndarray) -> Scorer:
    """A scorer that knows all labels, where its function takes them: a fold's test rows need not have each.

    The positive label of two classes is the second, unless the scorer names another.
    """
    function = getattr(scorer, "_score_func", None)
    parameters = {} if function is None else inspect.signature(function).parameters
    if "labels" not in parameters:
        return scorer
    given: Any = scorer  # made by scikit-learn, of which its LogisticRegressionCV reads the same fields
    known: dict[str, Any] = {"labels": classes}
    if len(classes) == 2 and "pos_label" in parameters:
        averaged = given._kwargs.get("average", "binary") != "binary"  # over the labels: none of them is the positive
        known["pos_label"] = None if averaged else classes[-1]
    response = {"greater_is_better": given._sign == 1, "response_method": given._response_method}
    return make_scorer(function, **response, **(known | given._kwargs))


def scores_on(
    model: Model, data: Data, fitted: Ordered, targets: np.ndarray, rows: np.ndarray, scorer: Scorer, params: Any
) -> list[float]:
    """The score on some rows at each alpha of a path; ``params`` goes to the scorer, cut to those rows."""
    X = _rows_of_matrix(data.X, rows)
    chosen = {name: _rows_of(value, rows, len(targets)) for name, value in params.items()}
    copied, scores = copy.copy(model), []
    copied.__dict__.pop("feature_names_in_", None)  # the rows are a plain array, without names to compare
    if hasattr(model, "classes_"):
        copied.classes_ = to_numpy(model.classes_)
    for place in fitted.places:
        copied._keep(data, fitted.path, int(place))
        scores.append(float(scorer(copied, X, targets[rows], **chosen)))
    return scores


def _rows_of_matrix(X: Matrix, rows: np.ndarray) -> Matrix:
    """Some rows of X as scikit-learn takes them: numpy, or scipy sparse."""
    if not isinstance(X, Tensor):
        return X[rows] if isinstance(X, np.ndarray) else X.tocsr()[rows]
    if X.layout == torch.strided:
        return X[torch.as_tensor(rows, device=X.device)].cpu().numpy()
    from scipy.sparse import csr_array  # scikit-learn depends on scipy, the library does not

    parts = (X.values(), X.col_indices(), X.crow_indices())
    return csr_array(tuple(part.cpu().numpy() for part in parts), shape=tuple(X.shape))[rows]


def _rows_of(value: Any, rows: np.ndarray, count: int) -> Any:
    values = np.asarray(to_numpy(value))
    return values[rows] if values.ndim and len(values) == count else value
