"""MCP and SCAD: another's solver where the minimum is unique, and textbook conditions of optimality everywhere.

Least squares whose Gram matrix X'X / n has no eigenvalue below mu is mu strongly convex, MCP is 1 / gamma weakly convex
and SCAD 1 / (gamma - 1): where mu is more, there is one stationary point, and two solvers must meet there. A violation
of Euclidean norm v leaves coefficients off by v / (mu - 1 / gamma) at most, here 6 v.
"""

import numpy as np
import pytest
import torch
from skglm import GeneralizedLinearEstimator
from skglm.datafits import Quadratic
from skglm.penalties import separable
from skglm.solvers import AndersonCD
from test_fit_path_oracles import RELATIVE, WEIGHTS, close, design, response

from torchreg import MCP, SCAD, NonNegative, Weighted
from torchreg.linear import fit_path
from torchreg.linear.estimators import SparseRegressor

EXACT = 1e-12  # violation that is asked for, of the largest correlation
X = design(60, 8, rho=0.3)
Y = response(X)
FACTORS = np.array([1.0, 0.0, 2.0, 0.5, np.inf, 1.0, 3.0, 1.0])
PENALTIES = {
    "MCP": (MCP(1.0, gamma=5.0), lambda alpha: separable.MCPenalty(alpha, 5.0)),
    "NonNegative MCP": (NonNegative(MCP(1.0, gamma=5.0)), lambda alpha: separable.MCPenalty(alpha, 5.0, positive=True)),
    "SCAD": (SCAD(1.0, gamma=6.0), lambda alpha: separable.SCAD(alpha, 6.0)),
}


def test_the_design_is_convex_enough():
    assert np.linalg.eigvalsh(np.cov(X.T, bias=True))[0] - 1.0 / 5.0 >= 1.0 / 6.0


@pytest.mark.parametrize("name", PENALTIES)
def test_skglm(name, monkeypatch):
    monkeypatch.setattr(separable, "bool_", np.bool_)  # numba's own is no dtype where nothing is compiled
    penalty, theirs = PENALTIES[name]
    path = fit_path(X, Y, penalty, alphas=4, eps=0.02, tol=EXACT)
    assert path.converged.all()
    assert path.n_nonzero[0] == 0 < path.n_nonzero[1] < path.n_nonzero[-1]
    for k, alpha in enumerate(path.alphas.tolist()[1:], 1):  # at alpha_max itself the peer has rounding
        peer = GeneralizedLinearEstimator(Quadratic(), theirs(alpha), AndersonCD(tol=1e-14, max_iter=500)).fit(X, Y)
        assert np.array_equal(path.coef(k) == 0, peer.coef_ == 0)
        close(path.coef(k), peer.coef_)
        assert float(path.intercepts[k]) == pytest.approx(peer.intercept_, rel=RELATIVE)
    alone = SparseRegressor(penalty.with_alpha(alpha), tol=EXACT).fit(X, Y)
    close(alone.coef_, peer.coef_)


def slope_of_mcp(size, alpha, gamma):
    return np.maximum(alpha - size / gamma, 0.0)


def slope_of_scad(size, alpha, gamma):
    return np.where(size <= alpha, alpha, np.maximum(gamma * alpha - size, 0.0) / (gamma - 1.0))


SLOPES = {
    "MCP": (MCP(1.0, gamma=5.0), slope_of_mcp, 5.0),
    "SCAD": (SCAD(1.0, gamma=6.0), slope_of_scad, 6.0),
}


def correlations(X, y, weights, coef, intercept):
    """Minus the gradient of the mean loss."""
    s = np.ones(len(y)) if weights is None else weights
    return X.T @ (s * (y - X @ coef - intercept)) / s.sum()


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("lower", [-np.inf, 0.0], ids=["free", "positive"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_weighted_concave_penalties_are_stationary_where_that_is_optimal(name, lower, weights):
    """A weight multiplies alpha: 0 leaves a column unpenalised, inf leaves it out."""
    penalty, slope, gamma = SLOPES[name]
    penalty = Weighted(penalty, torch.tensor(FACTORS))
    penalty = NonNegative(penalty) if lower == 0.0 else penalty
    path = fit_path(X, Y, penalty, alphas=4, eps=0.02, tol=EXACT, sample_weight=weights)
    assert path.converged.all()
    scale = np.abs(correlations(X, Y, weights, 0 * X[0], np.average(Y, weights=weights))).max()
    for k, alpha in enumerate(path.alphas.tolist()):
        coef, finite = path.coef(k).numpy(), np.where(np.isinf(FACTORS), 0.0, FACTORS)
        g = correlations(X, Y, weights, coef, float(path.intercepts[k]))
        over = (g if lower == 0.0 else np.abs(g)) - alpha * FACTORS
        pull = np.abs(g - np.sign(coef) * slope(np.abs(coef), alpha * finite, gamma))
        # a violation is measured by a proximal step, whose gradient is another by as much again
        assert np.where(coef == 0, over, pull).max() <= 10 * EXACT * scale
        assert (coef >= lower).all()
        assert coef[4] == 0.0


@pytest.mark.parametrize("name", ["MCP", "SCAD"])
def test_no_coordinate_can_do_better_where_the_problem_is_not_convex(name):
    """More columns than rows, each of mean square 1: along each the objective is convex, together it is not."""
    wide = design(40, 90)
    wide = (wide - wide.mean(0)) / wide.std(0)
    y = response(wide + 2.0)
    penalty = MCP(1.0, gamma=3.0) if name == "MCP" else SCAD(1.0, gamma=3.7)
    path = fit_path(wide, y, penalty, alphas=5, eps=0.1, tol=1e-10)
    assert path.converged.all()
    steps = np.concatenate([s * np.geomspace(1e-6, 10.0, 60) for s in (-1.0, 1.0)])
    for k, alpha in enumerate(path.alphas.tolist()):
        coef, inner = path.coef(k).numpy(), penalty.with_alpha(alpha)
        residual = y - wide @ coef - float(path.intercepts[k])
        for j in range(90):
            moves = np.append(steps, -coef[j])
            rise = moves**2 / 2 - moves * (wide[:, j] @ residual) / 40
            entries = torch.tensor(coef[j] + moves)
            rise = rise + inner.phi(entries).numpy() - float(inner.phi(torch.tensor(coef[j])))
            assert rise.min() >= -1e-14  # rounding; a slope that is missed by 1e-10 gains half its square
