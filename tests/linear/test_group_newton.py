"""Groups under losses with a second derivative: every point of a path is certified by a judge that knows no solver."""

import numpy as np
import pytest
import scipy.sparse
import torch
from linear_oracle import Blocks, Huber, Judge, Logistic, Poisson, SquaredHinge, certify
from own_datafits import Counts
from skglm import datafits as peers
from skglm.penalties import WeightedGroupL2
from skglm.solvers import GroupProxNewton
from skglm.utils.data import grp_converter

from torchreg import L1, L2, Group, NonNegative, labels
from torchreg.linear import datafits as ours
from torchreg.linear import fit_path
from torchreg.linear.solvers import dispatch

RNG = np.random.default_rng(7)
N, SIZES = 120, (1, 3, 2, 6, 1, 4, 5, 3, 7, 2)
INDEX = RNG.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
P = len(INDEX)
X = RNG.standard_normal((N, P)) + 0.5 * RNG.standard_normal((N, 1))
ETA = X[:, INDEX == 3] @ RNG.standard_normal(6) - X[:, INDEX == 5].sum(1) * 0.5
TOL = 1e-9

LOSSES = {
    "logistic": (ours.Logistic(), Logistic(), (ETA + RNG.standard_normal(N) > 0.3).astype(float)),
    "poisson": (ours.Poisson(), Poisson(), RNG.poisson(np.exp(0.4 * ETA)).astype(float)),
    "huber": (ours.Huber(1.35), Huber(1.35), ETA + RNG.standard_t(2, N)),
    "hinge": (ours.SquaredHinge(), SquaredHinge(), (ETA > 0).astype(float)),
}


def group(strengths=1.0):
    return Group(L1(1.0), by=labels(torch.tensor(INDEX)), weights=strengths)


def fitted(loss, penalty, X=X, **options):
    datafit, _, y = LOSSES[loss]
    return fit_path(X, y, penalty, **{"datafit": datafit, "alphas": 12, "eps": 0.02, "tol": TOL} | options)


def judged(loss, X=X, **options):
    return Judge(X, LOSSES[loss][2], LOSSES[loss][1], **options)


def plain(alpha):
    return Blocks(INDEX, np.full(len(SIZES), alpha))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_point_is_certified(loss, intercept):
    path = fitted(loss, group(), fit_intercept=intercept)
    assert path.converged.all()
    assert not path.coef(0).any()
    certify(path, judged(loss, fit_intercept=intercept), plain, gap=TOL)


@pytest.mark.parametrize("loss", ["logistic", "poisson"])
def test_sparse_groups_ridges_weights_and_offsets(loss):
    weights, lift = RNG.integers(0, 3, N).astype(float), 0.2 * RNG.standard_normal(N)
    kept = weights > 0  # rows of weight 0 are left out: the judge never sees them
    _, loss_of, y = LOSSES[loss]
    judge = Judge(X[kept], y[kept], loss_of, weights[kept], lift[kept])
    for penalty, theirs in (
        (group() + L1(0.3), lambda a: Blocks(INDEX, np.full(len(SIZES), a), inner=0.3 * a)),
        (group() + L2(0.1), lambda a: Blocks(INDEX, np.full(len(SIZES), a), l2=0.2 * a)),
    ):
        path = fitted(loss, penalty, sample_weight=weights, offset=lift)
        assert path.converged.all()
        certify(path, judge, theirs, gap=TOL)


def test_groups_of_strength_0_and_inf():
    strengths = torch.linspace(0.5, 2.0, len(SIZES), dtype=torch.float64)
    strengths[2], strengths[5] = 0.0, torch.inf
    path = fitted("logistic", group(strengths), alphas=[0.05, 0.02, 0.01])
    assert path.converged.all()
    assert not path.coefs[:, torch.tensor(INDEX == 5)].any()
    assert path.coefs[:, torch.tensor(INDEX == 2)].all()
    judge = judged("logistic")
    for k, alpha in enumerate(path.alphas.tolist()):
        theirs = Blocks(INDEX, alpha * strengths.numpy())
        assert judge.gap(theirs, path.coef(k).numpy(), float(path.intercepts[k])) < TOL * judge.null()[0]


def test_signs():
    """Against coefficients that may be negative: where none is, the two fits agree; stationary where one would be."""
    path = fitted("logistic", NonNegative(group()), alphas=[0.03, 0.01])
    assert path.converged.all()
    assert (path.coefs >= 0.0).all()
    y, slope = LOSSES["logistic"][2], None
    for k, alpha in enumerate(path.alphas.tolist()):
        w = path.coef(k).numpy()
        eta = X @ w + float(path.intercepts[k])
        slope = X.T @ (y - 1.0 / (1.0 + np.exp(-eta))) / N
        for g in range(len(SIZES)):
            mine, part = slope[g == INDEX], w[g == INDEX]
            if not part.any():
                assert np.linalg.norm(np.maximum(mine, 0.0)) <= alpha + 1e-7
            else:
                rest = mine - alpha * part / np.linalg.norm(part)
                assert np.abs(rest[part > 0]).max() < 1e-6  # a gap of 1e-9 leaves slopes of its root, times curvature
                assert (rest[part == 0] < 1e-6).all()


def test_sparse_columns_and_half_the_digits():
    thin = np.where(RNG.random((N, P)) < 0.2, X, 0.0)
    dense, sparse = fitted("logistic", group(), X=thin), fitted("logistic", group(), X=scipy.sparse.csr_array(thin))
    assert torch.allclose(dense.coefs, sparse.coefs, atol=1e-9)
    certify(sparse, judged("logistic", X=thin), plain, gap=TOL)
    single = fitted("logistic", group(), X=torch.tensor(X, dtype=torch.float32), alphas=[0.02], tol=1e-4)
    double = fitted("logistic", group(), alphas=[0.02])
    assert single.converged.all()
    assert (single.coefs - double.coefs).abs().max() < 1e-3  # of float32's digits half are left


def test_more_columns_than_rows_down_to_a_thousandth():
    wide = RNG.standard_normal((60, 200))
    y = (wide[:, :5].sum(1) > 0).astype(float)
    path = fit_path(
        wide, y, Group(L1(1.0), by=labels(torch.arange(200) // 5), weights=1.0), datafit=ours.Logistic(), alphas=25
    )
    assert path.converged.all()
    certify(path, Judge(wide, y, Logistic()), lambda a: Blocks(np.arange(200) // 5, np.full(40, a)), gap=1e-6)


def test_proximal_gradient_agrees(monkeypatch):
    """The slow engine, which takes any penalty and knows no second derivative, finds the same."""
    fast = fitted("logistic", group(), alphas=[0.05, 0.02])
    monkeypatch.setattr(dispatch, "has_hessian", lambda problem: False)
    slow = fitted("logistic", group(), alphas=[0.05, 0.02], max_iter=20000)
    assert slow.converged.all()
    assert int(slow.n_iters.sum()) > 5 * int(fast.n_iters.sum()), "it was another engine"
    assert torch.allclose(fast.objectives, slow.objectives, rtol=0.0, atol=2.0 * TOL)


def test_skglm():
    y = 2.0 * LOSSES["logistic"][2] - 1.0
    alpha, weights = 0.02, np.sqrt(np.array(SIZES, float))
    indices, ptr = grp_converter([np.flatnonzero(g == INDEX).tolist() for g in range(len(SIZES))], P)
    solver = GroupProxNewton(tol=1e-12, max_iter=200, fit_intercept=True)
    penalty = WeightedGroupL2(alpha, weights, ptr, indices)
    theirs = solver.solve(X, y, peers.LogisticGroup(ptr, indices), penalty)[0]
    mine = fitted("logistic", group(None), alphas=[alpha], tol=1e-12)
    found = np.append(mine.coef(0).numpy(), float(mine.intercepts[0]))
    np.testing.assert_allclose(found, theirs, atol=1e-7)  # theirs stops at a violation of 1e-12 at best


def test_without_a_conjugate_steps_end_when_they_no_longer_help():
    own = fitted("poisson", group(), datafit=Counts(), max_iter=2000)
    known = fitted("poisson", group(), alphas=own.alphas, tol=1e-12)
    assert own.dual_gaps.isnan().all()
    assert own.converged.all()
    assert int(own.n_iters.max()) < 100
    assert torch.allclose(own.losses, known.losses - 5.0, atol=1e-8)
