"""What displays take from a path or an estimator of ``torchreg.linear``, by its documented attributes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from torchreg.linear.spans import ends_around
from torchreg.plots.alpha_axis import as_array
from torchreg.plots.style import Array

_REFITS = 60  # alphas at which an estimator without a path is fitted
_LEAST = 1e-3  # the least of them, as a share of the largest


def drawn_coefs(
    coefs: Tensor | Array, *, output: int | None, scale: Tensor | Array | None
) -> tuple[Array, tuple[str, str]]:
    """One number a feature and alpha, shape (a, p), and what the y axis and the top axis call it.

    Args:
        coefs: shape (a, p) or (a, p, K).
        output: one of K outputs; None takes the norm over them.
        scale: factors on the features, shape (p,).

    Raises:
        ValueError: if output or scale do not fit.
    """
    table = as_array(coefs)
    if table.ndim not in (2, 3):
        raise ValueError(f"PathDisplay needs coefs of shape (a, p) or (a, p, K), got {table.shape}.")
    if scale is not None:
        factors = as_array(scale)
        if factors.shape != table.shape[1:2]:
            raise ValueError(f"PathDisplay needs a scale for each of {table.shape[1]} features, got {factors.shape}.")
        table = table * factors.reshape(-1, *[1] * (table.ndim - 2))
    outputs = table.shape[2] if table.ndim == 3 else 1
    if output is not None and not -outputs <= output < outputs:
        raise ValueError(f"PathDisplay got output={output}, but the path has {outputs}.")
    name = "coefficient" if scale is None else "coefficient of the scaled feature"
    if table.ndim == 2:
        return table, (name, "non-zero coefficients")
    if output is None:
        return np.linalg.norm(table, axis=2), (f"norm of the feature's {outputs} coefficients", "non-zero features")
    return table[:, :, output], (f"{name}, output {output % outputs}", "non-zero coefficients")


def check_path(path: Any) -> None:
    """Refuse what is no path, before it is drawn as one.

    Raises:
        TypeError: if it has no alphas and coefs.
    """
    if not (hasattr(path, "alphas") and hasattr(path, "coefs")):
        kind = type(path).__name__
        hint = f"draw its path: {kind}.path" if hasattr(path, "path") else "an estimator is drawn by from_estimator"
        raise TypeError(f"PathDisplay.from_path takes what fit_path returns, got {kind}; {hint}.")


def check_cv_path(path: Any) -> None:
    """Refuse what is no cross-validation.

    Raises:
        TypeError: if it has no losses of folds and no path.
    """
    if not (hasattr(path, "path") and hasattr(path, "alpha_1se")):
        raise TypeError(
            f"CVDisplay.from_path takes what fit_cv returns, got {type(path).__name__}; a path without folds is drawn "
            "by PathDisplay, an estimator by from_estimator."
        )


def path_of(estimator: Any, X: Any, y: Any) -> tuple[Any, float | None]:  # noqa: N803
    """The path of an estimator, fitted where it has none, and the alpha that it has or has chosen.

    Raises:
        ValueError: if there is no path and no data, or nothing that says how strong the penalty is.
    """
    if hasattr(estimator, "path_"):
        found = estimator.path_
        chosen = getattr(found, "alpha", None)  # in the path's units, which scikit-learn's alpha_ need not have
        return getattr(found, "path", found), _number(getattr(estimator, "alpha_", None) if chosen is None else chosen)
    kind = type(estimator).__name__
    if X is None or y is None:
        raise ValueError(f"{kind} has no path_: pass X and y to fit one, or draw fit_path's result by from_path.")
    own, parameters = _strength(estimator, len(y))
    return _refitted(estimator, X, y, own, parameters), own


def _strength(estimator: Any, rows: int) -> tuple[float, Callable[[float], dict[str, Any]]]:
    """The alpha that an estimator has, and the parameters that give it another."""
    kind, params = type(estimator).__name__, estimator.get_params(deep=False)
    if "alpha" in params:
        if np.ndim(params["alpha"]):
            raise ValueError(f"{kind} has one alpha for each target; set alpha to one number to draw its path.")
        return float(params["alpha"]), lambda alpha: {"alpha": alpha}
    if hasattr(params.get("penalty"), "with_alpha"):
        penalty = params["penalty"]
        return float(penalty.alpha), lambda alpha: {"penalty": penalty.with_alpha(alpha)}
    if "C" in params:  # scikit-learn's inverse strength of a sum over rows
        return 1.0 / (params["C"] * rows), lambda alpha: {"C": 1.0 / (alpha * rows)}
    raise ValueError(f"{kind} has neither path_ nor alpha; draw fit_path's result by from_path.")


def _refitted(
    estimator: Any, X: Any, y: Any, own: float, parameters: Callable[[float], dict[str, Any]],  # noqa: N803
) -> SimpleNamespace:  # fmt: skip
    """The path of a copy of an estimator, which stays as it was: from `alpha_max_` down, or around its own alpha."""
    mine = copy.deepcopy(estimator)
    if "warm_start" in mine.get_params(deep=False):
        mine.set_params(warm_start=True)
    top = float(getattr(mine.fit(X, y), "alpha_max_", np.nan))
    if np.isnan(top):
        raise ValueError(
            f"{type(estimator).__module__}.{type(estimator).__name__} has no alpha_max_, where its path begins; draw "
            "the estimator of torchreg.linear, or coefficients at alphas of your own by from_coefs."
        )
    if not top > 0.0:
        raise ValueError(f"{type(estimator).__name__} has alpha_max_ = {top}: all coefficients are 0 at every alpha.")
    ends = (top, _LEAST * top) if np.isfinite(top) else ends_around(own if 0.0 < own < np.inf else 1.0)
    alphas = np.geomspace(*ends, _REFITS)
    rows = [as_array(mine.set_params(**parameters(float(alpha))).fit(X, y).coef_).copy() for alpha in alphas]
    table = np.stack([row.T for row in rows])
    return SimpleNamespace(alphas=alphas, coefs=table[..., 0] if table.shape[2:] == (1,) else table)


def feature_names(estimator: Any, X: Any) -> list[str] | None:  # noqa: N803
    """The names with which an estimator was fitted, or the columns of X where that is a data frame; else None."""
    names = getattr(estimator, "feature_names_in_", getattr(X, "columns", None))
    return None if names is None else [str(name) for name in names]


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def cv_path_of(estimator: Any) -> Any:
    """The cross-validation that a fitted estimator holds.

    Raises:
        ValueError: if it holds none.
    """
    found = getattr(estimator, "path_", None)
    if not hasattr(found, "alpha_1se"):
        raise ValueError(
            f"{type(estimator).__name__} holds no cross-validation: fit one of torchreg.linear's *CV estimators, or "
            "draw fit_cv's result by from_path."
        )
    return found
