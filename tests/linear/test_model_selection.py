"""Estimators in scikit-learn's tools of selection: SelectFromModel, GridSearchCV, clone; what rows carry with them."""

import copy

import numpy as np
import pytest

pytest.importorskip("sklearn")
import torch
from sklearn import config_context, linear_model
from sklearn.base import clone
from sklearn.feature_selection import SelectFromModel
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import compute_class_weight

from torchreg import L1, L1L2, L2, MCP, SCAD, Group, NonNegative, Weighted, labels
from torchreg.linear import (
    ElasticNet,
    GroupLasso,
    Huber,
    Lasso,
    LassoCV,
    LogisticRegression,
    LogisticRegressionCV,
    Poisson,
    PoissonRegressor,
    Ridge,
    SparseClassifier,
    SparseClassifierCV,
    SparseGroupLasso,
    SparseRegressor,
    SparseRegressorCV,
    fit_cv,
)

RNG = np.random.default_rng(0)
N, P = 120, 8
X = RNG.normal(size=(N, P))
SIZES = np.array([3.0, 1.0, 0.3, 0.2, 0.0, 0.0, 0.0, 0.0])  # the mean size would leave out half of those that are used
y = X @ SIZES + 0.1 * RNG.normal(size=N)
counts = RNG.poisson(np.exp(0.3 * X @ SIZES))
CLASSES = (X @ SIZES + 0.3 * RNG.normal(size=N) > 0).astype(int)
THREE = np.digitize(X @ SIZES, [-1.0, 1.0])
PAIRS = labels(torch.arange(P) // 2)

SELECTING = {
    "L1": (SparseRegressor(L1(0.05)), y),
    "elastic net": (SparseRegressor(L1L2(0.05, 0.5)), y),
    "MCP": (SparseRegressor(MCP(0.05)), y),
    "SCAD": (SparseRegressor(SCAD(0.05)), y),
    "groups": (SparseRegressor(Group(L1(0.05), by=PAIRS)), y),
    "weighted": (SparseRegressor(Weighted(L1(0.05), torch.ones(P))), y),
    "nonnegative": (SparseRegressor(NonNegative(L1(0.05))), y),
    "sum": (SparseRegressor(L1(0.05) + L2(0.01)), y),
    "cross-validated": (SparseRegressorCV(L1(1.0), alphas=10, rule="1se"), y),
    "two classes": (SparseClassifier(L1(0.01)), CLASSES),
    "three classes": (SparseClassifier(Group(L1(0.02), by=labels(torch.arange(P)))), THREE),
    "classes, cross-validated": (SparseClassifierCV(L1(1.0), alphas=10, rule="1se"), CLASSES),
    "counts": (PoissonRegressor(alpha=0.1, l1_ratio=1.0), counts),
    "group lasso": (GroupLasso(0.05, groups=2), y),
    "sparse group lasso": (SparseGroupLasso(0.05, groups=2), y),
}


@pytest.mark.parametrize(("model", "target"), SELECTING.values(), ids=SELECTING)
def test_features_that_are_not_zero_are_selected(model, target):
    selector = SelectFromModel(model).fit(X, target)
    used = (np.atleast_2d(selector.estimator_.coef_) != 0).any(0)
    assert 0 < used.sum() < P
    assert (selector.get_support() == used).all()


RIDGES = {
    "L2": SparseRegressor(L2(0.1)),
    "elastic net without L1": SparseRegressor(L1L2(0.1, 0.0)),
    "weighted": SparseRegressor(Weighted(L2(0.1), torch.ones(P))),
    "groups": SparseRegressor(Group(L2(0.1), by=PAIRS)),
}


@pytest.mark.parametrize("model", RIDGES.values(), ids=RIDGES)
def test_a_ridge_has_no_zeros_to_decide_so_sizes_do(model):
    mine, other = (SelectFromModel(each).fit(X, y) for each in (model, Ridge(1.0)))
    assert mine.threshold_ == pytest.approx(np.abs(mine.estimator_.coef_).mean())
    assert (mine.get_support() == other.get_support()).all()
    assert PoissonRegressor(l1_ratio=0.5).penalty != "l1"  # as scikit-learn's ElasticNet


FIELDS = {
    "alpha": (MCP(0.1), "alpha", 0.3, MCP(0.3)),
    "another field": (MCP(0.1), "gamma", 5.0, MCP(0.1, gamma=5.0)),
    "alpha of what is inside": (Group(L1(0.1), by=PAIRS), "alpha", 0.3, Group(L1(0.3), by=PAIRS)),
    "a field of what is inside": (NonNegative(MCP(0.1)), "penalty__gamma", 5.0, NonNegative(MCP(0.1, gamma=5.0))),
    "a term of a sum": (L1(0.1) + L2(0.2), "terms__1__alpha", 0.5, L1(0.1) + L2(0.5)),
    "weights": (Weighted(L1(0.1), torch.ones(P)), "weights", torch.zeros(P), Weighted(L1(0.1), torch.zeros(P))),
}


@pytest.mark.parametrize(("penalty", "field", "value", "expected"), FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("kind", [SparseRegressor, SparseClassifier, SparseRegressorCV, SparseClassifierCV])
def test_a_field_of_a_penalty_is_a_parameter(kind, penalty, field, value, expected):
    before, name = copy.deepcopy(penalty), f"penalty__{field}"
    model = kind(penalty)
    other = clone(model).set_params(**{name: value})
    assert other.penalty == expected
    assert np.array_equal(other.get_params()[name], value)
    assert model.penalty is penalty  # nobody's object was changed
    assert penalty == before
    assert model.get_params(deep=False).keys() <= model.get_params().keys()


@pytest.mark.parametrize(
    "penalty",
    [L1(0.3) + L2(0.1), L1(1.0) + L2(0.1), NonNegative(L1(0.3) + L2(0.1)), Group(L1(0.2), by=PAIRS)],
    ids=repr,
)
def test_parameters_that_were_got_can_be_set(penalty):
    """A sum of several strengths has no alpha to be set; that it has none is said where somebody asks for it."""
    model = SparseRegressor(penalty)
    params = model.get_params()
    assert ("penalty__alpha" in params) == (not penalty.several)
    assert SparseRegressor(L1(9.0)).set_params(**params).penalty == penalty
    if penalty.several:
        with pytest.raises(ValueError, match="several strengths and no alpha"):
            model.set_params(penalty__alpha=0.5)


def test_a_penalty_is_set_before_its_fields():
    model = SparseRegressor(L1(0.1)).set_params(penalty__gamma=5.0, tol=1e-8, penalty=MCP(0.2))
    assert model.penalty == MCP(0.2, gamma=5.0)
    assert model.tol == 1e-8


def test_fields_of_a_datafit():
    model = SparseRegressor(L1(0.1), Huber(1.0)).set_params(datafit__delta=2.0)
    assert model.datafit == Huber(2.0)


@pytest.mark.parametrize(
    ("name", "said"),
    {
        "penalty__gamma": r"Invalid parameter 'gamma' for L1\(alpha=0.1\). Valid parameters are: \['alpha'\]",
        "penalty__alpha__half": "Invalid parameter 'half' for 0.1",
        "datafit__delta": "Invalid parameter 'delta' for None",
        "strength": "Invalid parameter 'strength' for estimator SparseRegressor",
        "strength__alpha": "Invalid parameter 'strength' for estimator SparseRegressor",
    }.items(),
)
def test_a_field_that_is_not_there_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        SparseRegressor(L1(0.1)).set_params(**{name: 1.0})


def test_a_negative_alpha_is_refused_as_by_the_constructor():
    with pytest.raises(ValueError, match="L1 needs a finite alpha >= 0"):
        SparseRegressor(L1(0.1)).set_params(penalty__alpha=-1.0)


def test_grid_search_over_the_alpha_of_a_penalty():
    alphas, given = [1.0, 0.1, 0.01], L1(7.0)
    search = GridSearchCV(SparseRegressor(given, tol=1e-10), {"penalty__alpha": alphas}, cv=4).fit(X, y)
    scores = [cross_val_score(Lasso(alpha, tol=1e-10), X, y, cv=4).mean() for alpha in alphas]
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], scores, rtol=1e-6)
    assert search.best_estimator_.penalty == L1(alphas[int(np.argmax(scores))])
    assert given == L1(7.0)
    pipe = make_pipeline(StandardScaler(), SparseClassifier(L1(1.0)))
    found = GridSearchCV(pipe, {"sparseclassifier__penalty__alpha": [0.3, 0.01]}, cv=3).fit(X, CLASSES)
    assert found.best_params_ == {"sparseclassifier__penalty__alpha": 0.01}
    assert "penalty__alpha" in SparseRegressor(L1(0.1))._repr_html_()


# --- offsets and weights of classes


EXPOSURE = RNG.uniform(0.5, 5.0, N)
OVER = RNG.poisson(EXPOSURE * np.exp(0.3 * X @ SIZES)).astype(float)


def test_counts_with_an_offset_are_rates_with_weights():
    offset, alpha = np.log(EXPOSURE), 0.1
    rates = PoissonRegressor(alpha=alpha, l1_ratio=0.5, tol=1e-12, max_iter=None).fit(X, OVER / EXPOSURE, EXPOSURE)
    theirs = linear_model.PoissonRegressor(alpha=alpha, tol=1e-10, max_iter=10_000).fit(X, OVER / EXPOSURE, EXPOSURE)
    ours = PoissonRegressor(alpha=alpha, tol=1e-12, max_iter=None).fit(X, OVER / EXPOSURE, EXPOSURE)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    scaled = alpha * EXPOSURE.mean()
    for model in (
        PoissonRegressor(alpha=scaled, l1_ratio=0.5, tol=1e-12, max_iter=None),
        SparseRegressor(L1L2(scaled, 0.5), Poisson(), tol=1e-12),
    ):
        model.fit(X, OVER, offset=offset)
        np.testing.assert_allclose(model.coef_, rates.coef_, atol=1e-6)
        np.testing.assert_allclose(model.predict(X, offset), EXPOSURE * rates.predict(X), rtol=1e-6)
        assert model.score(X, OVER, offset=offset) > 0.5 > model.score(X, OVER)
    with pytest.raises(ValueError, match=r"offset must have shape \(120,\), got \(3,\)"):
        model.predict(X, offset[:3])
    with pytest.raises(ValueError, match=r"offset must have shape \(120,\), got \(3,\)"):
        model.fit(X, OVER, offset=offset[:3])


@pytest.mark.parametrize(
    "model", [Lasso(0.1), Ridge(1.0), GroupLasso(0.1), SparseRegressor(L1(0.1)), LassoCV(alphas=5)]
)
def test_an_offset_under_squared_loss_is_taken_from_the_target(model):
    offset = 3.0 * np.cos(np.arange(N))
    model = clone(model).set_params(tol=1e-12)
    mine = clone(model).fit(X, y + offset, offset=offset)
    np.testing.assert_allclose(mine.coef_, model.fit(X, y).coef_, atol=1e-6)
    np.testing.assert_allclose(mine.predict(X, offset), model.predict(X) + offset, atol=1e-6)
    tensors = mine.predict(torch.from_numpy(X), torch.from_numpy(offset))
    np.testing.assert_allclose(tensors.numpy(), mine.predict(X, offset), atol=1e-9)


def test_offsets_are_cut_by_folds():
    offset = np.log(EXPOSURE)
    folds = list(KFold(4).split(X))
    chosen = SparseRegressorCV(L1(1.0), Poisson(), alphas=[0.3, 0.1], cv=folds).fit(X, OVER, offset=offset)
    expected = fit_cv(X, OVER, L1(1.0), datafit=Poisson(), alphas=[0.3, 0.1], cv=folds, offset=offset)
    np.testing.assert_allclose(chosen.loss_path_.T, expected.losses)
    with config_context(enable_metadata_routing=True):
        model = SparseRegressor(L1(0.1), Poisson()).set_fit_request(offset=True).set_score_request(offset=True)
        search = GridSearchCV(model, {"penalty__alpha": [0.3, 0.1]}, cv=folds, scoring=None).fit(X, OVER, offset=offset)
    train, test = folds[0]
    alone = SparseRegressor(L1(0.3), Poisson()).fit(X[train], OVER[train], offset=offset[train])
    score = alone.score(X[test], OVER[test], offset=offset[test])
    assert search.cv_results_["split0_test_score"][0] == pytest.approx(score)


@pytest.mark.parametrize("target", [THREE, CLASSES], ids=["three", "two"])
@pytest.mark.parametrize(
    "model", [SparseClassifier(L1(0.01)), LogisticRegression(), LogisticRegressionCV(Cs=[0.1, 1.0])]
)
def test_balanced_where_all_rows_of_a_class_weigh_nothing(model, target):
    weights = np.where(target == target.max(), 0.0, RNG.uniform(0.5, 2.0, N))
    kept = weights > 0
    with np.errstate(divide="ignore"):
        factors = compute_class_weight("balanced", classes=np.unique(target), y=target, sample_weight=weights)
    named = dict(enumerate(np.where(np.isinf(factors), 7.0, factors).tolist()))
    balanced, by_hand = (
        clone(model).set_params(class_weight=given).fit(X, target, weights) for given in ("balanced", named)
    )
    np.testing.assert_allclose(balanced.coef_, by_hand.coef_, atol=1e-9)
    assert (balanced.predict(X[kept]) != target.max()).all()


TEXTS = {"strings": "U", "bytes": "S"}


@pytest.mark.parametrize("kind", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("model", [Lasso(0.01), SparseRegressor(L1(0.01)), SparseClassifier(L1(0.01))])
def test_text_that_looks_like_digits_is_refused(model, kind):
    digits = RNG.integers(0, 9, (N, 2))
    text, fitted = digits.astype(kind), clone(model).fit(digits, CLASSES)
    for refused in (text, text.tolist()):
        with pytest.raises(ValueError, match="not compatible with arrays of bytes/strings"):
            fitted.predict(refused)
        with pytest.raises(ValueError, match="not compatible with arrays of bytes/strings"):
            clone(model).fit(refused, CLASSES)
    with pytest.raises(ValueError, match="not compatible with arrays of bytes/strings"):
        linear_model.Lasso(0.01).fit(digits, CLASSES).predict(text)


def test_data_near_the_largest_number_end_in_an_error_that_says_so():
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="values and need to be preprocessed"):
        ElasticNet(0.1).fit(np.finfo(float).max * RNG.uniform(size=(10, 2)), np.arange(10.0))
