"""`solve`: its gradients are those of the solution, as differences of refits have them."""

import warnings

import numpy as np
import pytest
import torch
from catalog import OwnLogSum

from torchreg import L0, L1, L1L2, L2, MCP, SCAD, Group, NonNegative, Penalty, Towards, Weighted, labels, rows
from torchreg.linear.datafits import Datafit, Huber, Logistic, Multinomial, Poisson, Quadratic, SquaredHinge
from torchreg.linear.path import fit_path
from torchreg.linear.solve import solve

F64 = torch.float64
N, P = 40, 8
BUMP = 1e-4  # of central differences: their error is about its square
CLOSE = {"rtol": 1e-5, "atol": 1e-7}  # what such differences of fits to a gap of 1e-15 leave
INDEX = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3])


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def data(datafit, seed=0):
    """X, y, sample weights and offset for a datafit; three of eight coefficients matter."""
    X = draw(N, P, seed=seed)
    truth = torch.tensor([1.0, -0.8, 0.0, 0.6, 0.0, 0.0, 0.0, 0.0], dtype=F64)
    eta = X @ truth + 0.3
    noise = draw(N, seed=seed + 1)
    y = {
        Quadratic: lambda: eta + 0.5 * noise,
        Huber: lambda: eta + 0.5 * noise,
        Logistic: lambda: (eta + noise > 0).double(),
        SquaredHinge: lambda: (eta + noise > 0).double(),
        Poisson: lambda: (eta / 2.0).exp() + 0.5 * noise.abs(),
        Multinomial: lambda: torch.stack([eta, noise, -eta], 1).argmax(1),
    }[type(datafit)]()
    return {"X": X, "y": y, "sample_weight": 0.5 + draw(N, seed=seed + 2).abs(), "offset": 0.2 * draw(N, seed=seed + 3)}


COSTS = draw(200, seed=9)


def cost(fit):
    """Some function of the solution that weighs all its entries."""
    shape = [-1] + [1] * (fit.coef.dim() - 1)
    classes = torch.linspace(1.0, 2.0, fit.intercept.numel(), dtype=F64)
    by_class = classes if fit.coef.dim() == 2 else 1.0
    return (COSTS[: len(fit.coef)].reshape(shape) * by_class * fit.coef).sum() + (classes * fit.intercept).sum()


def check(make, theta, directions=2, **tolerance):
    """Along random directions in theta, the gradient equals differences of refits, and is not zero."""
    leaf = theta.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cost(make(leaf)), leaf)
    assert grad.shape == theta.shape
    for seed in range(directions):
        way = draw(*theta.shape, seed=20 + seed) if theta.dim() else torch.ones_like(theta)
        high, low = cost(make(theta + BUMP * way)), cost(make(theta - BUMP * way))
        slope = (grad * way).sum()
        torch.testing.assert_close(slope, (high - low) / (2.0 * BUMP), **(tolerance or CLOSE))
        assert slope.abs() > 1e-3


WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.7, 1.5, 1.0, 0.3, 0.0], dtype=F64)
PENALTIES = {
    "L1": L1,
    "L1L2": lambda alpha: L1L2(alpha, l1_ratio=0.6),
    "L2": L2,
    "Weighted": lambda alpha: Weighted(L1(alpha), WEIGHTS),
    "Weighted L1L2": lambda alpha: Weighted(L1L2(alpha, l1_ratio=0.6), WEIGHTS),
    "NonNegative": lambda alpha: NonNegative(L1(alpha)),
    "Group": lambda alpha: Group(L1(alpha), by=labels(INDEX)),
    "SparseGroup": lambda alpha: Group(L1(alpha), by=labels(INDEX)) + L1(0.5 * alpha),
    "MCP": lambda alpha: MCP(alpha, gamma=30.0),
    "SCAD": lambda alpha: SCAD(alpha, gamma=30.0),
    "Towards": lambda alpha: Towards(L1(alpha), 0.3 * WEIGHTS),
    "own": lambda alpha: OwnLogSum(0.1 * alpha),
}
DATAFITS = [Quadratic(), Logistic(), Poisson()]
ALPHA = torch.tensor(0.06, dtype=F64)
named = pytest.mark.parametrize("name", PENALTIES)
losses = pytest.mark.parametrize("datafit", DATAFITS, ids=lambda d: type(d).__name__)


def fitted(datafit, penalty, **changes):
    given = data(datafit) | changes
    return solve(given.pop("X"), given.pop("y"), penalty, datafit=datafit, tol=1e-15, **given)


@pytest.fixture(autouse=True)
def expected_warnings():
    """A tolerance of 1e-15 asks for all that rounding allows; torch warns of every sparse tensor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "solve did not reach", RuntimeWarning)
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        yield


@losses
@named
def test_gradient_in_alpha(datafit, name):
    check(lambda alpha: fitted(datafit, PENALTIES[name](alpha)), ALPHA, 1)


@losses
@pytest.mark.parametrize("name", ["L1", "L1L2", "NonNegative", "Group"])
@pytest.mark.parametrize("what", ["X", "y", "sample_weight", "offset"])
def test_gradient_in_the_data(datafit, name, what):
    if what == "y" and isinstance(datafit, Logistic):
        pytest.skip("labels have no gradient")
    penalty = PENALTIES[name](float(ALPHA))
    check(lambda theta: fitted(datafit, penalty, **{what: theta}), data(datafit)[what])


@losses
@pytest.mark.parametrize("inner", [L1, L1L2, NonNegative], ids=["L1", "L1L2", "NonNegative"])
def test_gradient_in_weights_per_feature(datafit, inner):
    positive = 0.02 + 0.1 * WEIGHTS

    def penalty(weights):
        weighted = Weighted(L1(1.0) if inner is NonNegative else inner(1.0), weights)
        return NonNegative(weighted) if inner is NonNegative else weighted

    check(lambda weights: fitted(datafit, penalty(weights)), positive)


@losses
def test_gradient_in_weights_per_group(datafit):
    weights = torch.tensor([1.0, 1.5, 0.8, 1.2], dtype=F64)
    check(lambda w: fitted(datafit, Group(L1(0.05), by=labels(INDEX), weights=w)), weights)


@pytest.mark.parametrize("datafit", [Huber(0.5), SquaredHinge()], ids=lambda d: type(d).__name__)
def test_other_losses(datafit):
    check(lambda alpha: fitted(datafit, L1(alpha)), ALPHA, 1)
    check(lambda X: fitted(datafit, L1(0.06), X=X), data(datafit)["X"])


class Cosh(Datafit):
    """A loss of one's own that knows no more than it must."""

    def value(self, eta, y):
        return torch.log(torch.cosh(eta - y))

    def grad(self, eta, y):
        return torch.tanh(eta - y)


def test_a_loss_of_ones_own():
    given = data(Quadratic())
    X, y = given["X"], given["y"]
    check(lambda alpha: solve(X, y, L1(alpha), datafit=Cosh(), tol=1e-13), ALPHA, 1)
    check(lambda y: solve(X, y, L1(0.06), datafit=Cosh(), tol=1e-13), y)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_the_intercept(fit_intercept):
    def fit(alpha):
        return fitted(Logistic(), L1(alpha), fit_intercept=fit_intercept)

    check(fit, ALPHA, 1)
    leaf = ALPHA.clone().requires_grad_()
    assert fit(leaf).intercept.requires_grad is fit_intercept


def several(**changes):
    given = data(Quadratic())
    X, y = given["X"], torch.stack([given["y"], given["X"][:, 3] - given["offset"], given["X"][:, 6]], 1)
    return {"X": X, "y": y, "sample_weight": given["sample_weight"]} | changes


@pytest.mark.parametrize("name", ["L1", "rows"])
def test_several_targets(name):
    def fit(alpha, **changes):
        given = several(**changes)
        penalty = L1(alpha) if name == "L1" else Group(L1(alpha), by=rows)
        return solve(given.pop("X"), given.pop("y"), penalty, tol=1e-15, **given)

    check(fit, ALPHA, 1)
    check(lambda X: fit(float(ALPHA), X=X), several()["X"])
    check(lambda y: fit(float(ALPHA), y=y), several()["y"])


@pytest.mark.parametrize("name", ["L1L2", "rows"])
def test_multinomial(name):
    given = data(Multinomial())

    def fit(alpha, X=given["X"]):
        penalty = L1L2(alpha) if name == "L1L2" else Group(L1(alpha), by=rows)
        return solve(X, given["y"], penalty, datafit=Multinomial(), tol=1e-13)

    check(fit, ALPHA, 1, rtol=1e-5, atol=1e-7)
    check(lambda X: fit(float(ALPHA), X), given["X"], rtol=1e-5, atol=1e-7)
    leaf = ALPHA.clone().requires_grad_()
    (grad,) = torch.autograd.grad(fit(leaf).intercept.sum(), leaf)
    assert abs(float(grad)) < 1e-12  # intercepts have mean 0, and keep it


@losses
def test_a_feature_at_zero_has_no_gradient(datafit):
    X = data(datafit)["X"].requires_grad_()
    weights = torch.ones(P, dtype=F64).requires_grad_()
    fit = fitted(datafit, Weighted(L1(0.15), weights), X=X)
    idle = fit.coef.detach() == 0
    assert 0 < int(idle.sum()) < P
    assert torch.equal(fit.active, ~idle)
    by_weight, by_x = torch.autograd.grad(cost(fit), [weights, X])
    assert (by_weight[idle] == 0).all()
    assert (by_x[:, idle] == 0).all()
    assert (by_weight[~idle] != 0).all()


def test_above_alpha_max_only_the_intercept_moves():
    given = data(Quadratic())
    y, alpha = given["y"].requires_grad_(), torch.tensor(10.0, requires_grad=True)
    fit = solve(given["X"], y, L1(alpha))
    assert not fit.active.any()
    (grad,) = torch.autograd.grad(fit.intercept + fit.coef.sum(), y)
    torch.testing.assert_close(grad, torch.full_like(y, 1.0 / N))


def test_the_forced_and_the_free():
    weights = torch.tensor([0.0, torch.inf, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=F64).requires_grad_()
    fit = fitted(Quadratic(), Weighted(L1(0.05), weights))
    assert fit.coef[1] == 0
    assert bool(fit.active[0])
    (grad,) = torch.autograd.grad(cost(fit), weights)
    assert grad.isfinite().all()
    assert grad[1] == 0


def test_an_empty_column_of_a_ridge_still_has_a_gradient():
    """Its coefficient is zero, but not at a kink."""
    X = data(Quadratic())["X"].index_fill(1, torch.tensor([4]), 0.0)
    check(lambda X: fitted(Quadratic(), L2(0.3), X=X), X)
    check(lambda X: fitted(Quadratic(), Group(L1(0.01), by=labels(INDEX)), X=X), X)


def test_units_of_the_columns_do_not_matter():
    """Columns in units from 1e-6 to 1e6: the system is as regular as it was."""
    units = 10.0 ** torch.linspace(-6.0, 6.0, P, dtype=F64)
    given = data(Quadratic())
    grads = []
    for unit in (torch.ones_like(units), units):
        weights = torch.ones(P, dtype=F64).requires_grad_()
        fit = solve(given["X"] / unit, given["y"], Weighted(L1(0.05), weights / unit), tol=1e-15)
        grads.append(torch.autograd.grad((fit.coef / unit).sum() + fit.intercept, weights)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-12)


def test_dependent_columns_have_the_derivative_of_least_norm():
    """Twins without a penalty: each takes half of what the column alone would."""
    given = data(Quadratic())
    X, y = given["X"][:, :3], given["y"].requires_grad_()
    alone = solve(X, y, L2(0.0))
    (expected,) = torch.autograd.grad(alone.coef[0], y)
    fit = solve(torch.cat([X, X[:, :1]], 1), y, L2(0.0))
    torch.testing.assert_close(fit.coef[0] + fit.coef[3], alone.coef[0])
    for k in (0, 3):
        (half,) = torch.autograd.grad(fit.coef[k], y, retain_graph=True)
        torch.testing.assert_close(half, expected / 2.0, rtol=1e-9, atol=1e-12)


def test_more_features_than_rows():
    X, y = draw(30, 200, seed=3), draw(30, seed=4)
    check(lambda alpha: solve(X, y, L1(alpha), tol=1e-15), torch.tensor(0.1, dtype=F64), 1)
    check(lambda X: solve(X, y, L1(0.1), tol=1e-15), X)


@pytest.mark.parametrize("kind", ["numpy", "csr", "torch csr", "float32"])
def test_data_of_any_kind(kind):
    sparse = pytest.importorskip("scipy.sparse")
    given = data(Logistic())
    X = torch.where(given["X"].abs() < 0.5, 0.0, given["X"])
    form = {
        "numpy": X.numpy,
        "csr": lambda: sparse.csr_array(X.numpy()),
        "torch csr": X.to_sparse_csr,
        "float32": X.float,
    }[kind]()
    grads = []
    for matrix in (X.float() if kind == "float32" else X, form):
        alpha = ALPHA.clone().requires_grad_()
        fit = solve(matrix, given["y"].numpy(), L1(alpha), datafit=Logistic(), tol=1e-14)
        grads.append(torch.autograd.grad(cost(fit), alpha)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=0.0)


def test_float32_inputs_have_float32_gradients():
    given = {name: value.float().requires_grad_() for name, value in data(Quadratic()).items()}
    alpha = ALPHA.float().requires_grad_()
    weights = WEIGHTS.float().requires_grad_()
    leaves = [*given.values(), alpha, weights]
    fit = solve(given.pop("X"), given.pop("y"), Weighted(L1(alpha), weights), **given)
    assert fit.coef.dtype == fit.intercept.dtype == F64
    grads = torch.autograd.grad(cost(fit), leaves)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)
    wide = torch.autograd.grad(
        cost(fitted(Quadratic(), Weighted(L1(leaf := ALPHA.clone().requires_grad_()), WEIGHTS))), leaf
    )
    torch.testing.assert_close(grads[-2].double(), wide[0], rtol=1e-4, atol=0.0)


def test_the_solution_is_that_of_fit_path():
    given = data(Logistic())
    path = fit_path(given["X"], given["y"], L1(1.0), datafit=Logistic(), alphas=[0.06], tol=1e-10)
    fit = solve(given["X"], given["y"], L1(ALPHA.clone().requires_grad_()), datafit=Logistic())
    assert torch.equal(fit.coef, path.coefs[0])
    assert torch.equal(fit.intercept, path.intercepts[0])
    assert fit.dual_gap == float(path.dual_gaps[0]) < 1e-9
    assert fit.violation == float(path.violations[0])
    assert torch.equal(fit.active, fit.coef != 0)


def test_without_gradients_it_is_a_plain_fit():
    given = data(Quadratic())
    fit = solve(given["X"].numpy(), given["y"].numpy(), L1(0.05))
    assert not fit.coef.requires_grad
    assert not fit.intercept.requires_grad
    with torch.no_grad():
        assert not solve(given["X"], given["y"], L1(ALPHA.clone().requires_grad_())).coef.requires_grad


def test_bilevel_descent_lowers_the_held_out_loss():
    X, held = draw(60, 20, seed=5), draw(200, 20, seed=6)
    truth = torch.zeros(20, dtype=F64).index_fill(0, torch.arange(3), 1.0)
    y, held_y = X @ truth + draw(60, seed=7), held @ truth + draw(200, seed=8)
    log_alphas = torch.full((20,), -4.0, dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([log_alphas], lr=0.2)
    losses = []
    for _ in range(30):
        fit = solve(X, y, Weighted(L1(1.0), log_alphas.exp()))
        loss = (held @ fit.coef + fit.intercept - held_y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert log_alphas[3:].mean() > log_alphas[:3].mean()


def test_nothing_of_the_callers_changes():
    given = {name: value.requires_grad_() for name, value in data(Quadratic()).items()}
    before = {name: value.detach().clone() for name, value in given.items()}
    weights, alpha = WEIGHTS.clone().requires_grad_(), ALPHA.clone().requires_grad_()
    penalty = Weighted(L1(alpha), weights)
    state = torch.random.get_rng_state()
    cost(
        solve(given["X"], given["y"], penalty, sample_weight=given["sample_weight"], offset=given["offset"])
    ).backward()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert penalty.penalty.alpha is alpha
    assert penalty.weights is weights
    assert weights.requires_grad
    for name, value in given.items():
        assert torch.equal(value.detach(), before[name])
        assert value.grad is not None


def test_what_has_no_gradient_is_refused():
    given = data(Logistic())
    X, y = given["X"], given["y"]
    with pytest.raises(ValueError, match=r"labels of classes.*y\.detach"):
        solve(X, y.requires_grad_(), L1(0.1), datafit=Logistic())
    with pytest.raises(ValueError, match="labels of classes"):
        solve(X, (2.0 * y.detach() - 1.0).requires_grad_(), L1(0.1), datafit=SquaredHinge())
    with pytest.raises(ValueError, match=r"sparse_csr.*to_dense"):
        solve(X.to_sparse_csr().requires_grad_(), y.detach(), L1(0.1))

    class Broken(Penalty):
        alpha = 0.1

        def value(self, w):
            return self.alpha * w.abs().sum()

        @torch.no_grad()
        def prox(self, w, step):
            return L1(self.alpha).prox(w, step)

        def with_alpha(self, alpha):
            return self

    with pytest.raises(ValueError, match="autograd cannot follow"):
        solve(X.requires_grad_(), y.detach(), Broken())


def test_there_is_no_second_derivative():
    given = data(Quadratic())
    alpha = ALPHA.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cost(solve(given["X"], given["y"], L1L2(alpha))), alpha, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.backward()


def test_a_fit_that_stops_early_says_so():
    X = draw(30, 40, seed=3)
    warnings.simplefilter("always")
    with pytest.warns(RuntimeWarning, match=r"did not reach tol=1e-30.*raise tol"):
        solve(X, draw(30, seed=4), Group(L1(0.01), by=labels(torch.arange(40) // 4)), tol=1e-30)


@pytest.mark.parametrize(("change", "message"), [
    ({"sample_weight": -torch.ones(N)}, "sample_weight"),
    ({"offset": torch.ones(3)}, "offset must have shape"),
    ({"y": torch.ones(3)}, "inconsistent numbers of samples"),
    ({"X": torch.full((N, P), torch.nan)}, "NaN"),
])  # fmt: skip
def test_bad_data_is_refused_as_by_fit_path(change, message):
    with pytest.raises(ValueError, match=message):
        fitted(Quadratic(), L1(0.1), **change)


def test_a_penalty_without_slope_has_gradient_zero():
    """The number of coefficients says nothing about their size; alpha only chooses them."""
    alpha = torch.tensor(0.02, dtype=F64, requires_grad=True)
    X = data(Quadratic())["X"].requires_grad_()
    fit = fitted(Quadratic(), L0(alpha), X=X)
    grad, by_x = torch.autograd.grad(cost(fit), [alpha, X], materialize_grads=True)
    assert grad == 0
    chosen = fit.coef.detach() != 0
    assert 0 < int(chosen.sum()) < P
    assert (by_x[:, ~chosen] == 0).all()
    assert by_x.abs().max() > 1e-3


def test_numbers_of_numpy_are_alphas_too():
    given = data(Quadratic())
    assert solve(given["X"], given["y"], L1(np.float64(0.1))).coef.isfinite().all()


def test_a_strength_that_is_a_number_is_a_double():
    """0.1 is no number of single precision: the solution is that of 0.1 and of no other."""
    X, y = torch.eye(4, dtype=F64).repeat(2, 1), torch.full((8,), 3.0, dtype=F64)
    fit = solve(X, y, L1(0.1), fit_intercept=False)
    torch.testing.assert_close(fit.coef, torch.full((4,), 3.0 - 4.0 * 0.1, dtype=F64), rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("seed", range(12))
def test_copies_to_rounding(seed):
    """A column twice, but for rounding: which copy is at its threshold is rounding too; predictions have one slope."""
    X = draw(N, P, seed=seed)
    X[:, 0] = (X[:, 0] > 0.3).double()
    X = torch.cat([X, X[:, :3] * 3.7 - 0.3, X[:, :3] / 0.77], 1)
    X = (X - X.mean(0)) / X.std(0)
    y = X[:, :P] @ torch.tensor([-0.5, 0.8, 0.6, 0.0, 1.0, 0.0, 0.0, 0.0], dtype=F64) + 0.5 * draw(N, seed=seed + 50)
    for size in (0.05, 0.1, 0.2):
        alpha = torch.tensor(size, dtype=F64, requires_grad=True)
        fits = [solve(X, y, L1(a)) for a in (alpha, size + 1e-6, size - 1e-6)]
        weighted = [((X @ fit.coef + fit.intercept) * COSTS[:N]).sum() for fit in fits]
        (slope,) = torch.autograd.grad(weighted[0], alpha)
        assert float(slope) == pytest.approx(float(weighted[1] - weighted[2]) / 2e-6, rel=1e-5, abs=1e-6)


UNDER_INFERENCE = [
    (Quadratic(), L1L2(0.02)),
    (Quadratic(), MCP(0.05)),
    (Logistic(), L1(0.02)),
    (Logistic(), Group(L1(0.02), labels(INDEX))),
    (Multinomial(), L1(0.02)),
]


@pytest.mark.parametrize(("datafit", "penalty"), UNDER_INFERENCE, ids=repr)
def test_under_inference_mode_the_solution_is_the_same_and_has_no_gradient(datafit, penalty):
    given = data(datafit)
    with torch.no_grad():
        expected = solve(given["X"], given["y"], penalty, datafit=datafit)
    with torch.inference_mode():
        alpha = torch.tensor(float(penalty.alpha), dtype=F64, requires_grad=True)
        found = solve(given["X"], given["y"], penalty.with_alpha(alpha), datafit=datafit)
    assert torch.equal(found.coef, expected.coef)
    assert torch.equal(found.active, expected.active)
    assert not any(part.requires_grad for part in (found.coef, found.intercept))
    factor = torch.ones_like(found.coef, requires_grad=True)
    (factor * found.coef).sum().backward()  # refused for tensors of inference mode
    assert torch.equal(factor.grad, found.coef)


def test_tensors_made_in_inference_mode_are_taken():
    given = data(SquaredHinge())
    with torch.inference_mode():
        made = {name: tensor.clone() for name, tensor in given.items()}
        ratio = torch.tensor(0.02, dtype=F64)
    grads = []
    for source, alpha in ((made, ratio), (given, torch.tensor(0.02, dtype=F64))):
        offset = source["offset"].clone().requires_grad_()
        fit = solve(**{**source, "offset": offset}, penalty=L2(alpha), datafit=SquaredHinge())
        grads.append(torch.autograd.grad(fit.coef.sum(), offset)[0])
    assert torch.equal(*grads)
    assert bool((grads[0] != 0).any())
