"""What estimators with built-in cross-validation share: folds, metadata routing, the choice of alpha."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import sklearn
import torch
from sklearn.base import BaseEstimator
from sklearn.model_selection import check_cv
from sklearn.utils import check_scalar
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from torch import Tensor

from torchreg.linear.cv import CVPath, fit_cv
from torchreg.linear.datafits import Datafit
from torchreg.linear.estimators.arrays import Array, Data, Matrix, to_numpy
from torchreg.linear.estimators.base import Model, warn_unless_converged
from torchreg.linear.estimators.regressor import Regressor
from torchreg.penalties import Penalty

Folds = list[tuple[np.ndarray, np.ndarray]]


class CrossValidated(Model, ABC):
    """A model whose strength is chosen by cross-validation."""

    cv: Any
    rule: Any
    path_: CVPath

    def _scorer(self) -> Any:
        """The scikit-learn scorer that compares strengths; None where the engine's losses do."""
        return None

    def get_metadata_routing(self) -> MetadataRouter:
        """Where scikit-learn's metadata routing sends what ``fit`` and ``score`` are given."""
        router, splits = MetadataRouter(owner=self).add_self_request(self), MethodMapping()
        router.add(splitter=check_cv(self.cv), method_mapping=splits.add(caller="fit", callee="split"))
        scorer = self._scorer()
        if scorer is not None:
            scores = MethodMapping().add(caller="fit", callee="score").add(caller="score", callee="score")
            router.add(scorer=scorer, method_mapping=scores)
        return router


def folds_of(
    model: CrossValidated, X: Matrix, y: np.ndarray, routed: dict[str, Any], *, classes: bool = False
) -> Folds:
    """The rows of each fold, (train, test), drawn once by scikit-learn's splitter."""
    return list(check_cv(model.cv, y, classifier=classes).split(X, y, **routed))


def routing_is_on() -> bool:
    """Whether scikit-learn routes metadata."""
    return bool(sklearn.get_config()["enable_metadata_routing"])


def refuse_metadata(model: BaseEstimator, method: str, params: dict[str, Any]) -> None:
    """Raise ValueError for metadata that nobody routes."""
    if params and not routing_is_on():
        raise ValueError(
            f"Passing extra keyword arguments to {type(model).__name__}.{method}() is only supported if "
            f"enable_metadata_routing=True, which sklearn.set_config sets. Got {sorted(params)}."
        )


def split_metadata(model: CrossValidated, sample_weight: Any, params: dict[str, Any]) -> dict[str, Any]:
    """What of the metadata that ``fit`` was given is the splitter's."""
    refuse_metadata(model, "fit", params)
    if not routing_is_on():
        return {}
    return dict(process_routing(model, "fit", sample_weight=sample_weight, **params).splitter.split)


def score_metadata(model: CrossValidated, method: str, sample_weight: Any, params: dict[str, Any]) -> dict[str, Any]:
    """What of the metadata that ``fit`` or ``score`` was given is the scorer's."""
    refuse_metadata(model, method, params)
    weights = {} if sample_weight is None else {"sample_weight": sample_weight}
    if routing_is_on():
        return dict(process_routing(model, method, **weights, **params).scorer.score)
    return weights


def checked_alphas(alphas: Any) -> int | list[float]:
    """A number of alphas, or a list of alphas >= 0.

    Raises:
        ValueError: if they are no list of numbers, there is none, or one is negative.
    """
    if isinstance(alphas, Integral):
        return int(alphas)
    values = to_numpy(alphas).tolist() if hasattr(alphas, "tolist") else list(alphas)
    if not isinstance(values, list) or not values:
        raise ValueError(f"alphas must be a number of alphas, or one alpha or more in a list; got {alphas!r}.")
    return [float(check_scalar(alpha, f"alphas[{i}]", Real, min_val=0.0)) for i, alpha in enumerate(values)]


@dataclass(frozen=True)
class Search:
    """Cross-validated paths of some penalties, and which has the least mean loss.

    Args:
        paths: one for each penalty.
        best: the index of the path that was chosen.
        shared: whether all have the alphas that were given, not a grid each.
    """

    paths: list[CVPath]
    best: int
    shared: bool

    @property
    def chosen(self) -> CVPath:
        """The path that was chosen."""
        return self.paths[self.best]

    def alphas(self, data: Data) -> Array:
        """The alphas of each path, (paths, a), or (a,) where they are the same."""
        grids = self.paths[:1] if self.shared else self.paths
        return _stacked([data.out_exactly(each.path.alphas) for each in grids])

    @property
    def converged(self) -> list[np.ndarray]:
        """Whether the fits of the folds converged, (folds, a) for each path."""
        return [each.converged.cpu().numpy() for each in self.paths]

    def losses(self, data: Data) -> Array:
        """The losses of each path, (paths, a, folds), or (a, folds) where there is one."""
        return _stacked([data.out_exactly(each.losses.T) for each in self.paths])


def _stacked(arrays: list[Array]) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    return torch.stack(arrays) if isinstance(arrays[0], Tensor) else np.stack(arrays)


def search(
    model: Any, data: Data, datafit: Datafit, penalties: Sequence[Penalty], folds: Folds, metric: Any = None
) -> Search:
    """Cross-validate each penalty along its path."""
    alphas = checked_alphas(model.alphas)
    paths = [
        fit_cv(
            data.X,
            data.y,
            penalty,
            datafit=datafit,
            cv=folds,
            alphas=alphas,
            eps=model.eps,
            metric=metric,
            rule=model.rule,
            tol=model.tol,
            max_iter=model.max_iter,
            sample_weight=data.weights,
            offset=data.offset,
            fit_intercept=model.fit_intercept,
            device=model.device,
        )
        for penalty in penalties
    ]
    least = [float(each.mean.min()) for each in paths]
    return Search(paths, least.index(min(least)), shared=isinstance(alphas, list))


class PathCV(CrossValidated, Regressor):
    """A regressor whose alpha is chosen along a path."""

    alphas: Any
    eps: float
    metric: Any = None
    alpha_: float
    alphas_: Array

    @abstractmethod
    def _penalties(self, data: Data) -> list[Penalty]:
        """The penalties to be tried, of any alpha."""

    @abstractmethod
    def _keep_losses(self, losses: Array) -> None:
        """Set the attribute that has the losses, (a, folds), or (penalties, a, folds) for several."""

    def _keep_choice(self, best: int) -> None:
        """Set the attribute that says which of several penalties was chosen."""

    def fit(self, X: Matrix, y: Any, sample_weight: Any = None, *, offset: Any = None, **params: Any) -> Self:
        """Cross-validate along the path, and keep the fit to all data at the alpha that is chosen.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p); neither copied nor changed.
            y: responses, (n,), or (n, K) where several targets are allowed.
            sample_weight: weights of the rows, >= 0, one number or (n,), in fits and in losses;
                the folds count alike, as in scikit-learn.
            offset: added to the linear predictor, (n,), or (n, K): the logarithm of exposures under a log link.
            params: metadata for the splitter, groups say, where routing is on.
        """
        refuse_metadata(self, "fit", params)
        data = replace(self._training_data(X, y, sample_weight), offset=offset)
        folds = folds_of(self, data.X, data.y, split_metadata(self, sample_weight, params))
        found = search(self, data, self._datafit(), self._penalties(data), folds, self.metric)
        chosen = found.chosen
        self._keep(data, chosen.path, chosen.index)
        self.path_, self.alpha_, self.alphas_ = chosen, chosen.alpha, found.alphas(data)
        self._keep_losses(found.losses(data))
        self._keep_choice(found.best)
        warn_unless_converged(type(self).__name__, *(each.path for each in found.paths), folds=found.converged)
        return self
