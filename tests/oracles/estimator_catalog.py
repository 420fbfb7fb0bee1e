"""Every estimator once, small enough to be fitted in milliseconds, with data that it takes."""

import numpy as np

from torchreg import L1, MCP
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

RNG = np.random.default_rng(0)
N, P = 48, 6
X = RNG.normal(size=(N, P)) + 0.5
W = np.array([1.5, -1.0, 0.0, 0.0, 0.5, 0.0])
y = X @ W + 2.0 + 0.5 * RNG.normal(size=N)
Y = np.stack([y, X @ W[::-1] + RNG.normal(size=N)], 1)
two = np.where(X @ W + RNG.normal(size=N) > 0.5, 7, 3)
three = np.digitize(X @ W + RNG.normal(size=N), [-0.5, 1.5])
counts = RNG.poisson(np.exp(0.4 * X @ W - 0.5))
times = RNG.integers(0, 4, size=N).astype(float)
SMALL = {"alphas": 5, "eps": 0.05, "cv": 3}

CASES = {
    "Lasso": (Lasso(0.1), y),
    "ElasticNet": (ElasticNet(0.1), y),
    "Ridge": (Ridge(3.0), y),
    "LogisticRegression": (LogisticRegression(C=0.5), two),
    "LogisticRegression of three": (LogisticRegression(C=0.5, l1_ratio=1.0), three),
    "PoissonRegressor": (PoissonRegressor(alpha=0.1, l1_ratio=0.5), counts),
    "MultiTaskLasso": (MultiTaskLasso(0.1), Y),
    "GroupLasso": (GroupLasso(0.1, groups=2), y),
    "SparseGroupLasso": (SparseGroupLasso(0.1, groups=2), y),
    "SparseRegressor": (SparseRegressor(L1(0.1)), y),
    "SparseRegressor with MCP": (SparseRegressor(MCP(0.2)), y),
    "SparseClassifier": (SparseClassifier(L1(0.02)), two),
    "LassoCV": (LassoCV(**SMALL), y),
    "ElasticNetCV": (ElasticNetCV(**SMALL, l1_ratio=[0.5, 0.9]), y),
    "RidgeCV": (RidgeCV(), y),
    "RidgeCV by folds": (RidgeCV(cv=3), y),
    "LogisticRegressionCV": (LogisticRegressionCV(Cs=[0.1, 1.0], cv=3), two),
    "MultiTaskLassoCV": (MultiTaskLassoCV(**SMALL), Y),
    "GroupLassoCV": (GroupLassoCV(**SMALL, groups=2), y),
    "SparseGroupLassoCV": (SparseGroupLassoCV(**SMALL, groups=2), y),
    "SparseRegressorCV": (SparseRegressorCV(L1(1.0), **SMALL), y),
    "SparseClassifierCV": (SparseClassifierCV(L1(1.0), **SMALL), two),
}
