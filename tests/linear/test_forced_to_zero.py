"""Weights that force every coefficient to zero: the solution is the intercept alone, and it is exact."""

import math

import numpy as np
import pytest
import torch
from helpers import F64, normal

from torchreg import L1, L1L2, L2, MCP, Group, NonNegative, Weighted, labels
from torchreg.linear import Huber, Logistic, Poisson, Quadratic, fit_path, refit, solve

N, P = 30, 5
X, Y, S = normal((N, P)), normal((N,), 1) + 3.0, normal((N,), 2).abs() + 0.1
INF = torch.full((P,), math.inf, dtype=F64)
PENALTIES = {
    "L1": Weighted(L1(1.0), INF),
    "L1, a number": Weighted(L1(1.0), math.inf),
    "L2": Weighted(L2(1.0), INF),
    "L2, a number": Weighted(L2(1.0), math.inf),
    "L1L2": Weighted(L1L2(1.0, 0.5), INF),
    "NonNegative": NonNegative(Weighted(L1(1.0), INF)),
    "MCP": Weighted(MCP(1.0), INF),
    "Group": Group(L1(1.0), labels(torch.arange(P) // 2), weights=INF[:3]),
}
TARGETS = {Quadratic(): Y, Logistic(): (Y > 3.0).double(), Poisson(): Y.abs().round(), Huber(): Y}
each_penalty = pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
each_datafit = pytest.mark.parametrize("datafit", TARGETS, ids=repr)
each_rows = pytest.mark.parametrize("n", [N, P - 2], ids=["tall", "wide"])


@each_penalty
@each_datafit
@each_rows
@pytest.mark.parametrize("alphas", [[0.1], [1.0, 0.1, 0.01], 5], ids=["one", "several", "grid"])
@pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", "none"])
def test_all_coefficients_are_zero(penalty, datafit, n, alphas, fit_intercept):
    y, s = TARGETS[datafit][:n], S[:n]
    if len(y.unique()) == 1:
        y = torch.arange(n) % 2  # two classes
    path = fit_path(X[:n], y, penalty, datafit=datafit, alphas=alphas, sample_weight=s, fit_intercept=fit_intercept)
    assert (path.coefs == 0).all()
    assert path.converged.all()
    assert path.alpha_max == 0.0
    assert (path.alphas > 0).all()
    assert (path.n_nonzero == 0).all()
    assert (path.dual_gaps.nan_to_num() <= 1e-14).all()  # nan: no conjugate is known
    gradient = s @ datafit.grad(path.intercepts[0].expand(n), datafit.prepare(y)) / s.sum()
    assert gradient.abs() <= 1e-12 or not fit_intercept  # the best intercept, of Newton's method or a mean
    if datafit.quadratic and fit_intercept:
        assert path.intercepts.tolist() == pytest.approx([float(s @ y / s.sum())] * len(path), rel=1e-14)


@each_penalty
def test_no_strength_is_needed_to_hold_them(penalty):
    """alpha_max is exactly 0, with a step and without."""
    grad = normal((P,), 3)
    assert float(penalty.alpha_max(grad)) == 0.0
    assert float(penalty.alpha_max(grad, 0.1)) == 0.0


@pytest.mark.parametrize("kind", [L1, MCP])
def test_infinite_weights_leave_alpha_max_to_the_others(kind):
    grad, weights = normal((P,), 3), torch.tensor([math.inf, 1.0, 2.0, math.inf, 0.0], dtype=F64)
    others = torch.tensor([1, 2])
    expected = Weighted(kind(1.0), weights[others]).alpha_max(grad[others])
    assert float(Weighted(kind(1.0), weights).alpha_max(grad)) == float(expected) > 0.0


@pytest.mark.parametrize("weight", [1e-60, 1e60])
def test_a_weight_beyond_single_precision_is_neither_zero_nor_infinite(weight):
    """A number is a double: it frees nothing and forces nothing."""
    assert float(Weighted(L1(1.0), weight).alpha_max(normal((P,), 3))) > 0.0
    assert Weighted(L2(1.0), weight).ridge == weight


@pytest.mark.parametrize("kind", [L1, L2])
@each_rows
def test_one_of_two_targets(kind, n):
    """The target that is not forced is fitted as if it were alone."""
    weights = torch.stack([INF, torch.ones_like(INF)], 1)
    y = torch.stack([Y, Y.flip(0)], 1)[:n]
    both = fit_path(X[:n], y, Weighted(kind(1.0), weights), alphas=[1.0, 0.1])
    alone = fit_path(X[:n], y[:, 1], kind(1.0), alphas=[1.0, 0.1])
    assert (both.coefs[:, :, 0] == 0).all()
    torch.testing.assert_close(both.coefs[:, :, 1], alone.coefs, rtol=0.0, atol=1e-12)
    assert both.converged.all()


@pytest.mark.parametrize("n", [N, P - 2], ids=["tall", "wide"])
@pytest.mark.parametrize("datafit", [Quadratic(), Logistic()], ids=repr)
@pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", "none"])
@pytest.mark.parametrize("standardize", [True, False], ids=["standardized", "raw"])
def test_a_refit_of_an_empty_support_is_the_intercept(n, datafit, fit_intercept, standardize):
    """A refit starts with alpha_max, where nothing is active; the others are ordinary least squares or likelihood."""
    y = Y[:n] if datafit.quadratic else torch.arange(n) % 2
    path = fit_path(
        X[:n], y, L1(1.0), datafit=datafit, alphas=3, eps=0.3, fit_intercept=fit_intercept, standardize=standardize
    )
    relaxed, mean = refit(path, X[:n], y), y.double().mean()
    assert relaxed.n_nonzero.tolist() == path.n_nonzero.tolist()
    assert relaxed.n_nonzero[0] == 0
    assert (relaxed.coefs[0] == 0).all()
    expected = mean if datafit.quadratic else torch.logit(mean)
    assert float(relaxed.intercepts[0]) == pytest.approx(float(expected) if fit_intercept else 0.0, abs=1e-12)
    assert float(relaxed.losses[0]) == pytest.approx(float(path.losses[0]), rel=1e-12)
    if datafit.quadratic:
        kept = relaxed.coefs[-1] != 0
        ones = torch.ones(n, 1, dtype=F64)
        A = torch.cat([X[:n, kept], ones], 1) if fit_intercept else X[:n, kept]
        rest = y - A @ torch.linalg.lstsq(A, y[:, None]).solution[:, 0]
        assert float(relaxed.losses[-1]) == pytest.approx(float(rest.square().mean() / 2), abs=1e-12)


def test_gradients_of_a_fit_without_coefficients_are_those_of_the_mean():
    s = S.clone().requires_grad_()
    fit = solve(X, Y, PENALTIES["L1"], sample_weight=s)
    (slope,) = torch.autograd.grad(fit.intercept, s)
    torch.testing.assert_close(slope, (Y - S @ Y / S.sum()) / S.sum(), rtol=1e-12, atol=1e-14)


def test_estimators():
    pytest.importorskip("sklearn")
    from torchreg.linear import ElasticNet, ElasticNetCV, Lasso, LassoCV, MultiTaskLasso, Ridge, RidgeCV

    A, b, weights = X.numpy(), Y.numpy(), np.full(P, np.inf)
    for model in (
        Lasso(),
        ElasticNet(),
        Ridge(),
        RidgeCV(),
        RidgeCV(cv=3),
        LassoCV(),
        ElasticNetCV(),
        MultiTaskLasso(),
    ):
        target = np.stack([b, -b], 1) if isinstance(model, MultiTaskLasso) else b
        model.set_params(penalty_weights=weights).fit(A, target)
        assert (model.coef_ == 0).all()
        assert np.allclose(model.intercept_, target.mean(0), rtol=1e-13)
        assert model.dual_gap_ == 0.0
