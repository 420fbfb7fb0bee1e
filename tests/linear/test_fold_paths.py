"""Moments of training rows by subtraction, and the training paths that follow from them."""

from itertools import chain

import numpy as np
import pytest
import torch

from torchreg import L1, L2, Group, NonNegative, labels, rows
from torchreg.linear import fold_paths
from torchreg.linear.datafits import Quadratic
from torchreg.linear.fold_digits import keeps_digits
from torchreg.linear.fold_paths import training_paths, training_points
from torchreg.linear.folds import drawn_folds
from torchreg.linear.frame import framed
from torchreg.linear.moments import remainder
from torchreg.linear.path import alpha_grid, fit_path, strongest

DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((50, 12)) @ DRAW.standard_normal((12, 12)) + DRAW.uniform(-2, 2, 12)
X[:, 4], X[:, 7] = 3.0, 0.0
X[10, 7] = 1.0  # in one fold's held-out rows alone
Y = X[:, :2] @ DRAW.standard_normal((2, 2)) + DRAW.standard_normal((50, 2)) + 2.0
WEIGHTS = DRAW.uniform(0.2, 2.0, 50)
each_target = pytest.mark.parametrize("y", [Y[:, 0], Y], ids=["one target", "two"])
each_frame = pytest.mark.parametrize("centre", [True, False], ids=["intercept", ""])
each_scale = pytest.mark.parametrize("scale", [True, False], ids=["standardize", ""])


def frame_of(y, centre, scale):
    return framed(X, y, Quadratic(), WEIGHTS, None, centre, scale, None)


@each_target
@each_frame
@each_scale
def test_moments_without_some_rows_are_those_of_the_others(y, centre, scale):
    frame = frame_of(y, centre, scale)
    for train, test in drawn_folds(4, 50, y, None):
        rest = remainder(frame.problem, frame.moments, test, centre=centre, scale=scale)
        part = frame.subset(train)
        for name in ("gram", "cross", "energy"):
            want = getattr(part.moments, name)
            size = 1e-12 * float(want.abs().max())  # rounding of the whole's, of which a share is left
            torch.testing.assert_close(getattr(rest.moments, name), want, rtol=0, atol=size)


@each_target
@each_frame
def test_a_target_constant_on_the_remaining_rows_has_no_energy_left(y, centre):
    """Zero without an intercept, any constant with one; the other target keeps its energy."""
    train, test = drawn_folds(4, 50, y, None)[0]
    y = y.copy()
    y[train, ...] = np.where(np.arange(y[0].size) == 0, 0.1 * centre, y[train]) if y.ndim == 2 else 0.1 * centre
    frame = frame_of(y, centre, False)
    rest = remainder(frame.problem, frame.moments, test, centre=centre, scale=False).moments
    kept = frame.subset(train).moments.energy
    assert (rest.energy == 0.0) == (y.ndim == 1)
    torch.testing.assert_close(rest.energy, kept, rtol=1e-11, atol=0)  # of the whole, of which a share is left
    assert not rest.cross.reshape(12, -1)[:, 0].any()


@pytest.mark.parametrize("scale", [True, False], ids=["standardize", ""])
@pytest.mark.parametrize("weights", [None, DRAW.uniform(0.2, 2.0, 40)], ids=["", "weights"])
def test_folds_of_wide_data_by_weights_are_those_of_a_copy(scale, weights):
    """Columns that lie in memory one after another; with a row that a fold trains on twice."""
    wide = np.asfortranarray(np.random.default_rng(1).standard_normal((40, 90)))
    y, penalty = wide[:, :3].sum(1) + DRAW.standard_normal(40), L1(1.0)
    frame = framed(wide, y, Quadratic(), weights, None, True, scale, None)
    copied = framed(np.ascontiguousarray(wide), y, Quadratic(), weights, None, True, scale, None)
    grid = alpha_grid(30, strongest(frame, penalty, 1e-12, 5000), 0.01)
    train = torch.tensor([*range(12), *range(17, 40), 39])
    assert frame.raw.copies(train)
    assert not copied.raw.copies(train)
    assert not frame.raw.copies(train[:12])  # they follow one another
    folds = [
        training_points(part, (train, torch.arange(12, 17)), penalty, grid, tol=1e-6, max_iter=50)
        for part in (frame, copied)
    ]
    for a, b in zip(*folds, strict=True):
        torch.testing.assert_close(a.dense(90), b.dense(90), rtol=0, atol=1e-9)  # exact but for rounding
        torch.testing.assert_close(a.intercept, b.intercept, rtol=0, atol=1e-9)
        assert a.gap <= 1e-12 * frame.problem.null_loss()


PENALTIES = {
    "groups": Group(L1(1.0), by=labels(torch.arange(12) // 3)),
    "groups with a ridge": Group(L1(1.0), by=labels(torch.arange(12) // 3)) + L2(0.2),
    "groups and entries": Group(L1(1.0), by=labels(torch.arange(12) // 3)) + L1(0.1),
    "nonnegative groups": NonNegative(Group(L1(1.0), by=labels(torch.arange(12) % 5))),
    "rows": Group(L1(1.0), by=rows),
}


CASES = [*((name, Y[:, 0]) for name in PENALTIES), ("rows", Y)]


@pytest.mark.parametrize(("name", "y"), CASES, ids=[*PENALTIES, "rows of two"])
@each_frame
@each_scale
def test_groups_on_moments_by_subtraction_are_those_of_the_rows(name, y, centre, scale, monkeypatch):
    penalty = PENALTIES[name]
    frame = frame_of(y, centre, scale)
    grid = alpha_grid(8, strongest(frame, penalty, 1e-12, 5000), 0.05)
    folds = drawn_folds(3, 50, y, 0)
    options = {"tol": 1e-13, "max_iter": 5000}
    ours = [training_points(frame, fold, penalty, grid, **options) for fold in folds]
    monkeypatch.setattr(fold_paths, "_needs_moments_alone", lambda *_: False)
    theirs = [training_points(frame, fold, penalty, grid, **options) for fold in folds]
    for a, b in zip(chain(*ours), chain(*theirs), strict=True):
        torch.testing.assert_close(a.dense(12), b.dense(12), rtol=0, atol=1e-5)  # about the root of tol
        torch.testing.assert_close(a.intercept, b.intercept, rtol=0, atol=1e-4)
        assert a.gap <= 1e-12 * frame.problem.null_loss()


# --- digits that subtraction would lose


def assert_as_exact_as_fits_of_their_rows(columns, y, penalty, alphas, *, folds, lockstep=False):
    frame = framed(columns, y, Quadratic(), None, None, True, False, None)
    found = training_paths(frame, folds, penalty, alphas, tol=1e-12, max_iter=5000, lockstep=lockstep)
    for (train, _), points in zip(folds, found, strict=True):
        alone = fit_path(columns[train], y[train], penalty, alphas=alphas, tol=1e-12, max_iter=5000)
        for k, point in enumerate(points):
            size = 1e-9 * float(alone.coef(k).abs().max())  # what ten digits of the moments leave
            torch.testing.assert_close(point.dense(alone.n_features), alone.coef(k), rtol=0, atol=size)


SHAPED = {"L1": L1(1.0), "L2": L2(1.0), "Group": Group(L1(1.0), by=rows)}


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("lockstep", [False, True])
@pytest.mark.parametrize("where", ["row", "column", "target"])
def test_a_huge_row_that_is_held_out_spoils_no_fold(name, lockstep, where):
    columns, y = DRAW.standard_normal((60, 6)), DRAW.standard_normal(60)
    columns[:, 5] = 0.0  # constant where rows 0 to 19 are held out, as rare columns are
    columns[3, 5] = 1.0
    if where == "target":
        y[7] = 1e7
    else:
        columns[7, slice(None) if where == "row" else 2] = 1e7
    folds = drawn_folds(3, 60, y, None)[:1]  # beside such a row no fit has many digits
    assert_as_exact_as_fits_of_their_rows(columns, y, SHAPED[name], [0.2, 0.05], folds=folds, lockstep=lockstep)


def test_ridge_on_ill_conditioned_columns_has_singular_values_in_each_fold():
    """Singular values from 1e4 to 1e-4: their squares span all digits, and moments by subtraction have no rows."""
    left, right = (np.linalg.qr(DRAW.standard_normal((size, 12)))[0] for size in (60, 12))
    columns = np.sqrt(60) * left * np.geomspace(1e4, 1e-4, 12) @ right.T
    y, folds = DRAW.standard_normal(60), drawn_folds(3, 60, Y, None)
    assert_as_exact_as_fits_of_their_rows(columns, y, L2(1.0), [1e-4, 1e-6], folds=folds)


def test_columns_that_are_constant_on_training_rows_are_no_reason_to_read_the_rows_again():
    frame = frame_of(Y[:, 0], True, True)
    assert all(keeps_digits(frame, fold) for fold in drawn_folds(5, 50, Y, None))
