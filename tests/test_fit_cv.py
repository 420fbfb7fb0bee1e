"""fit_cv: which folds it takes, what it loses on them, and what its rules choose."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold

from torchreg import L1
from torchreg.linear import LassoCV, Logistic, SparseClassifierCV, fit_cv

N, P = 60, 6
DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((N, P)) + 1.0
Y = X[:, :2] @ [2.0, -1.0] + DRAW.standard_normal(N) + 3.0
CLASSES = (Y > Y.mean()).astype(float)


# --- weights


@pytest.mark.parametrize(
    ("rows", "part"),
    [(slice(12, 24), "Fold 2 of 5 has 12 test rows"), (np.r_[0:12, 24:60], "Fold 2 of 5 has 48 training rows")],
    ids=["test", "training"],
)
@pytest.mark.parametrize(("datafit", "y"), [(None, Y), (Logistic(), CLASSES)], ids=["squares", "logistic"])
def test_a_fold_without_a_row_that_counts_is_named(rows, part, datafit, y):
    weights = np.ones(N)
    weights[rows] = 0.0
    folds = list(KFold(5).split(X))
    folds[0] = (np.arange(N), np.arange(N))  # in which every row is on both sides
    with pytest.raises(ValueError, match=f"{part}, all of weight 0; leave rows of weight 0 out"):
        fit_cv(X, y, L1(1.0), datafit=datafit, cv=[folds[0], folds[1], *folds[:1] * 3], sample_weight=weights, alphas=3)


def test_estimators_refuse_such_folds_too():
    weights = np.r_[np.zeros(12), np.ones(N - 12)]
    with pytest.raises(ValueError, match="Fold 1 of 5 has 12 test rows, all of weight 0"):
        LassoCV(alphas=3).fit(X, Y, weights)
    with pytest.raises(ValueError, match="Fold 1 of 5 has 12 test rows, all of weight 0"):
        SparseClassifierCV(L1(1.0), cv=KFold(5), alphas=3).fit(X, CLASSES, weights)
    assert np.isfinite(LassoCV(alphas=3, cv=KFold(5, shuffle=True, random_state=0)).fit(X, Y, weights).mse_path_).all()


def test_rows_of_weight_0_in_mixed_folds_change_nothing_but_their_own_share():
    weights = np.ones(N)
    weights[::4] = 0.0
    folds = list(KFold(5).split(X))
    kept = np.flatnonzero(weights)
    place = np.full(N, -1)
    place[kept] = np.arange(len(kept))
    fewer = [tuple(place[part][place[part] >= 0] for part in fold) for fold in folds]
    ours = fit_cv(X, Y, L1(1.0), cv=folds, sample_weight=weights, alphas=8)
    theirs = fit_cv(X[kept], Y[kept], L1(1.0), cv=fewer, alphas=8)
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-9, atol=0)
