"""What follows from a path: information criteria by hand, refits, pickles; and what a fit refuses to be told."""

import math
import pickle

import numpy as np
import pytest
import torch
from helpers import F64

from torchreg import L1, Group, rows
from torchreg.linear import Huber, Logistic, Multinomial, Poisson, SquaredHinge, fit_cv, fit_path, solve

RNG = np.random.default_rng(0)
N, P = 80, 12
X = RNG.standard_normal((N, P))
ETA = X[:, 0] - X[:, 1]
Y = ETA + 0.5 * RNG.standard_normal(N)
TASKS = np.stack([Y, RNG.standard_normal(N), 2.0 * X[:, 2]], 1)
CLASSES = (Y > 0).astype(float) + (Y > 1)
TARGETS = {"least squares": Y, "tasks": TASKS, "logistic": Y > 0, "classes": CLASSES, "counts": np.round(np.exp(ETA))}
LOSSES = {"logistic": Logistic(), "classes": Multinomial(), "counts": Poisson()}


def log_likelihood(name, path, k):
    """Of one point, up to terms without coefficients; Gaussian noise has its best variance, one for all outputs."""
    eta = X @ path.coef(k).numpy() + path.intercepts[k].numpy()
    y = TARGETS[name]
    if name == "logistic":
        return -np.log1p(np.exp(-(2.0 * y - 1.0) * eta)).sum()
    if name == "classes":
        return (eta[np.arange(N), y.astype(int)] - np.log(np.exp(eta).sum(1))).sum()
    if name == "counts":
        return (y * eta - np.exp(eta)).sum()
    variance = ((y - eta) ** 2).mean()
    return -0.5 * y.size * math.log(variance)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_information_criteria_by_hand(name, gamma):
    path = fit_path(X, TARGETS[name], L1(1.0), datafit=LOSSES.get(name), alphas=5, eps=0.05)
    for k in range(len(path)):
        coef = path.coef(k).numpy()
        df, fit = np.count_nonzero(coef), -2.0 * log_likelihood(name, path, k)
        prices = {"aic": 2 * df, "bic": math.log(N) * df}
        prices["ebic"] = prices["bic"] + 2.0 * gamma * math.log(math.comb(coef.size, df))
        for kind, price in prices.items():
            assert float(path.criterion(kind, gamma=gamma)[k]) == pytest.approx(fit + price, rel=1e-9, abs=1e-9)


def test_criteria_that_do_not_exist():
    with pytest.raises(ValueError, match="'aic', 'bic' or 'ebic', got 'cv'"):
        fit_path(X, Y, L1(1.0), alphas=2).criterion("cv")
    for datafit, y in ((Huber(), Y), (SquaredHinge(), Y > 0)):
        with pytest.raises(ValueError, match="no likelihood"):
            fit_path(X, y, L1(1.0), datafit=datafit, alphas=2, tol=1e-2).criterion()


def test_a_pickle_holds_no_data():
    wide = RNG.standard_normal((200, 1000))
    path = fit_path(wide, wide[:, 0], L1(1.0), alphas=5, eps=0.5)
    data = pickle.dumps(path)
    assert len(data) < wide.nbytes / 20
    back = pickle.loads(data)
    assert torch.equal(back.coefs, path.coefs)
    assert torch.equal(back.criterion("ebic"), path.criterion("ebic"))
    assert torch.equal(back.predict(wide), path.predict(wide))
    with pytest.raises(RuntimeError, match="no data to refit"):
        back.relax()


def test_refits_are_judged():
    path = fit_path(X, Y, L1(1.0), alphas=5, eps=0.05)
    relaxed = path.relax()
    assert relaxed.converged.all()
    for k in range(len(path)):
        chosen = path.coef(k).nonzero().flatten().numpy()
        table = np.column_stack([np.ones(N), X[:, chosen]])
        answer = np.linalg.lstsq(table, Y, rcond=None)[0]
        assert np.allclose(relaxed.coef(k)[chosen].numpy(), answer[1:], atol=1e-9)
        assert float(relaxed.losses[k]) <= float(path.losses[k]) + 1e-12
    counted = fit_path(X, TARGETS["counts"], L1(1.0), datafit=Poisson(), alphas=3, eps=0.1).relax()
    assert counted.converged.all()
    assert float(counted.dual_gaps.max()) <= counted.tol * counted.null_objective


def test_paths_and_fits_are_compared_by_identity():
    path = fit_path(X, Y, L1(1.0), alphas=3)
    assert path == path
    assert path != fit_path(X, Y, L1(1.0), alphas=3)
    assert path.at(float(path.alphas[1])) != path.at(float(path.alphas[1]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_lies_on_the_device():
    path = fit_path(torch.tensor(X, device="cuda"), Y, L1(1.0), alphas=4)
    assert {t.device.type for t in (path.n_iters, path.n_nonzero, path.converged, path.coefs)} == {"cuda"}
    assert path.n_iters[path.converged].shape == (4,)


@pytest.mark.parametrize("fit", [fit_path, fit_cv, solve])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"penalty": "l1"}, TypeError, "penalty must be a Penalty like L1.*got 'l1'"),
        ({"penalty": L1}, TypeError, "got the class L1; make one: L1"),
        ({"datafit": "logistic"}, TypeError, "datafit must be a Datafit like Logistic.*got 'logistic'"),
        ({"datafit": Logistic}, TypeError, "got the class Logistic; make one: Logistic"),
        ({"tol": -1e-3}, ValueError, "tol must be a finite number >= 0, got -0.001"),
        ({"tol": math.nan}, ValueError, "tol must be a finite number >= 0, got nan"),
        ({"tol": "small"}, ValueError, "tol must be a finite number >= 0, got 'small'"),
        ({"max_iter": 0}, ValueError, "max_iter must be an int >= 1.*got 0"),
        ({"max_iter": 2.5}, ValueError, "max_iter must be an int >= 1.*got 2.5"),
        ({"max_iter": True}, ValueError, "max_iter must be an int >= 1.*got True"),
    ],
    ids=str,
)
def test_settings_that_are_refused(fit, change, error, words):
    if fit is solve and "max_iter" in change:
        pytest.skip("solve has no limit")
    options = dict(change)
    penalty = options.pop("penalty", L1(0.1))
    with pytest.raises(error, match=words):
        fit(X, Y, penalty, **options)


def test_numbers_of_numpy_are_settings_too():
    path = fit_path(X, TASKS, Group(L1(1.0), rows), alphas=3, tol=np.float32(1e-6), max_iter=np.int64(50))
    assert path.converged.all()
    assert path.coefs.dtype == F64
