"""fit_path against other people's solvers and an independent judge: objectives, coefficients, gaps, violations.

Tolerances: least squares with L1 is solved to rounding, so that RELATIVE covers the peers' own tolerance and rounding
through the design's condition. Iterative engines stop at a gap, and a coefficient is off by its root.
"""

import warnings

import numpy as np
import pytest
import torch
from helpers import F64
from linear_oracle import (
    Blocks,
    Entries,
    Huber,
    Judge,
    Logistic,
    Multinomial,
    Poisson,
    Quadratic,
    SquaredHinge,
    certify,
)
from skglm import GeneralizedLinearEstimator, SparseLogisticRegression, WeightedLasso, datafits, penalties
from skglm.solvers import ProxNewton
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import (
    Lasso,
    LogisticRegression,
    MultiTaskLasso,
    PoissonRegressor,
    Ridge,
    enet_path,
    lasso_path,
)

from torchreg import L1, L1L2, L2, MCP, Group, NonNegative, Weighted, labels, rows
from torchreg.linear import datafits as ours
from torchreg.linear.certificate import full_gap
from torchreg.linear.frame import framed
from torchreg.linear.path import fit_path
from torchreg.linear.refit import refit

RELATIVE = 1e-8
TIGHT = {"tol": 1e-14, "max_iter": 200_000}  # for iterative engines: about as far as rounding goes
N, P = 60, 20


def design(n, p, seed=0, rho=0.6, mean=2.0):
    draws = np.random.default_rng(seed).standard_normal((n, p))
    X = draws.copy()
    for j in range(1, p):
        X[:, j] = rho * X[:, j - 1] + np.sqrt(1 - rho**2) * draws[:, j]
    return X + mean  # far from centred, so that the intercept matters


def response(X, seed=1):
    noise = np.random.default_rng(seed).standard_normal(len(X))
    return (X[:, :5] - 2.0) @ np.array([2.0, -1.5, 0.0, 1.0, 0.5]) + noise + 3.0


DRAWS = np.random.default_rng(5)
TALL, WIDE = design(N, P), design(40, 90)
DATA = {"tall": (TALL, response(TALL)), "wide": (WIDE, response(WIDE))}
X, Y = DATA["tall"]
SIGNAL = (X[:, :3] - 2.0).sum(1)
CLASSES = (SIGNAL + DRAWS.standard_normal(N) > 0.3).astype(float)
COUNTS = DRAWS.poisson(np.exp(0.4 * SIGNAL + 0.5)).astype(float)
THREE = np.clip(np.round(SIGNAL + DRAWS.standard_normal(N)), -1, 1).astype(int) + 1
TASKS = np.stack([Y, SIGNAL, -response(X, 2)], 1)
WEIGHTS, OFFSET = DRAWS.uniform(0.1, 3.0, N), DRAWS.standard_normal(N)
GROUPS = np.arange(P) // 4
each_data = pytest.mark.parametrize(("X", "y"), list(DATA.values()), ids=list(DATA))
each_intercept = pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", "none"])
each_ratio = pytest.mark.parametrize("l1_ratio", [0.0, 0.01, 0.5, 0.95, 1.0])


def net(l1_ratio):
    return lambda alpha: Entries(alpha * l1_ratio, alpha * (1.0 - l1_ratio))


def grid(judge, size=6, ratio=1e-2):
    """Strengths from that of the null model down; for ridge too, which has none."""
    return np.geomspace(1.0, ratio, size) * judge.null()[1]


def close(mine, theirs, relative=RELATIVE):
    """Within a part of the largest entry."""
    mine, theirs = np.asarray(mine), np.asarray(theirs)
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs).max(initial=0.0) <= relative * np.abs(theirs).max(initial=0.0) + 1e-14  # at alpha_max


def rival(path, judge, penalty_at, coefs, intercepts, coefficients=RELATIVE):
    """Coefficients agree, and no objective of the peer is lower, nor higher than its tolerance explains."""
    for k, alpha in enumerate(path.alphas.tolist()):
        theirs = judge.objective(penalty_at(alpha), coefs[k], intercepts[k])
        assert float(path.objectives[k]) == pytest.approx(theirs, rel=RELATIVE)
        assert float(path.objectives[k]) <= theirs + 1e-13 * judge.null()[0]  # the rounding of ours
        close(path.coef(k), coefs[k], coefficients)


def exhausted(peer, *arguments, **options):
    """Run a peer until its iterations end, whatever it says of its convergence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return peer(*arguments, **options)


# --- least squares against peers -------------------------------------------------------------------------------------


@each_data
@each_intercept
@pytest.mark.parametrize("positive", [False, True], ids=["free", "positive"])
def test_lasso_path(X, y, fit_intercept, positive):
    mean, shift = (X.mean(0), y.mean()) if fit_intercept else (0 * X[0], 0.0)
    judge, penalty = Judge(X, y, fit_intercept=fit_intercept), NonNegative(L1(1.0)) if positive else L1(1.0)
    path = fit_path(X, y, penalty, alphas=10, fit_intercept=fit_intercept)
    found = exhausted(
        lasso_path, X - mean, y - shift, alphas=path.alphas.numpy(), positive=positive, tol=1e-16, max_iter=30_000
    )
    coefs = found[1].T
    rival(path, judge, lambda a: Entries(a, 0.0, 0.0 if positive else -np.inf), coefs, shift - coefs @ mean)


@each_data
@each_ratio
def test_elastic_net_path(X, y, l1_ratio):
    judge, penalty_at = Judge(X, y), net(l1_ratio)
    alphas = grid(judge)
    path = fit_path(X, y, L1L2(1.0, l1_ratio), alphas=alphas)
    certify(path, judge, penalty_at)
    if l1_ratio:
        arguments = {"l1_ratio": l1_ratio, "alphas": alphas, "tol": 1e-16, "max_iter": 30_000}
        coefs = exhausted(enet_path, X - X.mean(0), y - y.mean(), **arguments)[1].T
    else:
        coefs = [Ridge(len(y) * a, solver="svd").fit(X, y).coef_ for a in alphas]
    rival(path, judge, penalty_at, coefs, [y.mean() - X.mean(0) @ c for c in coefs])


@each_data
@each_intercept
def test_ridge(X, y, fit_intercept):
    """Ridge sums squares without a half and without 1/n: its alpha is 2 n times that of L2."""
    judge = Judge(X, y, fit_intercept=fit_intercept)
    path = fit_path(X, y, L2(1.0), alphas=grid(judge), fit_intercept=fit_intercept)
    certify(path, judge, lambda a: Entries(0.0, 2 * a))
    peers = [Ridge(2 * len(y) * a, solver="svd", fit_intercept=fit_intercept).fit(X, y) for a in path.alphas.tolist()]
    rival(path, judge, lambda a: Entries(0.0, 2 * a), [p.coef_ for p in peers], [p.intercept_ for p in peers])
    assert path.alpha_max == np.inf


@each_data
@pytest.mark.parametrize("penalty", [L1(1.0), L1L2(1.0, 0.7), NonNegative(L1(1.0))], ids=repr)
def test_sample_weights(X, y, penalty):
    weights = np.random.default_rng(3).uniform(0.0, 2.0, len(y))
    lower = 0.0 if "NonNegative" in repr(penalty) else -np.inf
    ratio = 0.7 if "L1L2" in repr(penalty) else 1.0

    def penalty_at(alpha):
        return Entries(alpha * ratio, alpha * (1 - ratio), lower)

    path, judge = fit_path(X, y, penalty, alphas=6, sample_weight=weights), Judge(X, y, weights=weights)
    certify(path, judge, penalty_at)
    root = np.sqrt(weights / weights.sum() * len(y))[:, None]  # sklearn's alpha with weights: of rows times their root
    mean, shift = weights @ X / weights.sum(), weights @ y / weights.sum()
    arguments = {"alphas": path.alphas.numpy(), "l1_ratio": ratio, "positive": lower == 0, "tol": 1e-16}
    coefs = exhausted(enet_path, root * (X - mean), root[:, 0] * (y - shift), max_iter=30_000, **arguments)[1].T
    rival(path, judge, penalty_at, coefs, shift - coefs @ mean)


def test_sklearns_own_sample_weights():
    alpha = 0.05
    path = fit_path(X, Y, L1(1.0), alphas=[alpha], sample_weight=WEIGHTS)
    peer = exhausted(Lasso(alpha, tol=1e-16, max_iter=30_000).fit, X, Y, sample_weight=WEIGHTS)
    close(path.coef(0), peer.coef_)
    assert float(path.intercepts[0]) == pytest.approx(peer.intercept_, rel=RELATIVE)


@each_data
@each_intercept
def test_celer(X, y, fit_intercept):
    celer = pytest.importorskip("celer")  # which has no wheel for some machines
    judge = Judge(X, y, fit_intercept=fit_intercept)
    factors = np.linspace(0.5, 3.0, X.shape[1])
    options = {"fit_intercept": fit_intercept, "tol": 1e-15, "max_iter": 200}
    for weights in (None, factors):
        penalty = L1(1.0) if weights is None else Weighted(L1(1.0), torch.tensor(weights))
        path = fit_path(X, y, penalty, alphas=5, eps=1e-2, fit_intercept=fit_intercept)
        peers = [exhausted(celer.Lasso(a, weights=weights, **options).fit, X, y) for a in path.alphas.tolist()]
        scale = 1.0 if weights is None else weights
        # 1e-7: celer's gap of 1e-15 |y|^2 leaves coefficients off by its root
        found = [p.coef_ for p in peers], [p.intercept_ for p in peers]
        rival(path, judge, lambda a, scale=scale: Entries(a * scale), *found, coefficients=1e-7)


@each_data
def test_skglm(X, y):
    factors = np.linspace(0.5, 3.0, X.shape[1])
    path = fit_path(X, y, Weighted(L1(1.0), torch.tensor(factors)), alphas=[0.3, 0.05])
    peers = [WeightedLasso(a, weights=factors, tol=1e-13, max_iter=500).fit(X, y) for a in path.alphas.tolist()]
    found = [p.coef_ for p in peers], [p.intercept_ for p in peers]
    # 1e-7: skglm's tolerance is of the violation, over the least curvature
    rival(path, Judge(X, y), lambda a: Entries(a * factors), *found, coefficients=1e-7)


def test_multi_task_lasso():
    path = fit_path(X, TASKS, Group(L1(1.0), rows, weights=1.0), alphas=[0.5, 0.1, 0.02], **TIGHT)
    judge = Judge(X, TASKS)
    certify(path, judge, lambda a: blocks_of_rows(a, 3), gap=1e-11, violations=False)
    options = {"tol": 1e-16, "max_iter": 30_000}
    peers = [exhausted(MultiTaskLasso(a, **options).fit, X, TASKS) for a in path.alphas.tolist()]
    found = [p.coef_.T for p in peers], [p.intercept_ for p in peers]
    rival(path, judge, lambda a: blocks_of_rows(a, 3), *found, coefficients=1e-6)  # the root of our gap


def blocks_of_rows(alpha, K):
    return Blocks(np.repeat(np.arange(P), K).reshape(P, K), np.full(P, alpha))


def blocks(alpha, inner=0.0, l2=0.0):
    """Group(L1(alpha), labels(GROUPS)): factors are roots of group sizes."""
    return Blocks(GROUPS, np.full(P // 4, 2.0 * alpha), inner, l2)


def test_group_lasso_of_celer():
    celer = pytest.importorskip("celer")  # which has no wheel for some machines
    path = fit_path(X, Y, Group(L1(1.0), labels(torch.tensor(GROUPS))), alphas=[0.5, 0.1, 0.02], **TIGHT)
    certify(path, Judge(X, Y), blocks, gap=1e-12, violations=False)
    options = {"weights": np.full(P // 4, 2.0), "tol": 1e-14, "max_iter": 200}
    peers = [exhausted(celer.GroupLasso(4, a, **options).fit, X, Y) for a in path.alphas.tolist()]
    found = [p.coef_ for p in peers], [p.intercept_ for p in peers]
    for k, alpha in enumerate(path.alphas.tolist()):
        theirs = Judge(X, Y).objective(blocks(alpha), found[0][k], found[1][k])
        assert float(path.objectives[k]) == pytest.approx(theirs, rel=RELATIVE)
        close(path.coef(k), found[0][k], 1e-5)  # the root of celer's gap


# --- generalised linear models against peers ----------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 0.01, 0.001])
def test_logistic_regression(alpha):
    """alpha = 1 / (n C); L2(alpha) has no half."""
    numbers = {"C": 1 / (N * alpha), "tol": 1e-13, "max_iter": 10**6}
    ridge = LogisticRegression(solver="newton-cholesky", **numbers).fit(X, CLASSES)
    path, judge = fit_path(X, CLASSES, L2(1.0), datafit=ours.Logistic(), alphas=[alpha / 2], **TIGHT), logistic()
    rival(path, judge, lambda a: Entries(0.0, 2 * a), ridge.coef_, ridge.intercept_, 1e-6)
    sparse = LogisticRegression(l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=0, **numbers)
    sparse.fit(X, CLASSES)
    options = {"datafit": ours.Logistic(), "alphas": [alpha], **TIGHT}
    path = fit_path(X, CLASSES, L1(1.0), fit_intercept=False, **options)
    rival(path, logistic(fit_intercept=False), Entries, sparse.coef_, [0.0], 1e-5)  # liblinear's tolerance
    if alpha < 0.01:
        return  # skglm without its compiler is slow
    peer = SparseLogisticRegression(alpha, tol=1e-12, max_iter=200, max_epochs=2000).fit(X, CLASSES)
    path = fit_path(X, CLASSES, L1(1.0), **options)
    rival(path, judge, Entries, peer.coef_, [peer.intercept_], 1e-6)


def logistic(**options):
    return Judge(X, CLASSES, Logistic(), **options)


def test_multinomial_regression():
    peer = LogisticRegression(C=1 / (N * 0.02), solver="newton-cholesky", tol=1e-13).fit(X, THREE)
    path = fit_path(X, THREE, L2(1.0), datafit=ours.Multinomial(), alphas=[0.01], **TIGHT)
    judge = Judge(X, np.eye(3)[THREE], Multinomial())
    rival(path, judge, lambda a: Entries(0.0, 2 * a), [peer.coef_.T], [peer.intercept_], 1e-6)


@pytest.mark.parametrize("alpha", [1.0, 0.01])
def test_poisson_regression(alpha):
    peer = PoissonRegressor(alpha=alpha, solver="newton-cholesky", tol=1e-13, max_iter=1000)
    peer.fit(X, COUNTS, sample_weight=WEIGHTS)
    options = {"datafit": ours.Poisson(), "alphas": [alpha / 2], "sample_weight": WEIGHTS, **TIGHT}
    path, judge = fit_path(X, COUNTS, L2(1.0), **options), Judge(X, COUNTS, Poisson(), weights=WEIGHTS)
    rival(path, judge, lambda a: Entries(0.0, 2 * a), [peer.coef_], [peer.intercept_], 1e-6)


@each_intercept
def test_sparse_poisson_regression(fit_intercept):
    options = {"datafit": ours.Poisson(), "alphas": [0.5, 0.1, 0.03], "fit_intercept": fit_intercept, **TIGHT}
    path = fit_path(X, COUNTS, L1(1.0), **options)
    solver = ProxNewton(tol=1e-13, max_iter=200, fit_intercept=fit_intercept)
    peers = [
        GeneralizedLinearEstimator(datafits.Poisson(), penalties.L1(alpha), solver).fit(X, COUNTS)
        for alpha in path.alphas.tolist()
    ]
    judge = Judge(X, COUNTS, Poisson(), fit_intercept=fit_intercept)
    rival(path, judge, Entries, [p.coef_ for p in peers], [p.intercept_ for p in peers], 1e-7)  # the gap's root


# --- certificates ------------------------------------------------------------------------------------------------

FACTORS = np.where(np.arange(P) % 5 == 4, np.inf, np.arange(P) % 5)  # 0, 1, 2, 3, inf, ...
FITS = {
    "quadratic": (ours.Quadratic(), None, Y),
    "logistic": (ours.Logistic(), Logistic(), CLASSES),
    "poisson": (ours.Poisson(), Poisson(), COUNTS),
    "huber": (ours.Huber(0.8), Huber(0.8), Y),
    "squared hinge": (ours.SquaredHinge(), SquaredHinge(), CLASSES),
    "tasks": (ours.Quadratic(), None, TASKS),
    "multinomial": (ours.Multinomial(), Multinomial(), THREE),
}
PENALTIES = {
    "L1": (L1(1.0), Entries),
    "net": (L1L2(1.0, 0.6), net(0.6)),
    "ridge": (L2(1.0), lambda a: Entries(0.0, 2 * a)),
    "nonnegative": (NonNegative(L1L2(1.0, 0.9)), lambda a: Entries(0.9 * a, 0.1 * a, 0.0)),
    "nonnegative L1": (NonNegative(L1(1.0)), lambda a: Entries(a, 0.0, 0.0)),
    "group": (Group(L1(1.0), labels(torch.tensor(GROUPS))), blocks),
    "sparse group": (Group(L1(1.0), labels(torch.tensor(GROUPS))) + L1(0.5), lambda a: blocks(a, 0.5)),
    "group net": (Group(L1(1.0), labels(torch.tensor(GROUPS))) + L2(0.1), lambda a: blocks(a, 0.0, 0.2)),
}
MATRIX_PENALTIES = {
    "rows": (Group(L1(1.0), rows, weights=1.0), lambda a: blocks_of_rows(a, 3)),
    "entries": (L1L2(1.0, 0.6), net(0.6)),
}
COMBINATIONS = [
    pytest.param(fit, penalty, id=f"{fit}-{penalty}")
    for fit in FITS
    for penalty in (MATRIX_PENALTIES if fit in ("tasks", "multinomial") else PENALTIES)
]


def fitting(fit, weights=WEIGHTS, offset=OFFSET, fit_intercept=True):
    """What fit_path takes, and the judge of it."""
    datafit, loss, y = FITS[fit]
    wide = fit in ("tasks", "multinomial") and offset is not None
    offset = np.outer(offset, [1.0, -0.5, 0.2]) if wide else offset
    given = {"datafit": datafit, "sample_weight": weights, "offset": offset, "fit_intercept": fit_intercept}
    target = np.eye(3)[y] if fit == "multinomial" else y
    judge = Judge(X, target, loss or Quadratic(), weights, offset, fit_intercept)
    return y, given, judge


@pytest.mark.parametrize(("fit", "name"), COMBINATIONS)
def test_gaps_of_any_coefficients_are_the_textbooks_and_bound_what_is_lost(fit, name):
    """At random points, where gaps are large: an error anywhere in the certificate shows."""
    y, given, judge = fitting(fit)
    penalty, penalty_at = {**PENALTIES, **MATRIX_PENALTIES}[name]
    alpha = float(penalty.alpha)
    best = fit_path(X, y, penalty, alphas=[alpha], tol=1e-12, **given)
    frame = framed(X, y, *given.values(), False, None)
    problem = frame.problem
    draws, centre, scale = np.random.default_rng(11), best.coef(0).numpy(), judge.null()[0]
    for size in (0.0, 1e-3, 0.1, 1.0):
        coef = centre + size * draws.standard_normal(centre.shape) * (draws.random(centre.shape) < 0.7)
        coef = np.maximum(coef, 0.0) if "nonnegative" in name else coef
        intercept = judge.best_intercept(coef)
        w, b = frame.coordinates.inward((coef, intercept), problem.no_coef())  # of columns that are centred
        gap = float(full_gap(problem, penalty, w, problem.eta(w, b if problem.fit_intercept else 0.0)))
        assert gap == pytest.approx(judge.gap(penalty_at(alpha), coef, intercept), rel=1e-9, abs=1e-13 * scale)
        lost = judge.objective(penalty_at(alpha), coef, intercept) - float(best.objectives[0])
        assert lost <= gap + 1e-13 * scale
        assert size == 0.0 or lost > -1e-12 * scale  # the best is the best, to its tolerance


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("fit", "name"), COMBINATIONS)
def test_every_point_of_a_path_is_certified(fit, name, fit_intercept):
    y, given, judge = fitting(fit, fit_intercept=fit_intercept)
    penalty, penalty_at = {**PENALTIES, **MATRIX_PENALTIES}[name]
    alphas = [1.0] if "+" in repr(penalty) else [0.5, 0.05]
    path = fit_path(X, y, penalty, alphas=alphas, tol=1e-10, **given)
    violations = fit not in ("tasks", "multinomial") and "group" not in name  # theirs are residuals of the prox
    certify(path, judge, penalty_at, gap=1.01e-10, violations=violations and fit == "quadratic")
    assert path.converged.all()


def test_points_that_have_not_converged_say_so():
    y, given, judge = fitting("multinomial")
    penalty, penalty_at = MATRIX_PENALTIES["rows"]
    path = fit_path(X, y, penalty, alphas=[0.01], max_iter=10, tol=1e-10, **given)
    assert certify(path, judge, penalty_at, gap=1.0, violations=False) > 1e-6
    assert not path.converged.any()


# --- laws of the interface ---------------------------------------------------------------------------------------

ROUNDED = 1e-11  # of the largest coefficient: two exact solutions of a design whose condition is about 100


def same(path, other, relative=ROUNDED):
    close(path.coefs, other.coefs, relative)
    close(path.intercepts, other.intercepts, 10 * relative)


@each_data
@each_intercept
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_integer_weights_are_repeated_rows(X, y, fit_intercept, ratio):
    counts = np.random.default_rng(8).integers(0, 3, len(y))
    options = {"alphas": [0.5, 0.1, 0.02], "fit_intercept": fit_intercept}
    weighted = fit_path(X, y, L1L2(1.0, ratio), sample_weight=counts, **options)
    same(weighted, fit_path(np.repeat(X, counts, 0), np.repeat(y, counts), L1L2(1.0, ratio), **options))
    same(weighted, fit_path(X, y, L1L2(1.0, ratio), sample_weight=torch.tensor(1e-3 * counts), **options))
    assert weighted.alpha_max == pytest.approx(
        fit_path(np.repeat(X, counts, 0), np.repeat(y, counts), L1L2(1.0, ratio), **options).alpha_max, rel=1e-13
    )


@pytest.mark.parametrize("fit", ["logistic", "poisson"])
def test_integer_weights_are_repeated_rows_of_other_losses(fit):
    datafit, _, y = FITS[fit]
    counts, options = np.arange(N) % 3, {"datafit": datafit, "alphas": [0.1, 0.02], **TIGHT}
    weighted = fit_path(X, y, L1(1.0), sample_weight=counts, **options)
    same(weighted, fit_path(np.repeat(X, counts, 0), np.repeat(y, counts), L1(1.0), **options), 1e-6)  # root of tol


@each_intercept
def test_an_offset_is_taken_off_the_target_of_least_squares(fit_intercept):
    options = {"alphas": [0.5, 0.1, 0.02], "fit_intercept": fit_intercept, "sample_weight": WEIGHTS}
    path = fit_path(X, Y, L1(1.0), offset=OFFSET, **options)
    same(path, fit_path(X, Y - OFFSET, L1(1.0), **options))
    certify(path, Judge(X, Y, Quadratic(), WEIGHTS, OFFSET, fit_intercept), Entries)


@pytest.mark.parametrize("fit", ["quadratic", "logistic", "poisson"])
def test_a_constant_offset_moves_the_intercept_alone(fit):
    datafit, _, y = FITS[fit]
    options = {"datafit": datafit, "alphas": [0.1, 0.02], **TIGHT}
    plain, moved = fit_path(X, y, L1(1.0), **options), fit_path(X, y, L1(1.0), offset=np.full(N, 0.7), **options)
    close(moved.coefs, plain.coefs, 1e-6)  # root of tol
    close(moved.intercepts, plain.intercepts - 0.7, 1e-5)


@each_data
@each_intercept
@pytest.mark.parametrize("weighted", [False, True])
def test_standardize_is_a_fit_on_standardised_columns(X, y, fit_intercept, weighted):
    X = np.hstack([X * np.geomspace(1e-3, 1e3, X.shape[1]), np.full((len(y), 1), 5.0)])  # and a constant one
    weights = np.random.default_rng(3).uniform(0.1, 2.0, len(y)) if weighted else None
    options = {"alphas": 6, "sample_weight": weights, "fit_intercept": fit_intercept}
    path = fit_path(X, y, L1(1.0), standardize=True, **options)
    scaled, spread = Judge(X, y, weights=weights, fit_intercept=fit_intercept).standardised()
    spread = spread.astype(float)
    explicit = fit_path(X / spread, y, L1(1.0), **options)
    assert path.alpha_max == pytest.approx(explicit.alpha_max, rel=1e-12)
    close(path.coefs.numpy() * spread, explicit.coefs, 1e-10)  # the spread is rounded
    close(path.intercepts, explicit.intercepts, 1e-10)
    assert spread[-1] == 1.0
    for k, alpha in enumerate(path.alphas.tolist()):
        gap = scaled.gap(Entries(alpha), path.coef(k).numpy() * spread, path.intercepts[k].numpy())
        assert gap <= 1e-9 * scaled.null()[0]
        assert abs(gap - float(path.dual_gaps[k])) <= 1e-11 * scaled.null()[0]  # of the scaled problem
    assert float(path.coef(-1)[-1]) == 0.0 or not fit_intercept


@pytest.mark.parametrize("fit", ["logistic", "tasks"])
def test_standardize_other_losses(fit):
    datafit, _, y = FITS[fit]
    penalty = Group(L1(1.0), rows, weights=1.0) if y.ndim == 2 else L1(1.0)
    spread = X.std(0) * np.geomspace(1e-2, 1e2, P)
    options = {"datafit": datafit, "alphas": [0.1, 0.02], **TIGHT}
    path = fit_path(X * np.geomspace(1e-2, 1e2, P), y, penalty, standardize=True, **options)
    explicit = fit_path(X / X.std(0), y, penalty, **options)
    scale = torch.tensor(spread) if y.ndim == 1 else torch.tensor(spread)[:, None]
    close(path.coefs * scale, explicit.coefs, 1e-6)
    close(path.intercepts, explicit.intercepts, 1e-6)


@each_data
@each_intercept
@pytest.mark.parametrize("lower", [-np.inf, 0.0], ids=["free", "nonnegative"])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_weights_zero_and_infinite(X, y, fit_intercept, lower, ratio):
    """0: unpenalised (of the net, its ridge too); inf: as if the column were not there."""
    factors = np.resize([0.0, 1.0, 2.0, np.inf, 0.5, 1.0, np.inf, 3.0], X.shape[1])
    factors[8:] = np.where(factors[8:] == 0, 1.0, factors[8:])  # one free column
    weighted = Weighted(L1L2(1.0, ratio), torch.tensor(factors))
    penalty = weighted if lower else NonNegative(weighted)
    path = fit_path(X, y, penalty, alphas=8, fit_intercept=fit_intercept)
    finite, judge = np.where(np.isinf(factors), 1.0, factors), Judge(X, y, fit_intercept=fit_intercept)

    def penalty_at(alpha):
        return Entries(np.where(np.isinf(factors), np.inf, alpha * ratio * finite), alpha * (1 - ratio) * finite, lower)

    if lower:
        certify(path, judge, penalty_at)
        assert path.alpha_max == pytest.approx(judge.alpha_max(factors) / ratio, rel=1e-12)
        assert (path.coefs[:, 0] != 0).all()
    found = path.coefs.numpy()
    assert (found[:, np.isinf(factors)] == 0).all()
    assert (found[0, factors > 0] == 0).all()
    assert (found[-1, factors > 0] != 0).any()
    assert lower or (found >= 0).all()
    kept = np.isfinite(factors)
    fewer = Weighted(L1L2(1.0, ratio), torch.tensor(factors[kept]))
    arguments = {"alphas": path.alphas, "fit_intercept": fit_intercept}
    close(found[:, kept], fit_path(X[:, kept], y, fewer if lower else NonNegative(fewer), **arguments).coefs, 1e-10)


def test_all_weights_zero_is_least_squares():
    path = fit_path(X, Y, Weighted(L1(1.0), torch.zeros(P, dtype=F64)), alphas=[1.0])
    solution = np.linalg.lstsq(X - X.mean(0), Y - Y.mean(), rcond=None)[0]
    close(path.coef(0), solution, 1e-11)
    assert path.alpha_max == 0.0


@each_data
@pytest.mark.parametrize("penalty", [L1(1.0), L1L2(1.0, 0.5), NonNegative(L1(1.0))], ids=repr)
def test_alphas_in_any_order_repeated_alone_and_above_alpha_max(X, y, penalty):
    top = fit_path(X, y, penalty, alphas=1).alpha_max
    wanted = [0.1 * top, 2.0 * top, 0.01 * top, top, 0.1 * top, np.nextafter(top, np.inf), 0.5 * top]
    path = fit_path(X, y, penalty, alphas=wanted)
    assert path.alphas.tolist() == sorted(wanted, reverse=True)
    assert (path.coefs[:3] == 0).all()
    assert (path.n_nonzero[:3] == 0).all()
    assert (path.dual_gaps[:3] <= 1e-14 * path.null_objective).all()
    assert (path.n_nonzero[3:] > 0).all()
    assert torch.equal(path.coef(4), path.coef(5))
    for kind in (tuple, np.array, torch.tensor, lambda a: torch.tensor(a, dtype=torch.float64).flip(0)):
        close(fit_path(X, y, penalty, alphas=kind(wanted)).coefs, path.coefs, 1e-6)  # torch.tensor: float32
    for k, alpha in enumerate(path.alphas.tolist()):
        alone = fit_path(X, y, penalty, alphas=[alpha])
        close(alone.coef(0), path.coef(k), ROUNDED)
    assert fit_path(X, y, penalty, alphas=1).alphas.tolist() == [top]


def test_the_automatic_grid_is_geometric():
    path = fit_path(X, Y, L1(1.0), alphas=5, eps=1e-2)
    assert path.alphas.tolist() == pytest.approx(np.geomspace(1.0, 1e-2, 5) * path.alpha_max, rel=1e-14)
    assert path.alpha_max == pytest.approx(Judge(X, Y).null()[1], rel=1e-13)
    assert len(fit_path(X, Y, L1(1.0))) == 100
    for number in (np.int64(5), torch.tensor(5)):
        assert fit_path(X, Y, L1(1.0), alphas=number, eps=1e-2).alphas.tolist() == path.alphas.tolist()


@each_intercept
@pytest.mark.parametrize("alphas", [[0.0], [1.0, 0.1, 0.0]])
def test_alpha_zero_is_least_squares(fit_intercept, alphas):
    path = fit_path(X, Y, L1(1.0), alphas=alphas, fit_intercept=fit_intercept)
    A = np.hstack([X, np.ones((N, 1))]) if fit_intercept else X
    solution = np.linalg.lstsq(A, Y, rcond=None)[0]
    close(path.coef(-1), solution[:P], 1e-11)
    assert float(path.intercepts[-1]) == pytest.approx(solution[P] if fit_intercept else 0.0, rel=1e-10)
    assert float(path.dual_gaps[-1]) <= 1e-12 * path.null_objective  # |correlation * coefficient|, both to rounding
    wide, y = DATA["wide"]
    loose = fit_path(wide, y, L1(1.0), alphas=alphas, fit_intercept=fit_intercept)
    assert float(loose.losses[-1]) <= 1e-20 * loose.null_objective + 1e-25  # interpolates
    assert loose.converged[-1]


@each_data
@pytest.mark.parametrize("penalty", [L1(1.0), L1L2(1.0, 0.5), NonNegative(L1(1.0))], ids=repr)
@pytest.mark.parametrize("kind", ["near", "far", "dense", "infeasible"])
def test_a_start_changes_the_way_and_not_the_answer(X, y, penalty, kind):
    alphas = [0.1, 0.05]
    cold = fit_path(X, y, penalty, alphas=alphas)
    draws = np.random.default_rng(6).standard_normal(X.shape[1])
    start = {
        "near": cold.coef(0).numpy(),
        "far": 100.0 * draws * (draws > 1.0),
        "dense": np.abs(draws),
        "infeasible": draws,
    }[kind]
    given = (start, 1.0) if kind == "near" else (torch.tensor(start), torch.tensor(1.0))
    before = start.copy()
    warm = fit_path(X, y, penalty, alphas=alphas, init=given)
    close(warm.coefs, cold.coefs, ROUNDED)
    close(warm.intercepts, cold.intercepts, ROUNDED)
    assert np.array_equal(start, before)
    assert warm.converged.all()


def test_a_start_saves_iterations():
    options = {"alphas": [0.02], "datafit": ours.Multinomial(), "tol": 1e-8}
    cold = fit_path(X, THREE, Group(L1(1.0), rows), **options)
    warm = fit_path(X, THREE, Group(L1(1.0), rows), init=(cold.coef(0), cold.intercepts[0]), **options)
    assert warm.n_iters[0] < cold.n_iters[0] / 2
    assert certify(warm, Judge(X, np.eye(3)[THREE], Multinomial()), root_blocks, gap=1.01e-8, violations=False) < 1e-8


def root_blocks(alpha):
    """Group(L1(alpha), rows) of three columns: factors are roots of group sizes."""
    return blocks_of_rows(alpha * np.sqrt(3), 3)


# --- what may be given -------------------------------------------------------------------------------------------


def layouts(X):
    """The same numbers, laid out in memory in every way."""
    wide = np.zeros((2 * X.shape[0], 3 * X.shape[1]), X.dtype)
    wide[::2, 1::3] = X
    frozen = X.copy()
    frozen.flags.writeable = False
    return {
        "C": np.ascontiguousarray(X),
        "F": np.asfortranarray(X),
        "strided": wide[::2, 1::3],
        "reversed": np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1],
        "read only": frozen,
        "torch": torch.tensor(X),
        "torch transposed": torch.tensor(np.ascontiguousarray(X.T)).T,
        "torch strided": torch.tensor(wide)[::2, 1::3],
        "requires grad": torch.tensor(X, requires_grad=True),
    }


@each_data
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_layout_and_dtype_gives_the_same(X, y, dtype, weighted):
    """float32 X is read as what it is: the answer is that of the same numbers in float64."""
    X, y = X.astype(dtype), y.astype(dtype)
    weights = np.random.default_rng(3).uniform(0.5, 2.0, len(y)).astype(dtype) if weighted else None
    options = {"alphas": 5, "sample_weight": weights, "standardize": weighted}
    expected = fit_path(X.astype(np.float64), y.astype(np.float64), L1(1.0), **options)
    targets = [y, torch.tensor(y), y[::-1].copy()[::-1], y.tolist(), layouts(y[:, None])["strided"][:, 0]]
    for k, (name, x) in enumerate(layouts(X).items()):
        path = fit_path(x, targets[k % len(targets)], L1(1.0), **options)
        assert path.coefs.dtype == path.intercepts.dtype == path.dual_gaps.dtype == F64, name
        assert not path.coefs.requires_grad, name
        close(path.coefs, expected.coefs, 1e-10)  # sums in another order, times the condition
        close(path.objectives, expected.objectives, 1e-12)
    if not weighted:
        certify(expected, Judge(X, y), Entries)


def test_nothing_of_the_callers_is_written_to():
    data = {"X": X.copy(), "y": Y.copy(), "weights": WEIGHTS.copy(), "offset": OFFSET.copy()}
    factors, alphas, start = torch.linspace(0.0, 2.0, P, dtype=F64), np.array([0.1, 0.3, 0.01]), np.ones(P)
    held = [*data.values(), factors.numpy(), alphas, start]
    before = [h.tobytes() for h in held]
    for standardize in (False, True):
        for penalty in (Weighted(L1(1.0), factors), Group(L1(1.0), labels(torch.tensor(GROUPS)))):
            for datafit in (ours.Quadratic(), ours.Huber()):
                path = fit_path(
                    data["X"], data["y"], penalty, datafit=datafit, alphas=alphas, init=(start, 0.0), tol=1e-3,
                    sample_weight=data["weights"], offset=data["offset"], standardize=standardize,
                )  # fmt: skip
                refit(path, data["X"], data["y"]), path.predict(data["X"]), path.to_numpy()
    assert [h.tobytes() for h in held] == before


@pytest.mark.parametrize("datafit", [ours.Quadratic(), ours.Huber()], ids=repr)
def test_a_start_of_numbers_is_one_of_doubles(datafit):
    """A list of floats starts where the tensor of the same doubles does, to the bit; 0.1 is no single."""
    start = [0.1] * P
    given = ((start, 0.3), (torch.tensor(start, dtype=F64), torch.tensor(0.3, dtype=F64)))
    numbers, tensors = (fit_path(X, Y, MCP(1.0), datafit=datafit, alphas=[0.1], max_iter=1, init=g) for g in given)
    assert torch.equal(numbers.coefs, tensors.coefs)
    assert torch.equal(numbers.intercepts, tensors.intercepts)


def test_a_path_does_not_look_at_data_that_changes_afterwards():
    x, y = X.copy(), Y.copy()
    path = fit_path(x, y, L1(1.0), alphas=4)
    before = path.coefs.clone(), path.intercepts.clone()
    x[:], y[:] = 0.0, 0.0
    assert torch.equal(path.coefs, before[0])
    assert torch.equal(path.intercepts, before[1])


def test_progress_is_shown_where_it_is_asked_for(capsys):
    fit_path(X, Y, L1(1.0), alphas=3)
    assert capsys.readouterr().err == ""
    fit_path(X, Y, L1(1.0), alphas=3, progress=True)
    assert "path" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(300, 700), (700, 300)], ids=["wide", "tall"])
@pytest.mark.parametrize(
    ("penalty", "datafit", "labelled"),
    [
        (lambda p: L1(1.0), ours.Quadratic(), False),
        (lambda p: Group(L1(1.0), labels(torch.arange(p) // 5)), ours.Quadratic(), False),
        (lambda p: L1(1.0), ours.Logistic(), True),
    ],
    ids=["lasso", "group", "logistic"],
)
def test_two_threads_give_what_one_gives(shape, penalty, datafit, labelled):
    """BLAS adds up in another order: what differs is rounding, or for iterative engines the root of the gap."""
    X = design(*shape)
    y = response(X)
    y = (y > np.median(y)).astype(float) if labelled else y
    threads, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(fit_path(X, y, penalty(shape[1]), datafit=datafit, alphas=10, eps=0.05, tol=1e-12))
    torch.set_num_threads(threads)
    one, two = found
    assert one.converged.all()
    assert two.converged.all()
    close(two.coefs, one.coefs, 1e-5)


def test_runs_are_repeatable_to_the_bit():
    first, second = (fit_path(*DATA["wide"], L1(1.0), alphas=20) for _ in range(2))
    assert torch.equal(first.coefs, second.coefs)
    assert torch.equal(first.dual_gaps, second.dual_gaps)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"alphas": []}, ValueError, "at least one"),
        ({"alphas": [-1.0]}, ValueError, "-1.0"),
        ({"alphas": [np.nan, 1.0]}, ValueError, "nan"),
        ({"alphas": [np.inf]}, ValueError, "inf"),
        ({"alphas": 0}, ValueError, ">= 1"),
        ({"alphas": True}, TypeError, "True"),
        ({"alphas": 0.5}, TypeError, "0.5"),
        ({"alphas": np.float64(0.5)}, TypeError, "0.5"),
        ({"alphas": torch.tensor(0.5)}, TypeError, "0.5"),
        ({"alphas": "0.5"}, TypeError, "0.5"),
        ({"alphas": iter([0.5])}, TypeError, "iterator"),
        ({"init": (np.ones(P - 1), 0.0)}, ValueError, "init"),
        ({"init": (np.ones(P), np.zeros(2))}, ValueError, "init"),
        ({"init": (np.full(P, np.nan), 0.0)}, ValueError, "init"),
        ({"alphas": 5, "eps": 0.0}, ValueError, "eps"),
        ({"alphas": 5, "eps": 1.5}, ValueError, "eps"),
        ({"sample_weight": -np.ones(N)}, ValueError, "sample_weight"),
        ({"sample_weight": np.zeros(N)}, ValueError, "weights"),
        ({"sample_weight": np.ones(N - 1)}, ValueError, "sample_weight"),
        ({"offset": np.ones(N - 1)}, ValueError, "offset"),
        ({"offset": np.full(N, np.nan)}, ValueError, "offset"),
        ({"penalty": L2(1.0)}, ValueError, "supply a grid"),
        ({"penalty": Weighted(L1(1.0), torch.ones(P - 1))}, ValueError, "do not fit"),
        ({"X": X[:, :0]}, ValueError, "0 feature"),
        ({"X": X[:0], "y": Y[:0]}, ValueError, "0 sample"),
        ({"X": X[:-1]}, ValueError, "inconsistent numbers of samples"),
        ({"X": X[:, 0]}, ValueError, "2D array"),
        ({"X": np.where(X > 4, np.nan, X)}, ValueError, "NaN"),
        ({"y": np.where(Y > 4, np.inf, Y)}, ValueError, "infinity"),
    ],
    ids=lambda value: None if isinstance(value, (type, str)) else "+".join(value),
)
def test_bad_input(change, error, words):
    given = {"X": X, "y": Y, "penalty": L1(1.0), **change}
    with pytest.raises(error, match=words):
        fit_path(given.pop("X"), given.pop("y"), given.pop("penalty"), **given)
