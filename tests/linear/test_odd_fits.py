"""Odd input of fits: what can be read is read, all else is refused in words that say what to do."""

import numpy as np
import pytest
import torch

from torchreg import L1, L2, MCP, Group, Weighted, labels
from torchreg.linear import (
    Huber,
    Lasso,
    Logistic,
    Multinomial,
    RidgeCV,
    RowChunks,
    SparseGroupLasso,
    fit_cv,
    fit_path,
    refit,
    solve,
)

DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((30, 3))
Y = X[:, 0] + 0.1 * DRAW.standard_normal(30)
WEIGHTS = DRAW.uniform(0.5, 2.0, 30)
BACKWARDS = slice(None, None, -1)  # a view whose strides are negative


@pytest.mark.parametrize("cv", [None, 3])
def test_views_with_negative_strides(cv):
    one = RidgeCV(cv=cv).fit(X[BACKWARDS], Y[BACKWARDS], WEIGHTS[BACKWARDS])
    same = RidgeCV(cv=cv).fit(X[BACKWARDS].copy(), Y[BACKWARDS].copy(), WEIGHTS[BACKWARDS].copy())
    assert (one.coef_ == same.coef_).all()
    factors = np.array([1.0, 2.0, 3.0])
    for model in (Lasso(alpha=0.1), RidgeCV()):
        one, same = (type(model)(penalty_weights=c).fit(X, Y) for c in (factors[BACKWARDS], factors[BACKWARDS].copy()))
        assert (one.coef_ == same.coef_).all()
    sizes = np.array([1.0, 2.0])[BACKWARDS]
    assert SparseGroupLasso(alpha=0.1, groups=[0, 0, 1], group_weights=sizes).fit(X, Y).coef_.shape == (3,)


REFUSED = {
    "labels": (
        {"y": np.where(Y > 0, "up", "down"), "datafit": Logistic()},
        ValueError,
        "'(up|down)'.*number the classes",
    ),
    "words in alphas": ({"alphas": ["a"]}, TypeError, r"sequence of strengths, got \['a'\]"),
    "a table of alphas": ({"alphas": np.ones((2, 2))}, TypeError, "sequence of strengths"),
    "true among alphas": ({"alphas": [True]}, TypeError, "sequence of strengths"),
    "a word as eps": ({"eps": "small"}, ValueError, "eps must be between 0 and 1, got 'small'"),
    "an array as start": ({"init": np.zeros(3)}, ValueError, "init takes a pair"),
    "a word as start": ({"init": "zeros"}, ValueError, "init takes a pair.*'zeros'"),
    "half a start": ({"init": (np.zeros(3), None)}, ValueError, "init takes a pair"),
    "a word as a flag": ({"fit_intercept": "no"}, TypeError, "fit_intercept takes True or False, got 'no'"),
    "no flag": ({"standardize": None}, TypeError, "standardize takes True or False, got None"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_are_none(name):
    options, kind, words = REFUSED[name]
    for fit in (fit_path, fit_cv):
        with pytest.raises(kind, match=words):
            fit(**({"X": X, "y": Y, "penalty": L1(1.0), "alphas": 3} | options))


def test_solve_refuses_such_a_flag_too():
    with pytest.raises(TypeError, match="fit_intercept takes True or False, got 'no'"):
        solve(X, Y, L1(0.1), fit_intercept="no")


class KFold:
    """Splits as scikit-learn's splitters do."""

    def split(self, features, target):
        return [([0], [1])]


FOLDS = {
    "three parts": ({"cv": [([0, 1], [2], [3])]}, ValueError, "got 3 parts"),
    "numbers": ({"cv": [0, 1, 2]}, TypeError, r"pairs \(train, test\).*got 0 for one"),
    "words": ({"cv": [(["a"], ["b"])]}, TypeError, "row numbers or a mask.*0 to 29"),
    "halves of rows": ({"cv": [([0.5, 1.0], [2.0])]}, TypeError, "row numbers or a mask.*float64"),
    "tables": ({"cv": [([[0, 1]], [2])]}, TypeError, r"one dimension.*shape \(1, 2\)"),
    "a class of splitters": ({"cv": KFold}, TypeError, r"cv takes a number of folds.*KFold"),
    "a word as a seed": ({"random_state": "a"}, TypeError, "random_state takes a whole number.*'a'"),
    "a word as a metric": ({"metric": "mse"}, TypeError, "metric takes a function.*'mse'"),
    "a loss of each row": ({"metric": lambda y, eta, weights: (y - eta) ** 2}, ValueError, r"one number.*shape \(6,\)"),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folds_and_metrics_that_are_none(name):
    options, kind, words = FOLDS[name]
    with pytest.raises(kind, match=words):
        fit_cv(X, Y, L1(1.0), alphas=3, **options)


def test_a_rule_that_chooses_no_strength():
    fitted = fit_cv(X, Y, L1(1.0), alphas=3, rule=lambda cv: 99)
    with pytest.raises(ValueError, match="The rule chose index 99, but there are 3 strengths"):
        fitted.alpha  # noqa: B018


def test_new_rows_have_the_columns_of_the_fit():
    path = fit_path(X, Y, L1(1.0), alphas=3)
    for read in (path.predict, path.decision, path.at(path.alpha_max).predict):
        with pytest.raises(ValueError, match="X has 2 features, but the fit is expecting 3 features"):
            read(X[:, :2])


def test_tensors_among_alphas_are_numbers():
    alphas = [torch.tensor(0.2), np.float32(0.1), 0.05]
    assert len(fit_path(X, Y, L1(1.0), alphas=alphas)) == 3


@pytest.mark.parametrize("chosen", [-1, 0.03, None, "1se", torch.tensor(0.5), np.float64(1.0)])
def test_what_a_rule_gives_is_an_index_and_not_a_strength(chosen):
    fitted = fit_cv(X, Y, L1(1.0), alphas=3, rule=lambda cv: chosen)
    with pytest.raises(ValueError, match=r"The rule chose index .*return an index into alphas.*index_1se"):
        fitted.best  # noqa: B018


@pytest.mark.parametrize("chosen", [1, np.int64(1), torch.tensor(1), np.array(1)])
def test_whole_numbers_of_any_library_are_an_index(chosen):
    assert fit_cv(X, Y, L1(1.0), alphas=3, rule=lambda cv: chosen).index == 1


def test_an_undefined_metric_chooses_nothing():
    def of_large(target, eta, weights):
        return (weights * (target - eta).abs()).sum() + (0.0 if bool((target > 1.0).any()) else torch.nan)

    first = np.argsort(Y)[:10]  # none of them is large
    folds = [(np.delete(np.arange(30), first), first), (first, np.delete(np.arange(30), first))]
    with pytest.raises(ValueError, match="metric gave nan for the held-out rows of fold 1 of 2"):
        fit_cv(X, Y, L1(1.0), alphas=3, cv=folds, metric=of_large)


class OneLoss(Huber):
    """A mean where the loss of each row belongs, as training loops have it."""

    def value(self, eta, y):
        return Huber.value(self, eta, y).mean()


class OneSlope(Huber):
    def grad(self, eta, y):
        return Huber.grad(self, eta, y).mean()


class NumpySlope(Huber):
    def grad(self, eta, y):
        return Huber.grad(self, eta, y).numpy()


@pytest.mark.parametrize(
    ("datafit", "words"),
    [
        (OneLoss(), r"OneLoss.value\(eta, y\) must return the loss of each row.*shape \(30,\), got shape \(\)"),
        (OneSlope(), r"OneSlope.grad\(eta, y\) must return the derivative.*shape \(30,\), got shape \(\)"),
        (NumpySlope(), r"NumpySlope.grad\(eta, y\) must return .*got ndarray"),
    ],
)
def test_a_loss_of_ones_own_has_a_number_for_each_row(datafit, words):
    for fit in (fit_path, fit_cv):
        with pytest.raises(TypeError, match=words):
            fit(X, Y, L1(1.0), datafit=datafit, alphas=3)


def test_groups_of_tiny_columns_are_those_of_columns_of_size_1():
    penalty = Group(L1(1.0), by=labels(torch.tensor([0, 0, 1])))
    path, tiny = (fit_path(X * size, Y, penalty, alphas=5) for size in (1.0, 2.0**-500))
    assert tiny.converged.all()
    assert torch.allclose(tiny.coefs * 2.0**-500, path.coefs, rtol=0, atol=1e-6)  # both to the tolerance


def test_a_likelihood_that_overflows_is_not_converged_and_no_error():
    path = fit_path(X * 1e-300, Y > 0.0, L1(1.0), datafit=Logistic(), alphas=5, max_iter=20)
    assert not path.converged.all()


WEIGHTED = Weighted(L1(1.0), torch.tensor([0.0, 1.0, torch.inf]))
GROUPED = Group(L1(1.0), by=labels(torch.tensor([0, 0, 1])))
TWO = Y > 0.0
THREE = np.digitize(Y, [-0.5, 0.5])
ANYWHERE = {
    "L1": lambda: refit(fit_path(X, Y, L1(1.0), alphas=4), X, Y).criterion(),
    "weights": lambda: fit_path(X, Y, WEIGHTED, alphas=4, sample_weight=WEIGHTS, standardize=True).predict(X),
    "groups": lambda: fit_path(X, Y, GROUPED, alphas=4, fit_intercept=False).at(0.1).coef,
    "concave": lambda: fit_path(X, Y, MCP(1.0), alphas=4).coefs,
    "ridge": lambda: fit_path(X, Y, L2(1.0), alphas=[1.0]).coefs,
    "logistic": lambda: fit_path(X, TWO, L1(1.0), datafit=Logistic(), alphas=4).coefs,
    "smooth": lambda: fit_path(X, TWO, L2(1.0), datafit=Logistic(), alphas=[1.0]).coefs,
    "multinomial": lambda: fit_path(X, THREE, L1(1.0), datafit=Multinomial(), alphas=4).coefs,
    "groups of a likelihood": lambda: fit_path(X, TWO, GROUPED, datafit=Logistic(), alphas=4).coefs,
    "folds": lambda: fit_cv(X, Y, L1(1.0), alphas=4, random_state=0, sample_weight=WEIGHTS * (Y > -1.0)).losses,
    "folds of masks": lambda: fit_cv(X, Y, GROUPED, alphas=4, cv=[(TWO, ~TWO), (~TWO, TWO)], metric=absolute).losses,
    "chunks": lambda: fit_path(RowChunks(X, Y, size=7), None, L1(1.0), alphas=4).coefs,
    "gradients": lambda: solve(X, Y, L1(torch.tensor(0.1, requires_grad=True, device="cpu"))).coef.detach(),
    "estimators": lambda: torch.from_numpy(
        Lasso(0.1, penalty_weights=[0.0, 1.0, 1.0], warm_start=True).fit(X, Y).coef_
    ),
    "ridge by rows": lambda: torch.from_numpy(RidgeCV().fit(X, Y).coef_),
}


def absolute(target, prediction, weights):
    return float((weights * (target - prediction).abs()).sum())


@pytest.mark.parametrize("fit", ANYWHERE.values(), ids=ANYWHERE)
def test_torchs_default_device_plays_no_role(fit):
    """Tensors that are made without a device would lie on a device without memory here, as on a GPU that is default."""
    want = fit()
    with torch.device("meta"):
        have = fit()
    assert torch.equal(have, want)
