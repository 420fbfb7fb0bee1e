"""LogisticRegressionCV where folds lack a class: scores, and the C that they choose, are scikit-learn's."""

import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
from numpy.testing import assert_allclose
from sklearn import linear_model
from sklearn.datasets import load_iris
from sklearn.metrics import f1_score, log_loss, make_scorer
from sklearn.model_selection import KFold, LeaveOneOut

from torchreg.linear import LogisticRegressionCV

X, Y = load_iris(return_X_y=True)  # in the order of the classes
X = (X - X.mean(0)) / X.std(0)
WORDS = np.array(["setosa", "versicolor", "virginica"])[Y]
OPTIONS = {"Cs": [0.1, 1.0], "l1_ratios": (0.0,), "use_legacy_attributes": False}
FEW = np.arange(0, 150, 7)
DATA = {
    "three": (X, Y, KFold(5)),
    "three, none in both": (X, Y, KFold(3)),
    "three words, one row": (X[FEW], WORDS[FEW], LeaveOneOut()),
    "two": (X[:100], Y[:100], KFold(5)),
    "two, none in both": (X[:100], Y[:100], KFold(2)),
    "two words, one row": (X[FEW[:14]], WORDS[FEW[:14]], LeaveOneOut()),
}
SCORINGS = {
    "log loss": "neg_log_loss",
    "Brier": "neg_brier_score",
    "AUC": "roc_auc_ovr",
    "F1": make_scorer(f1_score, average="macro", zero_division=0.0),
    "own": make_scorer(log_loss, greater_is_better=False, response_method="predict_proba"),
}


@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_scores_of_folds_without_a_class_are_those_of_scikit_learn(data, scoring):
    features, labels, cv = DATA[data]
    mine = LogisticRegressionCV(scoring=scoring, cv=cv, tol=1e-12, max_iter=None, **OPTIONS).fit(features, labels)
    other = linear_model.LogisticRegressionCV(scoring=scoring, cv=cv, tol=1e-8, max_iter=5000, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.fit(features, labels)
    assert mine.C_ == other.C_
    if "none in both" in data and "loss" in str(scoring):
        # a class that no training row has is given the chance 0, which scikit-learn's solver does not reach
        assert (mine.scores_ < other.scores_ + 1e-9).all()
        assert (other.scores_ < -20).all()
    else:
        assert_allclose(mine.scores_, other.scores_, rtol=1e-4, atol=1e-6)


def test_a_scorer_that_names_its_labels_keeps_them():
    wide = make_scorer(log_loss, greater_is_better=False, response_method="predict_proba", labels=[0, 1])
    plain = LogisticRegressionCV(scoring="neg_log_loss", cv=KFold(5), **OPTIONS).fit(X[:100], Y[:100])
    named = LogisticRegressionCV(scoring=wide, cv=KFold(5), **OPTIONS).fit(X[:100], Y[:100])
    assert np.array_equal(plain.scores_, named.scores_)
