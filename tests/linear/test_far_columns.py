"""A column far from zero, such as a time stamp: with an intercept, moving a column changes the intercept alone."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from linear_oracle import Entries, Judge
from linear_oracle import Huber as JudgedHuber
from linear_oracle import Logistic as JudgedLogistic
from linear_oracle import Poisson as JudgedPoisson

from torchreg import L1, L1L2, L2, MCP, Group, NonNegative, Penalty, labels, rows
from torchreg.linear import (
    Huber,
    Lasso,
    Logistic,
    LogisticRegression,
    Multinomial,
    Poisson,
    Quadratic,
    SquaredHinge,
    fit_cv,
    fit_path,
    solve,
)
from torchreg.linear.designs.inputs import as_design

N = 120
DRAWS = np.random.default_rng(0)
SHIFT = np.array([1.6e9, 0.0, 0.0, -1.6e9, 50.0, 0.0])
NEAR = (DRAWS.normal(size=(N, 6)) + SHIFT) - SHIFT  # what the far columns store, exactly
FAR = NEAR + SHIFT
ETA = NEAR[:, 0] - 0.7 * NEAR[:, 1] + 0.5 * NEAR[:, 2]
TARGETS = {
    Quadratic(): ETA + DRAWS.normal(size=N),
    Huber(): ETA + DRAWS.standard_t(2, size=N),
    Logistic(): (ETA + DRAWS.logistic(size=N) > 0).astype(float),
    SquaredHinge(): (ETA + DRAWS.logistic(size=N) > 0).astype(float),
    Poisson(): DRAWS.poisson(np.exp(ETA / 2.0)).astype(float),
    Multinomial(): np.stack([ETA, DRAWS.normal(size=N), -ETA], 1).argmax(1),
}
GROUPS = labels(torch.tensor([0, 0, 1, 1, 2, 2]))
PENALTIES = [L1(1.0), L1L2(1.0), L2(1.0), Group(L1(1.0), GROUPS), NonNegative(L1(1.0)), MCP(1.0)]
AS = {"dense": np.asarray, "csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_array}
each_datafit = pytest.mark.parametrize("datafit", TARGETS, ids=repr)


def legal(datafit, penalty) -> Penalty:
    return Group(L1(1.0), rows) if isinstance(datafit, Multinomial) and isinstance(penalty, Group) else penalty


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: str(penalty).split("(alpha")[0])
@each_datafit
def test_moved_columns_move_the_intercept_alone(datafit, penalty, layout):
    if isinstance(penalty, MCP) and not isinstance(datafit, Quadratic | Logistic):
        return  # solved by proximal gradient whatever the datafit
    y, penalty = TARGETS[datafit], legal(datafit, penalty)
    asked = {"datafit": datafit, "alphas": [0.2, 0.05], "tol": 1e-8, "max_iter": 2000}
    near, far = fit_path(NEAR, y, penalty, **asked), fit_path(AS[layout](FAR), y, penalty, **asked)
    assert near.converged.all()
    assert far.converged.all()
    torch.testing.assert_close(far.coefs, near.coefs, rtol=1e-6, atol=1e-6)
    moved = near.intercepts - torch.tensordot(near.coefs, torch.tensor(SHIFT), dims=([1], [0]))
    moved = moved - moved.mean(-1, keepdim=True) if datafit.relative else moved
    torch.testing.assert_close(far.intercepts, moved, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(far.objectives, near.objectives)
    assert far.alpha_max == pytest.approx(near.alpha_max)


JUDGED = {Logistic: JudgedLogistic(), Poisson: JudgedPoisson(), Huber: JudgedHuber()}


@pytest.mark.parametrize("layout", AS)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("kind", JUDGED, ids=lambda kind: kind.__name__)
def test_certified_in_long_double_on_the_data_itself(kind, fit_intercept, layout):
    datafit = next(each for each in TARGETS if isinstance(each, kind))
    X, y = NEAR + SHIFT / 1e6, TARGETS[datafit]
    path = fit_path(
        AS[layout](X), y, L1(1.0), datafit=datafit, alphas=[0.1, 0.02], tol=1e-8, fit_intercept=fit_intercept
    )
    judge = Judge(X, y, loss=JUDGED[kind], fit_intercept=fit_intercept)
    assert path.converged.all()
    for k, alpha in enumerate(path.alphas.tolist()):
        gap = judge.gap(Entries(alpha), path.coef(k).numpy(), float(path.intercepts[k]))
        assert gap <= 2e-8 * judge.null()[0]


@each_datafit
def test_cross_validation_and_init(datafit):
    y = TARGETS[datafit]
    near, far = (fit_cv(X, y, L1(1.0), datafit=datafit, alphas=[0.2, 0.05], cv=3, random_state=0) for X in (NEAR, FAR))
    assert far.converged.all()
    torch.testing.assert_close(far.losses, near.losses, rtol=1e-4, atol=1e-5)
    best = far.path.at(0.05)
    again = fit_path(FAR, y, L1(1.0), datafit=datafit, alphas=[0.05], init=(best.coef, best.intercept))
    assert again.converged.all()
    torch.testing.assert_close(again.coefs[0], best.coef, rtol=1e-3, atol=1e-4)


def test_estimators():
    y = TARGETS[next(each for each in TARGETS if isinstance(each, Logistic))]
    near, far = (LogisticRegression(l1_ratio=1.0, C=0.1, tol=1e-8).fit(X, y) for X in (NEAR, FAR))
    np.testing.assert_allclose(far.coef_, near.coef_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(far.predict_proba(FAR), near.predict_proba(NEAR), atol=1e-5)
    near, far = (Lasso(0.1).fit(X, ETA).coef_ for X in (NEAR, scipy.sparse.csr_matrix(FAR)))
    np.testing.assert_allclose(far, near, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_sparse_column_without_zeros_keeps_its_digits(scaled):
    """Products of the centred column; corrections of rank one would leave none of its digits."""
    X, weights = FAR * (np.arange(6) != 5), torch.full((N,), 1.0 / N, dtype=torch.float64)
    design = as_design(scipy.sparse.csr_matrix(X)).standardised(weights, centre=True, scale=scaled)
    centred = (X.astype(np.longdouble) - X.astype(np.longdouble).mean(0)).astype(float)
    spread = torch.tensor(np.where(centred.std(0) > 0, centred.std(0), 1.0) if scaled else np.ones(6))
    expected = torch.tensor(centred) / spread
    part = torch.arange(0, N, 3)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(design.times(torch.eye(6, dtype=torch.float64)), expected, **close)
    torch.testing.assert_close(design.gram(weights), expected.T @ (weights[:, None] * expected), **close)
    torch.testing.assert_close(design.subset(part).transposed(weights[part]), expected[part].T @ weights[part], **close)
    chosen = design.selection(weights)
    chosen.append(torch.tensor([3, 0]))
    both = expected[:, [3, 0]]
    torch.testing.assert_close(chosen.gram(weights), both.T @ (weights[:, None] * both), **close)
    mean, variance = design.moments(weights)
    torch.testing.assert_close(mean, torch.tensor(X.astype(np.longdouble).mean(0).astype(float)))
    torch.testing.assert_close(variance, torch.tensor(centred.var(0)), **close)


def test_solve_differentiates_far_columns():
    datafit = next(each for each in TARGETS if isinstance(each, Logistic))
    grads = []
    for X in (NEAR, FAR, FAR):
        alpha = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
        table = torch.tensor(X, requires_grad=len(grads) < 2)
        fit = solve(table, TARGETS[datafit], L1(alpha), datafit=datafit)
        wanted = [alpha, table] if table.requires_grad else [alpha]
        grads.append(torch.autograd.grad(fit.coef.sum(), wanted))
    for one, other in ((0, 1), (0, 2)):
        for found, expected in zip(grads[other], grads[one], strict=False):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
