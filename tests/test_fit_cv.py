"""fit_cv against scikit-learn's cross-validation and loops by hand; folds and rules, and what is refused."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LassoCV
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold

from torchreg import L1, L2
from torchreg.linear import Logistic, Poisson, fit_cv, fit_path

RNG = np.random.default_rng(1)
N, P = 90, 15
X = RNG.standard_normal((N, P)) + 1.0
Y = X[:, 0] - 2.0 * X[:, 1] + RNG.standard_normal(N)
LABELS = (np.median(Y) < Y).astype(float)
WEIGHTS = RNG.uniform(0.5, 2.0, N)
ALPHAS = np.geomspace(0.5, 0.01, 6)
COUNTS = np.floor(np.exp(0.3 * Y))
ROW = np.arange(N)
THIRDS = [(np.flatnonzero(k != ROW % 3), np.flatnonzero(k == ROW % 3)) for k in range(3)]


@pytest.mark.parametrize(
    "cv", [4, KFold(4), ShuffleSplit(3, random_state=0), THIRDS], ids=["4", "KFold", "shuffle", "lists"]
)
def test_losses_are_scikit_learns(cv):
    found = fit_cv(X, Y, L1(1.0), cv=cv, alphas=ALPHAS)
    theirs = LassoCV(alphas=ALPHAS, cv=cv, tol=1e-12, max_iter=100_000).fit(X, Y)
    assert np.allclose(found.losses.T, theirs.mse_path_, rtol=1e-7)  # mean squared errors, no half
    assert found.alpha_min == pytest.approx(theirs.alpha_)
    assert np.allclose(found.best.coef, theirs.coef_, atol=1e-7)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize(("datafit", "y"), [(Logistic(), LABELS), (Poisson(), COUNTS)], ids=["labels", "counts"])
@pytest.mark.parametrize("penalty", [L1(1.0), L2(1.0)], ids=repr)
def test_losses_by_hand(datafit, y, penalty, weights):
    options = {"datafit": datafit, "alphas": ALPHAS, "tol": 1e-9}
    found = fit_cv(X, y, penalty, cv=THIRDS, sample_weight=weights, **options)
    given = np.ones(N) if weights is None else weights
    for k, (train, test) in enumerate(THIRDS):
        path = fit_path(X[train], y[train], penalty, sample_weight=given[train], **options)
        rows = torch.stack([datafit.value(eta, torch.tensor(y[test])) for eta in path.decision(X[test])])
        losses = (rows * torch.tensor(given[test])).sum(1) / given[test].sum()
        assert torch.allclose(found.losses[k], losses, rtol=1e-5)


def test_masks_are_rows():
    masks = [(np.isin(ROW, train), torch.tensor(np.isin(ROW, test))) for train, test in THIRDS]
    assert torch.equal(
        fit_cv(X, Y, L1(1.0), cv=masks, alphas=5).losses, fit_cv(X, Y, L1(1.0), cv=THIRDS, alphas=5).losses
    )


def test_splitters_see_the_labels():
    split = StratifiedKFold(3, shuffle=True, random_state=0)
    found = fit_cv(X, LABELS, L1(1.0), datafit=Logistic(), cv=split, alphas=ALPHAS)
    for (train, test), (mine, held) in zip(split.split(X, LABELS), found.folds, strict=True):
        assert (mine.numpy() == train).all()
        assert (held.numpy() == test).all()


def test_rules_and_metrics():
    def absolute(y, predicted, weights):
        return (y - predicted).abs() @ weights / weights.sum()

    found = fit_cv(X, Y, L1(1.0), cv=THIRDS, alphas=20, rule="1se")
    mean, error = found.losses.mean(0), found.losses.std(0) / 3**0.5
    best = int(mean.argmin())
    first = next(k for k in range(20) if mean[k] <= mean[best] + error[best])
    assert (found.index, found.index_min) == (first, best)
    assert found.alpha == float(found.alphas[first])
    assert fit_cv(X, Y, L1(1.0), cv=THIRDS, alphas=20, rule=lambda path: 3).index == 3
    other = fit_cv(X, Y, L1(1.0), cv=THIRDS, alphas=ALPHAS, metric=absolute)
    for k, (train, test) in enumerate(THIRDS):
        eta = fit_path(X[train], Y[train], L1(1.0), alphas=ALPHAS).decision(X[test])
        assert np.allclose(other.losses[k], np.abs(Y[test] - eta.numpy()).mean(1), rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"cv": 1}, ValueError, "cv must be >= 2, got 1"),
        ({"cv": N + 1}, ValueError, f"n_splits={N + 1} greater than the number of samples: {N}"),
        ({"cv": "5"}, TypeError, "cv takes a number of folds, a splitter or pairs .train, test., got '5'"),
        ({"cv": 2.5}, TypeError, "got 2.5"),
        ({"cv": []}, ValueError, "no fold"),
        ({"cv": [(range(N), [])]}, ValueError, "empty"),
        ({"cv": [(range(10), [10, N])]}, ValueError, f"names row {N}, but there are {N} rows"),
        ({"cv": [(range(10), [3, -2])]}, ValueError, "names row -2, but"),
        ({"rule": "2se"}, ValueError, "rule takes 'min', '1se' or a function of the CVPath, got '2se'"),
        ({"cv": THIRDS, "sample_weight": ROW % 3 != 1}, ValueError, "All held-out rows of fold 1 have sample_weight 0"),
        ({"cv": THIRDS, "sample_weight": ROW % 3 == 1}, ValueError, "All held-out rows of fold 0 have"),
        ({"cv": [THIRDS[1][::-1]], "sample_weight": ROW % 3 != 1}, ValueError, "All training rows of fold 0 have"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused(change, error, words):
    with pytest.raises(error, match=words):
        fit_cv(X, Y, L1(1.0), alphas=3, **change)
