"""Proximal gradient: scikit-learn's minima, stationarity for any penalty and datafit, descent, exact zeros."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from catalog import OwnLogSum, Pinball
from helpers import F64, generator, normal
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LogisticRegression,
    MultiTaskLasso,
    PoissonRegressor,
    Ridge,
)
from test_datafits import LogCosh
from torch import Tensor

from torchreg import L0, L1, L1L2, L2, MCP, SCAD, Group, NonNegative, Weighted, columns, labels, rows
from torchreg.linear.datafits import Datafit, Huber, Logistic, Multinomial, Poisson, Quadratic, SquaredHinge
from torchreg.linear.designs.inputs import as_design
from torchreg.linear.problem import Problem
from torchreg.linear.proximal_gradient import proximal_gradient

N, P = 90, 20
BLOCKS = labels(torch.arange(P) // 4)


def correlated(n=N, p=P, seed=0, rho=0.6, mean=2.0):
    noise, X = normal((n, p), seed, 1.0), torch.empty(n, p, dtype=F64)
    X[:, 0] = noise[:, 0]
    for j in range(1, p):
        X[:, j] = rho * X[:, j - 1] + (1 - rho**2) ** 0.5 * noise[:, j]
    return X + mean  # far from centred, so that the intercept matters


X = correlated()
SIGNAL = (X - 2.0) @ torch.cat([torch.tensor([1.0, -1.0, 0.5], dtype=F64), torch.zeros(P - 3, dtype=F64)])
Y = SIGNAL + normal((N,), 1, 0.5) + 5.0
TARGETS = {
    "Quadratic": (Quadratic(), Y),
    "Quadratic tasks": (Quadratic(), torch.stack([Y, SIGNAL, -Y], 1)),
    "Logistic": (Logistic(), SIGNAL + normal((N,), 2) > 0.5),
    "Multinomial": (Multinomial(), (SIGNAL + normal((N,), 3)).clamp(-1, 1).round().long() + 1),
    "Poisson": (Poisson(), torch.poisson(torch.exp(0.5 * SIGNAL + 0.5), generator=generator(4))),
    "Huber": (Huber(0.7), Y + 20.0 * (normal((N,), 5) > 2.0)),
    "SquaredHinge": (SquaredHinge(), SIGNAL + normal((N,), 2) > 0.5),
    "own": (LogCosh(), Y),
}
PENALTIES = {
    "L1": L1(0.05),
    "L1L2": L1L2(0.1, 0.5),
    "Weighted L1": Weighted(L1(0.05), torch.tensor([0.0, 1.0, 2.0, torch.inf] * (P // 4), dtype=F64)),
    "MCP": MCP(0.1),
    "SCAD": SCAD(0.1),
    "L0": L0(0.01),
    "NonNegative": NonNegative(L1(0.05)),
    "Group": Group(L1(0.03), BLOCKS),
    "Group MCP": Group(MCP(0.03), BLOCKS),
    "sparse group": Group(L1(0.02), BLOCKS) + L1(0.02),
    "own separable": OwnLogSum(0.02),
    "own": Pinball(0.05),
}
MATRIX_PENALTIES = {
    "rows": Group(L1(0.05), rows),
    "columns": Group(L1(0.05), columns),
    "entries": L1(0.03),
    "MCP rows": Group(MCP(0.05), rows),
}


def problem(datafit, y, *, data=X, weights=None, offset=None, fit_intercept=True):
    weights = torch.ones(len(data), dtype=F64) if weights is None else weights
    return Problem(as_design(data), datafit.prepare(y), weights / weights.sum(), offset, datafit, fit_intercept)


def solve(given, penalty, tol=1e-10, max_iter=50_000, **options):
    solution = proximal_gradient(given, penalty, tol=tol, max_iter=max_iter, **options)
    assert solution.converged
    return solution


def objective(given, penalty, coef, intercept):
    coef, intercept = (torch.as_tensor(v, dtype=F64) for v in (coef, intercept))
    return (given.value(given.eta(coef, intercept)) + penalty.value(coef)).item()


def residual(given, penalty, solution):
    """The prox residual, worked out anew from the definition."""
    eta = given.eta(solution.coef, solution.intercept)
    moved = penalty.prox(solution.coef - solution.step * given.gradient(eta), solution.step)
    slope = given.row_grad(eta).sum(0).abs().max() if given.fit_intercept else 0.0
    return max((moved - solution.coef).abs().max() / solution.step, slope)


def scale(given):
    return given.gradient(given.null_eta()).abs().max()


def agree(given, penalty, peer, coef, intercept):
    """Both objectives within 1e-9 of each other, relatively: ours by its tolerance, the peer's by its own."""
    ours = solve(given, penalty)
    mine, theirs = objective(given, penalty, ours.coef, ours.intercept), objective(given, penalty, coef, intercept)
    assert mine == pytest.approx(theirs, rel=1e-9), peer


each_target = pytest.mark.parametrize(("datafit", "y"), list(TARGETS.values()), ids=list(TARGETS))


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("alpha", [1.0, 0.1, 0.01])
def test_lasso_and_elastic_net(alpha, fit_intercept):
    given, options = problem(Quadratic(), Y, fit_intercept=fit_intercept), {"tol": 1e-13, "max_iter": 10**6}
    lasso = Lasso(alpha, fit_intercept=fit_intercept, **options).fit(X.numpy(), Y.numpy())
    agree(given, L1(alpha), lasso, lasso.coef_, lasso.intercept_)
    net = ElasticNet(alpha, l1_ratio=0.4, fit_intercept=fit_intercept, **options).fit(X.numpy(), Y.numpy())
    agree(given, L1L2(alpha, 0.4), net, net.coef_, net.intercept_)
    positive = Lasso(alpha, positive=True, fit_intercept=fit_intercept, **options).fit(X.numpy(), Y.numpy())
    agree(given, NonNegative(L1(alpha)), positive, positive.coef_, positive.intercept_)


def test_ridge():
    """scikit-learn's Ridge sums squares without a half and without 1/n: its alpha is 2 n times that of L2."""
    ridge = Ridge(0.3 * 2 * N, solver="cholesky").fit(X.numpy(), Y.numpy())
    agree(problem(Quadratic(), Y), L2(0.3), ridge, ridge.coef_, ridge.intercept_)


def test_multi_task_lasso():
    y = TARGETS["Quadratic tasks"][1]
    tasks = MultiTaskLasso(0.1, tol=1e-13, max_iter=10**6).fit(X.numpy(), y.numpy())
    agree(problem(Quadratic(), y), Group(L1(0.1), rows, weights=1.0), tasks, tasks.coef_.T, tasks.intercept_)


@pytest.mark.parametrize("alpha", [0.1, 0.01, 0.001])
def test_logistic_regression(alpha):
    """alpha = 1 / (n C); L2(alpha) has no half."""
    y, numbers = TARGETS["Logistic"][1], {"tol": 1e-12, "max_iter": 10**6}
    ridge = LogisticRegression(C=1 / (N * alpha), solver="newton-cholesky", **numbers).fit(X.numpy(), y.numpy())
    agree(problem(Logistic(), y), L2(alpha / 2), ridge, ridge.coef_[0], ridge.intercept_[0])
    lasso = LogisticRegression(
        C=1 / (N * alpha), l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=0, **numbers
    ).fit(X.numpy(), y.numpy())
    agree(problem(Logistic(), y, fit_intercept=False), L1(alpha), lasso, lasso.coef_[0], 0.0)


def test_multinomial_regression():
    y = TARGETS["Multinomial"][1]
    peer = LogisticRegression(C=1 / (N * 0.02), solver="newton-cholesky", tol=1e-12).fit(X.numpy(), y.numpy())
    agree(problem(Multinomial(), y), L2(0.01), peer, peer.coef_.T, peer.intercept_)


@pytest.mark.parametrize("alpha", [1.0, 0.01])
def test_poisson_regression(alpha):
    y = TARGETS["Poisson"][1]
    peer = PoissonRegressor(alpha=alpha, solver="newton-cholesky", tol=1e-12).fit(X.numpy(), y.numpy())
    agree(problem(Poisson(), y), L2(alpha / 2), peer, peer.coef_, peer.intercept_)


@each_target
@pytest.mark.parametrize("penalty", list(PENALTIES.values()), ids=list(PENALTIES))
def test_every_penalty_with_every_datafit_is_stationary(datafit, y, penalty):
    given = problem(datafit, y)
    if given.K is not None:
        penalty = list(MATRIX_PENALTIES.values())[list(PENALTIES.values()).index(penalty) % len(MATRIX_PENALTIES)]
    solution = solve(given, penalty, tol=1e-9)
    assert residual(given, penalty, solution) <= 1.01e-9 * scale(given) + 1e-14
    assert torch.equal(solution.eta, given.eta(solution.coef, solution.intercept)) or torch.allclose(
        solution.eta, given.eta(solution.coef, solution.intercept), rtol=1e-12, atol=1e-12
    )
    assert torch.allclose(solution.gradient, given.gradient(solution.eta), rtol=1e-10, atol=1e-13)


@each_target
def test_the_null_model_is_reported_exactly_from_alpha_max_on(datafit, y):
    given = problem(datafit, y)
    penalty = L1(1.0) if given.K is None else Group(L1(1.0), rows)
    alpha_max = penalty.alpha_max(given.gradient(given.null_eta())).item()
    for factor in (1.0, 1.0 + 1e-12, 2.0):
        solution = solve(given, penalty.with_alpha(factor * alpha_max))
        assert torch.equal(solution.coef, given.no_coef())
        assert torch.allclose(solution.intercept, given.null_intercept(), rtol=1e-12, atol=1e-14)
    below = solve(given, penalty.with_alpha(0.95 * alpha_max))
    assert below.coef.abs().max() > 0
    assert (below.coef == 0).sum() > 0


@each_target
def test_weights_are_repetitions(datafit, y):
    repeats = torch.randint(0, 3, (N,), generator=generator(9))
    often = problem(datafit, y.repeat_interleave(repeats, 0), data=X.repeat_interleave(repeats, 0))
    weighted = problem(datafit, y, weights=repeats.double())
    penalty = L1(0.05) if weighted.K is None else Group(L1(0.05), rows)
    a, b = solve(often, penalty), solve(weighted, penalty)
    assert torch.allclose(a.coef, b.coef, rtol=1e-6, atol=1e-8)  # the tolerance over the curvature
    assert torch.allclose(a.intercept, b.intercept, rtol=1e-6, atol=1e-7)


@each_target
def test_an_offset_in_the_span_of_the_intercept_is_absorbed(datafit, y):
    plain = problem(datafit, y)
    shift = torch.full_like(plain.y, 0.7)
    moved = problem(datafit, y, offset=shift)
    penalty = L1(0.05) if plain.K is None else Group(L1(0.05), rows)
    a, b = solve(plain, penalty), solve(moved, penalty)
    assert torch.allclose(a.coef, b.coef, rtol=1e-6, atol=1e-8)
    absorbed = 0.0 if datafit.relative else 0.7
    assert torch.allclose(a.intercept, b.intercept + absorbed, rtol=1e-6, atol=1e-7)


def test_multinomial_intercepts_have_mean_zero():
    given = problem(*TARGETS["Multinomial"], offset=normal((N, 3), 14))
    assert given.null_intercept().sum().abs() < 1e-14
    found = solve(given, L1(0.02))
    assert found.intercept.sum().abs() < 1e-14
    assert torch.allclose(found.eta, given.eta(found.coef, found.intercept), atol=1e-13)


def test_an_offset_is_part_of_the_response_of_least_squares():
    offset = normal((N,), 12)
    a, b = solve(problem(Quadratic(), Y, offset=offset), L1(0.1)), solve(problem(Quadratic(), Y - offset), L1(0.1))
    assert torch.allclose(a.coef, b.coef, atol=1e-8)
    assert torch.allclose(a.eta, b.eta + offset, atol=1e-8)


@each_target
@pytest.mark.parametrize("penalty", [MCP(0.05), SCAD(0.05), OwnLogSum(0.02), L0(0.005)], ids=repr)
def test_what_is_not_convex_never_rises(datafit, y, penalty):
    """The same iteration cut off after 1, 2, 3, ... steps."""
    given = problem(datafit, y)
    values = []
    for k in range(45):
        found = proximal_gradient(given, penalty, tol=0.0, max_iter=k)
        assert found.n_iter <= k
        values.append(objective(given, penalty, found.coef, found.intercept))
    rises = np.diff(values)
    assert (rises <= 1e-13 * abs(values[0])).all()  # rounding of a sum
    assert values[-1] < values[0] or penalty == L0(0.005)  # of which zero is always a local minimum


@pytest.mark.parametrize("penalty", list(PENALTIES.values()), ids=list(PENALTIES))
def test_a_gram_matrix_serves_as_well_as_the_rows(penalty):
    given = problem(Quadratic(), Y)
    centred, response = X - X.mean(0), Y - Y.mean()
    gram, cross = centred.T @ centred / N, centred.T @ response / N
    found = solve(given, penalty, gram=gram, cross=cross)
    assert found.eta is None
    assert torch.allclose(found.gradient, gram @ found.coef - cross, rtol=1e-12, atol=1e-14)
    moved = penalty.prox(found.coef - found.step * found.gradient, found.step)
    assert (moved - found.coef).abs().max() / found.step <= 1.01e-10 * cross.abs().max() + 1e-14
    if penalty.convex:
        assert torch.allclose(found.coef, solve(given, penalty).coef, rtol=1e-6, atol=1e-8)


def test_a_gram_matrix_of_many_tasks():
    y = TARGETS["Quadratic tasks"][1]
    centred, response = X - X.mean(0), y - y.mean(0)
    found = solve(
        problem(Quadratic(), y),
        Group(L1(0.1), rows),
        gram=centred.T @ centred / N,
        cross=centred.T @ response / N,
    )
    assert torch.allclose(found.coef, solve(problem(Quadratic(), y), Group(L1(0.1), rows)).coef, atol=1e-8)
    assert found.intercept.shape == (3,)


def test_gram_and_cross_go_together_and_with_least_squares():
    gram, cross = torch.eye(P, dtype=F64), torch.ones(P, dtype=F64)
    for datafit, y, options in [
        (Quadratic(), Y, {"gram": gram}),
        (Quadratic(), Y, {"cross": cross}),
        (Huber(), Y, {"gram": gram, "cross": cross}),
    ]:
        with pytest.raises(ValueError, match="needs gram and cross and a quadratic datafit, got"):
            proximal_gradient(problem(datafit, y), L1(0.1), tol=1e-6, max_iter=10, **options)


@each_target
def test_a_warm_start_at_the_answer_stays_there(datafit, y):
    given = problem(datafit, y)
    first = solve(given, L1(0.05))
    again = solve(given, L1(0.05), tol=1e-9, coef=first.coef, intercept=first.intercept, step=first.step)
    assert again.n_iter == 0
    assert torch.equal(again.coef, first.coef)
    assert again.violation <= 1e-9 * scale(given)
    nearby = solve(given, L1(0.049), coef=first.coef, intercept=first.intercept, step=first.step)
    assert nearby.n_iter <= solve(given, L1(0.049)).n_iter


def test_a_step_far_off_is_corrected():
    given = problem(*TARGETS["Poisson"])
    right = solve(given, L1(0.05))
    for step in (1e-3, 1e6):
        assert torch.allclose(solve(given, L1(0.05), step=step).coef, right.coef, atol=1e-7)


def test_the_caller_s_gap_stops_it():
    given, penalty = problem(Quadratic(), Y), L1(0.05)
    best = objective(given, penalty, *(lambda s: (s.coef, s.intercept))(solve(given, penalty, tol=1e-13)))

    def gap(coef: Tensor, eta: Tensor | None) -> Tensor:
        return given.value(eta) + penalty.value(coef) - best

    early = solve(given, penalty, tol=0.0, gap=gap, gap_tol=1e-3)
    late = solve(given, penalty, tol=0.0, gap=gap, gap_tol=1e-9)
    assert early.n_iter < late.n_iter
    assert gap(late.coef, late.eta) <= 1e-9


def test_no_tolerance_stops_at_rounding():
    for datafit, y in TARGETS.values():
        given = problem(datafit, y)
        found = solve(given, L1L2(0.1, 0.5), tol=0.0, max_iter=5000)
        assert found.violation <= 1e-11 * scale(given)


def test_running_out_of_steps_is_said():
    given = problem(Quadratic(), Y)
    found = proximal_gradient(given, L1(0.001), tol=1e-12, max_iter=7)
    assert not found.converged
    assert found.n_iter == 7
    assert found.violation > 1e-12 * scale(given)


@each_target
def test_a_design_seen_centred_and_scaled_is_the_matrix_that_is(datafit, y):
    spread = torch.linspace(0.5, 3.0, P, dtype=F64)
    raw, weights = X * spread, torch.full((N,), 1 / N, dtype=F64)
    mean, scales = raw.mean(0), raw.std(0, correction=0)
    formed = problem(datafit, y, data=(raw - mean) / scales)
    seen = replace(formed, design=as_design(raw).standardised(weights, centre=True, scale=True))
    penalty = L1(0.05) if formed.K is None else Group(L1(0.05), rows)
    a, b = solve(formed, penalty), solve(seen, penalty)
    assert torch.allclose(a.coef, b.coef, rtol=1e-6, atol=1e-8)
    assert torch.allclose(a.intercept, b.intercept, rtol=1e-6, atol=1e-7)


def test_more_columns_than_rows_and_columns_that_say_nothing():
    wide = torch.cat(
        [correlated(30, 80, seed=20), torch.zeros(30, 2, dtype=F64), torch.full((30, 1), 1e3, dtype=F64)], 1
    )
    wide = torch.cat([wide, wide[:, :3]], 1)  # duplicates
    y = wide[:, 0] - wide[:, 3] + normal((30,), 21, 0.1)
    given = problem(Quadratic(), y, data=wide)
    found = solve(given, L1(0.01), tol=1e-9)
    assert (found.coef[80:83] == 0).all()
    lasso = Lasso(0.01, tol=1e-12, max_iter=10**6).fit(wide.numpy(), y.numpy())
    theirs = objective(given, L1(0.01), lasso.coef_, lasso.intercept_)
    assert objective(given, L1(0.01), found.coef, found.intercept) == pytest.approx(theirs, rel=1e-9)


def test_a_constant_response_gives_the_null_model():
    given = problem(Quadratic(), torch.full((N,), 0.1))
    found = solve(given, L1(0.05))
    assert (found.coef == 0).all()
    assert found.intercept.item() == pytest.approx(0.1, rel=1e-7)  # 0.1 in float32


def test_an_own_datafit_of_many_outputs_needs_no_more_than_value_and_grad():
    @dataclass(frozen=True)
    class SoftDistance(Datafit):
        def value(self, eta, y):
            return (1.0 + (eta - y).square().sum(-1)).sqrt()

        def grad(self, eta, y):
            return (eta - y) / self.value(eta, y)[:, None]

    given = problem(SoftDistance(), TARGETS["Quadratic tasks"][1])
    found = solve(given, Group(L1(0.02), rows))
    assert residual(given, Group(L1(0.02), rows), found) <= 1.01e-10 * scale(given) + 1e-14


def test_nothing_of_the_caller_s_is_written_to():
    given, coef = problem(*TARGETS["Logistic"]), torch.full((P,), 0.1, dtype=F64)
    mine = (X, given.y, given.weights, coef)
    before = [t.clone() for t in mine]
    solve(given, L1(0.02), coef=coef, intercept=torch.zeros((), dtype=F64))
    for old, new in zip(before, mine, strict=True):
        assert torch.equal(old, new)


def test_a_step_that_is_a_number_is_a_double():
    """With no iteration the step comes back as it was given, and 0.1 is no number of single precision."""
    problem = Problem(as_design(X), Y, torch.full((N,), 1.0 / N, dtype=F64), None, Quadratic(), fit_intercept=True)
    solution = proximal_gradient(problem, L1(0.05), tol=0.0, max_iter=0, step=0.1)
    assert float(solution.step) == pytest.approx(0.1, rel=1e-15)


def test_a_tolerance_that_is_a_number_is_a_double():
    """A violation between the tolerance and its nearest single is too large, or small enough, as the double has it."""
    problem = Problem(as_design(X), Y, torch.full((N,), 1.0 / N, dtype=F64), None, Quadratic(), fit_intercept=True)
    reached = float(proximal_gradient(problem, L1(0.05), tol=0.0, max_iter=0).violation)
    for tol, converged in ((reached, True), (reached * (1.0 - 1e-12), False)):
        assert proximal_gradient(problem, L1(0.05), tol=tol, scale=1.0, max_iter=0).converged is converged
