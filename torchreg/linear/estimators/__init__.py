"""Estimators with scikit-learn's interface, for numpy, scipy sparse matrices and torch tensors."""

from torchreg.linear.estimators.group import GroupLasso, SparseGroupLasso
from torchreg.linear.estimators.group_cv import GroupLassoCV, SparseGroupLassoCV
from torchreg.linear.estimators.logistic import LogisticRegression
from torchreg.linear.estimators.logistic_cv import LogisticRegressionCV
from torchreg.linear.estimators.multitask import MultiTaskLasso
from torchreg.linear.estimators.poisson import PoissonRegressor
from torchreg.linear.estimators.quadratic import ElasticNet, Lasso
from torchreg.linear.estimators.quadratic_cv import ElasticNetCV, LassoCV, MultiTaskLassoCV
from torchreg.linear.estimators.ridge import Ridge
from torchreg.linear.estimators.ridge_cv import RidgeCV
from torchreg.linear.estimators.sparse import SparseClassifier, SparseRegressor
from torchreg.linear.estimators.sparse_cv import SparseClassifierCV, SparseRegressorCV

__all__ = [
    "ElasticNet",
    "ElasticNetCV",
    "GroupLasso",
    "GroupLassoCV",
    "Lasso",
    "LassoCV",
    "LogisticRegression",
    "LogisticRegressionCV",
    "MultiTaskLasso",
    "MultiTaskLassoCV",
    "PoissonRegressor",
    "Ridge",
    "RidgeCV",
    "SparseClassifier",
    "SparseClassifierCV",
    "SparseGroupLasso",
    "SparseGroupLassoCV",
    "SparseRegressor",
    "SparseRegressorCV",
]
