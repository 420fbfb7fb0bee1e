# ruff: noqa: F405  # estimators come with a star for type checkers, by name for all others
"""Penalised linear models: whole paths, cross-validation, a duality gap for every answer.

The estimators need scikit-learn, the extra ``sklearn``; they are imported when they are first named.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torchreg.linear.chunks import RowChunks
from torchreg.linear.cv import CVPath, Missed, fit_cv
from torchreg.linear.datafits import (
    Datafit,
    Huber,
    Logistic,
    Multinomial,
    NoHessian,
    Poisson,
    Quadratic,
    SquaredHinge,
)
from torchreg.linear.path import fit_path
from torchreg.linear.path_result import Fit, Path
from torchreg.linear.refit import refit
from torchreg.linear.solve import Solved, solve

if TYPE_CHECKING:
    from torchreg.linear.estimators import *  # noqa: F403  # all that `__all__` has there

__all__ = [
    "CVPath",
    "Datafit",
    "ElasticNet",
    "ElasticNetCV",
    "Fit",
    "GroupLasso",
    "GroupLassoCV",
    "Huber",
    "Lasso",
    "LassoCV",
    "Logistic",
    "LogisticRegression",
    "LogisticRegressionCV",
    "Missed",
    "MultiTaskLasso",
    "MultiTaskLassoCV",
    "Multinomial",
    "NoHessian",
    "Path",
    "Poisson",
    "PoissonRegressor",
    "Quadratic",
    "Ridge",
    "RidgeCV",
    "RowChunks",
    "Solved",
    "SparseClassifier",
    "SparseClassifierCV",
    "SparseGroupLasso",
    "SparseGroupLassoCV",
    "SparseRegressor",
    "SparseRegressorCV",
    "SquaredHinge",
    "fit_cv",
    "fit_path",
    "refit",
    "solve",
]


def __dir__() -> list[str]:
    """All names, those of the estimators too, which are imported when they are first named."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """An estimator, by its name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module("torchreg.linear.estimators"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("sklearn", "scipy"):
            raise
        raise ImportError(
            f"torchreg.linear.{name} needs scikit-learn ({error}); pip install scikit-learn. "
            "fit_path and fit_cv do without it."
        ) from error
