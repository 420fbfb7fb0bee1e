"""Rows of weight 0 are as if they were not there, whatever stands in them: exactly, and at no cost."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.model_selection import KFold

from torchreg import L1, L2, Group, rows
from torchreg.linear import (
    Huber,
    Lasso,
    LassoCV,
    Logistic,
    LogisticRegression,
    Multinomial,
    Poisson,
    Quadratic,
    Ridge,
    RidgeCV,
    SparseClassifierCV,
    SquaredHinge,
    fit_cv,
    fit_path,
    solve,
)

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")

N, P = 60, 8
DRAW = np.random.default_rng(0)
GOOD = np.where(DRAW.uniform(size=(N, P)) < 0.5, 0.0, DRAW.normal(size=(N, P)))
ETA = GOOD[:, 0] - GOOD[:, 1] + 0.5 * DRAW.normal(size=N)
COUNTS = np.floor(np.exp(0.5 * ETA))
CLASSES = (ETA > 0).astype(float)
WEIGHTS = DRAW.uniform(0.5, 2.0, N)
WEIGHTS[::4] = 0.0
KEPT = np.flatnonzero(WEIGHTS)
TARGETS = {
    Quadratic(): ETA, Huber(): ETA, Logistic(): CLASSES, SquaredHinge(): CLASSES, Poisson(): COUNTS,
    Multinomial(): np.digitize(ETA, [-0.5, 0.5]).astype(float),
}  # fmt: skip


FORMS = {
    "dense": np.array, "tensor": torch.from_numpy, "CSR": sp.csr_array, "CSC": sp.csc_array,
    "torch CSR": lambda X: torch.from_numpy(X).to_sparse_csr(),
}  # fmt: skip


def filled(size):
    """X with entries of some size in the rows of weight 0."""
    X = GOOD.copy()
    X[::4] *= size
    return X


def assert_same(one, other):
    for name in ("alphas", "coefs", "intercepts", "dual_gaps", "violations", "objectives", "losses", "n_iters"):
        assert torch.equal(getattr(one, name).nan_to_num(-1.0), getattr(other, name).nan_to_num(-1.0)), name
    assert (one.alpha_max, one.null_objective, one.n_weighted) == (
        other.alpha_max, other.null_objective, other.n_weighted,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("datafit", TARGETS, ids=lambda datafit: type(datafit).__name__)
@pytest.mark.parametrize("size", [1.0, 1e300])
def test_a_path_is_that_of_the_other_rows(datafit, form, size):
    y, make = TARGETS[datafit], FORMS[form]
    options = {"datafit": datafit, "alphas": 6, "eps": 0.05}
    ours = fit_path(make(filled(size)), y, L1(1.0), sample_weight=WEIGHTS, **options)
    theirs = fit_path(make(GOOD[KEPT]), y[KEPT], L1(1.0), sample_weight=WEIGHTS[KEPT], **options)
    assert_same(ours, theirs)
    assert ours.converged.all()
    assert ours.n_samples == N
    if datafit.likelihood or datafit.quadratic:
        assert torch.equal(ours.criterion(), theirs.criterion())


@pytest.mark.parametrize("size", [1.0, 1e300])
@pytest.mark.parametrize("penalty", [L2(1.0), Group(L1(1.0), by=rows)], ids=["L2", "Group"])
def test_other_penalties_targets_and_offsets(penalty, size):
    targets, lift = np.stack([ETA, -ETA + DRAW.normal(size=N)], 1), DRAW.normal(size=(N, 2))
    options = {"alphas": [0.3, 0.1], "standardize": True}
    ours = fit_path(filled(size), targets, penalty, sample_weight=WEIGHTS, offset=lift, **options)
    weights = {"sample_weight": WEIGHTS[KEPT], "offset": lift[KEPT]}
    assert_same(ours, fit_path(GOOD[KEPT], targets[KEPT], penalty, **weights, **options))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("datafit", [Quadratic(), Logistic(), Poisson()], ids=lambda datafit: type(datafit).__name__)
@pytest.mark.parametrize("size", [1.0, 1e300])
def test_a_cross_validation_is_that_of_the_other_rows(datafit, form, size):
    y, make = TARGETS[datafit], FORMS[form]
    folds = list(KFold(4, shuffle=True, random_state=0).split(GOOD))
    place = np.full(N, -1)
    place[KEPT] = np.arange(len(KEPT))
    fewer = [tuple(place[part][place[part] >= 0] for part in fold) for fold in folds]
    options = {"datafit": datafit, "alphas": 6, "eps": 0.05}
    ours = fit_cv(make(filled(size)), y, L1(1.0), cv=folds, sample_weight=WEIGHTS, **options)
    theirs = fit_cv(make(GOOD[KEPT]), y[KEPT], L1(1.0), cv=fewer, sample_weight=WEIGHTS[KEPT], **options)
    assert_same(ours.path, theirs.path)
    assert torch.equal(ours.losses, theirs.losses)
    assert ours.converged.all()
    for mine, drawn in zip(ours.folds, folds, strict=True):  # the caller's numbers, not those of the rows that count
        assert all(np.array_equal(part, given) for part, given in zip(mine, drawn, strict=True))


MODELS = {
    "Lasso": (Lasso(alpha=0.1), ETA), "Ridge": (Ridge(), ETA), "LogisticRegression": (LogisticRegression(), CLASSES),
    "LassoCV": (LassoCV(alphas=5), ETA), "RidgeCV": (RidgeCV(), ETA), "RidgeCV(cv)": (RidgeCV(cv=3), ETA),
    "SparseClassifierCV": (SparseClassifierCV(L1(1.0), alphas=5), CLASSES),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_estimators_do_not_see_what_stands_in_them(name):
    model, y = MODELS[name]
    ordinary = model.fit(GOOD, y, WEIGHTS).coef_.copy()
    huge = filled(1e150)  # the square is finite: scores are scikit-learn's
    np.testing.assert_array_equal(model.fit(huge, y, WEIGHTS).coef_, ordinary)


def test_gradients_of_a_solution_are_those_of_the_other_rows():
    alpha = torch.tensor(0.05, requires_grad=True, dtype=torch.float64)
    found = []
    for size, some in ((1e300, slice(None)), (1.0, KEPT)):
        X = torch.from_numpy(filled(size)[some]).requires_grad_()
        fit = solve(X, COUNTS[some], L1(alpha), datafit=Poisson(), sample_weight=WEIGHTS[some])
        found.append((fit.coef.detach(), *torch.autograd.grad(fit.coef.sum(), [alpha, X])))
    (coef, by_alpha, by_x), (theirs, their_alpha, their_x) = found
    assert torch.equal(coef, theirs)
    torch.testing.assert_close(by_alpha, their_alpha, rtol=1e-12, atol=0.0)  # sums of other lengths
    torch.testing.assert_close(by_x[KEPT], their_x, rtol=1e-9, atol=1e-15)
    assert (by_x[::4] == 0).all()


def test_a_weight_of_0_has_a_derivative():
    weights = torch.from_numpy(WEIGHTS).requires_grad_()
    fit = solve(GOOD, ETA, L1(0.05), sample_weight=weights)
    (slope,) = torch.autograd.grad(fit.coef[0], weights)
    step = 1e-6
    moved = WEIGHTS.copy()
    moved[0] += step
    change = solve(GOOD, ETA, L1(0.05), sample_weight=moved).coef[0] - fit.coef.detach()[0]
    assert float(change) / step == pytest.approx(float(slope[0]), rel=1e-3)  # a forward difference, error O(step)


def test_what_is_not_finite_is_refused_there_too_as_scikit_learn_does():
    X, y = GOOD.copy(), ETA.copy()
    X[0, 0] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        fit_path(X, ETA, L1(1.0), sample_weight=WEIGHTS)
    y[0] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        fit_path(GOOD, y, L1(1.0), sample_weight=WEIGHTS)


def test_the_callers_objects_are_not_written_to():
    X, y, weights = filled(1e300), CLASSES.copy(), WEIGHTS.copy()
    for part in (X, y, weights):
        part.flags.writeable = False
    matrix = sp.csr_array(X)
    fit_path(X, y, L1(1.0), datafit=Logistic(), sample_weight=weights, alphas=3)
    fit_path(matrix, y, L1(1.0), datafit=Logistic(), sample_weight=weights, alphas=3)
    assert (matrix != sp.csr_array(X)).nnz == 0
