"""What the estimators do beyond scikit-learn's checks: torch, weights of features, tools around them, refusals."""

import ast
import inspect
import pickle
import re
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
import scipy.sparse
import sklearn
from estimator_catalog import CASES, SMALL, N, P, W, X, Y, counts, three, times, two, y
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from torchreg import L1, L2, MCP, Group, NonNegative, Weighted, labels, linear, rows
from torchreg.linear import Huber, Logistic, Multinomial, Poisson, Quadratic, SquaredHinge, estimators, fit_path
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
    SparseRegressor,
    SparseRegressorCV,
)

INF = np.inf
each = pytest.mark.parametrize(("model", "target"), CASES.values(), ids=CASES.keys())


def tight(model):
    """To a gap at which the order of rounding does not show."""
    model = clone(model)
    return model.set_params(tol=1e-10)


FORMS = {
    "columns in order": lambda x: torch.from_numpy(x).T.contiguous().T,
    "float64": torch.from_numpy,
    "float32": lambda x: torch.from_numpy(x).float(),
    "sparse": lambda x: torch.from_numpy(x).to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@each
def test_torch_in_torch_out(model, target, form):
    features, given = form(X), torch.from_numpy(target)
    want = tight(model).fit(X, target)
    have = tight(model).fit(features, given, sample_weight=torch.ones(N))
    assert isinstance(have.coef_, torch.Tensor)
    assert have.coef_.dtype == features.dtype
    assert tuple(have.coef_.shape) == want.coef_.shape
    close = {"rtol": 0, "atol": 1e-6 if features.dtype == torch.float64 else 3e-5}
    assert_allclose(have.coef_, want.coef_, **close)
    assert_allclose(have.intercept_, want.intercept_, **close)
    predicted = have.predict(features)
    assert isinstance(predicted, torch.Tensor)
    assert_allclose(predicted, want.predict(X), rtol=0, atol=1e-4)
    assert isinstance(have.predict(X), np.ndarray)
    assert_allclose(have.predict(X), want.predict(X), rtol=0, atol=1e-4)
    assert have.score(features, given) == pytest.approx(want.score(X, target), abs=1e-4)


@each
def test_what_is_given_stays_as_it_was(model, target):
    features, given, weights = X.copy(), target.copy(), times.copy()
    for array in (features, given, weights):
        array.setflags(write=False)
    parameters = pickle.dumps(model.get_params())
    model = clone(model).fit(features, given, sample_weight=weights)
    assert pickle.dumps(model.get_params()) == parameters


@each
def test_clone_and_pickle(model, target):
    fitted = clone(model).fit(X, target)
    again = pickle.loads(pickle.dumps(fitted))
    assert (again.predict(X) == fitted.predict(X)).all()
    assert not hasattr(clone(fitted), "coef_")
    assert repr(clone(fitted)) == repr(model)


@each
def test_in_a_pipeline_and_in_cross_validation(model, target):
    assert cross_val_score(make_pipeline(StandardScaler(), clone(model)), X, target, cv=3).shape == (3,)


@each
def test_fitted_attributes(model, target):
    fitted = clone(model).fit(X, target)
    assert fitted.n_features_in_ == P
    assert np.all(np.asarray(fitted.dual_gap_) >= 0) or np.isnan(fitted.dual_gap_)
    assert np.all(np.asarray(fitted.n_iter_) >= 0)
    assert fitted.alpha_max_ > 0
    if hasattr(fitted, "cv"):
        assert fitted.path_.losses.shape[1] == len(fitted.path_.alphas)


def test_names_of_features():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=[f"x{i}" for i in range(P)])
    model = Lasso(0.1).fit(frame, pandas.Series(y))
    assert model.feature_names_in_.tolist() == list(frame.columns)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(X)


def test_grid_search_over_alphas_and_penalties():
    search = GridSearchCV(Lasso(), {"alpha": [0.01, 10.0]}, cv=3).fit(X, y)
    assert search.best_params_ == {"alpha": 0.01}
    search = GridSearchCV(SparseRegressor(L1(1.0)), {"penalty": [L1(10.0), MCP(0.05)]}, cv=3).fit(X, y)
    assert search.best_params_ == {"penalty": MCP(0.05)}
    search = GridSearchCV(Lasso(), {"alpha": [0.01, 10.0]}, cv=3).fit(torch.from_numpy(X), torch.from_numpy(y))
    assert isinstance(search.best_estimator_.coef_, torch.Tensor)


def test_estimators_are_loaded_when_they_are_named():
    import torchreg.linear as wing

    assert wing.Lasso is Lasso
    assert set(estimators.__all__) <= set(wing.__all__)


# -- the penalties


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (Lasso(0.2, tol=1e-10), y),
        (ElasticNet(0.2, tol=1e-10), y),
        (Ridge(20.0), y),
        (Ridge([20.0, 5.0]), Y),
        (PoissonRegressor(alpha=0.2, l1_ratio=0.9, tol=1e-10), counts),
        (LogisticRegression(C=0.2, l1_ratio=0.5, tol=1e-10), two),
        (MultiTaskLasso(0.2, tol=1e-8), Y),
        (LassoCV(**SMALL), y),
        (RidgeCV(), y),
    ],
    ids=lambda v: type(v).__name__,
)
def test_weights_of_features(model, target):
    """1 is no weight, 0 is no penalty, inf is no feature; a weight is a strength of one's own."""
    plain = clone(model).fit(X, target)
    ones = clone(model).set_params(penalty_weights=np.ones(P)).fit(X, target)
    assert_allclose(ones.coef_, plain.coef_, rtol=0, atol=1e-7)
    dropped = clone(model).set_params(penalty_weights=[1, 1, 1, 1, 1, INF]).fit(X, target)
    without = clone(model).fit(X[:, :5], target)
    assert (np.atleast_2d(dropped.coef_)[:, 5] == 0).all()
    assert_allclose(np.atleast_2d(dropped.coef_)[:, :5], np.atleast_2d(without.coef_), rtol=0, atol=1e-5)
    free = clone(model).set_params(penalty_weights=[0.0, 1, 1, 1, 1, 1]).fit(X, target)
    assert np.abs(np.atleast_2d(free.coef_)[:, 0]).sum() > np.abs(np.atleast_2d(plain.coef_)[:, 0]).sum()


def test_a_weight_is_a_strength():
    weights = np.array([1.0, 2.0, 0.5, 1.0, 1.0, 3.0])
    have = Lasso(0.2, penalty_weights=weights, tol=1e-12).fit(X, y)
    want = Lasso(0.2, tol=1e-12).fit(X / weights, y)
    assert_allclose(have.coef_ * weights, want.coef_, rtol=0, atol=1e-6)
    torched = Lasso(0.2, penalty_weights=torch.from_numpy(weights), tol=1e-12).fit(X, y)
    assert_allclose(torched.coef_, have.coef_)


def test_our_own_names_and_scikit_learns_agree():
    """The conversions that the docstrings print."""
    close = {"rtol": 0, "atol": 1e-6}
    total = times.sum()
    given = {"sample_weight": times}
    lasso = Lasso(0.2, tol=1e-12).fit(X, y, **given).coef_
    assert_allclose(SparseRegressor(L1(0.2), tol=1e-12).fit(X, y, **given).coef_, lasso, **close)
    assert_allclose(GroupLasso(0.2, tol=1e-12).fit(X, y, **given).coef_, lasso, **close)
    assert_allclose(SparseGroupLasso(0.2, l1_ratio=1.0, groups=2, tol=1e-12).fit(X, y, **given).coef_, lasso, **close)
    ridge = Ridge(3.0).fit(X, y, **given).coef_
    assert_allclose(ElasticNet(3.0 / total, l1_ratio=0.0, tol=1e-14).fit(X, y, **given).coef_, ridge, **close)
    assert_allclose(SparseRegressor(L2(3.0 / (2 * total))).fit(X, y, **given).coef_, ridge, **close)
    logistic = LogisticRegression(C=0.3, l1_ratio=1.0, tol=1e-12).fit(X, two, **given).coef_
    sparse = SparseClassifier(L1(1 / (0.3 * total)), tol=1e-12).fit(X, two, **given).coef_
    assert_allclose(sparse, logistic, **close)


def test_groups():
    by_two = GroupLasso(0.5, groups=2, tol=1e-10).fit(X, y)
    named = GroupLasso(0.5, groups=["a", "a", "b", "b", "c", "c"], tol=1e-10).fit(X, y)
    engine = SparseRegressor(Group(L1(0.5), by=labels(torch.tensor([0, 0, 1, 1, 2, 2]))), tol=1e-10).fit(X, y)
    assert_allclose(named.coef_, by_two.coef_, rtol=0, atol=1e-6)
    assert_allclose(engine.coef_, by_two.coef_, rtol=0, atol=1e-6)
    assert (by_two.coef_[2:4] == 0).all()
    free = GroupLasso(5.0, groups=2, group_weights=[0.0, 1.0, INF], tol=1e-10).fit(X, y)
    assert (free.coef_ != 0).tolist() == [True, True, False, False, False, False]
    unweighted = GroupLasso(0.5, groups=2, group_weights=1.0, tol=1e-10).fit(X, y)
    assert_allclose(GroupLasso(0.5 / 2**0.5, groups=2, tol=1e-10).fit(X, y).coef_, unweighted.coef_, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        Lasso(0.01, positive=True),
        ElasticNet(0.01, positive=True),
        Ridge(1.0, positive=True),
        PoissonRegressor(alpha=0.01, l1_ratio=0.5, positive=True),
        LogisticRegression(positive=True),
        GroupLasso(0.01, groups=2, positive=True),
        SparseGroupLasso(0.01, groups=2, positive=True),
        LassoCV(**SMALL, positive=True),
        GroupLassoCV(**SMALL, groups=2, positive=True),
        SparseRegressor(NonNegative(L1(0.01))),
    ],
    ids=lambda m: type(m).__name__,
)
def test_positive(model):
    targets = {"LogisticRegression": two, "PoissonRegressor": counts}
    coef = clone(model).fit(X, targets.get(type(model).__name__, y)).coef_
    assert (coef >= 0).all()
    assert (coef == 0).any()
    assert (coef > 0).any()


def test_zero_at_and_above_alpha_max():
    for model, target in (CASES[name] for name in ("Lasso", "GroupLasso", "SparseGroupLasso", "MultiTaskLasso")):
        top = clone(model).fit(X, target).alpha_max_
        assert (tight(model).set_params(alpha=top * (1 + 1e-12)).fit(X, target).coef_ == 0).all()
        assert (tight(model).set_params(alpha=top * 0.99).fit(X, target).coef_ != 0).any()


def test_any_data_term():
    outliers = y.copy()
    outliers[:3] += 100.0
    robust = SparseRegressor(L1(0.05), Huber(1.0), tol=1e-8).fit(X, outliers)
    plain = SparseRegressor(L1(0.05)).fit(X, outliers)
    assert np.abs(robust.coef_ - W).max() < 0.3 < np.abs(plain.coef_ - W).max()
    margin = SparseClassifier(L1(0.02), SquaredHinge(), tol=1e-8).fit(X, two)
    chances = margin.predict_proba(X)
    assert_allclose(chances.sum(1), 1.0)
    assert margin.score(X, two) > 0.8
    assert (SparseClassifier(Group(L1(0.1), by=rows, weights=1.0), tol=1e-8).fit(X, three).coef_ == 0).all(0).any()


def test_a_metric_of_ones_own():
    def absolute(target, prediction, weights):
        return (weights * (target - prediction).abs()).sum()

    mine = SparseRegressorCV(L1(1.0), metric=absolute, **SMALL).fit(X, y)
    plain = SparseRegressorCV(L1(1.0), **SMALL).fit(X, y)
    assert mine.loss_path_.shape == plain.loss_path_.shape == (5, 3)
    assert (mine.loss_path_ != plain.loss_path_).all()


# -- cross-validation


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
@pytest.mark.parametrize("name", ["MultiTaskLassoCV", "GroupLassoCV", "SparseGroupLassoCV"])
def test_weights_of_rows_are_repetitions_at_any_tolerance(name, tol):
    """Tolerances are relative to a mean loss, which knows no number of rows: iterative engines stop at the same point.

    Of two orders of summation the difference is rounding; gaps of 1e-3 alone would leave it at 3e-2.
    """
    model, target = CASES[name]
    often, fold = times.astype(int), np.arange(N) % 3
    rows_of = np.repeat(np.arange(N), often)
    weighted, repeated = (
        clone(model).set_params(tol=tol, cv=[(np.flatnonzero(f != k), np.flatnonzero(f == k)) for k in range(3)])
        for f in (fold, fold[rows_of])
    )
    weighted.fit(X, target, sample_weight=times)
    repeated.fit(X[rows_of], target[rows_of])
    assert_allclose(weighted.coef_, repeated.coef_, rtol=0, atol=1e-10)
    assert_allclose(weighted.path_.losses, repeated.path_.losses, rtol=1e-10)
    assert weighted.n_iter_ == repeated.n_iter_


@pytest.mark.parametrize("name", [name for name, (model, _) in CASES.items() if hasattr(model, "rule")])
def test_one_standard_error_is_simpler(name):
    model, target = CASES[name]
    least, simple = (clone(model).set_params(rule=rule).fit(X, target) for rule in ("min", "1se"))
    first = clone(model).set_params(rule=lambda path: 0).fit(X, target)
    assert simple.path_.alpha >= least.path_.alpha
    assert first.path_.alpha == float(first.path_.alphas[0])
    assert simple.path_.mean[simple.path_.index] <= least.path_.mean.min() + simple.path_.se[least.path_.index]


def test_a_chosen_fit_is_the_fit_at_the_chosen_alpha():
    chosen = LassoCV(**SMALL, tol=1e-10).fit(X, y, sample_weight=times)
    alone = Lasso(chosen.alpha_, tol=1e-10).fit(X, y, sample_weight=times)
    assert_allclose(chosen.coef_, alone.coef_, rtol=0, atol=1e-7)
    chosen = RidgeCV(alphas=[0.5, 5.0, 50.0]).fit(X, y, sample_weight=times + 1)
    alone = Ridge(chosen.alpha_).fit(X, y, sample_weight=times + 1)
    assert_allclose(chosen.coef_, alone.coef_, rtol=0, atol=1e-9)


def test_path_of_the_estimator_is_the_engines():
    fitted = LassoCV(**SMALL, tol=1e-10).fit(X, y)
    path = fit_path(X, y, L1(1.0), alphas=5, eps=0.05, tol=1e-10)
    assert_allclose(fitted.alphas_, path.alphas)
    assert_allclose(fitted.path_.path.coefs, path.coefs, rtol=0, atol=1e-7)
    assert (fitted.path_.path.criterion("bic") == fitted.path_.path.criterion("bic")).all()


@pytest.mark.parametrize("weight", [2.0, np.float32(2.0), np.array(2.0), torch.tensor(2.0)], ids=repr)
def test_one_number_of_any_library_is_a_weight(weight):
    weighted = Lasso(0.1, tol=1e-10).fit(X, y, sample_weight=weight)
    assert_allclose(weighted.coef_, Lasso(0.1, tol=1e-10).fit(X, y).coef_, rtol=0, atol=1e-9)
    grouped = GroupLasso(0.1, groups=2, group_weights=weight).fit(X, y)
    assert_allclose(grouped.coef_, GroupLasso(0.1, groups=2, group_weights=[2.0] * 3).fit(X, y).coef_, atol=1e-9)


def test_torch_grids_are_torch():
    fitted = ElasticNetCV(**SMALL, l1_ratio=[0.5, 0.9]).fit(torch.from_numpy(X), torch.from_numpy(y))
    assert fitted.alphas_.shape == (2, 5)
    assert fitted.mse_path_.shape == (2, 5, 3)
    assert isinstance(fitted.mse_path_, torch.Tensor)


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


GROUPED = ["LassoCV", "RidgeCV by folds", "LogisticRegressionCV", "SparseClassifierCV", "GroupLassoCV"]


@pytest.mark.parametrize("name", GROUPED)
def test_metadata_reach_the_splitter(name, routing):
    model, target = CASES[name]
    if name == "LogisticRegressionCV":
        model = clone(model).set_params(scoring=get_scorer("accuracy").set_score_request(sample_weight=True))
    groups = np.arange(N) % 3
    splitter = GroupKFold(3).set_split_request(groups=True)
    routed = clone(model).set_params(cv=splitter).fit(X, target, groups=groups, sample_weight=times + 1)
    folds = list(GroupKFold(3).split(X, target, groups))
    direct = clone(model).set_params(cv=folds).fit(X, target, sample_weight=times + 1)
    assert_allclose(routed.path_.losses, direct.path_.losses)
    assert routed.get_metadata_routing() is not None


def test_weights_reach_a_step_of_a_pipeline(routing):
    step = Lasso(0.1).set_fit_request(sample_weight=True)
    scaler = StandardScaler().set_fit_request(sample_weight=False)
    piped = make_pipeline(scaler, step).fit(X, y, sample_weight=times)
    scaled = StandardScaler().fit_transform(X)
    assert_allclose(piped[-1].coef_, Lasso(0.1).fit(scaled, y, sample_weight=times).coef_)


def test_metadata_without_routing_are_refused():
    with pytest.raises(ValueError, match="only supported if enable_metadata_routing=True"):
        LassoCV().fit(X, y, groups=np.arange(N))
    with pytest.raises(ValueError, match="only supported if enable_metadata_routing=True"):
        LogisticRegressionCV(Cs=[1.0]).fit(X, two).score(X, two, groups=np.arange(N))


# -- warm starts, convergence


@pytest.mark.parametrize("name", [name for name, (model, _) in CASES.items() if hasattr(model, "warm_start")])
def test_a_warm_start_leads_to_the_same_solution(name):
    model, target = CASES[name]
    cold = tight(model).fit(X, target)
    warm = tight(model).set_params(warm_start=True).fit(X, target)
    warm.fit(X, target)
    assert_allclose(warm.coef_, cold.coef_, rtol=0, atol=1e-5)
    warm.fit(X[:, :4], target)  # other features: as from zero
    assert_allclose(warm.coef_, tight(model).fit(X[:, :4], target).coef_, rtol=0, atol=1e-5)


def test_a_warm_start_saves_iterations():
    model = SparseRegressor(Group(L1(0.05), by=labels(torch.arange(P) // 2)), Huber(1.0), tol=1e-9, warm_start=True)
    first = model.fit(X, y).n_iter_
    assert model.fit(X, y).n_iter_ < first


def test_no_convergence_is_one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SparseRegressorCV(L1(1.0), Huber(1.0), max_iter=1, tol=1e-12, **SMALL).fit(X, y)
    said = [str(w.message) for w in caught if issubclass(w.category, ConvergenceWarning)]
    assert len(said) == 1
    assert "of 5 alphas" in said[0]


def test_the_warning_says_what_was_reached_and_what_is_allowed():
    with pytest.warns(ConvergenceWarning, match=r"duality gap \S+, tolerance \S+, \d+ iterations") as caught:
        model = SparseRegressor(L1(0.1), Huber(1.0), max_iter=1, tol=1e-12).fit(X, y)
    assert f", {np.max(model.n_iter_)} iterations" in str(caught[0].message)  # one for each strength on the way
    with pytest.warns(ConvergenceWarning, match="optimality violation") as caught:
        SparseRegressor(MCP(0.1), max_iter=1, tol=1e-12).fit(X, y)
    violation, tolerance = re.search(r"violation (\S+), tolerance (\S+), ", str(caught[0].message)).groups()
    slope = np.abs((X - X.mean(0)).T @ (y - y.mean())).max() / len(y)
    assert float(tolerance) == pytest.approx(1e-12 * slope, rel=1e-3)  # four digits are printed
    assert float(violation) > float(tolerance)


def test_several_targets_warm():
    model = Lasso(0.1, warm_start=True, tol=1e-12).fit(X, Y)
    before = model.coef_.copy()
    assert_allclose(model.fit(X, Y).coef_, before, rtol=0, atol=1e-7)
    assert model.fit(X, y).coef_.shape == (P,)


# -- refusals


BAD = {
    "alpha": (Lasso(alpha=-1.0), r"'alpha' parameter of Lasso must be a float in the range \[0.0, inf\). Got -1.0"),
    "nan": (Lasso(alpha=np.nan), "'alpha' parameter of Lasso must be"),
    "words": (Lasso(alpha="1"), "'alpha' parameter of Lasso must be"),
    "share": (ElasticNet(l1_ratio=1.5), r"'l1_ratio' parameter of ElasticNet must be a float in .* \[0.0, 1.0\]"),
    "tol": (Ridge(tol=-1e-3), "'tol' parameter of Ridge must be"),
    "iterations": (Lasso(max_iter=0), r"'max_iter' parameter of Lasso must be an int in the range \[1, inf\)"),
    "intercept": (Lasso(fit_intercept=1.0), "'fit_intercept' parameter of Lasso must be a bool"),
    "selection": (Lasso(selection="best"), "'selection' parameter of Lasso must be a str among"),
    "solver": (Ridge(solver="best"), "'solver' parameter of Ridge must be a str among"),
    "weights": (Lasso(penalty_weights=[1.0, 2.0]), r"penalty_weights.shape == \(2,\), expected \(6,\)!"),
    "sign of weights": (Lasso(penalty_weights=-np.ones(P)), "penalty_weights must be >= 0"),
    "device": (Lasso(device=3.5), "'device' parameter of Lasso must be"),
    "groups": (GroupLasso(groups=4), "groups=4 does not divide the 6 features"),
    "labels": (GroupLasso(groups=[1, 2]), r"groups.shape == \(2,\), expected \(6,\)!"),
    "group weights": (GroupLasso(groups=3, group_weights=[1.0]), r"group_weights.shape == \(1,\), expected \(2,\)!"),
    "sign of group weights": (GroupLasso(groups=3, group_weights=[1.0, -1.0]), "group_weights must be >= 0"),
    "penalty": (SparseRegressor("l1"), "'penalty' parameter of SparseRegressor must be a torchreg penalty"),
    "datafit": (SparseRegressor(L1(1.0), "huber"), "'datafit' parameter of SparseRegressor must be"),
    "alphas": (LassoCV(alphas=[0.1, -0.1]), r"alphas\[1\] == -0.1, must be >= 0"),
    "no alphas": (LassoCV(alphas=[]), r"alphas must be a number of alphas, or one alpha or more in a list; got \[\]"),
    "one alpha": (LassoCV(alphas=np.array(0.1)), "one alpha or more in a list; got array"),
    "no shares": (ElasticNetCV(l1_ratio=[]), "l1_ratio must be one number between 0 and 1 or more"),
    "no ridge alphas": (RidgeCV(alphas=[]), "alphas must be one alpha or more"),
    "lists of features": (
        GroupLasso(groups=[[0, 1], [2, 3, 4, 5]]),
        "groups takes a label for each feature",
    ),
    "no labels": (GroupLasso(groups=[None] * P), "groups takes a label for each feature"),
    "number of alphas": (LassoCV(alphas=0), "'alphas' parameter of LassoCV must be"),
    "rule": (LassoCV(rule="best"), "'rule' parameter of LassoCV must be"),
    "ridge alphas": (RidgeCV(alphas=[0.0, 1.0]), r"alphas\[0\] == 0.0, must be > 0"),
    "stored folds": (RidgeCV(cv=3, store_cv_results=True), "incompatible"),
    "folds of targets": (RidgeCV(cv=3, alpha_per_target=True), "incompatible"),
    "one score": (RidgeCV(scoring="r2", rule="1se"), "rule='1se' needs the scores of several folds"),
    "ridge grid": (SparseRegressorCV(L2(1.0)), "grid"),
    "targets": (MultiTaskLasso(), "For mono-task outputs, use Lasso"),
    "alphas of targets": (Ridge([1.0, 2.0]), "Number of targets and number of penalties do not correspond: 2 != 1"),
}


@pytest.mark.parametrize(("model", "words"), BAD.values(), ids=BAD.keys())
def test_bad_parameters(model, words):
    with pytest.raises(ValueError, match=words):
        model.fit(X, y)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (LogisticRegression(C=0.0), r"'C' parameter of LogisticRegression must be a float in the range \(0.0, inf\]"),
        (LogisticRegression(class_weight="fair"), "'class_weight' parameter"),
        (LogisticRegression(class_weight={1: -2.0}), "class_weight must have finite weights >= 0, got"),
        (LogisticRegression(class_weight={1: np.inf}), "class_weight must have finite weights >= 0"),
        (
            LogisticRegression(max_iter=0),
            r"'max_iter' parameter of LogisticRegression must be an int in the .* \[1, inf",
        ),
        (
            LogisticRegressionCV(max_iter=0),
            r"'max_iter' parameter of LogisticRegressionCV must be an int in the .* \[1",
        ),
        (LogisticRegression(penalty="l3"), "'penalty' parameter"),
        (LogisticRegressionCV(Cs=[1.0, -1.0]), "Cs must be"),
        (LogisticRegressionCV(l1_ratios=[2.0]), "l1_ratios must be an array-like of numbers between 0 and 1"),
        (LogisticRegressionCV(penalty="elasticnet"), "l1_ratios must be an array-like of numbers between 0 and 1"),
        (SparseClassifier(L1(0.1), Logistic()), "Only binary classification is supported"),
    ],
    ids=str,
)
def test_bad_parameters_of_classifiers(model, words):
    with pytest.raises(ValueError, match=words):
        model.fit(X, three)


class Bounded(Huber):
    """A loss of one's own that says that its predictions are chances."""

    classes = True

    def predict(self, eta):
        return eta.clamp(0.0, 1.0)


@pytest.mark.parametrize("kind", [SparseClassifier, SparseClassifierCV])
def test_classifiers_take_losses_of_classes_alone(kind):
    for datafit in (Quadratic(), Huber(), Poisson()):
        with pytest.raises(ValueError, match=rf"'datafit' parameter of {kind.__name__} must be a datafit of classes"):
            kind(L1(0.1), datafit).fit(X, two)
    for datafit, target in ((SquaredHinge(), two), (Multinomial(), three), (Bounded(), two)):
        model = kind(L1(0.1), datafit, **(SMALL if kind is SparseClassifierCV else {})).fit(X, target)
        chances = model.predict_proba(X)
        assert ((chances >= 0) & (chances <= 1)).all()
        np.testing.assert_allclose(chances.sum(1), 1.0, rtol=1e-12)


DATA = {
    "nan": (X * np.where(X > 2, np.nan, 1.0), y, "Input X contains NaN"),
    "inf": (X * np.where(X > 2, np.inf, 1.0), y, "Input X contains infinity"),
    "one dimension": (X[0], y, "Expected 2D array, got 1D array instead"),
    "no rows": (X[:0], y[:0], r"Found array with 0 sample\(s\)"),
    "no columns": (X[:, :0], y, r"Found array with 0 feature\(s\)"),
    "lengths": (X, y[:5], "inconsistent numbers of samples"),
    "nan in y": (X, np.where(y > 3, np.nan, y), "Input y contains NaN"),
    "no y": (X, None, "requires y to be passed, but the target y is None"),
    "complex": (X * 1j, y, "Complex data not supported"),
}


@pytest.mark.parametrize("torched", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize(("features", "target", "words"), DATA.values(), ids=DATA.keys())
def test_bad_data_are_refused_in_scikit_learns_words(features, target, words, torched):
    given = torch.from_numpy(features) if torched else features
    with pytest.raises(ValueError, match=words):
        Lasso().fit(given, target)
    with pytest.raises(ValueError, match=words.replace("Lasso", "LogisticRegression")):
        LogisticRegression().fit(given, None if target is None else np.where(np.isnan(target), np.nan, target > 3))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.ones(3), r"sample_weight.shape == \(3,\), expected \(48,\)!"),
        (np.ones((N, 2)), "Sample weights must be 1D array or scalar, got 2D array"),
        (-np.ones(N), "Negative values in data passed to `sample_weight`"),
        (np.full(N, np.nan), "Input sample_weight contains NaN"),
        (np.zeros(N), "Sample weights must contain at least one non-zero number"),
    ],
)
def test_bad_weights(weights, words):
    for model, target in (Lasso(), y), (LogisticRegression(), two), (RidgeCV(), y):
        with pytest.raises(ValueError, match=words):
            model.fit(X, target, sample_weight=weights)


def test_other_refusals():
    with pytest.raises(NotFittedError):
        Lasso().predict(X)
    with pytest.raises(ValueError, match="X has 4 features, but Lasso is expecting 6 features"):
        Lasso().fit(X, y).predict(X[:, :4])
    with pytest.raises(ValueError, match="X has 4 features, but Lasso is expecting 6 features"):
        Lasso().fit(X, y).predict(torch.from_numpy(X[:, :4]))
    with pytest.raises(ValueError, match="at least 2 classes"):
        LogisticRegression().fit(X, np.ones(N))
    with pytest.raises(ValueError, match="Unknown label type"):
        LogisticRegression().fit(X, y)
    with pytest.raises(ValueError, match="out of the valid range"):
        PoissonRegressor().fit(X, y - 100.0)
    with pytest.raises(ValueError, match=r"Lasso resulted in non-finite parameter values.*preprocessed"):
        Lasso().fit(X, y * 1e200)
    with pytest.raises(ValueError, match="For multi-task outputs, use MultiTaskLassoCV"):
        LassoCV().fit(X, Y)
    with pytest.raises(ValueError, match="For mono-task outputs, use LassoCV"):
        MultiTaskLassoCV().fit(X, y)


def test_labels_of_any_kind():
    names = np.array(["low", "mid", "high"])[three]
    model = LogisticRegression().fit(torch.from_numpy(X), names)
    assert model.classes_.tolist() == ["high", "low", "mid"]
    assert set(model.predict(torch.from_numpy(X))) <= set(names)
    flags = LogisticRegression().fit(X, two > 5)
    assert flags.predict(X).dtype == bool
    torched = LogisticRegression().fit(torch.from_numpy(X), torch.from_numpy(two))
    assert torched.classes_.tolist() == [3, 7]
    assert torched.predict(torch.from_numpy(X)).dtype == torch.int64


def test_int64_indices_and_one_weight_for_all():
    features = scipy.sparse.csr_array(np.where(np.abs(X) > 0.5, X, 0.0))
    features.indices, features.indptr = features.indices.astype(np.int64), features.indptr.astype(np.int64)
    assert_allclose(Lasso(0.1).fit(features, y, 2.5).coef_, Lasso(0.1).fit(features, y).coef_, rtol=0, atol=1e-9)
    doubled = Ridge(2.0).fit(X, y, sample_weight=2.0).coef_
    assert_allclose(doubled, Ridge(1.0).fit(X, y).coef_)


def test_weighted_penalties_of_ones_own():
    mine = SparseRegressor(Weighted(L1(0.2), torch.tensor([0.0, 1, 1, 1, 1, INF], dtype=torch.float64))).fit(X, y)
    lasso = Lasso(0.2, penalty_weights=[0.0, 1, 1, 1, 1, INF]).fit(X, y)
    assert_allclose(mine.coef_, lasso.coef_, rtol=0, atol=1e-5)


def test_an_absent_device():
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, ValueError, AssertionError), match=r"[Cc][Uu][Dd][Aa]"):
            Lasso(device="cuda").fit(X, y)


@each
def test_on_a_device(model, target, accelerator):
    if accelerator.type != "cuda" and hasattr(model, "cv"):
        pytest.skip("pretended launches are slow, and test_lockstep.py has folds")
    want = tight(model).fit(X, target)
    moved = tight(model).set_params(device=str(accelerator)).fit(X, target)
    stays = tight(model).fit(torch.from_numpy(X).to(accelerator), torch.from_numpy(target).to(accelerator))
    assert isinstance(moved.coef_, np.ndarray)
    assert stays.coef_.device == accelerator
    assert stays.predict(torch.from_numpy(X).to(accelerator)).device == accelerator
    for have in (moved.coef_, stays.coef_.cpu()):
        assert_allclose(have, want.coef_, rtol=0, atol=1e-5)


def test_every_estimator_is_named_and_typed_before_it_is_imported():
    names = set(estimators.__all__)
    assert names <= set(dir(linear))
    assert names <= set(linear.__all__)
    tree = ast.parse(inspect.getsource(linear))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    typed = guarded.body[0]
    assert (typed.module, typed.names[0].name) == (estimators.__name__, "*")  # type checkers read its `__all__`
    for name in names:
        assert getattr(linear, name) is getattr(estimators, name)
    with pytest.raises(AttributeError, match="no attribute 'Laso'"):
        _ = linear.Laso
