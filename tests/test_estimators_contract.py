"""scikit-learn's own checks of an estimator, on every class, with none expected to fail."""

import pytest

pytest.importorskip("sklearn")
from sklearn.utils.estimator_checks import parametrize_with_checks

from torchreg import L1, MCP
from torchreg.linear import estimators
from torchreg.linear.estimators import (
    ElasticNet,
    ElasticNetCV,
    GroupLasso,
    GroupLassoCV,
    Lasso,
    LassoCV,
    LogisticRegression,
    LogisticRegressionCV,
    MultiTaskLasso,
    MultiTaskLassoCV,
    PoissonRegressor,
    Ridge,
    RidgeCV,
    SparseClassifier,
    SparseClassifierCV,
    SparseGroupLasso,
    SparseGroupLassoCV,
    SparseRegressor,
    SparseRegressorCV,
)

GRID = {"alphas": 4, "eps": 0.1, "cv": 3}  # small, so that a few hundred checks take a minute
ESTIMATORS = [
    Lasso(),
    ElasticNet(),
    Ridge(),
    LogisticRegression(),
    LogisticRegression(l1_ratio=1.0),
    PoissonRegressor(),
    MultiTaskLasso(),
    GroupLasso(),
    SparseGroupLasso(),
    SparseRegressor(L1(0.1)),
    SparseRegressor(MCP(0.1)),
    SparseClassifier(L1(0.01)),
    LassoCV(**GRID),
    ElasticNetCV(**GRID),
    RidgeCV(),
    RidgeCV(cv=3),
    LogisticRegressionCV(Cs=[0.1, 1.0], cv=3),
    MultiTaskLassoCV(**GRID, tol=1e-14),  # the check compares predictions to 1e-7
    GroupLassoCV(**GRID, tol=1e-14),
    SparseGroupLassoCV(**GRID, tol=1e-14),
    SparseRegressorCV(L1(1.0), **GRID),
    SparseClassifierCV(L1(1.0), **GRID, tol=1e-4),
]


def test_every_estimator_is_checked():
    assert {type(estimator).__name__ for estimator in ESTIMATORS} == set(estimators.__all__)


@parametrize_with_checks(ESTIMATORS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # checks fit data of a few rows
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
def test_scikit_learn_accepts(estimator, check):
    check(estimator)
