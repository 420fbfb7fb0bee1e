"""`fit_cv`: the strength of a penalty chosen by cross-validation, from one set of folds and one path a fold."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from torchreg.linear.datafits import Datafit
from torchreg.linear.fold_paths import Verdict, fold_verdict, training_paths
from torchreg.linear.folds import (
    Fold,
    counted_folds,
    drawn_folds,
    packed_folds,
    unpacked_folds,
    warn_of_missing_classes,
)
from torchreg.linear.frame import framed
from torchreg.linear.held_out import Metric, held_out, refuse_nan
from torchreg.linear.kinks import Start
from torchreg.linear.path import MAX_ITER, alpha_grid, fit_framed, strongest
from torchreg.linear.path_result import Fit, Path
from torchreg.linear.progress import shown
from torchreg.linear.settings import check_flags, checked
from torchreg.penalties import Penalty

Rule = Literal["min", "1se"] | Callable[["CVPath"], int]


@dataclass(frozen=True)
class Missed:
    """A fit to the training rows of a fold that did not meet the tolerance.

    Attributes:
        fold: its place in `CVPath.folds`. index: of its strength in `CVPath.alphas`.
        dual_gap: nan where no conjugate is known. violation: distance from optimality.
        allowed: how large the gap may be, or, where there is none, the violation.

    Example:
        >>> miss = Missed(fold=0, index=7, dual_gap=3e-4, violation=0.01, allowed=1e-4)
        >>> round(miss.excess, 9)
        3.0
    """

    fold: int
    index: int
    dual_gap: float
    violation: float
    allowed: float

    @property
    def excess(self) -> float:
        """How many times too large the gap is, or, where there is none, the violation."""
        reached = self.violation if math.isnan(self.dual_gap) else self.dual_gap
        return reached / self.allowed if self.allowed > 0.0 else math.inf


@dataclass(frozen=True, eq=False)
class CVPath:
    """A path on all rows, and what its strengths lose on held-out rows; none of the data, only the numbers of rows.

    Attributes:
        path: fitted to all rows.
        losses: held-out loss of each fold at each strength, (folds, a).
        folds: (train, test) row numbers; none where `RidgeCV` leaves out each row in turn.
        converged: whether each fold's fit at each strength met the tolerance, (folds, a).
        rule: how to choose: "min", "1se", or a function of this object that gives an index.
        missed: the fits that did not, of `fit_cv`; estimators with scores of their own keep none.

    Source:
        The 1-SE rule: Breiman et al., Classification and Regression Trees, 1984, section 3.4.3; Hastie, Tibshirani and
        Friedman, The Elements of Statistical Learning, 2009, section 7.10.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> from torchreg.linear import fit_cv
        >>> X = torch.randn(60, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> noise = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        >>> fitted = fit_cv(X, X[:, 0] - X[:, 1] + 0.5 * noise, L1(1.0), alphas=20)
        >>> tuple(fitted.losses.shape), fitted.alpha_1se >= fitted.alpha_min, fitted.missed
        ((5, 20), True, ())
        >>> (fitted.path.at(fitted.alpha_1se).coef == 0).sum()
        tensor(4)
    """

    path: Path
    losses: Tensor
    folds: tuple[Fold, ...]
    converged: Tensor
    rule: Rule = "min"
    missed: tuple[Missed, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"folds": packed_folds(self.folds)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"folds": unpacked_folds(state["folds"])})

    @property
    def alphas(self) -> Tensor:
        """Strengths, descending, (a,)."""
        return self.path.alphas

    @property
    def mean(self) -> Tensor:
        """Mean over the folds, each counted once, (a,)."""
        return self.losses.mean(0)

    @property
    def se(self) -> Tensor:
        """Standard error of `mean`, (a,); nan for a single fold."""
        if len(self.losses) == 1:
            return torch.full_like(self.mean, torch.nan)
        return self.losses.std(0) / math.sqrt(len(self.losses))

    @property
    def index_min(self) -> int:
        """Where the mean loss is least; of equals, the strongest."""
        return int(self.mean.argmin())

    @property
    def index_1se(self) -> int:
        """The strongest penalty whose mean loss is within one standard error of the least."""
        best = self.index_min
        margin = torch.nan_to_num(self.se[best], nan=0.0)
        return int((self.mean <= self.mean[best] + margin).long().argmax())

    @property
    def alpha_min(self) -> float:
        """The strength with the least mean loss."""
        return float(self.alphas[self.index_min])

    @property
    def alpha_1se(self) -> float:
        """The strength of `index_1se` (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3)."""
        return float(self.alphas[self.index_1se])

    @property
    def index(self) -> int:
        """What the rule chooses."""
        if callable(self.rule):
            return _place(self.rule(self), len(self.alphas))
        return self.index_1se if self.rule == "1se" else self.index_min

    @property
    def alpha(self) -> float:
        """The strength that the rule chooses."""
        return float(self.alphas[self.index])

    @property
    def best(self) -> Fit:
        """The fit to all rows at `alpha`."""
        return self.path.at(self.alpha)


def fit_cv(
    X: Any,  # noqa: N803
    y: Any,
    penalty: Penalty,
    *,
    datafit: Datafit | None = None,
    cv: int | Iterable[Any] | Any = 5,
    metric: Metric | None = None,
    rule: Rule = "min",
    random_state: int | None = 0,
    alphas: int | Sequence[float] | Tensor = 100,
    eps: float = 1e-3,
    tol: float = 1e-6,
    max_iter: int | None = None,
    sample_weight: Any = None,
    offset: Any = None,
    fit_intercept: bool = True,
    standardize: bool = False,
    device: torch.device | str | None = None,
    progress: bool = False,
    init: Start | None = None,
) -> CVPath:
    """Fit a path to all rows and to each training set of a cross-validation, and measure the held-out loss.

    The grid of strengths comes from all rows, the folds are drawn once, and the final model is a point of the path
    that is there already. For least squares with more rows than columns a training Gram matrix is the full one less
    that of the held-out rows, so that all folds together cost one more pass over the data.

    Args:
        X: as for `fit_path`.
        y: as for `fit_path`.
        penalty: as for `fit_path`.
        datafit: as for `fit_path`.
        cv: number of folds, of shuffled rows, each with its share of each class where the datafit has classes; a
            scikit-learn splitter, such as ``TimeSeriesSplit(5)``; or pairs (train, test) of row numbers, such as
            ``GroupKFold(5).split(X, y, groups)``.
        metric: (target, prediction, weights) -> loss, 0-d, lower is better, of the held-out rows whose weight is not
            0; None for the mean squared error of a quadratic datafit, the mean loss of any other.
        rule: "min", "1se", or a function of the result that gives an index into its alphas.
        random_state: seed of the shuffle; None for rows in their order, as scikit-learn's KFold and StratifiedKFold:
            in data that are sorted by time, place or target a fold is then unlike the others.
        alphas: as for `fit_path`.
        eps: as for `fit_path`.
        tol: as for `fit_path`.
        max_iter: as for `fit_path`.
        sample_weight: as for `fit_path`; held-out rows are weighted by it within their fold.
        offset: as for `fit_path`.
        fit_intercept: as for `fit_path`.
        standardize: as for `fit_path`; each training set is standardised by itself.
        device: as for `fit_path`.
        progress: whether to show bars.
        init: as for `fit_path`.

    Shapes:
        losses, converged: (folds, a). path: as `fit_path` returns it for all rows.

    Raises:
        ValueError: as `fit_path`; also if folds are empty or fewer than 2, or if all training or all test rows of one
            have weight 0; if the rule is another, or the metric gives nan.
        TypeError: as `fit_path`; also if ``cv`` is none of the above.

    Source:
        Stone, JRSS B 36, 1974 (cross-validation); Chan, Golub and LeVeque, American Statistician 37, 1983 (moments by
        updating, here read backwards).

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> X = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
        >>> fitted = fit_cv(X, X[:, 0] - X[:, 1], L1(1.0), rule="1se")
        >>> (fitted.best.coef != 0).sum(), fitted.alpha >= fitted.alpha_min
        (tensor(2), True)
    """
    if not (callable(rule) or rule in ("min", "1se")):
        raise ValueError(f"rule takes 'min', '1se' or a function of the CVPath, got {rule!r}.")
    if not (metric is None or callable(metric)):
        raise TypeError(f"metric takes a function of (target, prediction, weights), or None, got {metric!r}.")
    check_flags(fit_intercept=fit_intercept, standardize=standardize)
    datafit = checked(penalty, datafit, tol, max_iter)
    frame = framed(X, y, datafit, sample_weight, offset, fit_intercept, standardize, device)
    folds = drawn_folds(cv, frame.n, y, random_state, classes=datafit.classes)
    counted = counted_folds(folds, frame.kept, frame.n)
    if datafit.classes:
        warn_of_missing_classes(counted, frame.target)
    limit = MAX_ITER if max_iter is None else max_iter
    grid = alpha_grid(alphas, strongest(frame, penalty, tol, limit), eps)
    path = fit_framed(frame, penalty, alphas=grid, eps=eps, tol=tol, max_iter=max_iter, progress=progress, init=init)
    paths = training_paths(frame, counted, penalty, grid, tol=tol, max_iter=limit)
    bar = shown(zip(counted, paths, strict=True), progress=progress, total=len(folds), what="folds", unit="fold")
    losses, verdicts = [], []
    for (train, test), points in bar:
        losses.append(held_out(frame, test.to(frame.raw.device), points, metric))
        verdicts.append(fold_verdict(frame, train, points, tol=tol))
    converged, table = torch.stack([verdict.converged for verdict in verdicts]), torch.stack(losses)
    if metric is not None:
        refuse_nan(table)
    return CVPath(path, table, folds, converged, rule, _missed(verdicts))


def _place(chosen: Any, count: int) -> int:
    """An index that a rule has given."""
    try:
        index = operator.index(chosen)
    except TypeError:  # a float: the strength itself, perhaps
        index = -1
    if not 0 <= index < count:
        raise ValueError(
            f"The rule chose index {chosen!r}, but there are {count} strengths; return an index into alphas, a whole "
            "number, 0 for the strongest, such as index_1se of the CVPath."
        )
    return index


def _missed(verdicts: Sequence[Verdict]) -> tuple[Missed, ...]:
    """The points that did not converge."""
    return tuple(
        Missed(fold, k, float(verdict.gaps[k]), float(verdict.violations[k]), float(verdict.allowed[k]))
        for fold, verdict in enumerate(verdicts)
        for k in (~verdict.converged).nonzero().flatten().tolist()
    )
