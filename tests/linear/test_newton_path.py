"""L1 paths of other losses where starts, curvature or conjugates are unusual."""

import numpy as np
import pytest
import torch
from own_datafits import Counts

from torchreg import L1, L2, Group, NonNegative, Weighted, labels
from torchreg.linear import Huber, Logistic, Multinomial, Poisson, fit_path

RNG = np.random.default_rng(3)
N, P = 70, 12
X = RNG.standard_normal((N, P))
ETA = X[:, 0] - X[:, 1] + 0.3 * RNG.standard_normal(N)
LABELS, COUNTS = ETA > 0, np.floor(np.exp(ETA))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("datafit", [Logistic(), Poisson()], ids=repr)
def test_a_start_that_is_forbidden(datafit, intercept):
    y = LABELS if isinstance(datafit, Logistic) else COUNTS
    weights = torch.ones(P, dtype=torch.float64)
    weights[[0, 5]] = torch.inf
    for penalty in (NonNegative(L1(1.0)), Weighted(L1(1.0), weights)):
        options = {"datafit": datafit, "alphas": [0.05, 0.02], "fit_intercept": intercept, "tol": 1e-10}
        cold = fit_path(X, y, penalty, **options)
        signed = fit_path(X, y, L1(1.0), **options)
        warm = fit_path(X, y, penalty, init=(signed.coef(1), signed.intercepts[1]), **options)
        assert (signed.coef(1) < 0.0).any()
        assert warm.converged.all()
        assert torch.allclose(warm.coefs, cold.coefs, atol=1e-5)
        assert torch.allclose(warm.objectives, cold.objectives, rtol=1e-9)


@pytest.mark.parametrize("intercept", [True, False])
def test_where_no_row_is_curved_at_first(intercept):
    """All residuals of the null model lie in the linear part of Huber's loss."""
    y = np.where(LABELS, 200.0, -200.0) + 20.0 * X[:, 2]
    path = fit_path(X, y, L1(1.0), datafit=Huber(1.35), alphas=8, eps=0.05, fit_intercept=intercept)
    assert path.converged.all()
    assert int(path.n_nonzero[-1]) > 0
    assert (path.objectives.diff() <= 0.0).all()


@pytest.mark.parametrize("alphas", [12, [0.2, 0.19, 0.18, 0.02]], ids=["grid", "given"])
def test_without_a_conjugate_steps_go_on_while_they_help(alphas):
    own = fit_path(X, COUNTS, L1(1.0), datafit=Counts(), alphas=alphas, eps=0.05)
    known = fit_path(X, COUNTS, L1(1.0), datafit=Poisson(), alphas=own.alphas, tol=1e-12)
    assert own.dual_gaps.isnan().all()
    assert own.converged.all()
    assert torch.allclose(own.coefs, known.coefs, atol=1e-5)
    assert torch.allclose(own.losses, known.losses - 5.0, atol=1e-9)


@pytest.mark.parametrize("datafit", [Logistic(), Poisson()], ids=repr)
def test_columns_of_zeros(datafit):
    y = LABELS if isinstance(datafit, Logistic) else COUNTS
    path = fit_path(np.zeros((N, P)), y, L1(1.0), datafit=datafit, alphas=[1.0, 0.5, 0.01])
    assert path.converged.all()
    assert not path.coefs.any()


def test_strengths_of_every_size_and_strengths_alone():
    """A gap is met whatever the range of the weights, and wherever the path begins."""
    weights = torch.logspace(-3, 3, P, dtype=torch.float64)
    path = fit_path(X, LABELS, Weighted(L1(1.0), weights), datafit=Logistic(), alphas=20, eps=1e-4, tol=1e-9)
    assert path.converged.all()
    options = {"datafit": Logistic(), "alphas": [float(path.alphas[10])], "tol": 1e-9}
    alone = fit_path(X, LABELS, Weighted(L1(1.0), weights), **options)
    assert alone.converged.all()
    assert torch.allclose(alone.objectives[0], path.objectives[10], rtol=1e-8)


@pytest.mark.parametrize("datafit", [Logistic(), Poisson(), Huber()], ids=repr)
def test_a_bounded_ridge_without_an_intercept_leaves_zero(datafit):
    """At zero coefficients a ridge's gap is no product with their size. One column: the slope is zero, or w is."""
    y = {"Logistic": LABELS, "Poisson": COUNTS}.get(type(datafit).__name__, ETA).astype(float)
    for x in (X[:, :1], X[:, 1:2]):
        path = fit_path(x, y, NonNegative(L2(1.0)), datafit=datafit, alphas=[0.1], fit_intercept=False, tol=1e-12)
        free = fit_path(x, y, L2(1.0), datafit=datafit, alphas=[0.1], fit_intercept=False, tol=1e-12)
        assert path.converged.all()
        assert torch.allclose(path.coefs, free.coefs.clamp(min=0.0), atol=1e-6)


def test_bounds_hold_to_the_bit_where_there_is_only_a_ridge():
    columns = np.array([[1.0, -1.0], [3.0, -3.0], [-1.0, 1.0]])
    path = fit_path(columns, [0, 1, 2], NonNegative(L2(1.0)), datafit=Multinomial(), alphas=[0.25])
    assert (path.coefs >= 0.0).all()


@pytest.mark.parametrize("alphas", [[1.0], [0.1, 0.0]], ids=["free", "no strength"])
def test_unpenalised_groups_are_fitted_before_a_gap_counts(alphas):
    """A gap leaves unpenalised coefficients out, and is zero at zero whatever they would explain."""
    by, factor = labels(torch.zeros(P, dtype=torch.long)), float(alphas[-1] == 0.0)
    group = Group(L1(1.0), by=by, weights=torch.full((1,), factor, dtype=torch.float64))
    options = {"datafit": Logistic(), "tol": 1e-10}
    mixed = LABELS ^ (np.arange(N) % 3 == 0)  # so that no column separates them
    found = fit_path(X, mixed, group, alphas=alphas, **options)
    wanted = fit_path(X, mixed, L1(1.0), alphas=[0.0], **options)
    assert found.converged.all()
    assert torch.allclose(found.coefs[-1], wanted.coefs[-1], atol=1e-5)
