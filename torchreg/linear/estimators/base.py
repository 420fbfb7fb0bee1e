"""What all estimators share: one fit, what it leaves behind, and a warning where it did not converge."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from torchreg.linear.after_fork import one_thread_if_small
from torchreg.linear.datafits import Datafit
from torchreg.linear.estimators.arrays import Array, Data, Matrix, checked_matrix, dense, linear_predictor
from torchreg.linear.estimators.nested import BETWEEN, nested, with_field
from torchreg.linear.path import Path, fit_path
from torchreg.penalties import Penalty

Start = tuple[Tensor, Tensor]


class Model(BaseEstimator, ABC):  # type: ignore[misc]  # scikit-learn is not typed
    """A penalised linear model with scikit-learn's interface.

    Final classes are dataclasses whose fields are the constructor's parameters.
    """

    fit_intercept: bool
    max_iter: int | None
    tol: float
    device: str | torch.device | None

    coef_: Array
    intercept_: Array
    n_iter_: Any
    dual_gap_: Any
    alpha_max_: float

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters by name.

        Args:
            deep: whether to add the fields of a penalty and of a datafit, as ``penalty__alpha``.
        """
        params: dict[str, Any] = super().get_params(deep)
        fields = [nested(name, value) for name, value in params.items()] if deep else []
        return dict(params, **{name: value for each in fields for name, value in each.items()})

    def set_params(self, **params: Any) -> Self:
        """Set parameters, or fields of a penalty or a datafit, which is replaced: the caller's is not changed.

        Args:
            params: values by name: ``tol=1e-8``, ``penalty__alpha=0.1``, ``penalty__penalty__gamma=4.0``.
        """
        own = self.get_params(deep=False)
        super().set_params(**{name: value for name, value in params.items() if name.partition(BETWEEN)[0] not in own})
        for name in sorted(params, key=lambda name: name.count(BETWEEN)):  # a penalty before its fields
            parameter, _, path = name.partition(BETWEEN)
            value = params[name]
            setattr(self, parameter, with_field(getattr(self, parameter), path, value) if path else value)
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    @abstractmethod
    def _rows(self, coef: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """The engine's coefficients (p,) or (p, K) and intercept as `coef_` and `intercept_` have them."""

    def _fit_path(
        self, data: Data, penalty: Penalty, datafit: Datafit, alphas: list[float], init: Start | None = None
    ) -> Path:
        options: dict[str, Any] = {"alphas": alphas, "tol": self.tol, "max_iter": self.max_iter, "device": self.device}
        rows: dict[str, Any] = {"sample_weight": data.weights, "offset": data.offset}
        with one_thread_if_small(data.X.shape[0] * data.features):
            return fit_path(
                data.X, data.y, penalty, datafit=datafit, fit_intercept=self.fit_intercept, init=init, **options, **rows
            )

    def _start(self, data: Data, outputs: int | None) -> Start | None:
        """The present coefficients, where there are any that fit, as the engine takes them."""
        if not hasattr(self, "coef_") or self.coef_.shape[-1] != data.features:
            return None
        device = self.coef_.device if isinstance(self.coef_, Tensor) else "cpu"
        rows = torch.as_tensor(dense(self.coef_), dtype=torch.float64, device=device).reshape(-1, data.features)
        if len(rows) != (outputs or 1):
            return None
        given = getattr(self, "intercept_", 0.0)  # 0 too where the caller has set the coefficients alone
        intercepts = torch.as_tensor(given, dtype=torch.float64, device=rows.device).reshape(-1).expand(len(rows))
        return (rows[0], intercepts[0]) if outputs is None else (rows.T, intercepts)

    def _keep(self, data: Data, path: Path, index: int, units: float = 1.0) -> None:
        """Set the fitted attributes from one point of a path; ``units`` converts its objective to this estimator's."""
        coef, intercept = self._rows(path.coef(index), path.intercepts[index])
        # coefficients that are finite cannot tell
        overflown = path.violations[index].isnan() | ~path.objectives[index].isfinite()
        if not bool(coef.isfinite().all() & intercept.isfinite().all() & ~overflown):
            raise ValueError(
                f"{type(self).__name__} resulted in non-finite parameter values. The input data may contain large "
                "values and need to be preprocessed."
            )
        self.coef_, self.intercept_ = data.out(coef), data.out(intercept)
        self.dual_gap_ = units * float(path.dual_gaps[index])
        self.n_iter_ = iterations(path, index)
        self.alpha_max_ = float(path.alpha_max)

    def _linear_predictor(self, X: Matrix) -> Array:
        check_is_fitted(self)
        return linear_predictor(checked_matrix(self, X, reset=False), self.coef_, self.intercept_)


def iterations(path: Path, index: int) -> int:
    """Iterations of one point as scikit-learn counts them: to find that a start is the solution is one."""
    return max(1, int(path.n_iters[index]))


def warn_unless_converged(name: str, *paths: Path, folds: Sequence[np.ndarray] = ()) -> None:
    """One ConvergenceWarning for all points of some paths that did not converge.

    Args:
        name: of the estimator.
        paths: fitted to all rows.
        folds: whether fits to the training rows of folds converged, arrays of any shape.
    """
    failed = [(path, int(i)) for path in paths for i in np.flatnonzero(~path.converged.cpu().numpy())]
    lost = sum(int((~each).sum()) for each in folds)
    where, worst = [], ""
    if failed:
        path, i = max(failed, key=lambda point: float(point[0].violations[point[1]]))
        where.append(f"at {len(failed)} of {sum(len(path.alphas) for path in paths)} alphas")
        worst = f" At alpha = {float(path.alphas[i]):.3e}: {_reached(path, i)}, {int(path.n_iters[i])} iterations."
    if lost:
        where.append(f"in {lost} of {sum(each.size for each in folds)} fits to the training rows of folds")
    if where:
        warnings.warn(
            f"{name} did not converge {' and '.join(where)}.{worst} "
            "Raise max_iter or tol, scale the features, or penalise more.",
            ConvergenceWarning,
            stacklevel=3,
        )


def _reached(path: Path, i: int) -> str:
    """How far a point is from optimal, and how far it may be, as `Path.converged` judges."""
    gap = float(path.dual_gaps[i])
    if math.isfinite(gap):
        return f"duality gap {gap:.3e}, tolerance {path.tol * path.null_objective:.3e}"
    return f"optimality violation {float(path.violations[i]):.3e}, tolerance {path.tol * path.null_slope:.3e}"
