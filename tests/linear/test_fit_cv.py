"""fit_cv: which folds it takes, what it loses on them, and what its rules choose."""

import math

import numpy as np
import pytest
import torch
from sklearn import linear_model
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, LeaveOneOut, StratifiedKFold

from torchreg import L1, MCP, Group, labels, rows
from torchreg.linear import (
    Huber,
    LassoCV,
    Logistic,
    LogisticRegressionCV,
    Multinomial,
    Quadratic,
    SparseClassifierCV,
    SparseRegressorCV,
    fit_cv,
    fit_path,
)
from torchreg.linear.estimators.base import warn_unless_converged
from torchreg.linear.folds import drawn_folds

N, P = 60, 6
DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((N, P)) + 1.0
Y = X[:, :2] @ [2.0, -1.0] + DRAW.standard_normal(N) + 3.0
CLASSES = (DRAW.uniform(size=N) < 1 / (1 + np.exp(-X[:, 0] + X[:, 1]))).astype(float)


# --- folds


REFUSED = {
    "one fold": (1, ValueError, "cv must be >= 2, got 1"),
    "more folds than rows": (N + 1, ValueError, f"n_splits={N + 1} greater than the number of samples: {N}"),
    "no fold": ([], ValueError, "cv has no fold"),
    "no test row": ([([0, 1], [])], ValueError, "test rows are empty"),
    "no training row": ([([], [0, 1])], ValueError, "training or test rows are empty"),
    "a mask without a row": ([(np.ones(N, bool), np.zeros(N, bool))], ValueError, "are empty"),
    "a short mask": ([(np.ones(N - 1, bool), np.ones(N, bool))], ValueError, f"mask of {N - 1} entries, but there are"),
    "a row too far": ([([0, N, 1], [2])], ValueError, f"cv names row {N}, but there are {N} rows; number them from 0"),
    "a negative row": ([([0, 5, -2, 7], [2])], ValueError, "cv names row -2, but"),
    "a string": ("5", TypeError, "cv takes a number of folds.*got '5'"),
    "bytes": (b"5", TypeError, "got b'5'"),
    "a share": (0.2, TypeError, "an object with split.*got 0.2"),
    "a truth value": (True, TypeError, "got True"),
    "nothing": (None, TypeError, "got None"),
}


@pytest.mark.parametrize(("cv", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_folds_that_are_none_are_refused(cv, error, said):
    with pytest.raises(error, match=said):
        fit_cv(X, Y, L1(1.0), cv=cv, alphas=3)


PAIRS = list(KFold(4).split(X))
SAME = {
    "a number": 4,
    "a numpy number": np.int64(4),
    "a splitter": KFold(4),
    "arrays": PAIRS,
    "a generator": (pair for pair in PAIRS),
    "lists": [tuple(part.tolist() for part in pair) for pair in PAIRS],
    "tensors": [tuple(map(torch.as_tensor, pair)) for pair in PAIRS],
    "masks": [tuple(np.isin(np.arange(N), part) for part in pair) for pair in PAIRS],
    "masks of tensors": [tuple(torch.as_tensor(np.isin(np.arange(N), part)) for part in pair) for pair in PAIRS],
    "lists of truth values": [tuple(np.isin(np.arange(N), part).tolist() for part in pair) for pair in PAIRS],
}


@pytest.mark.parametrize("cv", SAME.values(), ids=SAME)
def test_all_ways_to_say_the_same_folds(cv):
    fitted = fit_cv(X, Y, L1(1.0), cv=cv, random_state=None, alphas=5)
    for ours, theirs in zip(fitted.folds, PAIRS, strict=True):
        for numbers, expected in zip(ours, theirs, strict=True):
            assert np.array_equal(numbers.numpy(), expected)
    assert torch.equal(fitted.losses, fit_cv(X, Y, L1(1.0), cv=PAIRS, alphas=5).losses)


def test_a_stratified_splitter_sees_the_target():
    folds = fit_cv(X, torch.from_numpy(CLASSES), L1(1.0), datafit=Logistic(), cv=StratifiedKFold(3), alphas=3).folds
    for _, test in folds:
        assert abs(CLASSES[test].mean() - CLASSES.mean()) < 1 / len(test)


def test_a_seed_shuffles_the_rows_and_decides_how():
    first, again, other = (fit_cv(X, Y, L1(1.0), cv=7, random_state=seed, alphas=3) for seed in (0, 0, 1))
    assert torch.equal(first.losses, again.losses)
    assert not torch.equal(first.losses, other.losses)
    for fitted in (first, other):
        assert torch.equal(torch.cat([test for _, test in fitted.folds]).sort().values, torch.arange(N))
        assert {len(test) for _, test in fitted.folds} == {8, 9}
        assert all(torch.equal(torch.cat(fold).sort().values, torch.arange(N)) for fold in fitted.folds)
        assert not torch.equal(fitted.folds[0][1], torch.arange(9))


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("classes", [2, 4])
def test_folds_of_classes_are_those_of_stratified_k_fold(count, classes):
    y = DRAW.integers(0, classes, 61)
    for (train, test), (their_train, their_test) in zip(
        drawn_folds(count, 61, y, None, classes=True), StratifiedKFold(count).split(y, y), strict=True
    ):
        assert np.array_equal(train, their_train)
        assert np.array_equal(test, their_test)
    for seed in (0, 1):
        shares = [np.bincount(y[test], minlength=classes) for _, test in drawn_folds(count, 61, y, seed, classes=True)]
        assert (np.ptp(shares, axis=0) <= 1).all()
        assert np.ptp(np.sum(shares, axis=1)) <= 1


def test_data_in_the_order_of_the_target_are_cross_validated_as_in_any_order():
    iris = load_iris()
    options = {"datafit": Multinomial(), "alphas": 20, "eps": 1e-2}
    mixed = np.random.default_rng(1).permutation(150)
    in_order = fit_cv(iris.data, iris.target, L1(1.0), **options)
    shuffled = fit_cv(iris.data[mixed], iris.target[mixed], L1(1.0), **options)
    gap = float((in_order.mean - shuffled.mean).abs().max())
    assert gap < 3 * float(shuffled.se.max())  # other folds of the same rows
    for train, test in in_order.folds:
        assert np.bincount(iris.target[train]).tolist() == [40] * 3
        assert np.bincount(iris.target[test]).tolist() == [10] * 3
    order = np.argsort(X[:, 0])
    for _, test in fit_cv(X[order], Y[order], L1(1.0), alphas=3).folds:  # of rows in the order of a feature too
        assert (np.diff(test.numpy()) > 1).any()


@pytest.mark.parametrize("cv", [KFold(3), LeaveOneOut()], ids=["consecutive", "a single row"])
def test_a_fold_that_trains_without_a_class_is_said(cv):
    y = np.repeat([0, 1, 2], [10, 10, 10 if isinstance(cv, KFold) else 1])
    rows = X[: len(y)]
    with pytest.warns(UserWarning, match="folds train without a class: fold .* without 1 of 3 classes"):
        fit_cv(rows, y, L1(1.0), datafit=Multinomial(), cv=cv, alphas=3, eps=0.1)


# --- losses


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", ""])
def test_squared_errors_are_those_of_scikit_learn(weighted, fit_intercept):
    weights = DRAW.uniform(0.2, 2.0, N) if weighted else None
    options = {"sample_weight": weights, "fit_intercept": fit_intercept}
    ours = fit_cv(X, Y, L1(1.0), cv=5, random_state=None, alphas=20, **options)
    theirs = linear_model.LassoCV(alphas=20, cv=5, tol=1e-12, max_iter=10**6, fit_intercept=fit_intercept)
    theirs.fit(X, Y, weights)
    np.testing.assert_allclose(ours.alphas, theirs.alphas_, rtol=1e-10)
    np.testing.assert_allclose(ours.losses.T, theirs.mse_path_, rtol=1e-6)  # their gap's root
    if not weighted:  # else theirs weighs the folds by their weights, where ours counts each once
        assert ours.alpha_min == pytest.approx(theirs.alpha_, rel=1e-10)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("standardize", [False, True], ids=["", "standardize"])
def test_likelihoods_are_those_of_a_loop(weighted, standardize):
    weights = DRAW.uniform(0.2, 2.0, N) if weighted else np.ones(N)
    options = {"datafit": Logistic(), "tol": 1e-12, "standardize": standardize}
    fitted = fit_cv(X, CLASSES, L1(1.0), cv=PAIRS, alphas=6, sample_weight=weights, **options)
    for (train, test), losses in zip(PAIRS, fitted.losses, strict=True):
        path = fit_path(
            X[train], CLASSES[train], L1(1.0), alphas=fitted.alphas, sample_weight=weights[train], **options
        )
        for alpha, loss in zip(fitted.alphas, losses, strict=True):
            chance = path.at(alpha).predict(X[test]).numpy()
            rows = -np.where(CLASSES[test] == 1.0, np.log(chance), np.log(1.0 - chance))
            assert float(loss) == pytest.approx(np.average(rows, weights=weights[test]), rel=1e-6)  # the root of tol


def test_a_metric_sees_the_target_the_prediction_and_weights_that_add_up_to_1():
    weights, seen = DRAW.uniform(0.2, 2.0, N), []

    def absolute(y, prediction, w):
        seen.append((y, prediction, w))
        return (w * (y - prediction).abs()).sum()

    fitted = fit_cv(X, Y, L1(1.0), cv=PAIRS, alphas=5, metric=absolute, sample_weight=weights)
    assert len(seen) == 20
    for fold, (train, test) in enumerate(PAIRS):
        path = fit_path(X[train], Y[train], L1(1.0), alphas=fitted.alphas, sample_weight=weights[train])
        errors = np.abs(Y[test] - path.predict(X[test]).numpy())
        np.testing.assert_allclose(fitted.losses[fold], np.average(errors, axis=1, weights=weights[test]), rtol=1e-9)
        y, prediction, w = seen[5 * fold]
        assert np.array_equal(y, Y[test])
        assert prediction.shape == y.shape
        np.testing.assert_allclose(w, weights[test] / weights[test].sum(), rtol=1e-12)


def test_a_metric_sees_the_mean_response_of_a_likelihood():
    def squared(y, prediction, w):
        assert ((prediction > 0) & (prediction < 1)).all()
        return (w * (y - prediction).square()).sum()

    assert (fit_cv(X, CLASSES, L1(1.0), datafit=Logistic(), cv=4, eps=0.1, alphas=4, metric=squared).losses < 0.5).all()


# --- convergence


GROUPS = Group(L1(1.0), by=labels(torch.arange(P) // 2))
KINDS = {
    "lasso": (L1(1.0), Quadratic(), Y),
    "groups": (GROUPS, Quadratic(), Y),
    "no gap": (MCP(1.0), Quadratic(), Y),
    "huber": (L1(1.0), Huber(1.0), Y),
    "logistic": (L1(1.0), Logistic(), CLASSES),
    "two targets": (Group(L1(1.0), by=rows), Quadratic(), np.stack([Y, Y[::-1]], 1)),
    "constant in one fold's training rows": (GROUPS, Quadratic(), np.r_[Y[:15], np.full(45, 0.1)]),
}


@pytest.mark.parametrize("cut", [{}, {"max_iter": 2, "tol": 1e-9}], ids=["to the end", "cut short"])
@pytest.mark.parametrize(("penalty", "datafit", "y"), KINDS.values(), ids=KINDS)
def test_the_fits_of_folds_are_judged_as_paths_of_their_training_rows_are(penalty, datafit, y, cut):
    fitted = fit_cv(X, y, penalty, datafit=datafit, cv=4, alphas=6, **cut)
    assert fitted.converged.shape == fitted.losses.shape
    if not cut:
        assert fitted.converged.all()
    elif isinstance(datafit, Huber) or isinstance(penalty, MCP):
        assert not fitted.converged.all()
    for (train, _), verdicts in zip(fitted.folds, fitted.converged, strict=True):
        path = fit_path(X[train], y[train], penalty, datafit=datafit, alphas=fitted.alphas, **cut)
        if not cut:  # otherwise the way to a strength decides
            assert torch.equal(verdicts, path.converged)


def test_estimators_say_that_fits_of_folds_did_not_converge():
    words = r"did not converge at \d of 5 alphas and in \d+ of 20 fits to the training rows of folds\. At alpha"
    for model, target in (
        (SparseRegressorCV(L1(1.0), Huber(1.0), alphas=5, cv=4, max_iter=1, tol=1e-12), Y),
        (LogisticRegressionCV(Cs=[0.1, 0.5, 1.0, 2.0, 3.0], l1_ratios=[1.0], cv=4, max_iter=1, tol=1e-12), CLASSES),
    ):
        with pytest.warns(ConvergenceWarning, match=words):
            model.fit(X, target)
        assert not model.path_.converged.all()


def test_a_warning_of_folds_alone_says_so():
    verdicts = np.array([[True, False], [True, True]])
    path = fit_path(X, Y, L1(1.0), alphas=2)
    with pytest.warns(
        ConvergenceWarning, match=r"^Mine did not converge in 1 of 4 fits to the training rows of folds\. R"
    ):
        warn_unless_converged("Mine", path, folds=[verdicts])
    warn_unless_converged("Mine", path, folds=[verdicts | True])


# --- rules


def test_one_standard_error_is_what_its_definition_says():
    fitted = fit_cv(X, Y, L1(1.0), cv=5, alphas=40, rule="1se")
    losses = fitted.losses.numpy()
    mean, se = losses.mean(0), losses.std(0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(fitted.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(fitted.se, se, rtol=1e-12)
    best = mean.argmin()
    within = [alpha for alpha, loss in zip(fitted.alphas.tolist(), mean, strict=True) if loss <= mean[best] + se[best]]
    assert fitted.alpha == fitted.alpha_1se == max(within) > fitted.alpha_min == float(fitted.alphas[best])
    assert fitted.best.alpha == fitted.alpha
    assert torch.equal(fitted.best.coef, fitted.path.coef(fitted.index_1se))


def test_of_one_fold_there_is_no_standard_error_and_the_least_loss_is_chosen():
    fitted = fit_cv(X, Y, L1(1.0), cv=PAIRS[:1], alphas=10, rule="1se")
    assert fitted.se.isnan().all()
    assert fitted.alpha == fitted.alpha_min


def test_a_function_of_the_result_chooses():
    fitted = fit_cv(X, Y, L1(1.0), cv=4, alphas=10, rule=lambda cv: cv.index_min + 1)
    assert fitted.index == fitted.index_min + 1
    assert fitted.alpha == float(fitted.alphas[fitted.index_min + 1]) < fitted.alpha_min


@pytest.mark.parametrize("rule", ["best", None, 3])
def test_rules_that_are_none_are_refused(rule):
    with pytest.raises(ValueError, match=f"rule takes 'min', '1se' or a function of the CVPath, got {rule!r}"):
        fit_cv(X, Y, L1(1.0), rule=rule)


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


# --- fits that miss the tolerance


@pytest.mark.parametrize(("datafit", "y"), [(None, Y), (Logistic(), CLASSES)], ids=["squares", "logistic"])
@pytest.mark.parametrize("penalty", [Group(L1(1.0), by=rows), MCP(1.0)], ids=["gap", "violation"])
def test_each_fit_of_a_fold_that_misses_is_listed(datafit, y, penalty):
    fitted = fit_cv(X, y, penalty, datafit=datafit, cv=4, alphas=4, tol=1e-13, max_iter=1)
    assert [[miss.fold, miss.index] for miss in fitted.missed] == (~fitted.converged).nonzero().tolist()
    assert all(miss.excess > 1.0 for miss in fitted.missed)
    for miss in fitted.missed:
        train, _ = fitted.folds[miss.fold]
        alone = fit_path(X[train], y[train], penalty, datafit=datafit, alphas=fitted.alphas, tol=1e-13, max_iter=1)
        if math.isfinite(miss.dual_gap):
            assert miss.allowed == pytest.approx(1e-13 * alone.null_objective, rel=1e-9)
    assert fit_cv(X, y, L1(1.0), datafit=datafit, cv=4, alphas=4).missed == ()
