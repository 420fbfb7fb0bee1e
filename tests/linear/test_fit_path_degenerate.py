"""fit_path where least squares is degenerate: everywhere a relative gap of 1e-9 by the judge, and exact zeros.

Where columns are dependent to rounding and coefficients of opposite sign cancel, the gap cannot be less than rounding
allows: correlations are known to eps |w|_1 times the largest column, and count with |w|_1. `allowed` says so.
"""

import numpy as np
import pytest
import torch
from helpers import F64
from linear_oracle import Entries, Judge, certify
from test_fit_path_oracles import close, design, net, response

from torchreg import L1, L1L2, L2, NonNegative, Weighted
from torchreg.linear.datafits import Logistic, Poisson
from torchreg.linear.path import fit_path

GAP = 1e-9
# Where columns are dependent, pivoting accepts coefficients whose misfit costs 1e-9 of the energy that they explain,
# which is at most twice the null loss; to make their correlations feasible costs as much again.
ACCEPTED = 4.0 * GAP
DRAWS = np.random.default_rng(0)
TALL, WIDE = design(60, 20, rho=0.9), design(30, 80, rho=0.9)
BOTH = {"tall": (TALL, response(TALL)), "wide": (WIDE, response(WIDE))}
each_data = pytest.mark.parametrize(("X", "y"), list(BOTH.values()), ids=list(BOTH))
each_intercept = pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", "none"])
PENALTIES = {
    "L1": (L1(1.0), Entries),
    "net": (L1L2(1.0, 0.5), net(0.5)),
    "nonnegative": (NonNegative(L1(1.0)), lambda a: Entries(a, 0.0, 0.0)),
}
each_penalty = pytest.mark.parametrize("penalty", list(PENALTIES))


def noise(X, size, seed=2):
    return size * np.random.default_rng(seed).standard_normal(X.shape)


DESIGNS = {
    "duplicates": lambda X: np.hstack([X, X]),
    "opposites": lambda X: np.hstack([X, -X]),
    "triplicates, apart": lambda X: np.hstack([X[:, ::-1], X, X[:, ::2]]),
    "nearly duplicates 1e-3": lambda X: np.hstack([X, X + noise(X, 1e-3)]),
    "nearly duplicates 1e-4": lambda X: np.hstack([X, X + noise(X, 1e-4)]),
    "nearly duplicates 1e-5": lambda X: np.hstack([X, X + noise(X, 1e-5)]),
    "nearly duplicates 1e-6": lambda X: np.hstack([X, X + noise(X, 1e-6)]),
    "nearly duplicates 1e-8": lambda X: np.hstack([X, X + noise(X, 1e-8)]),
    "nearly duplicates 1e-13": lambda X: np.hstack([X, X + noise(X, 1e-13)]),
    "constants": lambda X: np.hstack([X, np.full((len(X), 2), 3.3), np.ones((len(X), 1))]),
    "zeros": lambda X: np.hstack([np.zeros((len(X), 3)), X]),
    "triples": lambda X: np.hstack([X, X[:, :5] + X[:, 5:10], X[:, :5] - X[:, 5:10]]),
    "rank 3": lambda X: X[:, :3] @ DRAWS.standard_normal((3, X.shape[1])),
    "scales 1e-8 to 1e8": lambda X: X * np.geomspace(1e-8, 1e8, X.shape[1]),
    "means 1e3": lambda X: X + 1e3,
    "means 1e6": lambda X: X + 1e6,
    "means 1e8": lambda X: X + 1e8,
    "binary": lambda X: (X > 2.0).astype(float),
    "ternary": lambda X: np.clip(np.round(X - 2.0), -1, 1),
    "one-hot": lambda X: np.hstack([np.eye(5)[np.arange(len(X)) % 5], np.eye(3)[np.arange(len(X)) // 3 % 3]]),
}


def above(path, X, y, penalty, below=1.0 - 1e-6, **options):
    """At alpha_max and above every penalised coefficient is exactly zero; just below it one is not."""
    top = path.alpha_max
    if not 0.0 < top < np.inf:
        return
    found = fit_path(X, y, penalty, alphas=[2.0 * top, top * (1 + 1e-12), top, top * below], **options)
    assert found.n_nonzero.tolist()[:3] == [0, 0, 0]
    assert found.n_nonzero[3] > 0


@each_data
@each_intercept
@each_penalty
@pytest.mark.parametrize("name", list(DESIGNS))
def test_designs(X, y, fit_intercept, penalty, name):
    penalty, penalty_at = PENALTIES[penalty]
    X = DESIGNS[name](X)
    path = fit_path(X, y, penalty, alphas=12, fit_intercept=fit_intercept)
    gap = ACCEPTED if name.startswith("nearly") else GAP
    gap = 10 * GAP if name == "means 1e8" and not fit_intercept else gap  # what differs is in the last eight digits
    certify(path, Judge(X, y, fit_intercept=fit_intercept), penalty_at, gap=gap, rounding=1e-11)
    assert path.converged.all()
    above(path, X, y, penalty, fit_intercept=fit_intercept)


def allowed(X, coef, loss):
    """The gap that rounding of correlations may leave, and 1e-8 of the null loss: the engine mends what costs 1e-9."""
    size = np.abs(coef).sum()
    return 10 * GAP * loss + 100 * np.finfo(float).eps * size**2 * (X**2).mean(0).max()


STEEP = {
    "hilbert 5": (lambda: 1.0 / (np.arange(5)[:, None] + np.arange(5) + 1.0)),
    "hilbert 8": (lambda: 1.0 / (np.arange(8)[:, None] + np.arange(8) + 1.0)),
    "hilbert 15": (lambda: 1.0 / (np.arange(15)[:, None] + np.arange(15) + 1.0)),
    "hilbert 30": (lambda: 1.0 / (np.arange(30)[:, None] + np.arange(30) + 1.0)),
    "powers, tall": lambda: np.vander(np.linspace(0, 1, 50), 20),
    "powers, wide": lambda: np.vander(np.linspace(-1, 1, 40), 60),
    "nearly duplicates, tall": lambda: DESIGNS["nearly duplicates 1e-4"](TALL),
    "nearly duplicates, wide": lambda: DESIGNS["nearly duplicates 1e-4"](WIDE),
}


@each_intercept
@pytest.mark.parametrize("smooth", [True, False], ids=["smooth", "rough"])
@pytest.mark.parametrize("name", list(STEEP))
def test_matrices_that_are_singular_to_rounding(name, smooth, fit_intercept):
    """Down to 1e-6 of alpha_max, where coefficients explode if anything is inverted without care."""
    X = STEEP[name]()
    y = X @ np.ones(X.shape[1]) if smooth else np.random.default_rng(0).standard_normal(len(X))
    judge, eps = Judge(X, y, fit_intercept=fit_intercept), 1e-6
    path, (loss, _) = fit_path(X, y, L1(1.0), alphas=25, eps=eps, fit_intercept=fit_intercept), judge.null()
    before = np.inf
    for k, alpha in enumerate(path.alphas.tolist()):
        coef, intercept = path.coef(k).numpy(), path.intercepts[k].numpy()
        gap, objective = judge.gap(Entries(alpha), coef, intercept), judge.objective(Entries(alpha), coef, intercept)
        assert gap <= allowed(X, coef, loss), (alpha, gap / loss)
        assert gap == pytest.approx(float(path.dual_gaps[k]), rel=1e-3, abs=allowed(X, coef, loss))  # it is honest
        assert objective <= before + gap  # the minimum falls with alpha
        before = objective
        if alpha >= 1e-3 * path.alpha_max:
            assert path.converged[k]
    above(path, X, y, L1(1.0), fit_intercept=fit_intercept)


def hadamard(order):
    H = np.ones((1, 1))
    while len(H) < order:
        H = np.block([[H, H], [H, -H]])
    return H


@pytest.mark.parametrize("penalty", list(PENALTIES))
@pytest.mark.parametrize("signs", [np.ones(15), np.where(np.arange(15) % 2, -1.0, 1.0)], ids=["equal", "mixed"])
def test_ties_in_an_orthogonal_design(penalty, signs):
    """All columns reach their strength at once; the solution is the soft threshold, in exact arithmetic."""
    X = hadamard(16)[:, 1:]  # centred columns of mean square 1, entries +-1
    y = X @ signs
    alphas = [2.0, 1.0, 0.5, 0.25, 0.0625, 0.0]
    for intercept in (True, False):
        path = fit_path(X, y, PENALTIES[penalty][0], alphas=alphas, fit_intercept=intercept)
        for k, alpha in enumerate(alphas):
            ratio = 0.5 if penalty == "net" else 1.0
            size = max(1.0 - alpha * ratio, 0.0) / (1.0 + alpha * (1 - ratio))
            expected = signs * size
            expected = np.maximum(expected, 0.0) if penalty == "nonnegative" else expected
            assert np.array_equal(path.coef(k) == 0, expected == 0)
            # a net's ridge changes along the path: proximal point steps follow it, to 1e-13 of the largest correlation
            close(path.coef(k), expected, 2e-13 if penalty == "net" else 1e-15)
        assert path.alpha_max == (2.0 if penalty == "net" else 1.0)


@pytest.mark.parametrize("factor", [1.0, 3.7])
def test_ties_between_identical_columns(factor):
    """The identity: every column ties; and alpha_max is exact, so that there is nothing to find at it."""
    y = factor * np.ones(12)
    path = fit_path(np.eye(12), y, L1(1.0), alphas=[factor / 12, factor / 24], fit_intercept=False)
    assert path.n_nonzero.tolist() == [0, 12]
    close(path.coef(1), y / 2, 1e-15)


@pytest.mark.parametrize("ratio", [0.0, 1e-6, 0.05])
def test_more_active_columns_than_rows(ratio):
    """A ridge makes up to 160 columns active together, on 30 rows."""
    X, y = np.hstack([WIDE, WIDE + noise(WIDE, 0.1)]), BOTH["wide"][1]
    path = fit_path(X, y, L1L2(1.0, ratio), alphas=np.geomspace(10.0, 1e-4, 6))
    certify(path, Judge(X, y), net(ratio), gap=GAP)
    assert path.n_nonzero.max() > 4 * len(y)


def test_ridge_alone_on_duplicates_shares_equally():
    X, y = np.hstack([TALL] * 3), BOTH["tall"][1]
    path = fit_path(X, y, L2(1.0), alphas=[1.0, 1e-3, 1e-6])
    certify(path, Judge(X, y), lambda a: Entries(0.0, 2 * a), gap=GAP)
    parts = path.coefs.reshape(3, 3, 20)
    close(parts, parts.mean(1, keepdim=True).expand(-1, 3, -1), 1e-8)  # the condition is 1e6 to 1e8


UNEVEN = np.vstack([[-2.0] + [-1.0] * 5 + [-2e4, -2e4], np.tile([-1.0] * 6 + [-1e4, -1e4], (6, 1))])


@each_intercept
@pytest.mark.parametrize("copies", [1, 3], ids=["wide", "tall"])
@pytest.mark.parametrize("alphas", [[1e-2], [1e-6], np.geomspace(1.0, 1e-6, 15)], ids=["1e-2", "1e-6", "path"])
def test_ridge_where_one_eigenvalue_is_far_above_it(alphas, copies, fit_intercept):
    """Two directions at most that are not zero, of 1e6 or 1e8 times alpha and more."""
    for X, y in ((UNEVEN, np.arange(7) // 6), (np.full((2, 3), 998.0), np.arange(2))):
        X, y = np.vstack([X] * copies), np.hstack([y] * copies)
        path = fit_path(X, y, L1L2(1.0, 0.0), alphas=alphas, fit_intercept=fit_intercept)
        certify(path, Judge(X, y, fit_intercept=fit_intercept), net(0.0), gap=GAP, rounding=1e-9)
        assert path.converged.all()


@each_data
@each_intercept
@pytest.mark.parametrize("shares", [None, "uneven", "forced"])
@pytest.mark.parametrize("outputs", [None, 2])
def test_ridge_where_squares_lose_the_small_directions(X, y, shares, outputs, fit_intercept):
    """Singular values from 1e4 to 1e-4 in directions of no column; their squares span all digits of float64.

    The gap cannot be less than rounding of the coefficients allows: their correlations are known to eps |w| times the
    largest singular value squared, and count by the ridge.
    """
    draws, rank = np.random.default_rng(5), min(X.shape)
    left, right = (np.linalg.qr(draws.standard_normal((size, rank)))[0] for size in X.shape)
    X = np.sqrt(len(X)) * left * np.geomspace(1e4, 1e-4, rank) @ right.T
    factors = np.where(np.arange(X.shape[1]) % 5, 1.0, {None: 1.0, "uneven": 0.3, "forced": np.inf}[shares])
    forced, targets = np.isinf(factors), [y, y[::-1]][: outputs or 1]
    weights = torch.tensor(factors) if outputs is None else torch.tensor(np.stack([factors] * outputs, 1))
    together = y if outputs is None else np.stack(targets, 1)
    path = fit_path(X, together, Weighted(L2(1.0), weights), alphas=[1.0, 1e-4, 1e-6], fit_intercept=fit_intercept)
    judges = [Judge(X, target, fit_intercept=fit_intercept) for target in targets]
    for k, alpha in enumerate(path.alphas.tolist()):
        penalty = Entries(np.where(forced, np.inf, 0.0), 2 * alpha * np.where(forced, 0.0, factors))
        coefs, intercepts = path.coef(k).numpy().reshape(len(factors), -1), path.intercepts[k].numpy().reshape(-1)
        rounding = np.finfo(float).eps ** 2 * 1e16 * (coefs**2).sum() / (2 * 0.3 * alpha)
        solved = zip(judges, coefs.T, intercepts, strict=True)
        gap = sum(judge.gap(penalty, coef, intercept) for judge, coef, intercept in solved)
        for stated in (gap, float(path.dual_gaps[k])):
            assert stated <= GAP * sum(judge.null()[0] for judge in judges) + rounding
        assert (coefs[forced] == 0).all()


def test_where_all_but_constant_columns_are_useless():
    """Centred, a constant column is rounding and not zero; that must be no reason to enter."""
    X = np.full((5, 6), -1.9)
    X[0, 0] = X[0, 5] = -0.9
    path = fit_path(X, np.array([0.0, 0.0, 0.0, 1.0, 1.0]), NonNegative(L1(1.0)), alphas=5)
    assert path.alpha_max == 0.0
    assert (path.coefs == 0).all()
    started = fit_path(X, np.arange(5.0) // 3, NonNegative(L1(1.0)), alphas=[1.0, 1e-3], init=(np.ones(6), 0.0))
    assert (started.coefs == 0).all()


@each_data
@each_intercept
def test_free_columns(X, y, fit_intercept):
    """Unpenalised columns that are duplicates of each other, or more than there are rows."""
    p = X.shape[1]
    for columns, free in ((np.hstack([X[:, :3], X]), 6), (X, min(p, 2 * len(y)) - 5)):
        factors = np.where(np.arange(columns.shape[1]) < free, 0.0, 1.0)
        penalty = Weighted(L1(1.0), torch.tensor(factors))
        path = fit_path(columns, y, penalty, alphas=[0.5, 0.05, 1e-3], fit_intercept=fit_intercept)
        judge = Judge(columns, y, fit_intercept=fit_intercept)
        # the reported gap counts |correlation * coefficient| of free columns, where the judge refits them
        certify(path, judge, lambda a, factors=factors: Entries(a * factors), gap=GAP, rounding=1e-10)
        assert path.converged.all()
        bounded = fit_path(columns, y, NonNegative(penalty), alphas=[0.5, 0.05], fit_intercept=fit_intercept)
        certify(bounded, judge, lambda a, factors=factors: Entries(a * factors, 0.0, 0.0), gap=GAP, rounding=1e-10)
        assert (bounded.coefs >= 0).all()


@each_intercept
@pytest.mark.parametrize("penalty", ["L1", "nonnegative"])
@pytest.mark.parametrize("rank", [3, 30])
def test_where_unpenalised_columns_explain_all_there_is_nothing_to_find(rank, penalty, fit_intercept):
    """The residual is rounding; alpha_max of rounding would make a grid of strengths that choose by it."""
    X = WIDE if rank == 30 else DESIGNS["rank 3"](WIDE)
    truth = np.where(np.arange(80) < 60, np.abs(np.random.default_rng(rank).standard_normal(80)), 0.0)
    weighted = Weighted(L1(1.0), torch.tensor(np.where(np.arange(80) < 60, 0.0, 1.0)))
    path = fit_path(
        X, X @ truth, weighted if penalty == "L1" else NonNegative(weighted), alphas=5, fit_intercept=fit_intercept
    )
    assert path.alpha_max == 0.0
    assert (path.coefs[:, 60:] == 0).all()
    assert path.converged.all()


@each_intercept
@pytest.mark.parametrize("shape", [(1, 4), (1, 1), (9, 1), (2, 1), (2, 7)], ids=str)
def test_small_shapes(shape, fit_intercept):
    draws = np.random.default_rng(4)
    X, y = draws.standard_normal(shape) + 1.0, draws.standard_normal(shape[0]) + 2.0
    judge = Judge(X, y, fit_intercept=fit_intercept)
    for penalty, penalty_at in PENALTIES.values():
        path = fit_path(X, y, penalty, alphas=7, fit_intercept=fit_intercept)
        certify(path, judge, penalty_at, gap=GAP)
        above(path, X, y, penalty, fit_intercept=fit_intercept)
        assert path.converged.all()
        if shape[0] == 1 and fit_intercept:
            assert path.alpha_max == 0.0
            assert (path.coefs == 0).all()
            assert path.intercepts.tolist() == pytest.approx([y[0]] * 7, rel=1e-15)


def test_one_column_is_a_soft_threshold():
    X, y = TALL[:, :1], BOTH["tall"][1]
    x, r = X[:, 0] - X.mean(), y - y.mean()
    path = fit_path(X, y, L1(1.0), alphas=9)
    c = x @ r / 60
    close(path.coefs[:, 0], np.sign(c) * np.maximum(abs(c) - path.alphas.numpy(), 0) / (x @ x / 60), 1e-13)
    close(path.intercepts, y.mean() - X.mean() * path.coefs[:, 0].numpy(), 1e-13)


@each_data
@each_penalty
@pytest.mark.parametrize("level", [0.0, 2.7, 0.1, -1e6, 1e-200, 1e200])
def test_a_constant_target_needs_no_column(X, y, penalty, level):
    """Its mean is not exact in floating point, and what rounding leaves must not be fitted."""
    y = np.full(len(y), level)
    path = fit_path(X, y, PENALTIES[penalty][0], alphas=5)
    assert (path.coefs == 0).all()
    assert path.intercepts.tolist() == pytest.approx([level] * 5, rel=1e-14)
    assert path.alpha_max == 0.0
    assert path.converged.all()
    assert (path.dual_gaps == 0).all()
    given = fit_path(X, y, PENALTIES[penalty][0], alphas=[1.0, 1e-3, 0.0])
    assert (given.coefs.abs() <= 1e-12 * abs(level)).all()  # alpha 0 may find what is left of it


@each_data
def test_a_target_of_zeros_without_an_intercept(X, y):
    path = fit_path(X, 0.0 * y, L1(1.0), alphas=5, fit_intercept=False)
    assert (path.coefs == 0).all()
    assert (path.objectives == 0).all()
    assert path.converged.all()


@each_data
@pytest.mark.parametrize("size", [1e-150, 1e-30, 1e30, 1e140])
def test_units_of_the_target_do_not_matter(X, y, size):
    """Coefficients scale with y and alpha; squares of 1e150 leave the range of float64."""
    plain, scaled = fit_path(X, y, L1(1.0), alphas=10), fit_path(X, size * y, L1(1.0), alphas=10)
    assert scaled.alpha_max == pytest.approx(size * plain.alpha_max, rel=1e-12)
    close(scaled.coefs / size, plain.coefs, 1e-9)
    assert scaled.converged.all()


@each_data
@pytest.mark.parametrize("size", [1e-100, 1e-20, 1e20, 1e100])
def test_units_of_the_columns_do_not_matter(X, y, size):
    """All by one factor; `test_designs` has columns of different ones."""
    plain, scaled = fit_path(X, y, L1(1.0), alphas=10), fit_path(size * X, y, L1(1.0), alphas=10)
    assert scaled.alpha_max == pytest.approx(size * plain.alpha_max, rel=1e-12)
    close(scaled.coefs * size, plain.coefs, 1e-9)
    assert scaled.converged.all()


@each_data
@each_intercept
def test_weights_on_few_rows(X, y, fit_intercept):
    for count in (1, 2, 3):
        weights = np.where(np.arange(len(y)) < count, 1.0, 0.0)
        judge = Judge(X, y, weights=weights, fit_intercept=fit_intercept)
        path = fit_path(X, y, L1(1.0), alphas=8, sample_weight=weights, fit_intercept=fit_intercept)
        certify(path, judge, Entries, gap=GAP)
        assert path.converged.all()
        rows = fit_path(X[:count], y[:count], L1(1.0), alphas=path.alphas, fit_intercept=fit_intercept)
        close(rows.objectives, path.objectives, 1e-11)
        if count == 1 and fit_intercept:
            assert (path.coefs == 0).all()
            assert path.intercepts.tolist() == pytest.approx([y[0]] * 8, rel=1e-15)


@each_data
def test_weights_of_all_sizes(X, y):
    weights = 10.0 ** np.random.default_rng(2).uniform(-12, 3, len(y))
    path = fit_path(X, y, L1(1.0), alphas=15, sample_weight=weights)
    certify(path, Judge(X, y, weights=weights), Entries, gap=GAP)
    for size in (1e-300, 1e300):
        other = fit_path(X, y, L1(1.0), alphas=path.alphas, sample_weight=size * weights / weights.max())
        close(other.objectives, path.objectives, 1e-12)


@each_data
@each_intercept
def test_targets_that_can_be_interpolated(X, y, fit_intercept):
    """Noiseless, to 1e-10 of alpha_max: the loss falls with the square of alpha."""
    truth = np.where(np.arange(X.shape[1]) < 4, [1.0, -2.0, 3.0, -4.0] + [0.0] * (X.shape[1] - 4), 0.0)
    y = X @ truth
    path = fit_path(X, y, L1(1.0), alphas=30, eps=1e-10, fit_intercept=fit_intercept)
    certify(path, Judge(X, y, fit_intercept=fit_intercept), Entries, gap=GAP)
    assert path.converged.all()
    assert float(path.losses[-1]) <= 1e-13 * path.null_objective  # from a Gram matrix: rounding of the energy
    if len(y) > X.shape[1]:
        close(path.coef(-1), truth, 1e-7)  # 1e-10 of alpha_max over the least eigenvalue


@each_data
@each_intercept
@pytest.mark.parametrize("name", ["duplicates", "triples", "constants", "zeros", "nearly duplicates 1e-4", "one-hot"])
def test_no_penalty_at_all(X, y, fit_intercept, name):
    """alpha 0 on dependent columns: any minimiser will do, and the loss is that of numpy's least squares."""
    X = DESIGNS[name](X)
    A = X - X.mean(0) if fit_intercept else X
    b = y - y.mean() if fit_intercept else y
    least = ((b - A @ np.linalg.lstsq(A, b, rcond=1e-12)[0]) ** 2).mean() / 2
    for alphas in ([0.0], [1.0, 0.1, 0.0]):
        path = fit_path(X, y, L1(1.0), alphas=alphas, fit_intercept=fit_intercept)
        assert abs(float(path.losses[-1]) - least) <= allowed(A, path.coef(-1).numpy(), path.null_objective)
        assert path.converged[-1]
        assert path.coefs.isfinite().all()


@pytest.mark.parametrize("datafit", [Logistic(), Poisson()], ids=repr)
@pytest.mark.parametrize("name", ["duplicates", "constants", "zeros", "triples", "one-hot", "nearly duplicates 1e-4"])
def test_other_losses_on_degenerate_designs(datafit, name):
    import linear_oracle

    X, target = DESIGNS[name](TALL), BOTH["tall"][1]
    loss = linear_oracle.Logistic() if isinstance(datafit, Logistic) else linear_oracle.Poisson()
    y = (target > 3.0).astype(float) if isinstance(datafit, Logistic) else np.round(np.exp(target.clip(-3, 3)))
    path = fit_path(X, y, L1(1.0), datafit=datafit, alphas=6, eps=1e-2, tol=1e-8)
    certify(path, Judge(X, y, loss), Entries, gap=1.01e-8, rounding=1e-11)
    assert path.converged.all()
    above(path, X, y, L1(1.0), below=0.9, datafit=datafit, tol=1e-10)  # nearer, the null model is within tol


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_separable_classes(size):
    """The likelihood has no maximum, the penalised one has: coefficients grow as alpha falls."""
    import linear_oracle

    y = (TALL[:, 0] > 2.0).astype(float)
    path = fit_path(size * TALL, y, L1(1.0), datafit=Logistic(), alphas=8, eps=1e-3, tol=1e-8)
    certify(path, Judge(size * TALL, y, linear_oracle.Logistic()), Entries, gap=1.01e-8, rounding=1e-10)
    assert path.converged.all()


@pytest.mark.slow
def test_two_hundred_rows_and_twenty_thousand_columns():
    """To 1e-5 of alpha_max, where the fit interpolates."""
    X = design(200, 20_000, rho=0.9)
    y = response(X)
    path = fit_path(X, y, L1(1.0), eps=1e-5)
    assert path.converged.all()
    assert (path.dual_gaps <= GAP * path.null_objective).all()
    assert (path.n_nonzero <= 199).all()
    judge, loss = Judge(X, y), None
    loss = judge.null()[0]
    for k in (0, 30, 60, 80, 99):
        gap = judge.gap(Entries(float(path.alphas[k])), path.coef(k).numpy(), path.intercepts[k].numpy())
        assert gap <= GAP * loss
        assert abs(gap - float(path.dual_gaps[k])) <= 1e-12 * loss
    assert path.coefs.dtype == F64
