"""Fits whose penalty has no kink: closed form and Newton's method against scikit-learn and an independent judge."""

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import F64, generator, normal
from linear_oracle import Entries, Huber, Judge, Logistic, Multinomial, Poisson, Quadratic, SquaredHinge, certify
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge

from torchreg import L1, L1L2, L2, NonNegative, Weighted
from torchreg.linear import datafits as ours
from torchreg.linear.designs.inputs import as_design
from torchreg.linear.frame import framed
from torchreg.linear.path import fit_path
from torchreg.linear.solvers.dispatch import solver_for
from torchreg.linear.solvers.newton_cg import NewtonCGPath
from torchreg.linear.solvers.newton_coordinates import Coefficients, Features, RowSpace
from torchreg.linear.solvers.newton_systems import Curvature, Diagonal, Factors, JointFactor, newton_direction
from torchreg.linear.solvers.ridge_pattern import Pattern
from torchreg.linear.solvers.ridge_systems import kernel_of, projected, system_for

DRAWS = np.random.default_rng(0)
ALPHAS = [1.0, 0.1, 0.01, 1e-4]
SHAPES = {"tall": (60, 8), "wide": (25, 70)}


def data(shape, kind, seed=0):
    """X with a mean, and a target that depends on its first columns."""
    draws = np.random.default_rng(seed)
    X = draws.standard_normal(shape) + 2.0
    signal = (X[:, :3] - 2.0) @ [1.0, -1.0, 0.5]
    noisy = signal + draws.standard_normal(len(X))
    targets = {
        "Quadratic": noisy,
        "tasks": np.stack([noisy, signal, draws.standard_normal(len(X))], 1),
        "Logistic": (noisy > 0).astype(float),
        "SquaredHinge": (noisy > 0).astype(float),
        "Poisson": draws.poisson(np.exp(0.5 * signal)).astype(float),
        "Huber": noisy + 20.0 * (draws.random(len(X)) > 0.9),
        "Multinomial": np.clip(np.round(noisy), -1, 1).astype(int) + 1,
    }
    return X, targets[kind]


LOSSES = {
    "Logistic": (ours.Logistic(), Logistic()),
    "SquaredHinge": (ours.SquaredHinge(), SquaredHinge()),
    "Poisson": (ours.Poisson(), Poisson()),
    "Huber": (ours.Huber(), Huber()),
    "Multinomial": (ours.Multinomial(), Multinomial()),
}
each_shape = pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))
each_kind = pytest.mark.parametrize("kind", list(LOSSES))
each_intercept = pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", "none"])


def judge_of(X, y, kind, **options):
    loss = Quadratic() if kind in ("Quadratic", "tasks") else LOSSES[kind][1]
    return Judge(X, np.eye(3)[y] if kind == "Multinomial" else y, loss, **options)


def factors(kind, p, *, forced=(), free=()):
    """Weights of features, and the same for every class."""
    weights = np.linspace(0.5, 2.0, p)
    weights[list(forced)], weights[list(free)] = np.inf, 0.0
    return weights[:, None] if kind in ("Multinomial", "tasks") else weights


class Table(Entries):
    """Strengths of coefficients (p, K); a row counts as free if all of it is."""

    def free(self, p):
        l1, l2 = (np.broadcast_to(part, (p, 3)) for part in (self.l1, self.l2))
        return ((l1 == 0) & (l2 == 0)).all(1)


def ridge_at(weights):
    """Entries of Weighted(L2(alpha), weights)."""
    finite, entries = np.where(np.isinf(weights), 1.0, weights), Entries if weights.ndim == 1 else Table
    return lambda alpha: entries(np.where(np.isinf(weights), np.inf, 0.0), 2 * alpha * finite)


# --- closed form --------------------------------------------------------------------------------------------------


@each_shape
@each_intercept
@pytest.mark.parametrize("kind", ["Quadratic", "tasks"])
@pytest.mark.parametrize("count", [3, 40], ids=["factors", "spectrum"])
def test_ridge_is_scikit_learns_to_rounding(shape, fit_intercept, kind, count):
    X, y = data(shape, kind)
    alphas = np.geomspace(3.0, 1e-3, count)
    path = fit_path(X, y, L2(1.0), alphas=alphas, fit_intercept=fit_intercept)
    certify(path, judge_of(X, y, kind, fit_intercept=fit_intercept), lambda a: Entries(0.0, 2 * a), gap=1e-17)
    for k in (0, count - 1):
        peer = Ridge(2 * len(y) * alphas[k], solver="svd", fit_intercept=fit_intercept).fit(X, y)
        # 1e-10: the Gram matrix has the square of the design's condition
        assert np.allclose(path.coef(k).numpy(), peer.coef_.T, rtol=1e-10, atol=1e-12)
        assert np.allclose(path.intercepts[k].numpy(), peer.intercept_, rtol=1e-10, atol=1e-12)


@each_shape
@pytest.mark.parametrize("special", [{}, {"forced": (0, 3)}, {"forced": (0,), "free": (2, 5)}], ids=str)
@pytest.mark.parametrize("kind", ["Quadratic", "tasks"])
def test_ridge_with_weights_of_features_and_rows(shape, special, kind):
    X, y = data(shape, kind)
    weights, rows = factors(kind, shape[1], **special), DRAWS.uniform(0.0, 2.0, shape[0])
    path = fit_path(X, y, Weighted(L2(1.0), torch.tensor(weights)), alphas=ALPHAS, sample_weight=rows)
    certify(path, judge_of(X, y, kind, weights=rows), ridge_at(weights), gap=1e-14)
    assert all(int((path.coef(k)[list(special.get("forced", ()))] != 0).sum()) == 0 for k in range(len(path)))


@each_shape
@pytest.mark.parametrize("kind", ["Quadratic", "tasks"])
def test_objectives_of_a_ridge_are_losses_and_the_penaltys_value(shape, kind):
    X, y = data(shape, kind)
    weights = torch.tensor(factors(kind, shape[1], forced=(0,), free=(2, 5)))
    path = fit_path(X, y, Weighted(L2(1.0), weights), alphas=[*ALPHAS, 0.0])
    for k, alpha in enumerate(path.alphas.tolist()):
        residual = torch.as_tensor(y) - path.decision(X)[k]
        loss, value = residual.square().sum() / (2 * len(y)), Weighted(L2(alpha), weights).value(path.coef(k))
        assert torch.allclose(path.losses[k], loss, rtol=1e-9, atol=1e-12 * path.null_objective)
        assert torch.allclose(path.objectives[k], loss + value, rtol=1e-9, atol=1e-12 * path.null_objective)


def test_a_pickled_ridge_path_holds_its_coefficients_once():
    X, y = data((20, 500), "Quadratic")
    path = fit_path(X, y, L2(1.0), alphas=np.geomspace(1.0, 1e-3, 40))
    assert len(pickle.dumps(path)) <= 3 * path.coefs.numel() * 8  # with the numbers of the columns, and small change


def test_ridge_of_each_target():
    X, y = data(SHAPES["tall"], "tasks")
    strengths = np.array([0.1, 1.0, 10.0])
    weights = torch.tensor(strengths / (2 * len(y))).expand(X.shape[1], 3).contiguous()
    path = fit_path(X, y, Weighted(L2(1.0), weights), alphas=[1.0])
    assert np.allclose(path.coef(0).numpy(), Ridge(strengths, solver="cholesky").fit(X, y).coef_.T, rtol=1e-10)


@each_shape
@pytest.mark.parametrize("special", [(), (1, 4)], ids=["all", "some forced"])
def test_without_a_ridge_the_least_solution_is_taken(shape, special):
    X, y = data(shape, "Quadratic")
    X[:, 6] = X[:, 5]  # and a column twice
    penalty = Weighted(L2(1.0), torch.tensor(np.where(np.isin(np.arange(shape[1]), special), np.inf, 1.0)))
    path = fit_path(X, y, penalty, alphas=[0.0])
    kept = np.setdiff1d(np.arange(shape[1]), special)
    least = np.linalg.lstsq(X[:, kept] - X[:, kept].mean(0), y - y.mean(), rcond=1e-8)[0]
    assert np.allclose(path.coef(0).numpy()[kept], least, rtol=1e-9, atol=1e-11)
    assert float(path.dual_gaps[0]) <= 1e-12 * path.null_objective


@pytest.mark.parametrize("strengths", [(1.0, 0.0), (0.0, 1.0)], ids=str)
def test_a_target_without_a_ridge_beside_one_with_a_ridge(strengths):
    draws = np.random.default_rng(0)
    X, y = draws.standard_normal((30, 4)), draws.standard_normal((30, 2))
    X = np.c_[X, X[:, :2], X[:, 0] - X[:, 1]]  # dependent columns: without a ridge the least solution is taken
    path = fit_path(X, y, Weighted(L2(1.0), torch.tensor([strengths], dtype=F64).expand(7, 2)), alphas=[1.0])
    for k, strength in enumerate(strengths):
        alone = fit_path(X, y[:, k], L2(1.0), alphas=[strength])
        # 1e-9: the Gram matrix has the square of the design's condition
        assert np.allclose(path.coef(0)[:, k].numpy(), alone.coef(0).numpy(), rtol=1e-9, atol=1e-11)


def test_ridge_at_the_ends_of_the_scale():
    X, y = data(SHAPES["tall"], "Quadratic")
    path = fit_path(X, y, Weighted(L2(1.0), torch.tensor(factors("", 8, free=(0, 1)))), alphas=[1e80, 1e-80])
    loose, tight = (np.linalg.lstsq(X[:, :k] - X[:, :k].mean(0), y - y.mean())[0] for k in (8, 2))
    assert np.allclose(path.coef(0)[:2].numpy(), tight, rtol=1e-10)
    assert np.allclose(path.coef(1).numpy(), loose, rtol=1e-10)


def test_ridge_of_float32_and_sparse_data():
    X, y = data(SHAPES["wide"], "Quadratic")
    X[X < 2.0] = 0.0
    X = X.astype(np.float32)
    dense = fit_path(X.astype(np.float64), y, L2(1.0), alphas=ALPHAS)
    for same in (X, scipy.sparse.csr_array(X), scipy.sparse.csc_array(X.astype(np.float64))):
        assert torch.allclose(fit_path(same, y, L2(1.0), alphas=ALPHAS).coefs, dense.coefs, rtol=1e-9, atol=1e-12)


# --- Newton's method ----------------------------------------------------------------------------------------------


@each_shape
@each_kind
@each_intercept
def test_every_loss_has_a_small_gap(shape, kind, fit_intercept):
    X, y = data(shape, kind)
    path = fit_path(X, y, L2(1.0), datafit=LOSSES[kind][0], alphas=ALPHAS, fit_intercept=fit_intercept)
    certify(path, judge_of(X, y, kind, fit_intercept=fit_intercept), lambda a: Entries(0.0, 2 * a))
    assert bool(path.converged.all())


@each_shape
@each_kind
@pytest.mark.parametrize("special", [{}, {"forced": (0, 3)}, {"forced": (0,), "free": (2, 5)}], ids=str)
def test_weights_of_features_and_rows_and_an_offset(shape, kind, special):
    X, y = data(shape, kind)
    weights, rows = factors(kind, shape[1], **special), DRAWS.uniform(0.0, 2.0, shape[0])
    lift = 0.5 * DRAWS.standard_normal((shape[0], 3) if kind == "Multinomial" else shape[0])
    path = fit_path(
        X, y, Weighted(L2(1.0), torch.tensor(weights)), datafit=LOSSES[kind][0], alphas=ALPHAS[:3], sample_weight=rows,
        offset=lift,
    )  # fmt: skip
    # 1e-10: at columns without ridge our gap is slope times coefficient, the judge's what a refit gains
    certify(path, judge_of(X, y, kind, weights=rows, offset=lift), ridge_at(weights), rounding=1e-10)


def test_strengths_of_single_entries():
    X, y = data(SHAPES["tall"], "Multinomial")
    weights = DRAWS.uniform(0.0, 2.0, (8, 3))
    weights[:3, 1], weights[4] = np.inf, 0.0
    path = fit_path(X, y, Weighted(L2(1.0), torch.tensor(weights)), datafit=ours.Multinomial(), alphas=ALPHAS)
    certify(path, judge_of(X, y, "Multinomial"), ridge_at(weights), rounding=1e-10)  # as above


@each_shape
@pytest.mark.parametrize("C", [0.1, 10.0])
def test_scikit_learns_logistic_regression(shape, C):
    for kind, solver in (("Logistic", "newton-cholesky"), ("Multinomial", "newton-cg")):
        X, y = data(shape, kind)
        alpha = 1 / (len(y) * C)
        path = fit_path(X, y, L1L2(1.0, 0.0), datafit=LOSSES[kind][0], alphas=[alpha], tol=1e-12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the line search, at rounding
            peer = LogisticRegression(C=C, solver=solver, tol=1e-11, max_iter=10_000).fit(X, y)
        coef, intercept = (
            (peer.coef_.T, peer.intercept_) if kind == "Multinomial" else (peer.coef_[0], peer.intercept_[0])
        )
        judge = judge_of(X, y, kind)
        theirs = judge.objective(Entries(0.0, alpha), coef, intercept)
        assert float(path.objectives[0]) == pytest.approx(theirs, rel=1e-8)
        assert float(path.objectives[0]) <= theirs + 1e-13
        assert np.allclose(path.coef(0).numpy(), coef, atol=1e-6)  # the root of the gaps


@each_shape
@pytest.mark.parametrize("alpha", [1.0, 1e-3])
def test_scikit_learns_poisson_regressor(shape, alpha):
    X, y = data(shape, "Poisson")
    rows = DRAWS.uniform(0.5, 2.0, len(y))
    path = fit_path(
        X, y, L1L2(1.0, 0.0), datafit=ours.Poisson(), alphas=[alpha], sample_weight=rows, tol=1e-12
    )  # fmt: skip
    peer = PoissonRegressor(alpha=alpha, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(X, y, rows)
    theirs = judge_of(X, y, "Poisson", weights=rows).objective(Entries(0.0, alpha), peer.coef_, peer.intercept_)
    assert float(path.objectives[0]) == pytest.approx(theirs, rel=1e-8)
    assert np.allclose(path.coef(0).numpy(), peer.coef_, atol=1e-6)


@each_shape
@pytest.mark.parametrize("kind", ["Logistic", "Multinomial"])
@pytest.mark.parametrize("alpha", [1e-7, 0.0])
def test_separable_classes(shape, kind, alpha):
    """Where the classes are far apart the coefficients grow until the ridge holds them, or the loss is rounding."""
    X, _ = data(shape, kind)
    y = (X[:, 0] > 2.0).astype(float) if kind == "Logistic" else (X[:, 0] > 1.5).astype(int) + (X[:, 0] > 2.5)
    path = fit_path(X, y, L2(1.0), datafit=LOSSES[kind][0], alphas=[alpha])
    assert bool(path.converged.all())
    assert float(path.losses[0]) <= 1e-2 * path.null_objective
    certify(
        path, judge_of(X, y, kind), lambda a: Entries(0.0, 2 * a), gap=1e-8, violations=alpha > 0.0
    ) if alpha else None


@each_kind
def test_without_a_ridge_the_slope_vanishes(kind):
    X, y = data((200, 5), kind)
    path = fit_path(X, y, L2(1.0), datafit=LOSSES[kind][0], alphas=[0.0])
    judge = judge_of(X, y, kind)
    coef, intercept = path.coef(0).numpy(), path.intercepts[0].numpy()
    assert judge.violation(Entries(0.0), coef, intercept) <= 1e-6 * judge.null()[1]
    if kind == "Multinomial":  # only differences matter
        assert torch.allclose(path.coef(0).sum(1), torch.zeros(5, dtype=F64), atol=1e-12)
        assert abs(float(path.intercepts[0].sum())) <= 1e-12


@pytest.mark.parametrize("kind", ["Logistic", "Multinomial"])
def test_sparse_and_float32_data(kind):
    X, y = data((60, 40), kind)
    X[X < 2.5] = 0.0
    X = X.astype(np.float32)
    options = {"datafit": LOSSES[kind][0], "alphas": ALPHAS, "tol": 1e-12}
    dense = fit_path(X.astype(np.float64), y, L2(1.0), **options)
    for same in (X, scipy.sparse.csr_array(X), scipy.sparse.csc_array(X.astype(np.float64)), torch.tensor(X)):
        path = fit_path(same, y, L2(1.0), **options)
        assert torch.allclose(path.objectives, dense.objectives, rtol=1e-12)
        assert torch.allclose(path.coefs, dense.coefs, atol=1e-6)  # the root of the gaps


def test_far_means_and_scales_do_no_harm():
    X, y = data((80, 6), "Logistic")
    X = X * np.geomspace(1e-3, 1e3, 6) + np.array([1e4, 0.0, -1e3, 5.0, 1e5, 0.0])
    path = fit_path(X, y, L2(1.0), datafit=ours.Logistic(), alphas=[1e-2, 1e-6])
    certify(path, judge_of(X, y, "Logistic"), lambda a: Entries(0.0, 2 * a), gap=1e-8, rounding=1e-9)


def test_a_start_at_the_solution_takes_no_step():
    X, y = data(SHAPES["tall"], "Logistic")
    options = {"datafit": ours.Logistic(), "alphas": [0.01]}
    first = fit_path(X, y, L2(1.0), tol=1e-12, **options)
    again = fit_path(X, y, L2(1.0), init=(first.coef(0), first.intercepts[0]), **options)
    assert int(again.n_iters[0]) == 0
    assert bool(again.converged.all())


def test_few_steps_are_not_enough():
    X, y = data(SHAPES["tall"], "Logistic")
    path = fit_path(X, y, L2(1.0), datafit=ours.Logistic(), alphas=[1e-4], max_iter=1)
    assert int(path.n_iters[0]) == 1
    assert not bool(path.converged.any())
    assert float(path.dual_gaps[0]) > 0.0


# --- the parts ----------------------------------------------------------------------------------------------------


def problem_of(shape, kind, *, weights=None):
    X, y = data(shape, kind)
    return framed(X, y, LOSSES[kind][0], weights, None, True, False, None).problem


@pytest.mark.parametrize(
    "penalty", [L2(1.0), Weighted(L2(1.0), torch.linspace(0, 1, 8, dtype=F64)), L1L2(1.0, 0.0)], ids=repr
)
def test_dispatch(penalty):
    problem = problem_of(SHAPES["tall"], "Logistic")
    options = {"start": None, "tol": 1e-6, "max_iter": 9, "moments": None}
    assert solver_for(problem, penalty, **options).name == "newton_cg"
    X, y = data(SHAPES["tall"], "Quadratic")
    squares = framed(X, y, ours.Quadratic(), None, None, True, False, None).problem
    assert solver_for(squares, penalty, **options).name == "ridge"
    for kinked in (L1(0.0), NonNegative(L2(1.0))):
        assert solver_for(problem, kinked, **options).name == "prox_newton"


def test_large_least_squares_go_to_conjugate_gradients(monkeypatch):
    monkeypatch.setattr("torchreg.linear.solvers.dispatch._FACTORED", 10)
    X, y = data(SHAPES["wide"], "tasks")
    path = fit_path(X, y, L2(1.0), alphas=ALPHAS)
    certify(path, judge_of(X, y, "tasks"), lambda a: Entries(0.0, 2 * a))
    assert int(path.n_iters.max()) > 1


@pytest.mark.parametrize("kind", ["Logistic", "Poisson", "Huber", "SquaredHinge", "Multinomial"])
def test_hessian_map_is_the_derivative_of_the_gradient(kind):
    _, y = data((20, 5), kind)
    datafit = LOSSES[kind][0]
    y = datafit.prepare(torch.as_tensor(y))
    eta, v, step = normal(y.shape, 1), normal(y.shape, 2), 1e-6
    difference = (datafit.grad(eta + step * v, y) - datafit.grad(eta - step * v, y)) / (2 * step)
    assert torch.allclose(datafit.hessian_map(eta, y)(v), difference, atol=1e-8)


def test_outputs_without_a_known_map_have_no_hessian():
    class Own(ours.Datafit):
        def value(self, eta, y):
            return (eta - y).pow(4).sum(-1)

        def grad(self, eta, y):
            return 4 * (eta - y).pow(3)

        def hessian(self, eta, y):
            return 12 * (eta - y).square()

    y = torch.zeros(4, 2, dtype=F64)
    with pytest.raises(ours.NoHessian, match="2 outputs"):
        Own().hessian_map(y, y)
    assert torch.equal(Own().hessian_map(y[:, 0] + 1, y[:, 0])(y[:, 0] + 2), torch.full((4,), 24.0, dtype=F64))


@pytest.mark.parametrize("width", [1, 5, 300])
def test_kernel(width, monkeypatch):
    monkeypatch.setattr("torchreg.linear.solvers.ridge_systems._WIDEST", width)
    X, scales = normal((13, 6)), torch.rand(6, generator=generator(0), dtype=F64)
    design = as_design(X).standardised(torch.full((13,), 1 / 13, dtype=F64), centre=True, scale=False)
    kernel, centred = kernel_of(design, scales), X - X.mean(0)
    assert torch.allclose(kernel, centred * scales @ centred.T, atol=1e-12)
    assert torch.equal(kernel, kernel.T)


@pytest.mark.parametrize("count", [3, 40], ids=["factors", "spectrum"])
@pytest.mark.parametrize("free", [[], [0, 3]], ids=str)
def test_systems_of_many_strengths(count, free):
    A = normal((9, 5))
    square, sides, strengths = A.T @ A, normal((5, 3), 1), torch.tensor([0.1, 2.0, 0.1], dtype=F64)
    ridged = ~torch.isin(torch.arange(5), torch.tensor(free))
    system = system_for(square, ridged if free else None, count, 0.1)
    found = system.solve(strengths, sides)
    found = found + system.solve(strengths, sides - square @ found - strengths * ridged[:, None] * found)
    assert torch.allclose(square @ found + strengths * ridged[:, None] * found, sides, atol=1e-10)
    least = system_for(torch.ones(2, 2, dtype=F64), None, 1, 0.0)
    assert torch.allclose(least.solve(torch.zeros(1), torch.full((2, 1), 2.0, dtype=F64)), torch.ones(2, 1, dtype=F64))


def test_a_spectrum_beside_directions_that_are_projected_out():
    A, aside, side = normal((8, 20)), normal((8, 2), 1), normal((8, 1), 2)
    found = projected(A @ A.T, aside).solve(torch.tensor([0.3], dtype=F64), side)
    rest = torch.linalg.qr(aside, mode="complete")[0][:, 2:]  # an orthonormal basis of what is left
    inner = torch.linalg.solve(rest.T @ A @ A.T @ rest + 0.3 * torch.eye(6, dtype=F64), rest.T @ side)
    assert torch.allclose(found, rest @ inner, atol=1e-12)


@pytest.mark.parametrize("kept", [None, [0, 2, 3], [1, 2, 3, 4, 5, 6]], ids=["all", "few", "most"])
@pytest.mark.parametrize("ones", [True, False])
def test_features(kept, ones):
    X, weights = normal((20, 7)) + 1.0, torch.rand(20, generator=generator(1), dtype=F64)
    weights = weights / weights.sum()
    kept = None if kept is None else torch.tensor(kept)
    features = Features(as_design(X), kept, ones, weights)
    table = X if kept is None else X[:, kept]
    table = torch.cat([table, torch.ones(20, 1, dtype=F64)], 1) if ones else table
    theta, rows, bend = normal((features.width, 2)), normal((20, 2)), torch.rand(20, generator=generator(2), dtype=F64)
    assert torch.allclose(features.times(theta), table @ theta)
    assert torch.allclose(features.transposed(rows), table.T @ rows)
    assert torch.allclose(features.gram(bend), table.T @ (bend[:, None] * table))
    assert torch.allclose(features.squares(weights), weights @ table.square())


@pytest.mark.parametrize("kind", ["Logistic", "Multinomial"])
@pytest.mark.parametrize("shares", [None, "some", "free"])
def test_unknowns_lead_out_and_back(kind, shares):
    problem = problem_of(SHAPES["wide"], kind)
    strengths = torch.ones(70, dtype=F64) if shares is None else torch.linspace(0.1, 1.0, 70, dtype=F64)
    if shares == "free":
        strengths[:2] = 0.0
    for unknowns in (Coefficients(problem, None), RowSpace(problem, Pattern(70, None, strengths))):
        theta = normal((unknowns.features.width, *problem.no_coef().shape[1:]), 4, 1.0)
        coef, intercept = unknowns.outward(theta.reshape(unknowns.features.width, -1))
        coef, intercept = coef.reshape(problem.no_coef().shape), intercept.reshape(problem.null_intercept().shape)
        assert torch.allclose(unknowns.features.times(theta), problem.eta(coef, intercept), atol=1e-10)
        assert torch.allclose(unknowns.inward(coef, intercept), theta, atol=1e-9)
    l2 = strengths.reshape(-1, *[1] * (theta.dim() - 1)).expand_as(coef)
    energy = (unknowns.ridge(l2) * theta.square()).sum()
    assert torch.allclose(energy, (l2 * coef.square()).sum(), rtol=1e-9)


@pytest.mark.parametrize("name", ["diagonal", "factors", "stale", "joint"])
@pytest.mark.parametrize("kind", ["Logistic", "Multinomial"])
def test_newton_directions(name, kind):
    problem = problem_of((50, 6), kind)
    if name == "joint" and problem.K is None:
        pytest.skip("several outputs alone have a joint factor")
    features = Coefficients(problem, None).features
    made = {
        "diagonal": lambda: Diagonal(features, problem.weights),
        "factors": lambda: Factors(features, None, 0.0, -1.0),
        "stale": lambda: Factors(features, None, 0.0, 1e9),
        "joint": lambda: JointFactor(features, problem.weights),
    }
    theta = normal((7, *problem.no_coef().shape[1:]), 3, 0.3)

    def curve_at(theta):
        eta = features.times(theta)
        weights = problem.weights.reshape(-1, *[1] * (eta.dim() - 1))
        second = problem.datafit.hessian_map(eta, problem.y)
        bend = weights * problem.datafit.hessian(eta, problem.y)
        return Curvature(bend, lambda v: weights * second(v), torch.full_like(theta, 0.01))

    system, curve, side = made[name](), curve_at(theta), normal(theta.shape, 5)
    if name == "stale":
        system.prepare(curve_at(0.5 * theta), 0)
    system.prepare(curve, 0)
    found = newton_direction(features, system, curve, side, None, 1e-12, 500)
    product = features.transposed(curve.times(features.times(found.step))) + curve.ridge * found.step
    assert torch.allclose(product, side, atol=1e-8)
    assert torch.allclose(found.image, features.times(found.step), atol=1e-8)


@pytest.mark.parametrize("kind", ["Logistic", "Multinomial"])
def test_the_row_space_is_entered_when_it_pays(kind, monkeypatch):
    problem = problem_of(SHAPES["wide"], kind)
    found = []
    for memory_bound in (1e9, 1e-9):
        monkeypatch.setattr("torchreg.linear.solvers.newton_cg._MEMORY_BOUND", memory_bound)
        path = NewtonCGPath(problem, None, 1e-12, 100)
        forms = [L2(a).form(problem.no_coef()) for a in ALPHAS]
        found.append([p.dense(70) for p in path.points(forms)])
        assert isinstance(path._unknowns, RowSpace if memory_bound > 1 else Coefficients)
    assert torch.allclose(torch.stack(found[0]), torch.stack(found[1]), atol=1e-5)  # the root of the gaps


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_constant_column_beside_the_intercept_leaves_the_rest_fitted(order):
    """The Hessian is singular, and a factor of it is no inverse: it had been taken for one."""
    x = np.where(np.arange(9) == 0, -1.0, 1.0)
    y = np.array([0, 1, 1, 0, 1, 0, 0, 0, 0.0])
    X = np.tile(np.c_[x, np.ones(9)][:, order], (2, 1))
    weights = np.repeat([1.0, 2.0], 9)
    target = np.r_[y, 1.0 - y]
    path = fit_path(
        X, target, Weighted(L1(1.0), torch.zeros(2)), datafit=ours.Logistic(), alphas=[1.0], sample_weight=weights
    )
    first, rest = X[:, order.index(0)] < 0, X[:, order.index(0)] > 0  # two groups of rows: each has its own mean
    wanted = [np.average(target[rows], weights=weights[rows]) for rows in (first, rest)]
    found = path.predict(X)[0].numpy()
    np.testing.assert_allclose([found[first][0], found[rest][0]], wanted, atol=1e-9)  # Newton's last step squares 1e-5
    assert bool(path.converged.all())
