"""RidgeCV: alpha chosen by leaving out each row in turn, or by folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import get_scorer
from sklearn.utils import check_scalar
from torch import Tensor

from torchreg.linear.datafits import Quadratic
from torchreg.linear.estimators.arrays import Data, Matrix, to_numpy
from torchreg.linear.estimators.base import warn_unless_converged
from torchreg.linear.estimators.cross_validated import (
    CrossValidated,
    folds_of,
    routing_is_on,
    score_metadata,
    split_metadata,
)
from torchreg.linear.estimators.documentation import documented
from torchreg.linear.estimators.parameters import ARRAY, Rule, number
from torchreg.linear.estimators.penalised import entrywise
from torchreg.linear.estimators.regressor import Regressor
from torchreg.linear.estimators.ridge import ridge_penalty, ridge_rows
from torchreg.linear.estimators.scored import Ordered, cross_validated_path, fit_in_order, scores_on, takes_weights
from torchreg.linear.frame import framed
from torchreg.linear.path import MAX_ITER, assembled, strongest
from torchreg.linear.solvers.ridge import RidgePath
from torchreg.penalties import L2, Penalty


@documented
@dataclass(eq=False, repr=False)
class RidgeCV(CrossValidated, Regressor):
    """`Ridge` with alpha chosen by cross-validation, by default by leaving out each row in turn.

    ``minimise sum_i s_i |y_i - x_i w - b|^2 + alpha * sum_j c_j |w_j|^2``, with sample weights s and
    feature weights c. Objective, scores and the alpha that is chosen are those of scikit-learn's
    class of the same name.

    Leaving out rows costs one eigendecomposition for all alphas, of a (p, p) or (n, n) matrix,
    whichever is smaller; there are no zeros but those of features that are forced out.

    Args:
        alphas: > 0 (>= 0 where ``cv`` is given), one or several.
        scoring: a scikit-learn scorer or its name; None for the squared error of rows that are left
            out, or for R^2 where ``cv`` is given.
        cv: None to leave out each row in turn; a number of folds, a splitter, or (train, test) index arrays.
        store_cv_results: whether to keep ``cv_results_``; not with ``cv``.
        alpha_per_target: whether each target has its own alpha; not with ``cv``.
        rule: "min" for the best score; "1se" for the largest alpha whose score is within one standard
            error of it; or a function of the `torchreg.linear.CVPath`.

    Attributes:
        alpha_: the alpha that was chosen, or (K,) for ``alpha_per_target``.
        best_score_: its score, or (K,).
        cv_results_: squared errors, or predictions where ``scoring`` is given, of rows that are left
            out, (n, a) or (n, K, a); only for ``store_cv_results``.
        path_: the whole `torchreg.linear.CVPath`; its alphas are ``alpha / (2 sum_i s_i)``.

    Source:
        Golub, Heath and Wahba, Technometrics 21, 1979.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import RidgeCV
        >>> X = np.random.default_rng(0).normal(size=(30, 3))
        >>> y = X @ [2.0, 1.0, 0.0] + np.random.default_rng(1).normal(size=30)
        >>> model = RidgeCV(alphas=[0.1, 1.0, 1000.0], penalty_weights=[1.0, 1.0, np.inf]).fit(X, y)
        >>> print(model.alpha_, model.coef_ == 0)
        0.1 [False False  True]
    """

    alphas: Any = (0.1, 1.0, 10.0)
    _: KW_ONLY
    fit_intercept: bool = True
    scoring: Any = None
    cv: Any = None
    gcv_mode: str | None = None
    store_cv_results: bool = False
    alpha_per_target: bool = False
    tol: float = 1e-4
    rule: Any = "min"
    penalty_weights: Any = None
    device: str | torch.device | None = None

    _several = True
    _rules: ClassVar[Mapping[str, Rule]] = {"alphas": ARRAY | number(0.0, closed="()")}
    max_iter = None  # not parameters: scikit-learn's class has none
    positive = False

    def _rows(self, coef: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        return ridge_rows(coef), self._one_zero_without(intercept)

    def _scorer(self) -> Any:
        if self.scoring is not None:
            return get_scorer(self.scoring)
        scorer = get_scorer("r2")
        return scorer.set_score_request(sample_weight=True) if routing_is_on() else scorer

    def _training_data(self, X: Matrix, y: Any, sample_weight: Any) -> Data:
        data = super()._training_data(X, y, sample_weight)
        if self.cv is not None and self.store_cv_results:
            raise ValueError("cv!=None and store_cv_results=True are incompatible")
        if self.cv is not None and self.alpha_per_target:
            raise ValueError("cv!=None and alpha_per_target=True are incompatible")
        return data

    def _checked_alphas(self) -> list[float]:
        given = self.alphas if isinstance(self.alphas, list | tuple) else np.atleast_1d(to_numpy(self.alphas)).tolist()
        values = list(given)
        if not values:
            raise ValueError(f"alphas must be one alpha or more, got {self.alphas!r}.")
        bounds = "neither" if self.cv is None else "left"
        names = ["alphas"] if len(values) == 1 else [f"alphas[{i}]" for i in range(len(values))]
        pairs = zip(values, names, strict=True)
        return [float(check_scalar(a, name, Real, min_val=0.0, include_boundaries=bounds)) for a, name in pairs]

    def fit(self, X: Matrix, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Choose alpha, and fit to all data.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p); neither copied nor changed.
            y: responses, (n,) or (n, K).
            sample_weight: weights of the rows, >= 0, one number or (n,), in fits and scores.
            params: metadata for the splitter and the scorer, where routing is on.
        """
        data, alphas = self._training_data(X, y, sample_weight), self._checked_alphas()
        scored = score_metadata(self, "fit", sample_weight, params)
        if self.cv is None:
            self._leave_out_rows(data, alphas, scored)
        else:
            folds = folds_of(self, data.X, data.y, split_metadata(self, sample_weight, params))
            self._leave_out_folds(data, alphas, folds, scored)
        return self

    def _leave_out_rows(self, data: Data, alphas: list[float], scored: dict[str, Any]) -> None:
        fitted, errors = self._fitted_without_rows(data, alphas)
        if self.scoring is None:
            results = np.square(errors)
            each = -results.mean(1)
            losses = results if results.ndim == 2 else results.mean(2)
        else:
            results = _predictions(data, errors)
            each = np.array([_scores(self._scorer(), data.y, r, scored, self.alpha_per_target) for r in results])
            losses = -each.reshape(len(alphas), -1).mean(1, keepdims=True)
        if self.store_cv_results:
            self.cv_results_ = data.out(torch.from_numpy(np.moveaxis(results, 0, -1).copy()))
        self._choose(data, alphas, fitted, losses.T, np.ones_like(losses.T, dtype=bool), None)
        if self.alpha_per_target and data.y.ndim == 2:
            self._choose_for_each_target(data, np.array(alphas), each)

    def _fitted_without_rows(self, data: Data, alphas: list[float]) -> tuple[Ordered, np.ndarray]:
        """The path on all rows, and leave-one-out residuals times sqrt(sample weight), (a, n) or (a, n, K)."""
        penalty, order = self._penalty(data), np.argsort(-np.asarray(alphas), kind="stable")
        places, grid = np.argsort(order), [alphas[i] / (2.0 * data.total) for i in order]
        frame = framed(data.X, data.y, Quadratic(), data.weights, None, self.fit_intercept, False, self.device)
        ridge = RidgePath(frame.problem, frame.moments, centred=self.fit_intercept)
        coef = frame.problem.no_coef()
        forms: Any = [penalty.with_alpha(alpha).form(coef) for alpha in grid]
        residuals = ridge.left_out(forms) * data.total**0.5
        alpha_max = strongest(frame, penalty, self.tol, MAX_ITER)
        path = assembled(frame, penalty, grid, list(ridge.points(forms)), alpha_max=alpha_max, tol=self.tol)
        errors = np.zeros((len(grid), *data.y.shape))
        errors[:, slice(None) if frame.kept is None else frame.kept.cpu().numpy()] = residuals.cpu().numpy()
        return Ordered(path, places), errors[places]

    def _leave_out_folds(self, data: Data, alphas: list[float], folds: Any, scored: dict[str, Any]) -> None:
        scorer, scores, converged = self._scorer(), [], []
        scored = scored if takes_weights(scorer) else {k: v for k, v in scored.items() if k != "sample_weight"}
        for train, test in folds:
            fitted = self._fitted(data.only(train), alphas)
            scores.append(scores_on(self, data, fitted, data.y, test, scorer, scored))
            converged.append(fitted.converged)
        self._choose(data, alphas, self._fitted(data, alphas), -np.array(scores), np.array(converged), folds)

    def _penalty(self, data: Data) -> Penalty:
        return entrywise(L2(1.0), self, data, outputs=data.y.ndim == 2)

    def _fitted(self, data: Data, alphas: list[float]) -> Ordered:
        return fit_in_order(self, data, self._penalty(data), Quadratic(), [a / (2.0 * data.total) for a in alphas])

    def _choose(
        self, data: Data, alphas: list[float], fitted: Ordered, losses: np.ndarray, converged: np.ndarray, folds: Any
    ) -> None:
        """Keep the best of the alphas, by losses (folds, a); ``converged``, of the same shape, is for a warning."""
        if isinstance(self.rule, str) and self.rule == "1se" and len(losses) == 1:
            raise ValueError("rule='1se' needs the scores of several folds; give cv, or scoring=None.")
        self.path_ = cross_validated_path(fitted, losses, converged, folds, self.rule)
        best = fitted.chosen(losses.mean(0), self.path_)
        self.alpha_, self.best_score_ = alphas[best], -float(losses[:, best].mean())
        self._keep(data, fitted.path, int(fitted.places[best]), 2.0 * data.total)
        warn_unless_converged(type(self).__name__, fitted.path, folds=[converged])

    def _choose_for_each_target(self, data: Data, alphas: np.ndarray, scores: np.ndarray) -> None:
        """Keep the best alpha of each target, by scores (a, K)."""
        best = scores.argmax(0)
        self.alpha_, self.best_score_ = alphas[best], scores.max(0)
        path = self._fit_path(data, ridge_penalty(self.alpha_, self, data), Quadratic(), [1.0])
        self._keep(data, path, 0, 2.0 * data.total)


class _Given(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor whose features are its predictions, for scorers."""

    def predict(self, X: np.ndarray) -> np.ndarray:
        return X


def _predictions(data: Data, errors: np.ndarray) -> np.ndarray:
    """Predictions of each row without it; a row with weight 0 is left as it is."""
    if data.weights is None:
        return data.y - errors
    root = np.sqrt(data.weights)
    inverse = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
    return data.y - errors * (inverse[:, None] if data.y.ndim == 2 else inverse)


def _scores(scorer: Any, y: np.ndarray, predicted: np.ndarray, params: dict[str, Any], each: bool) -> Any:
    """The score of predictions, or that of each target."""
    if each and y.ndim == 2:
        return [scorer(_Given(), p, t, **params) for p, t in zip(predicted.T, y.T, strict=True)]
    return scorer(_Given(), predicted, y, **params)
