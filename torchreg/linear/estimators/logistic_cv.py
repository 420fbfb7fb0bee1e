"""LogisticRegressionCV: C, and the share of L1, chosen by a scikit-learn scorer."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.metrics import get_scorer
from sklearn.utils.metadata_routing import UNUSED

from torchreg.linear.datafits import Datafit
from torchreg.linear.estimators.arrays import Matrix, to_numpy
from torchreg.linear.estimators.base import warn_unless_converged
from torchreg.linear.estimators.classifier import Classifier, Labelled
from torchreg.linear.estimators.cross_validated import CrossValidated, folds_of, score_metadata, split_metadata
from torchreg.linear.estimators.documentation import documented
from torchreg.linear.estimators.logistic import PENALTIES, SOLVERS, likelihood, share_of_l1
from torchreg.linear.estimators.logistic_grid import Grid, fitted_at, legacy, search_grid
from torchreg.linear.estimators.parameters import CALLABLE, NONE, WORDS, check_parameters, one_of
from torchreg.linear.estimators.scored import cross_validated_path


@documented
@dataclass(eq=False, repr=False)
class LogisticRegressionCV(CrossValidated, Classifier):
    """`LogisticRegression` with C, and l1_ratio where several are given, chosen by cross-validation.

    ``minimise C * sum_i s_i loss_i + sum_j c_j (l1_ratio |w_j| + (1 - l1_ratio) / 2 * w_j^2)`` with
    ``loss_i`` the negative log likelihood of the row's class, feature weights c, and s the sample
    weight times the weight of the class. Objective, folds, scores and the C that is chosen are those
    of scikit-learn's class of the same name, at its defaults in version 1.9, about which this class
    does not warn: accuracy, L2 and the legacy attributes.

    The objective is a sum, so that C means less regularisation the more rows a fold has; ``path_``
    is in the engine's units, ``alpha = 1 / (C * sum_i s_i)`` of all rows.

    Args:
        Cs: number of values between 1e-4 and 1e4, or the values; inf for no penalty.
        l1_ratios: shares of L1 to be tried, between 0 and 1; None or "warn" for 0 alone.
        cv: number of folds, a splitter, or (train, test) index arrays; None for 5 folds of
            alike shares of classes, not shuffled.
        penalty: scikit-learn's older way to say l1_ratios: "l1", "l2" or "elasticnet".
        scoring: a scikit-learn scorer or its name; None or "warn" for accuracy.
        refit: whether coefficients are those of all rows at the best mean score, or the mean over
            the folds of those at each fold's best score.
        use_legacy_attributes: whether attributes have scikit-learn's shapes before 1.10; "warn" for True.
        rule: "min" for the best mean score; "1se" for the least C whose score is within one standard
            error of it; or a function of the `torchreg.linear.CVPath`, whose losses are minus the scores.

    Attributes:
        Cs_: the values that were tried; l1_ratios_: the shares.
        C_, l1_ratio_: those that were chosen; (K,), or (1,) for two classes, where legacy.
        scores_: of each fold, (folds, l1_ratios, Cs); where legacy, a dictionary with the same array
            for each class, (folds, Cs), or (folds, Cs, l1_ratios).
        coefs_paths_: coefficients of each fold, intercept last, (folds, l1_ratios, Cs, K, p + 1); where
            legacy, a dictionary with those of each class, (folds, Cs, p + 1), or (folds, Cs, l1_ratios, p + 1).
        n_iter_: (folds, l1_ratios, Cs); where legacy, (1, folds, Cs), or (1, folds, Cs, l1_ratios).
        path_: the `torchreg.linear.CVPath` at the share that was chosen; its losses are minus the scores.
        coef_, intercept_, dual_gap_, alpha_max_: as in `LogisticRegression`; the gap is NaN without refit.

    Source:
        Friedman, Hastie and Tibshirani, J. Statistical Software 33, 2010.

    Example:
        >>> import numpy as np
        >>> from torchreg.linear import LogisticRegressionCV
        >>> X = np.random.default_rng(0).normal(size=(80, 3))
        >>> y = np.where(X[:, 0] + 0.3 * np.random.default_rng(1).normal(size=80) > 0, "yes", "no")
        >>> model = LogisticRegressionCV(Cs=[0.03, 0.1], l1_ratios=[1.0], scoring="neg_log_loss").fit(X, y)
        >>> print(model.coef_ == 0)
        [[False  True  True]]
    """

    _: KW_ONLY
    Cs: Any = 10
    l1_ratios: Any = "warn"
    fit_intercept: bool = True
    cv: Any = None
    dual: bool = False
    penalty: str = "deprecated"
    scoring: Any = "warn"
    solver: str = "lbfgs"
    tol: float = 1e-4
    max_iter: int | None = 100
    class_weight: Any = None
    n_jobs: int | None = None
    verbose: int = 0
    refit: bool = True
    intercept_scaling: float = 1.0
    random_state: Any = None
    use_legacy_attributes: bool | str = "warn"
    rule: Any = "min"
    positive: bool = False
    penalty_weights: Any = None
    device: str | torch.device | None = None

    __metadata_request__score: ClassVar[dict[str, str]] = {
        "sample_weight": UNUSED
    }  # the scorer's, not the model's: as in scikit-learn

    def _datafit(self, classes: int) -> Datafit:
        return likelihood(classes)

    def _scorer(self) -> Any:
        return get_scorer("accuracy" if self.scoring in (None, "warn") else self.scoring)

    @property
    def _shares(self) -> list[float]:
        """The shares of L1 to be tried."""
        given = None if isinstance(self.l1_ratios, str) else self.l1_ratios
        if self.penalty in ("l1", "l2") or (given is None and self.penalty != "elasticnet"):
            return [share_of_l1(self.penalty, 0.0)]
        shares = [] if given is None else np.asarray(to_numpy(given)).ravel().tolist()
        if not shares or not all(isinstance(share, int | float) and 0.0 <= share <= 1.0 for share in shares):
            raise ValueError(
                f"l1_ratios must be an array-like of numbers between 0 and 1; got (l1_ratios={self.l1_ratios!r})"
            )
        return [float(share) for share in shares]

    @property
    def _values(self) -> np.ndarray:
        """The values of C to be tried."""
        if isinstance(self.Cs, int | np.integer):
            return np.logspace(-4, 4, int(self.Cs))
        values = np.asarray(to_numpy(self.Cs), dtype=np.float64)
        if values.ndim != 1 or not len(values) or not (values > 0).all():
            raise ValueError(
                f"Cs must be a number of values, or values > 0, got {self.Cs!r}; use C=inf for no penalty."
            )
        return values

    def fit(self, X: Matrix, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Choose C and l1_ratio, and fit to all data.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p); neither copied nor changed.
            y: labels of two classes or more, numbers or strings, (n,).
            sample_weight: weights of the rows, >= 0, one number or (n,), in fits and scores.
            params: metadata for the splitter and the scorer, where routing is on.
        """
        check_parameters(
            self,
            solver=one_of(*SOLVERS),
            penalty=PENALTIES,
            scoring=WORDS | CALLABLE | NONE,
        )
        self.Cs_, self.l1_ratios_ = self._values, np.array(self._shares)
        problem = self._labelled(X, y, sample_weight)
        split = split_metadata(self, sample_weight, params)
        folds = folds_of(self, problem.data.X, problem.labels, split, classes=True)
        scored = score_metadata(self, "fit", sample_weight, params)
        grid = search_grid(self, problem, folds, self._scorer(), scored)
        self._choose(problem, grid, folds)
        return self

    def _choose(self, problem: Labelled, grid: Grid, folds: Any) -> None:
        share, place = grid.best()
        fitted = fitted_at(self, problem, problem.data, self.l1_ratios_[share])
        losses = -grid.scores[:, share]
        self.path_ = cross_validated_path(fitted, losses, grid.converged[:, share], folds, self.rule)
        if self.rule != "min":
            place = fitted.chosen(losses.mean(0), self.path_)
        C, l1_ratio = self.Cs_[place], self.l1_ratios_[share]
        units = 1.0 if np.isinf(C) else C * problem.data.total
        self._keep(problem.data, fitted.path, int(fitted.places[place]), units)
        warn_unless_converged(type(self).__name__, fitted.path, folds=[grid.converged])
        if not self.refit:
            shares, places = grid.best_of_folds()
            C, l1_ratio = self.Cs_[places].mean(), self.l1_ratios_[shares].mean()
            self._keep_mean(problem, grid)
        self._keep_grid(problem, grid, float(C), float(l1_ratio))

    def _keep_mean(self, problem: Labelled, grid: Grid) -> None:
        """The mean of the folds' best coefficients, which minimises nothing."""
        features, rows = problem.data.features, torch.from_numpy(grid.mean_coefs())
        self.coef_, self.dual_gap_ = problem.data.out(rows[:, :features]), np.nan
        if self.fit_intercept:
            self.intercept_ = problem.data.out(rows[:, features])

    def _keep_grid(self, problem: Labelled, grid: Grid, C: float, l1_ratio: float) -> None:
        scores: Any = grid.scores
        coefs: Any = grid.coefs
        iterations, count = grid.iterations, len(self.coef_)
        chosen: list[Any] = [C, l1_ratio]
        if self.use_legacy_attributes:
            several = self.penalty not in ("l1", "l2") and not isinstance(self.l1_ratios, str | None)
            scores, coefs, iterations = (legacy(part, shares=several) for part in (scores, coefs, iterations))
            labels, chosen = problem.classes[-count:], [np.full(count, part) for part in chosen]
            scores = {label: scores.copy() for label in labels}
            coefs = {label: coefs[..., k, :] for k, label in enumerate(labels)}
            iterations = iterations[None]
        self.C_, self.l1_ratio_ = chosen
        self.scores_, self.coefs_paths_, self.n_iter_ = scores, coefs, iterations

    def score(self, X: Matrix, y: Any, *, sample_weight: Any = None, **params: Any) -> float:
        """The score of ``scoring`` on data.

        Args:
            X: array, frame, scipy sparse matrix or tensor, (n, p).
            y: the true classes, (n,).
            sample_weight: weights of the rows.
            params: metadata for the scorer, where routing is on.
        """
        scored = score_metadata(self, "score", sample_weight, params)
        return float(self._scorer()(self, X, to_numpy(y), **scored))
