"""Training paths in lockstep: each fold's are those that it has alone, whatever the options."""

import numpy as np
import pytest
import scipy.sparse
import torch

from torchreg import L1, L1L2, NonNegative, Weighted
from torchreg.linear import cv as cross_validation
from torchreg.linear import fit_cv, fold_paths
from torchreg.linear.datafits import Quadratic
from torchreg.linear.fold_paths import training_paths, training_points
from torchreg.linear.folds import drawn_folds
from torchreg.linear.frame import framed
from torchreg.linear.lockstep import factor, fold_oracle, path, pivoting
from torchreg.linear.lockstep.path import lockstep_points
from torchreg.linear.path import alpha_grid, strongest

F64 = torch.float64
SAME = 1e-8  # both ways are exact to rounding, times the condition of the active columns


def data(n, p, seed=0):
    draw = np.random.default_rng(seed)
    X = draw.standard_normal((n, p))
    X[:, 1:] += 0.7 * X[:, :-1]
    X += draw.uniform(-2, 2, p)
    signal = X[:, ::3] @ draw.standard_normal(X[:, ::3].shape[1])
    return X, signal / signal.std() + draw.standard_normal(n) + 3.0, draw.uniform(0.2, 2.0, n)


TALL, WIDE = data(60, 14), data(40, 90, 1)
SHAPES = {"more rows": TALL, "more columns": WIDE}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))


def weighted(penalty, p):
    c = torch.ones(p, dtype=F64)
    c[0], c[1], c[2], c[3] = 0.0, torch.inf, 0.4, 2.5
    return Weighted(penalty, c)


PENALTIES = {
    "lasso": lambda p: L1(1.0),
    "elastic net": lambda p: L1L2(1.0, 0.6),
    "weights 0 and inf": lambda p: weighted(L1(1.0), p),
    "weighted elastic net": lambda p: weighted(L1L2(1.0, 0.8), p),
    "nonnegative": lambda p: NonNegative(L1(1.0)),
    "nonnegative elastic net": lambda p: NonNegative(L1L2(1.0, 0.5)),
}
OPTIONS = {
    "plain": {},
    "no intercept": {"fit_intercept": False},
    "standardize": {"standardize": True},
    "standardize, no intercept": {"fit_intercept": False, "standardize": True},
    "sample weights": {"sample_weight": True},
    "all": {"standardize": True, "sample_weight": True, "offset": True},
}


def prepared(shape, penalty, cv, *, alphas=30, sample_weight=False, offset=False, device=None, **options):
    X, y, weights = shape
    options = {"fit_intercept": True, "standardize": False} | options
    lift = 0.3 * np.cos(np.arange(len(y))) if offset else None
    frame = framed(X, y, Quadratic(), weights if sample_weight else None, lift, **options, device=device)
    grid = alpha_grid(alphas, strongest(frame, penalty, 1e-6, 1000), 0.02)
    return frame, drawn_folds(cv, frame.raw.n, y, None), penalty, grid


def assert_same(frame, together, alone):
    for ours, theirs in zip(together, alone, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.dense(frame.raw.p), b.dense(frame.raw.p), rtol=0, atol=SAME)
            torch.testing.assert_close(a.intercept, b.intercept, rtol=0, atol=SAME)
            torch.testing.assert_close(a.loss, b.loss, rtol=0, atol=SAME)
            assert a.gap <= 1e-10


def check(shape, penalty, cv=5, *, lost=0, **options):
    """No more folds are lost than may be, and the others are those of the engine for one problem."""
    frame, folds, penalty, grid = prepared(shape, penalty, cv, **options)
    found = list(lockstep_points(frame, folds, penalty, grid))
    kept = [k for k, points in enumerate(found) if points is not None]
    assert len(folds) - len(kept) <= lost
    alone = [training_points(frame, folds[k], penalty, grid, tol=1e-6, max_iter=1000) for k in kept]
    assert_same(frame, [found[k] for k in kept], alone)


@each_shape
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=list(PENALTIES))
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_every_fold_is_what_it_is_alone(shape, penalty, options):
    check(shape, penalty(shape[0].shape[1]), **options)


FOLDS = {
    "uneven": [(range(9, 40), range(9)), (range(25), range(25, 40)), ([*range(5), *range(8, 40)], [5, 6, 7])],
    "repeated rows": [([0, 0, 1, 2, 2, 2, *range(3, 30)], range(30, 40)), ([*range(10, 40), 12, 13], range(10))],
    "some rows in no fold": [(range(20), range(20, 30)), (range(10, 40), range(10))],
    "each row alone": 40,
}


@pytest.mark.parametrize("cv", FOLDS.values(), ids=list(FOLDS))
@pytest.mark.parametrize("width", [12, 70])
@pytest.mark.parametrize("options", [{}, {"standardize": True, "sample_weight": True}], ids=str)
def test_folds_of_any_kind(cv, width, options):
    check(data(40, width, 2), L1(1.0), cv, alphas=15, **options)


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csc_array])
@pytest.mark.parametrize("width", [20, 150])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_sparse(kind, width, options):
    X, y, weights = data(60, width, 3)
    check((kind(np.where(np.abs(X) > 1.8, X, 0.0)), y, weights), L1(1.0), **options)


@each_shape
def test_alphas_of_ones_own_far_apart_and_repeated(shape):
    check(shape, L1(1.0), alphas=[1e3, 0.8, 0.8, 0.05])


def test_single_precision():
    X, y, weights = WIDE
    check((X.astype(np.float32), y, weights), L1(1.0))


def test_strength_zero():
    check(TALL, L1(1.0), alphas=[0.5, 0.0])
    check(TALL, NonNegative(L1(1.0)), alphas=[0.5, 0.0])


def test_means_far_from_zero():
    X, y, weights = WIDE
    check((X + 1e4, y, weights), L1(1.0))


def test_columns_that_are_constant_in_training_rows():
    X, y, weights = data(60, 10, 4)
    X[:, 3] = 0.0
    X[:12, 3] = np.arange(12)  # in the first fold's training rows all zero
    X[:, 5] = 7.0
    for options in OPTIONS.values():
        check((X, y, weights), L1(1.0), **options)
    check((np.hstack([X, data(60, 90, 5)[0]]), y, weights), L1(1.0))


@each_shape
def test_dependent_columns_go_back_to_the_engine_for_one_problem(shape):
    X, y, weights = shape
    twice = np.hstack([X, X[:, :7]])
    frame, folds, penalty, grid = prepared((twice, y, weights), L1(1.0), 5)
    options = {"tol": 1e-6, "max_iter": 1000}
    together = list(training_paths(frame, folds, penalty, grid, lockstep=True, **options))
    alone = list(training_paths(frame, folds, penalty, grid, lockstep=False, **options))
    for ours, theirs, (train, _) in zip(together, alone, folds, strict=True):
        design, rows = frame.raw.subset(train), frame.weights[train]
        for a, b in zip(ours, theirs, strict=True):  # coefficients are not unique; what they predict is
            eta = [design.times(point.dense(design.p)) + point.intercept for point in (a, b)]
            torch.testing.assert_close(*eta, rtol=0, atol=1e-6)
            assert a.gap <= 1e-10 * (rows @ frame.target[train].square())


LIMITS = {
    "the data although there are few columns": (fold_oracle, "_GRAMS", 0),
    "two folds at a time": (path, "_TOGETHER", 2),
    "one strength at a time": (path, "_ROOM", 0),
    "matrices one by one": (factor, "_LARGE", 0),
    "a set that must grow": (path, "_KEEP", 1.0),
}


@each_shape
@pytest.mark.parametrize("limit", LIMITS.values(), ids=list(LIMITS))
def test_limits_of_memory_change_nothing(shape, limit, monkeypatch):
    monkeypatch.setattr(*limit)
    check(shape, L1(1.0), alphas=20)


@each_shape
@pytest.mark.parametrize("limit", [(pivoting, "_ROUNDS", 1), (path, "_POOR", -1.0)], ids=["rounds", "gap"])
def test_folds_that_are_lost_are_solved_one_by_one(shape, limit, monkeypatch):
    frame, folds, penalty, grid = prepared(shape, L1(1.0), 5)
    options = {"tol": 1e-6, "max_iter": 1000}
    alone = list(training_paths(frame, folds, penalty, grid, lockstep=False, **options))
    monkeypatch.setattr(*limit)
    assert None in list(lockstep_points(frame, folds, penalty, grid))
    assert_same(frame, training_paths(frame, folds, penalty, grid, lockstep=True, **options), alone)


@each_shape
@pytest.mark.parametrize("penalty", ["lasso", "nonnegative elastic net"])
def test_fit_cv_loses_the_same(shape, penalty, monkeypatch):
    X, y, weights = shape
    given = PENALTIES[penalty](X.shape[1])

    def losses(together):
        def paths(*args, **options):
            return training_paths(*args, **options, lockstep=together)

        monkeypatch.setattr(cross_validation, "training_paths", paths)
        return fit_cv(X, y, given, alphas=20, eps=0.02, sample_weight=weights, cv=7).losses

    torch.testing.assert_close(losses(True), losses(False), rtol=SAME, atol=0)


@each_shape
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=list(PENALTIES))
def test_on_a_device(shape, penalty, accelerator):
    made = penalty(shape[0].shape[1])
    moved = made.replaced(weights=made.weights.to(accelerator)) if isinstance(made, Weighted) else made
    frame, folds, _, grid = prepared(shape, moved, 5, device=accelerator)
    here, *_ = prepared(shape, made, 5)
    found = list(lockstep_points(frame, folds, moved, grid))
    assert all(points is not None and points[-1].values.device == accelerator for points in found)
    for points, fold in zip(found, folds, strict=True):
        alone = training_points(here, fold, made, grid, tol=1e-6, max_iter=1000)
        for a, b in zip(points, alone, strict=True):
            torch.testing.assert_close(a.dense(here.raw.p).cpu(), b.dense(here.raw.p), rtol=0, atol=SAME)


def test_an_accelerator_takes_it_by_default(monkeypatch, accelerator):
    taken = []

    def watched(*args):
        taken.append(args)
        return lockstep_points(*args)

    monkeypatch.setattr(fold_paths, "lockstep_points", watched)
    monkeypatch.setattr(fold_paths, "_SMALL", 0)  # up to which a CPU takes it too
    X, y, _ = WIDE
    fit_cv(X, y, L1(1.0), alphas=5, device=accelerator)
    assert len(taken) == 1
