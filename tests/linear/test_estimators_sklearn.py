"""Classes that bear scikit-learn's name give scikit-learn's answers: only the import changes."""

import inspect
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
import scipy.sparse
import sklearn.linear_model as theirs
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold

from torchreg.linear import estimators as ours

CLOSE = {"rtol": 0, "atol": 1e-6}  # coefficients are near 1; both sides are fitted to a gap of about 1e-12
TIGHT = {"tol": 1e-12}
RNG = np.random.default_rng(0)
N, P = 60, 6
X = RNG.normal(size=(N, P)) @ (np.eye(P) + 0.3) + 1.0
W = np.array([1.5, -1.0, 0.0, 0.0, 0.5, 0.0])
y = X @ W + 2.0 + RNG.normal(size=N)
Y = np.stack([y, X @ W[::-1] + RNG.normal(size=N)], 1)
two = np.where(X @ W + 3.0 * RNG.normal(size=N) > 0.5, "yes", "no")
three = np.array(["a", "b", "c"])[np.digitize(X @ W + 3.0 * RNG.normal(size=N), [-0.5, 2.0])]
counts = RNG.poisson(np.exp(0.3 * X @ W - 0.5))
weights = RNG.integers(0, 4, size=N).astype(float)
SPARSE = scipy.sparse.csr_array(np.where(np.abs(X) > 0.8, X, 0.0))
NAMES = [name for name in ours.__all__ if hasattr(theirs, name)]


def pair(name, extra=None, **parameters):
    """Our estimator and scikit-learn's; ``extra`` is for scikit-learn's solver alone."""
    endless, exact = ({"max_iter": None}, {"tol": 1e-14, "max_iter": 200_000}) if name != "RidgeCV" else ({}, {})
    mine = getattr(ours, name)(**TIGHT, **endless, **parameters)
    return mine, getattr(theirs, name)(**exact | parameters | (extra or {}))


def fit_both(mine, other, *data, **metadata):
    mine.fit(*data, **metadata)
    with warnings.catch_warnings():  # scikit-learn's own: tolerances that it cannot reach, deprecations
        warnings.simplefilter("ignore")
        other.fit(*data, **metadata)
    return mine, other


def assert_same(mine, other, features=X, **close):
    close = CLOSE | close
    assert_allclose(mine.coef_, other.coef_, **close)
    assert_allclose(mine.intercept_, other.intercept_, **close)
    assert mine.coef_.shape == other.coef_.shape
    assert np.shape(mine.intercept_) == np.shape(other.intercept_)
    if hasattr(other, "predict_proba"):
        assert_allclose(mine.predict_proba(features), other.predict_proba(features), **close)
        assert_allclose(mine.decision_function(features), other.decision_function(features), rtol=0, atol=1e-5)
        assert (mine.predict(features) == other.predict(features)).all()
    else:
        assert_allclose(mine.predict(features), other.predict(features), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_defaults_are_scikit_learns(name):
    """In its order, so that positional arguments mean the same; ours come after, by keyword."""
    want = list(inspect.signature(getattr(theirs, name)).parameters.values())
    have = list(inspect.signature(getattr(ours, name)).parameters.values())
    assert [(p.name, p.default, p.kind) for p in have[: len(want)]] == [(p.name, p.default, p.kind) for p in want]
    assert all(p.kind is p.KEYWORD_ONLY for p in have[len(want) :])


REGRESSORS = [
    ("Lasso", {"alpha": 0.3}),
    ("Lasso", {"alpha": 0.3, "positive": True}),
    ("Lasso", {"alpha": 0.3, "fit_intercept": False}),
    ("ElasticNet", {"alpha": 0.5, "l1_ratio": 0.4}),
    ("ElasticNet", {"alpha": 0.5, "l1_ratio": 0.4, "positive": True}),
    ("ElasticNet", {"alpha": 0.5, "l1_ratio": 0.4, "fit_intercept": False}),
    ("Ridge", {"alpha": 3.0}),
    ("Ridge", {"alpha": 3.0, "fit_intercept": False}),
]
regressors = pytest.mark.parametrize(("name", "parameters"), REGRESSORS, ids=str)


@regressors
def test_regressors(name, parameters):
    mine, other = fit_both(*pair(name, **parameters), X, y)
    assert_same(mine, other)
    assert mine.score(X, y) == pytest.approx(other.score(X, y), abs=1e-9)
    assert mine.score(X, y, weights) == pytest.approx(other.score(X, y, weights), abs=1e-9)


@regressors
def test_regressors_with_weights(name, parameters):
    assert_same(*fit_both(*pair(name, **parameters), X, y, sample_weight=weights))


@regressors
def test_regressors_on_sparse_data(name, parameters):
    extra = {"solver": "sparse_cg"} if name == "Ridge" else {}
    for data in (SPARSE, SPARSE.tocsc(), scipy.sparse.csr_matrix(SPARSE)):
        assert_same(*fit_both(*pair(name, extra, **parameters), data, y, sample_weight=weights), features=data)


@pytest.mark.parametrize("columns", [1, 2])
@regressors
def test_regressors_of_several_targets(name, parameters, columns):
    mine, other = fit_both(*pair(name, **parameters), X, Y[:, :columns])
    assert_same(mine, other)
    if name != "Ridge":  # scikit-learn's has no gap
        assert np.shape(mine.dual_gap_) == np.shape(other.dual_gap_)
        assert np.shape(mine.n_iter_) == np.shape(other.n_iter_)


def test_positive_ridge():
    extra = {"solver": "lbfgs"}
    mine, other = fit_both(*pair("Ridge", extra, alpha=3.0, positive=True), X, -y, sample_weight=weights)
    assert_same(mine, other, atol=1e-5)  # lbfgs stops early
    assert (mine.coef_ == 0).any()


def test_ridge_with_an_alpha_for_each_target():
    mine, other = fit_both(*pair("Ridge", alpha=np.array([1.0, 30.0])), X, Y, sample_weight=weights)
    assert_same(mine, other)


@pytest.mark.parametrize("features", [X, SPARSE], ids=["dense", "sparse"])
def test_multi_task_lasso(features):
    mine, other = fit_both(*pair("MultiTaskLasso", alpha=0.6), features, Y, sample_weight=weights)
    assert_same(mine, other, features)
    assert (mine.coef_ == 0).all(0).any()


@pytest.mark.parametrize("name", ["Lasso", "ElasticNet", "MultiTaskLasso"])
def test_gaps_are_in_scikit_learns_units(name):
    """Far from the solution both bound the same sub-optimality; here it is less than the gap of either."""
    target = Y if name == "MultiTaskLasso" else y
    loose, best = getattr(ours, name)(alpha=0.1, tol=0.3), getattr(ours, name)(alpha=0.1, **TIGHT)
    objectives = [objective(model.fit(X, target), target) for model in (loose, best)]
    assert best.dual_gap_ < 1e-10
    assert objectives[0] - objectives[1] <= loose.dual_gap_ + 1e-12


def objective(model, target):
    rows = 1 if target.ndim == 1 else 2
    errors = target - model.predict(X)
    if rows == 1:
        ratio = getattr(model, "l1_ratio", 1.0)
        penalty = ratio * np.abs(model.coef_).sum() + (1 - ratio) / 2 * np.square(model.coef_).sum()
    else:
        penalty = np.sqrt(np.square(model.coef_).sum(0)).sum()
    return np.square(errors).sum() / (2 * N) + model.alpha * penalty


@pytest.mark.parametrize("features", [X, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("intercept", [True, False])
def test_poisson(features, intercept):
    extra = {"solver": "newton-cholesky", "tol": 1e-10}
    mine, other = pair("PoissonRegressor", extra, alpha=0.2, fit_intercept=intercept)
    assert_same(*fit_both(mine, other, features, counts, sample_weight=weights), features)
    assert mine.score(features, counts) == pytest.approx(other.score(features, counts), abs=1e-7)
    assert mine.score(features, counts, weights) == pytest.approx(other.score(features, counts, weights), abs=1e-7)


LOGISTIC = [
    {"C": 0.5},
    {"C": 0.5, "fit_intercept": False},
    {"C": 0.5, "class_weight": "balanced"},
    {"C": 0.3, "l1_ratio": 1.0},
    {"C": 0.3, "l1_ratio": 0.5},
    {"C": 0.3, "l1_ratio": 1.0, "fit_intercept": False},
]


@pytest.mark.parametrize("labels", [two, three], ids=["two", "three"])
@pytest.mark.parametrize("parameters", LOGISTIC, ids=str)
def test_logistic_regression(parameters, labels):
    extra = {"solver": "saga", "tol": 1e-11} if parameters.get("l1_ratio") else {"solver": "newton-cg", "tol": 1e-12}
    mine, other = pair("LogisticRegression", extra, **parameters)
    fit_both(mine, other, X, labels, sample_weight=weights)
    assert_same(mine, other, atol=1e-5 if parameters.get("l1_ratio") and len(set(labels)) == 3 else 1e-6)
    assert mine.n_iter_.shape == (1,)
    assert (mine.classes_ == other.classes_).all()
    assert_allclose(mine.predict_log_proba(X), other.predict_log_proba(X), rtol=0, atol=1e-4)


@pytest.mark.parametrize("labels", [two, three], ids=["two", "three"])
def test_logistic_regression_with_weights_of_classes(labels):
    chosen = dict(zip(np.unique(labels), (3.0, 0.5, 1.0), strict=False))
    mine, other = pair("LogisticRegression", {"solver": "newton-cg", "tol": 1e-12}, class_weight=chosen)
    assert_same(*fit_both(mine, other, X, labels))


def test_logistic_regression_on_sparse_data():
    extra = {"solver": "newton-cg", "tol": 1e-12}
    assert_same(*fit_both(*pair("LogisticRegression", extra), SPARSE, three), features=SPARSE)


@pytest.mark.parametrize("labels", [two, three], ids=["two", "three"])
@pytest.mark.parametrize("parameters", [{"C": np.inf}, {"penalty": None}], ids=str)
def test_logistic_regression_without_a_penalty(parameters, labels):
    mine, other = pair("LogisticRegression", {"solver": "newton-cg", "tol": 1e-12}, **parameters)
    assert_same(*fit_both(mine, other, X, labels), atol=1e-4)  # flat: gap 1e-12 leaves coefficients of 5 digits


def test_the_older_name_of_l1_ratio():
    want = ours.LogisticRegression(C=0.3, l1_ratio=1.0, **TIGHT).fit(X, two)
    have = ours.LogisticRegression(penalty="l1", C=0.3, **TIGHT).fit(X, two)
    assert_allclose(have.coef_, want.coef_, rtol=0, atol=1e-9)


FOLDS = [None, 3, KFold(4, shuffle=True, random_state=0)]


def with_paths(mine, other, **close):
    assert_allclose(mine.alphas_, other.alphas_, rtol=1e-9)
    assert_allclose(mine.mse_path_, other.mse_path_, **{"rtol": 1e-6} | close)
    assert mine.mse_path_.shape == other.mse_path_.shape
    assert mine.alpha_ == pytest.approx(other.alpha_, rel=1e-9)
    assert_same(mine, other)


@pytest.mark.parametrize("cv", FOLDS, ids=str)
@pytest.mark.parametrize("parameters", [{}, {"positive": True}, {"fit_intercept": False}], ids=str)
def test_lasso_cv(cv, parameters):
    with_paths(*fit_both(*pair("LassoCV", cv=cv, alphas=12, **parameters), X, y, sample_weight=weights))


def test_lasso_cv_on_sparse_data_at_alphas_of_ones_own():
    mine, other = pair("LassoCV", cv=3, alphas=[0.1, 1.0, 0.5])
    assert_allclose(fit_both(mine, other, SPARSE, y)[0].mse_path_, other.mse_path_, rtol=1e-6)
    assert mine.alphas_.tolist() == other.alphas_.tolist() == [1.0, 0.5, 0.1]


def test_elastic_net_cv():
    with_paths(*fit_both(*pair("ElasticNetCV", cv=3, alphas=8, l1_ratio=0.7), X, y))
    mine, other = pair("ElasticNetCV", cv=3, alphas=8, l1_ratio=[0.2, 0.9])
    with_paths(*fit_both(mine, other, X, y, sample_weight=weights))
    assert mine.l1_ratio_ == other.l1_ratio_
    mine, other = pair("ElasticNetCV", cv=3, alphas=[0.1, 1.0, 0.5], l1_ratio=[0.2, 0.9])
    with_paths(*fit_both(mine, other, X, y))
    assert mine.alphas_.tolist() == other.alphas_.tolist() == [1.0, 0.5, 0.1]


def test_multi_task_lasso_cv():
    with_paths(*fit_both(*pair("MultiTaskLassoCV", cv=3, alphas=6, eps=0.01), X, Y, sample_weight=weights), rtol=1e-5)


ALPHAS = (30.0, 0.1, 3.0)


@pytest.mark.parametrize("target", [y, Y, Y[:, :1]], ids=["one", "two", "column"])
@pytest.mark.parametrize("shape", ["tall", "wide", "square"])
@pytest.mark.parametrize("parameters", [{}, {"fit_intercept": False}, {"alpha_per_target": True}], ids=str)
def test_ridge_cv_leaves_out_each_row(target, shape, parameters):
    rows = {"tall": N, "wide": P - 1, "square": P}[shape]
    mine, other = pair("RidgeCV", alphas=ALPHAS, store_cv_results=True, **parameters)
    fit_both(mine, other, X[:rows], target[:rows], sample_weight=1.0 + weights[:rows])
    assert_same(mine, other)
    assert_allclose(mine.alpha_, other.alpha_)
    assert_allclose(mine.best_score_, other.best_score_, rtol=1e-8)
    assert_allclose(mine.cv_results_, other.cv_results_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("target", [y, Y], ids=["one", "two"])
def test_ridge_cv_leaves_out_each_row_by_a_scorer(target):
    mine, other = pair("RidgeCV", alphas=ALPHAS, store_cv_results=True, scoring="neg_mean_absolute_error")
    fit_both(mine, other, X, target, sample_weight=1.0 + weights)
    assert_same(mine, other)
    assert mine.best_score_ == pytest.approx(other.best_score_, rel=1e-9)


@pytest.mark.parametrize("scoring", [None, "neg_mean_absolute_error"])
@pytest.mark.parametrize("target", [y, Y], ids=["one", "two"])
@pytest.mark.parametrize("features", [X, SPARSE], ids=["dense", "sparse"])
def test_ridge_cv_by_folds(features, target, scoring):
    mine, other = pair("RidgeCV", alphas=ALPHAS, cv=3, scoring=scoring)
    fit_both(mine, other, features, target, sample_weight=weights)
    assert mine.alpha_ == other.alpha_
    assert mine.best_score_ == pytest.approx(other.best_score_, rel=1e-4)  # sparse: conjugate gradients stop early
    assert_same(mine, other, features, atol=1e-4)


def test_ridge_cv_without_each_row_equals_fits_without_each_row():
    rows = np.arange(12)
    mine = ours.RidgeCV(alphas=[2.0], store_cv_results=True, penalty_weights=[0.0, 1.0, 2.0, np.inf, 0.5, 1.0])
    for features in (X[:12], np.hstack([X[:12], RNG.normal(size=(12, 10))])):
        more = features.shape[1] - P
        mine.penalty_weights = [0.0, 1.0, 2.0, np.inf, 0.5, 1.0] + [1.5] * more
        mine.fit(features, y[:12], sample_weight=1.0 + weights[:12])
        for i in rows:
            rest = rows != i
            alone = ours.Ridge(alpha=2.0, penalty_weights=mine.penalty_weights, **TIGHT)
            alone.fit(features[rest], y[:12][rest], sample_weight=1.0 + weights[:12][rest])
            error = (y[i] - alone.predict(features[i : i + 1])[0]) ** 2 * (1.0 + weights[i])
            assert mine.cv_results_[i, 0] == pytest.approx(error, rel=1e-8)


@pytest.mark.parametrize("labels", [two, three], ids=["two", "three"])
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("refit", [True, False])
def test_logistic_regression_cv(labels, legacy, refit):
    extra = {"solver": "newton-cg", "tol": 1e-12}
    parameters = {"Cs": [3.0, 0.01, 0.3], "cv": 3, "refit": refit, "use_legacy_attributes": legacy, "scoring": None}
    mine, other = pair("LogisticRegressionCV", extra, l1_ratios=(0.0,), **parameters)
    fit_both(mine, other, X, labels, sample_weight=weights)
    assert_grids_are_same(mine, other)
    assert_same(mine, other)
    assert mine.score(X, labels) == pytest.approx(other.score(X, labels))


def assert_grids_are_same(mine, other):
    for name in ("C_", "l1_ratio_", "Cs_"):
        have, want = getattr(mine, name), getattr(other, name)
        if np.asarray(want).dtype != object:  # scikit-learn's legacy l1_ratio_ is [None] for no share
            assert_allclose(have, want, err_msg=name)
        assert np.shape(have) == np.shape(want)
    assert np.shape(mine.n_iter_) == np.shape(other.n_iter_)
    for name, close in (("scores_", 1e-6), ("coefs_paths_", 1e-5)):
        have, want = getattr(mine, name), getattr(other, name)
        pairs = [(have, want)] if not isinstance(want, dict) else [(have[key], want[key]) for key in want]
        for a, b in pairs:
            assert_allclose(a, b, rtol=0, atol=close, err_msg=name)


@pytest.mark.parametrize("labels", [two, three], ids=["two", "three"])
def test_logistic_regression_cv_at_its_defaults(labels):
    mine, other = pair("LogisticRegressionCV", {"solver": "newton-cg", "tol": 1e-10}, Cs=[0.1, 1.0])
    assert_grids_are_same(*fit_both(mine, other, X, labels))


@pytest.mark.parametrize("legacy", [True, False])
def test_logistic_regression_cv_over_shares(legacy):
    """At one C: along several, scikit-learn's saga starts from the last and stops away from the solution."""
    extra = {"solver": "saga", "tol": 1e-10}
    parameters = {"l1_ratios": [0.5, 1.0], "Cs": [0.5], "scoring": "neg_log_loss", "use_legacy_attributes": legacy}
    mine, other = pair("LogisticRegressionCV", extra, cv=StratifiedKFold(3, shuffle=True, random_state=0), **parameters)
    assert_grids_are_same(*fit_both(mine, other, X, two, sample_weight=weights))
    assert mine.path_.losses.shape == (3, 1)


FITS = [
    (ours.Lasso(0.3, **TIGHT), y),
    (ours.ElasticNet(0.3, **TIGHT), y),
    (ours.Ridge(3.0), y),
    (ours.LogisticRegression(C=0.3, l1_ratio=0.5, **TIGHT), two),
    (ours.PoissonRegressor(alpha=0.1, l1_ratio=0.5, **TIGHT), counts),
    (ours.MultiTaskLasso(0.3, **TIGHT), Y),
    (ours.GroupLasso(0.3, groups=2, **TIGHT), y),
    (ours.SparseGroupLasso(0.3, groups=2, **TIGHT), y),
]


@pytest.mark.parametrize(("model", "target"), FITS, ids=lambda v: type(v).__name__)
def test_a_weight_is_a_number_of_rows(model, target):
    times = weights.astype(int)
    weighted = model.fit(X, target, sample_weight=weights).coef_
    repeated = model.fit(np.repeat(X, times, 0), np.repeat(target, times, 0)).coef_
    assert_allclose(weighted, repeated, **CLOSE)


@pytest.mark.parametrize(("model", "target"), FITS, ids=lambda v: type(v).__name__)
def test_single_precision_is_solved_in_double(model, target):
    double = model.fit(X.astype(np.float32).astype(float), target).coef_
    single = model.fit(X.astype(np.float32), target).coef_
    assert single.dtype == np.float32
    assert_allclose(single, double, rtol=0, atol=3e-7)


def test_what_did_not_converge_is_said_with_numbers():
    with pytest.warns(ConvergenceWarning, match=r"Regression did not converge.*gap.*tolerance.*Raise max_iter"):
        ours.LogisticRegression(l1_ratio=1.0, max_iter=1, tol=1e-14).fit(X, three)
