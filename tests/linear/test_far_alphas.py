"""A fit at one alpha far below alpha_max: as exact as the end of a whole path, and cheaper than the way there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchreg import L1, L1L2, NonNegative, Weighted
from torchreg.linear import Logistic, LogisticRegression, Quadratic, SparseRegressor, fit_path

FINE = 0.93  # ratio of the strengths of a path without long ways


def genes(n, p, seed=0, block=10):
    """Expression-like: columns in correlated blocks, heavy tails, means far from zero."""
    draws = np.random.default_rng(seed)
    shared = np.repeat(draws.standard_t(4, (n, p // block)), block, 1)
    X = 0.9 * shared + 0.45 * draws.standard_t(4, (n, p)) + draws.normal(7.0, 1.5, p)
    y = (X - X.mean(0)) @ np.where(np.arange(p) % (p // 8) == 0, 1.0, 0.0)
    return X, y + 0.5 * y.std() * draws.standard_normal(n)


WIDE, TALL = genes(40, 400), genes(300, 80)
HALF = torch.where(torch.arange(400) < 5, 0.0, 1.0 + torch.arange(400) % 3)
PENALTIES = {
    "L1": L1(1.0),
    "net": L1L2(1.0, 0.5),
    "nonnegative": NonNegative(L1(1.0)),
    "weighted": Weighted(L1(1.0), HALF),
}


def fine(top, alpha):
    """Strengths from alpha_max to alpha, close to one another."""
    return np.geomspace(top, alpha, 2 + int(np.log(alpha / top) / np.log(FINE)))


@pytest.mark.parametrize("share", [0.5, 0.05, 1e-3])
@pytest.mark.parametrize("name", list(PENALTIES))
def test_one_alpha_is_the_end_of_a_path(name, share):
    X, y = WIDE
    alone = fit_path(X, y, PENALTIES[name], alphas=1)
    alpha = share * alone.alpha_max
    alone = fit_path(X, y, PENALTIES[name], alphas=[alpha])
    way = fit_path(X, y, PENALTIES[name], alphas=fine(alone.alpha_max, alpha))
    assert float(alone.dual_gaps[0]) <= 1e-12 * alone.null_objective
    torch.testing.assert_close(alone.coef(0), way.coef(len(way) - 1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_several_far_alphas_are_points_of_a_path(share):
    X, y = TALL
    top = fit_path(X, y, L1(1.0), alphas=1).alpha_max
    steps = [top, share * top, share**2 * top, 0.95 * share**2 * top, 0.0]
    found, way = (fit_path(X, y, L1(1.0), alphas=a) for a in (steps, [*fine(top, steps[3]), *steps]))
    assert found.converged.all()
    for k, alpha in enumerate(steps):
        torch.testing.assert_close(found.coef(k), way.at(alpha).coef, rtol=1e-6, atol=1e-8)


def test_a_far_alpha_costs_a_fraction_of_the_way():
    """Products with the working set's matrix: they are what a fit spends its time on."""
    for X, y in (WIDE, TALL):
        top = fit_path(X, y, L1(1.0), alphas=1).alpha_max
        alone = fit_path(X, y, L1(1.0), alphas=[0.05 * top])
        way = fit_path(X, y, L1(1.0), alphas=fine(top, 0.05 * top))
        assert 2 * int(alone.n_iters[0]) <= int(way.n_iters.sum())


@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
def test_a_logistic_lasso_at_one_alpha_is_the_end_of_a_path(C):
    X, y = WIDE[0], (WIDE[1] > 0).astype(int)
    options = {"tol": 1e-9, "max_iter": 1000}
    model = LogisticRegression(C=C, l1_ratio=1.0, **options).fit(X, y)
    alpha = 1.0 / (C * len(y))
    grid = fine(max(model.alpha_max_, alpha / 0.99), alpha)
    way = fit_path(X, y.astype(float), L1(1.0), datafit=Logistic(), alphas=grid, **options)
    gap = model.dual_gap_ / (C * len(y))
    assert gap <= 1e-9 * way.null_objective
    loss = np.logaddexp(0.0, np.where(y == 1, -1.0, 1.0) * model.decision_function(X)).mean()
    objective = loss + alpha * np.abs(model.coef_).sum()
    assert abs(objective - float(way.objectives[-1])) <= 2e-9 * way.null_objective
    assert int(model.n_iter_[0]) < int(way.n_iters.sum()) / 2


class Watched(Quadratic):
    """Least squares that is no quadratic to the solvers, and notes on how many threads it is computed."""

    quadratic = False
    seen: list[int] = []  # noqa: RUF012

    def grad(self, eta, y):
        self.seen.append(torch.get_num_threads())
        return eta - y


@pytest.mark.parametrize(("rows", "expected"), [(60, 1), (6000, 2)])
def test_small_fits_stay_on_one_thread(rows, expected):
    draws = np.random.default_rng(0)
    X, y = draws.standard_normal((rows, 100)), draws.standard_normal(rows)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Watched.seen.clear()
        SparseRegressor(L1(0.5), Watched()).fit(X, y)
        assert set(Watched.seen) == {expected}
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="offset"):
            SparseRegressor(L1(0.5)).fit(X, y, offset=np.ones(3))  # found in the middle of the fit
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
