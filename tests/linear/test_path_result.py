"""What follows from a fitted path: criteria, copies and refits; and what fits refuse before they look at data."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold

from torchreg import L1, Group, rows
from torchreg.linear import LassoCV, LogisticRegressionCV, RidgeCV, fit_cv, fit_path, refit, solve
from torchreg.linear.datafits import Datafit, Huber, Logistic, Multinomial, Poisson, Quadratic, SquaredHinge
from torchreg.linear.folds import packed_folds, unpacked_folds
from torchreg.linear.path_result import summary

F64 = torch.float64
N, P = 60, 6
ROUNDED = 1e-12  # of sums of logarithms, relative


def drawn(seed=0, outputs=None):
    draw = np.random.default_rng(seed)
    X = draw.standard_normal((N, P))
    coef = np.zeros((P, outputs or 1))
    coef[:2] = draw.standard_normal((2, outputs or 1)) + 1.0
    y = X @ coef + draw.standard_normal((N, outputs or 1))
    return X, y if outputs else y[:, 0]


def labels(y):
    return (y > 0).astype(float)


def price_of(kind, n, size, df):
    combinations = math.log(math.comb(size, df))
    return {"aic": 2 * df, "bic": math.log(n) * df, "ebic": math.log(n) * df + 2 * 0.5 * combinations}[kind]


each_kind = pytest.mark.parametrize("kind", ["aic", "bic", "ebic"])


def assert_criterion(path, kind, deviances, n, size):
    found = path.criterion(kind, gamma=0.5)
    dfs = [int(np.count_nonzero(coef)) for coef in path.coefs.numpy()]
    assert max(dfs) > min(dfs)
    expected = [d + price_of(kind, n, size, df) for d, df in zip(deviances, dfs, strict=True)]
    assert found.dtype == F64
    np.testing.assert_allclose(found, expected, rtol=ROUNDED)


@each_kind
@pytest.mark.parametrize("outputs", [None, 3])
def test_criterion_of_least_squares(kind, outputs):
    X, y = drawn(outputs=outputs)
    path = fit_path(X, y, L1(1.0), alphas=6, eps=1e-2)
    many, solutions = outputs or 1, (path.coefs.numpy(), path.intercepts.numpy())
    squares = [float(((y - (X @ c + b)) ** 2).sum()) for c, b in zip(*solutions, strict=True)]
    deviances = [N * many * math.log(s / (N * many)) for s in squares]  # all outputs share one variance
    assert_criterion(path, kind, deviances, N, P * many)
    partly = path.n_nonzero * many > (path.coefs != 0).reshape(6, -1).sum(1)
    assert bool(partly.any()) == (many > 1)  # coefficients are counted, not rows: some rows are partly zero


@each_kind
@pytest.mark.parametrize("datafit", [Logistic(), Poisson(), Multinomial()], ids=lambda d: type(d).__name__)
def test_criterion_of_likelihoods(kind, datafit):
    X, y = drawn()
    if isinstance(datafit, Multinomial):
        y = np.digitize(y, [-0.5, 0.5])
    else:
        y = labels(y) if isinstance(datafit, Logistic) else np.random.default_rng(1).poisson(np.exp(y / 4))
    path = fit_path(X, y, L1(1.0), datafit=datafit, alphas=6, eps=1e-2)
    deviances = []
    for c, b in zip(path.coefs.numpy(), path.intercepts.numpy(), strict=True):
        eta = X @ c + b
        if isinstance(datafit, Poisson):
            rows_of = np.exp(eta) - y * eta
        elif isinstance(datafit, Logistic):
            rows_of = np.log1p(np.exp(eta)) - y * eta
        else:
            rows_of = np.log(np.exp(eta).sum(1)) - eta[np.arange(N), y]
        deviances.append(2 * rows_of.sum())
    assert_criterion(path, kind, deviances, N, path.coefs[0].numel())


@each_kind
@pytest.mark.parametrize("datafit", [Quadratic(), Logistic()], ids=lambda d: type(d).__name__)
def test_rows_of_weight_zero_do_not_count(kind, datafit):
    X, y = drawn()
    y = labels(y) if isinstance(datafit, Logistic) else y
    weights = (np.arange(N) % 3 > 0).astype(float)
    arguments = {"datafit": datafit, "alphas": [0.1, 0.01], "tol": 1e-12}
    weighted = fit_path(X, y, L1(1.0), sample_weight=weights, **arguments)
    fewer = fit_path(X[weights > 0], y[weights > 0], L1(1.0), **arguments)
    assert (weighted.n_samples, weighted.n_weighted) == (N, 40)
    np.testing.assert_allclose(weighted.criterion(kind), fewer.criterion(kind), rtol=1e-9)  # the gaps, by n


def test_rows_of_chunks_count():
    X, y = drawn()
    whole = fit_path(X, y, L1(1.0), alphas=[0.1])
    parts = fit_path([(X[:40], y[:40]), (X[40:], y[40:])], None, L1(1.0), alphas=[0.1])
    np.testing.assert_allclose(parts.criterion(), whole.criterion(), rtol=1e-9)


def test_no_residuals_are_minus_infinity():
    path = fit_path(torch.eye(4), torch.tensor([1.0, 0.0, 0.0, 0.0]), L1(1.0), alphas=[0.1, 0.0], fit_intercept=False)
    assert path.criterion().isinf().tolist() == [False, True]


def test_bad_criteria():
    X, y = drawn()
    path = fit_path(X, y, L1(1.0), alphas=[0.1])
    with pytest.raises(ValueError, match="'aic', 'bic' or 'ebic', got 'mdl'"):
        path.criterion("mdl")
    for gamma in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="gamma must be a finite number >= 0"):
            path.criterion("ebic", gamma=gamma)


class Own(Datafit):
    """Logistic, by the two methods that a user has to write."""

    def value(self, eta, y):
        return torch.nn.functional.softplus(eta) - y * eta

    def grad(self, eta, y):
        return torch.sigmoid(eta) - y


class OwnLikelihood(Own):
    likelihood = True


def test_a_datafit_that_is_no_likelihood_has_no_criterion():
    X, y = drawn()
    for datafit in (Huber(1.0), SquaredHinge(), Own()):
        target = y if isinstance(datafit, Huber) else labels(y)
        path = fit_path(X, target, L1(1.0), datafit=datafit, alphas=[0.1], tol=1e-5)
        with pytest.raises(ValueError, match=r"is no likelihood.*fit_cv.*likelihood = True"):
            path.criterion("bic")
    own = fit_path(X, labels(y), L1(1.0), datafit=OwnLikelihood(), alphas=[0.1], tol=1e-9)
    logistic = fit_path(X, labels(y), L1(1.0), datafit=Logistic(), alphas=[0.1], tol=1e-9)
    np.testing.assert_allclose(own.criterion("aic"), logistic.criterion("aic"), rtol=1e-6)


def same(one, other):
    tensors = ("alphas", "coefs", "intercepts", "dual_gaps", "losses", "n_iters", "n_nonzero", "converged")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)


def unpickled(path):
    return pickle.loads(pickle.dumps(path))


@pytest.mark.parametrize("outputs", [None, 3])
def test_a_pickled_path_does_all_that_a_path_does(outputs):
    X, y = drawn(outputs=outputs)
    path = fit_path(X, y, L1(1.0), alphas=6)
    loaded = unpickled(path)
    assert same(loaded, path)
    assert torch.equal(loaded.criterion(), path.criterion())
    assert torch.equal(loaded.predict(X), path.predict(X))
    assert torch.equal(loaded.at(float(path.alphas[2])).coef, path.coef(2))
    assert same(refit(loaded, X, y), refit(path, X, y))
    assert same(unpickled(refit(path, X, y)), refit(path, X, y))


def test_pickles_do_not_hold_the_training_data():
    X = np.random.default_rng(0).standard_normal((20_000, 30))
    y = X[:, 0] + np.random.default_rng(1).standard_normal(20_000)
    estimator = LassoCV(alphas=10, cv=[(np.arange(100), np.arange(100, 200))]).fit(X, y)
    chosen = fit_cv(X, y, L1(1.0), alphas=10, cv=[(np.arange(100), np.arange(100, 200))] * 2)
    assert hasattr(estimator, "path_")
    for fitted in (estimator, chosen, chosen.path, refit(chosen.path, X, y)):
        held = pickle.dumps(fitted)
        assert len(held) < 60_000  # y alone is 160 000 bytes; paths of 10 points in 30 features are 10 000
        assert y[5000:5002].tobytes() not in held
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(estimator)).predict(X[:5]), estimator.predict(X[:5]))


@pytest.mark.parametrize(("cv", "most"), [(5, 40_000), (KFold(5, shuffle=True, random_state=0), 140_000)], ids=str)
def test_a_pickle_is_kilobytes_however_many_rows_there_are(cv, most):
    """Row numbers alone are 2 MB as they are. Of drawn folds there are 36 kB to be told, the entropy of their draw."""
    n = 50_000
    X = np.random.default_rng(0).standard_normal((n, 12))
    model = LassoCV(alphas=10, cv=cv).fit(X, X[:, 0])
    held = pickle.dumps(model)
    assert len(held) < most < X.nbytes / 30
    loaded = pickle.loads(held)
    for before, after in zip(model.path_.folds, loaded.path_.folds, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("make", [LassoCV, RidgeCV, LogisticRegressionCV], ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", ["splitter", "masks"])
def test_folds_of_estimators_are_row_numbers_and_come_back(make, kind):
    X, y = drawn()
    pairs = list(KFold(3).split(X))
    masks = [tuple(np.isin(np.arange(N), part) for part in pair) for pair in pairs]
    cv = KFold(3) if kind == "splitter" else masks
    options = {"use_legacy_attributes": False} if make is LogisticRegressionCV else {}
    model = make(cv=cv, **options).fit(X, labels(y) if options else y)
    for fitted in (model, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        for found, expected in zip(fitted.path_.folds, pairs, strict=True):
            assert all(torch.equal(one, torch.from_numpy(other)) for one, other in zip(found, expected, strict=True))


def test_rows_left_out_in_turn_are_no_folds():
    model = RidgeCV().fit(*drawn())
    assert model.path_.folds == pickle.loads(pickle.dumps(model)).path_.folds == ()


@pytest.mark.parametrize(
    "rows_of", [[3, 1, 1, 0], [], [5], list(range(7)), [6, 0, 6]], ids=["twice", "none", "one", "all", "down"]
)
def test_folds_of_any_order_are_unpacked_as_they_were(rows_of):
    fold = torch.tensor(rows_of, dtype=torch.long), torch.arange(3)
    for before, after in zip(fold, unpacked_folds(packed_folds([fold]))[0], strict=True):
        assert after.dtype == torch.long
        assert torch.equal(before, after)


def test_results_do_not_keep_the_data_in_memory():
    X, y = drawn()
    kept = [weakref.ref(X), weakref.ref(y)]
    results = [fit_path(X, y, L1(1.0), alphas=6), fit_cv(X, y, L1(1.0), alphas=6), LassoCV(alphas=6, cv=3).fit(X, y)]
    results += [refit(results[0], X, y)]
    del X, y
    gc.collect()
    assert results
    assert [held() for held in kept] == [None, None]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_are_the_same_path(copied):
    X, y = drawn()
    path, cv = fit_path(X, y, L1(1.0), alphas=6), fit_cv(X, y, L1(1.0), alphas=6)
    for one, other in ((path, copied(path)), (cv.path, copied(cv).path)):
        assert same(other, one)
        assert same(refit(other, X, y), refit(one, X, y))
    assert copied(path) is not path
    assert all(torch.equal(*pair) for pair in zip(copied(cv).folds[1], cv.folds[1], strict=True))


def test_what_a_refit_asks_for_is_what_the_path_was_fitted_to():
    X, y = drawn()
    path = fit_path(X, y, L1(1.0), alphas=3)
    assert not hasattr(path, "relax")
    with pytest.raises(AttributeError, match=r"holds no data.*refit\(path, X, y\)"):
        path.relax()
    with pytest.raises(ValueError, match="X has 5 features, but the fit is expecting 6"):
        refit(path, X[:, :5], y)
    with pytest.raises(ValueError, match=r"outputs of shape \(\), but y asks for \(2,\)"):
        refit(path, X, np.column_stack([y, y]))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        refit(path, X, y[:-1])
    with pytest.raises(TypeError, match=r"refit takes a Path.*CVPath\.path.*got CVPath"):
        refit(fit_cv(X, y, L1(1.0), alphas=3), X, y)
    with pytest.raises(ValueError, match=r"max_iter must be an int >= 1.*got 0"):
        refit(path, X, y, max_iter=0)
    classes = fit_path(X, np.arange(N) % 3, L1(1.0), datafit=Multinomial(), alphas=3)
    with pytest.raises(ValueError, match="all the classes"):
        refit(classes, X, np.arange(N) % 2)


@pytest.mark.parametrize("standardize", [False, True])
def test_a_refit_to_other_rows_with_weights_and_an_offset_is_their_least_squares(standardize):
    """Columns chosen on one half, estimated on the other."""
    X, y = drawn()
    path = fit_path(X[:30], y[:30], L1(1.0), alphas=4, eps=0.05, standardize=standardize)
    weights, offset = np.linspace(0.0, 2.0, 30), np.linspace(-1.0, 1.0, 30)
    other = refit(path, X[30:], y[30:], sample_weight=weights, offset=offset)
    assert other.converged.all()
    assert (other.n_samples, other.n_weighted, other.alphas.tolist()) == (30, 29, path.alphas.tolist())
    root = np.sqrt(weights / weights.sum())
    for k, coef in enumerate(other.coefs.numpy()):
        chosen = path.coef(k).numpy() != 0
        table = np.column_stack([np.ones(30), X[30:, chosen]])
        answer = np.linalg.lstsq(root[:, None] * table, root * (y[30:] - offset), rcond=None)[0]
        np.testing.assert_allclose(coef[chosen], answer[1:], atol=1e-9)
        np.testing.assert_allclose(other.intercepts[k], answer[0], atol=1e-9)
        loss = 0.5 * np.square(root * (y[30:] - offset - table @ answer)).sum()
        np.testing.assert_allclose(other.losses[k], loss, rtol=1e-9)


def test_deep_copies_share_no_results():
    path = fit_path(*drawn(), L1(1.0), alphas=6)
    other, twice = copy.deepcopy(path), copy.deepcopy([path, path])
    other.alphas.zero_()
    other._points[-1].values.zero_()
    assert path.alphas.all()
    assert path.coef(5).any()
    assert twice[0] is twice[1]  # one object in, one object out
    estimator = LassoCV(alphas=5, cv=3).fit(*drawn())
    assert same(copy.deepcopy(estimator).path_.path, estimator.path_.path)


def test_dense_coefficients_are_not_kept():
    path = fit_path(*drawn(), L1(1.0), alphas=6)
    before = set(vars(path))
    assert path.coefs is not path.coefs
    assert set(vars(path)) == before


def overlapping(datafit, X, seed=3):
    """Targets for which the loss has a minimum without a penalty."""
    draw = np.random.default_rng(seed)
    noisy = X[:, 0] + draw.standard_normal(len(X))
    if isinstance(datafit, Poisson):
        return draw.poisson(np.exp(X[:, 0])).astype(float)
    if isinstance(datafit, Multinomial):
        return np.digitize(noisy, [-0.5, 0.5])
    return noisy if isinstance(datafit, Huber) else labels(noisy)


each_datafit = pytest.mark.parametrize(
    "datafit", [Logistic(), Multinomial(), Poisson(), Huber(1.0)], ids=lambda d: type(d).__name__
)


@each_datafit
def test_a_refit_has_converged_where_the_gradient_vanishes(datafit):
    X, _ = drawn()
    y = overlapping(datafit, X)
    path = fit_path(X, y, L1(1.0), datafit=datafit, alphas=5, eps=1e-2)
    relaxed = refit(path, X, y)
    assert relaxed.converged.all()
    for coef, intercept in zip(relaxed.coefs, relaxed.intercepts, strict=True):
        gradient = datafit.grad(torch.from_numpy(X) @ coef + intercept, datafit.prepare(torch.from_numpy(y)))
        assert ((torch.from_numpy(X).T @ gradient / N)[coef != 0].abs() < 1e-6).all()


@each_datafit
def test_a_refit_that_was_stopped_has_not_converged(datafit):
    X, _ = drawn()
    y = overlapping(datafit, X)
    path = fit_path(X, y, L1(1.0), datafit=datafit, alphas=[0.05], tol=1e-9)
    stopped = refit(path, X, y, max_iter=1)
    assert path.converged.all()
    assert not stopped.converged.any()


def separated(kind, X):
    """Targets, and columns to see them by, without a maximum of the likelihood."""
    few = (np.arange(N) < 4).astype(float)
    if kind == "all rows":
        return Logistic(), X, labels(X[:, 0] - X[:, 1])
    if kind == "classes":
        return Multinomial(), X, np.digitize(X[:, 0], [-0.5, 0.5])
    columns = np.column_stack([X, few])  # the last column separates four rows from nothing
    if kind == "counts":
        return Poisson(), columns, np.where(few > 0, 0.0, 1.0 + overlapping(Poisson(), X))
    return Logistic(), columns, np.where(few > 0, 1.0, overlapping(Logistic(), X))


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("kind", ["all rows", "some rows", "classes", "counts"])
def test_a_loss_without_a_minimum_is_never_converged(kind, scale):
    X, _ = drawn()
    datafit, X, y = separated(kind, X)
    path = fit_path(scale * X, y, L1(1.0), datafit=datafit, alphas=4, eps=1e-4)
    relaxed = refit(path, scale * X, y)
    full = path.n_nonzero == X.shape[1]
    assert path.converged.all()
    assert full.any()
    assert not relaxed.converged[full].any()
    assert relaxed.converged[0]  # the intercept alone
    assert (relaxed.dual_gaps[full] < 1e-9).all()  # which is true: the objective is as near to its bound


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_units_do_not_decide_whether_a_refit_converged(scale):
    X, _ = drawn()
    for datafit in (Logistic(), Poisson()):
        y = overlapping(datafit, X)
        path = fit_path(scale * X, y, L1(1.0), datafit=datafit, alphas=4, eps=1e-2)
        assert refit(path, scale * X, y).converged.all()


def test_rows_of_weight_zero_do_not_keep_a_refit_from_converging():
    X, _ = drawn()
    y, weights = overlapping(Logistic(), X), np.ones(N)
    X[0], weights[0] = 1e3, 0.0
    path = fit_path(X, y, L1(1.0), datafit=Logistic(), alphas=3, sample_weight=weights)
    assert refit(path, X, y, sample_weight=weights).converged.all()


def test_results_lie_on_one_device(accelerator):
    X, y = (torch.from_numpy(part).to(accelerator) for part in drawn())
    path = fit_path(X, y, L1(1.0), alphas=4)
    for one in (path, refit(path, X, y)):
        found = one.n_nonzero, one.n_iters, one.converged, one.criterion(), one.coefs, one.dual_gaps
        assert all(part.device == one.alphas.device for part in found)


def test_results_lie_where_the_alphas_lie():
    """As on a GPU, on the device that holds no numbers."""
    path = fit_path(*drawn(), L1(1.0), alphas=4)
    moved = replace(path, alphas=path.alphas.to("meta"))
    assert moved.n_nonzero.device.type == "meta"
    assert summary(path._points, path.objectives.to("meta"))["n_iters"].device.type == "meta"


def test_a_refit_is_that_of_least_squares():
    X, y = drawn()
    path = fit_path(X, y, L1(1.0), alphas=5, eps=0.05)
    relaxed = refit(path, X, y)
    assert relaxed.converged.all()
    assert (relaxed.losses <= path.losses + 1e-12).all()
    for k, coef in enumerate(relaxed.coefs.numpy()):
        chosen = path.coef(k).numpy() != 0
        answer = np.linalg.lstsq(np.column_stack([np.ones(N), X[:, chosen]]), y, rcond=None)[0]
        np.testing.assert_allclose(coef[chosen], answer[1:], atol=1e-9)
        assert not coef[~chosen].any()


def test_results_are_compared_by_identity():
    """Equality of fields is that of tensors, which is no yes or no."""
    X, y = drawn()

    def results():
        path = fit_path(X, y, L1(1.0), alphas=3)
        return path, path.at(float(path.alphas[1])), fit_cv(X, y, L1(1.0), alphas=3), solve(X, y, L1(0.1))

    for one, other in zip(results(), results(), strict=True):
        assert one == one
        assert one != other
        assert len({one, other}) == 2


@pytest.mark.parametrize("fit", [fit_path, fit_cv, solve])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"penalty": "l1"}, TypeError, "penalty must be a Penalty like L1.*got 'l1'"),
        ({"penalty": L1}, TypeError, "got the class L1; make one: L1"),
        ({"datafit": "logistic"}, TypeError, "datafit must be a Datafit like Logistic.*got 'logistic'"),
        ({"penalty": None}, TypeError, "penalty must be a Penalty like L1.*got None"),
        ({"penalty": 0.1}, TypeError, "penalty must be a Penalty like L1.*got 0.1"),
        ({"datafit": Logistic}, TypeError, "got the class Logistic; make one: Logistic"),
        ({"tol": -1e-3}, ValueError, "tol must be a finite number >= 0, got -0.001"),
        ({"tol": math.nan}, ValueError, "tol must be a finite number >= 0, got nan"),
        ({"tol": math.inf}, ValueError, "tol must be a finite number >= 0, got inf"),
        ({"tol": None}, ValueError, "tol must be a finite number >= 0, got None"),
        ({"tol": "small"}, ValueError, "tol must be a finite number >= 0, got 'small'"),
        ({"max_iter": 0}, ValueError, "max_iter must be an int >= 1.*got 0"),
        ({"max_iter": -3}, ValueError, "max_iter must be an int >= 1.*got -3"),
        ({"max_iter": 2.5}, ValueError, "max_iter must be an int >= 1.*got 2.5"),
        ({"max_iter": True}, ValueError, "max_iter must be an int >= 1.*got True"),
    ],
    ids=str,
)
def test_settings_that_are_refused(fit, change, error, words):
    X, y = drawn()
    if fit is solve and "max_iter" in change:
        pytest.skip("solve has no limit")
    options = dict(change)
    penalty = options.pop("penalty", L1(0.1))
    with pytest.raises(error, match=words):
        fit(X, y, penalty, **options)


@pytest.mark.parametrize("fit", [fit_path, fit_cv])
def test_settings_that_are_taken(fit):
    """The edges of what is allowed, and numbers of numpy."""
    X, y = drawn()
    edge = fit(X, y, L1(1.0), alphas=3, tol=0, max_iter=1)
    numpys = fit(X, y, Group(L1(1.0), rows), alphas=3, tol=np.float32(1e-6), max_iter=np.int64(50))
    plain = fit(X, y, Group(L1(1.0), rows), alphas=3, tol=float(np.float32(1e-6)), max_iter=50)
    for found in (edge, numpys, plain):
        path = getattr(found, "path", found)
        assert len(path.alphas) == 3
        assert path.coefs.isfinite().all()
    assert torch.equal(getattr(numpys, "path", numpys).coefs, getattr(plain, "path", plain).coefs)


def test_settings_are_looked_at_before_the_data():
    with pytest.raises(TypeError, match="penalty must be a Penalty"):
        fit_path(None, None, "l1")
