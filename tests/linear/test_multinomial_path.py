"""Several outputs with L1 on each coefficient: softmax regression and tasks against peers and an independent judge."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import F64, normal
from linear_oracle import (
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
from sklearn.linear_model import LogisticRegression

from torchreg import L1, L1L2, NonNegative, Weighted
from torchreg.linear import datafits as ours
from torchreg.linear.frame import framed
from torchreg.linear.objective.entry_terms import EntryTerms
from torchreg.linear.path import fit_path
from torchreg.linear.proximal_gradient import proximal_gradient
from torchreg.linear.solvers import prox_newton
from torchreg.linear.solvers.dispatch import solver_for
from torchreg.linear.solvers.hessian import PairHessian
from torchreg.linear.solvers.working_model import PivotModel
from torchreg.penalties import L1Form

CLASSES = 3  # odd: else a row with as many positive as negative entries can be shifted at no cost
SHAPES = {"tall": (80, 6), "wide": (30, 50)}
each_shape = pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))
each_intercept = pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", "none"])
OPTIONS = {"datafit": ours.Multinomial(), "eps": 1e-2}


def data(shape, seed=0):
    draws = np.random.default_rng(seed)
    X = draws.standard_normal(shape) + 2.0  # far from centred, so that the intercept matters
    W = 1.5 * draws.standard_normal((shape[1], CLASSES)) / np.sqrt(shape[1])
    y = (((X - 2.0) @ W) + draws.gumbel(size=(shape[0], CLASSES))).argmax(1)
    y[:CLASSES] = np.arange(CLASSES)
    return X, y


def judge_of(X, y, **options):
    return Judge(X, np.eye(CLASSES)[y], Multinomial(), **options)


@dataclass(frozen=True)
class Table(Entries):
    """Strengths of coefficients (p, K); a row counts as free if all of it is."""

    def free(self, p):
        l1, l2 = (np.broadcast_to(part, (p, CLASSES)) for part in (self.l1, self.l2))
        return ((l1 == 0) & (l2 == 0)).all(1)


# --- softmax regression -------------------------------------------------------------------------------------------


@each_shape
@each_intercept
@pytest.mark.parametrize("l1_ratio", [1.0, 0.5, 0.05])
def test_every_point_has_a_small_gap(shape, fit_intercept, l1_ratio):
    X, y = data(shape)
    path = fit_path(X, y, L1L2(1.0, l1_ratio), alphas=12, fit_intercept=fit_intercept, tol=1e-9, **OPTIONS)
    certify(path, judge_of(X, y, fit_intercept=fit_intercept), lambda a: Entries(a * l1_ratio, a * (1 - l1_ratio)))
    assert bool(path.converged.all())
    assert int((path.coef(0) != 0).sum()) == 0
    assert int((path.coef(11) != 0).sum()) > 0


@each_shape
def test_nonnegative_coefficients(shape):
    X, y = data(shape)
    path = fit_path(X, y, NonNegative(L1(1.0)), alphas=8, tol=1e-9, **OPTIONS)
    certify(path, judge_of(X, y), lambda a: Entries(a, 0.0, 0.0))
    assert float(path.coefs.min()) == 0.0


@each_shape
@pytest.mark.parametrize("kind", ["entries", "rows, some forced", "rows, some free"])
def test_weights_of_entries_and_rows_and_an_offset(shape, kind):
    X, y = data(shape)
    draws = np.random.default_rng(1)
    weights = draws.uniform(0.5, 2.0, (shape[1], CLASSES if kind == "entries" else 1))
    if kind != "entries":
        weights[[0, 3]] = np.inf if "forced" in kind else 0.0
    rows, lift = draws.uniform(0.0, 2.0, shape[0]), 0.5 * draws.standard_normal((shape[0], CLASSES))
    path = fit_path(
        X, y, Weighted(L1(1.0), torch.tensor(weights)), alphas=[0.1, 0.03, 0.01], sample_weight=rows, offset=lift,
        tol=1e-9, **OPTIONS,
    )  # fmt: skip
    # 1e-9: at rows without penalty our gap is slope times coefficient, the judge's what a refit gains
    certify(path, judge_of(X, y, weights=rows, offset=lift), lambda a: Table(a * weights), rounding=1e-9)
    if "forced" in kind:
        assert int((path.coefs[:, [0, 3]] != 0).sum()) == 0


@each_shape
@pytest.mark.parametrize("l1_ratio", [1.0, 0.5])
def test_scikit_learns_saga(shape, l1_ratio):
    X, y = data(shape)
    X = X - X.mean(0)  # saga is slow enough
    alpha = 0.05
    path = fit_path(X, y, L1L2(1.0, l1_ratio), alphas=[alpha], tol=1e-12, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = LogisticRegression(
            C=1 / (len(y) * alpha), l1_ratio=l1_ratio, solver="saga", tol=1e-11, max_iter=20_000, random_state=0
        ).fit(X, y)  # fmt: skip
    theirs = judge_of(X, y).objective(Entries(alpha * l1_ratio, alpha * (1 - l1_ratio)), peer.coef_.T, peer.intercept_)
    assert float(path.objectives[0]) == pytest.approx(theirs, rel=1e-8)
    assert float(path.objectives[0]) <= theirs + 1e-13
    assert np.allclose(path.coef(0).numpy(), peer.coef_.T, atol=1e-5)  # the root of saga's gap


@each_shape
def test_proximal_gradient_goes_to_the_same_point(shape):
    X, y = data(shape, seed=3)
    problem = framed(X, y, ours.Multinomial(), None, None, True, False, None).problem
    path = fit_path(X, y, L1(1.0), alphas=[0.05, 0.01], tol=1e-12, **OPTIONS)
    for k, alpha in enumerate(path.alphas.tolist()):
        found = proximal_gradient(problem, L1(alpha), tol=1e-9, max_iter=100_000)
        value = problem.value(problem.eta(found.coef, found.intercept)) + L1(alpha).value(found.coef)
        assert float(path.objectives[k]) == pytest.approx(float(value), rel=1e-10)
        assert torch.equal(path.coef(k) != 0, found.coef != 0)
        assert torch.allclose(path.coef(k), found.coef, atol=1e-6)


def test_two_classes_are_logistic_regression():
    """Half the coefficients with each sign cost as much as the whole."""
    X, y = data(SHAPES["tall"])
    y, alphas = (y > 1).astype(int), [0.1, 0.01, 0.001]
    two = fit_path(X, y, L1(1.0), datafit=ours.Multinomial(), alphas=alphas, tol=1e-12)
    one = fit_path(X, y, L1(1.0), datafit=ours.Logistic(), alphas=alphas, tol=1e-12)
    assert torch.allclose(two.objectives, one.objectives, rtol=1e-10)
    assert torch.allclose(two.coefs[..., 1] - two.coefs[..., 0], one.coefs, atol=1e-5)


@pytest.mark.parametrize("alphas", [[1e-3], [1e-5], [0.05, 1e-6]], ids=str)
def test_separable_classes(alphas):
    X, _ = data(SHAPES["wide"])
    y = np.digitize(X[:, 0], [1.5, 2.5])
    path = fit_path(X, y, L1(1.0), alphas=alphas, **OPTIONS)
    certify(path, judge_of(X, y), Entries, gap=1e-6, rounding=1e-10)
    assert float(path.losses[-1]) <= 0.2 * path.null_objective


def test_degenerate_columns():
    X, y = data(SHAPES["tall"])
    X = np.hstack([X, X[:, :2], np.ones((len(X), 1)), np.zeros((len(X), 1)), X[:, :1] + 1e-9])
    path = fit_path(X, y, L1(1.0), alphas=10, **OPTIONS)
    certify(path, judge_of(X, y), Entries, gap=1e-6)
    assert int((path.coefs[:, 8:10] != 0).sum()) == 0


def test_no_strength_at_the_end_of_a_path():
    X, y = data((200, 5))
    path = fit_path(X, y, L1(1.0), alphas=[1e100, 0.02, 0.0], **OPTIONS)
    judge = judge_of(X, y)
    certify(path, judge, lambda a: Entries(a) if a else Table(0.0), gap=1e-6, rounding=1e-9, violations=False)
    assert path.n_nonzero.tolist()[0] == 0
    assert judge.violation(Table(0.0), path.coef(2).numpy(), path.intercepts[2].numpy()) <= 1e-8


def test_sparse_and_float32_data():
    X, y = data((60, 30))
    X[X < 2.0] = 0.0
    X = X.astype(np.float32)
    dense = fit_path(X.astype(np.float64), y, L1(1.0), alphas=6, tol=1e-12, **OPTIONS)
    for same in (X, scipy.sparse.csr_array(X), scipy.sparse.csc_array(X.astype(np.float64)), torch.tensor(X)):
        path = fit_path(same, y, L1(1.0), alphas=6, tol=1e-12, **OPTIONS)
        assert torch.allclose(path.objectives, dense.objectives, rtol=1e-12)
        assert torch.allclose(path.coefs, dense.coefs, atol=1e-6)  # the root of the gaps


def test_standardised_columns():
    X, y = data(SHAPES["tall"])
    X = X * np.geomspace(0.01, 100.0, X.shape[1])
    path = fit_path(X, y, L1(1.0), alphas=6, standardize=True, tol=1e-9, **OPTIONS)
    judge, spread = judge_of(X, y).standardised()
    for k, alpha in enumerate(path.alphas.tolist()):
        coef = path.coef(k).numpy() * np.asarray(spread, dtype=float)[:, None]
        assert judge.gap(Entries(alpha), coef, path.intercepts[k].numpy()) <= 1e-9 * path.null_objective


def test_starts():
    """At the solution no step is needed; from a bad start, or one that the penalty forbids, the same point is found."""
    X, y = data(SHAPES["tall"])
    options = OPTIONS | {"alphas": [0.02]}
    first = fit_path(X, y, L1(1.0), tol=1e-12, **options)
    again = fit_path(X, y, L1(1.0), init=(first.coef(0), first.intercepts[0]), **options)
    assert again.n_iters.tolist() == [0]
    for scale in (1.0, 30.0):  # far away the loss is flat, and steps must be cut
        far = (scale * normal((6, CLASSES), 1), torch.zeros(CLASSES, dtype=F64))
        found = fit_path(X, y, L1(1.0), init=far, tol=1e-12, **options)
        assert torch.allclose(found.coefs, first.coefs, atol=1e-5)
    penalty = NonNegative(L1(1.0))
    found, cold = (fit_path(X, y, penalty, init=start, tol=1e-12, **options) for start in (far, None))
    assert torch.allclose(found.coefs, cold.coefs, atol=1e-5)


def test_few_steps_are_not_enough():
    X, y = data(SHAPES["tall"])
    path = fit_path(
        X, y, L1(1.0), alphas=[1e-4], max_iter=1, init=(torch.zeros(6, CLASSES), torch.zeros(CLASSES)), **OPTIONS
    )
    assert not bool(path.converged.any())


def test_a_working_set_forgets(monkeypatch):
    """Whatever the set forgets, at once or never, the path is the same."""
    X, y = data((30, 200))
    sizes, forgotten = [], []
    keep = PivotModel.keep

    def watched(self, near, eta, terms):
        sizes.append(len(near))
        keep(self, near, eta, terms)
        forgotten.append(sizes[-1] - len(self.index))

    monkeypatch.setattr(PivotModel, "keep", watched)
    paths = []
    for many, held in ((0.7, 0.9), (1.0, 10.0), (-1.0, 0.0)):
        monkeypatch.setattr(prox_newton, "_MANY", many)
        monkeypatch.setattr(prox_newton, "_HELD", held)
        forgotten.clear()
        paths.append(fit_path(X, y, L1(1.0), alphas=15, tol=1e-12, **OPTIONS))
        assert (sum(forgotten) > 0) == (many == 1.0) or many == 0.7
    assert all(torch.allclose(p.objectives, paths[0].objectives, rtol=1e-10) for p in paths)


class Counts(ours.Datafit):
    """A user's own: independent counts for each output, without a known conjugate."""

    def value(self, eta, y):
        return (eta.exp() - y * eta).sum(-1)

    def grad(self, eta, y):
        return eta.exp() - y

    def hessian(self, eta, y):
        return eta.exp()

    def hessian_map(self, eta, y):
        return lambda v: eta.exp() * v


@each_shape
def test_outputs_that_are_independent(shape):
    X, _ = data(shape)
    y = np.random.default_rng(2).poisson(np.exp(0.5 * (X[:, :3] - 2.0))).astype(float)
    alphas = [0.3, 0.1, 0.03]
    path = fit_path(X, y, L1(1.0), datafit=Counts(), alphas=alphas)
    single = [fit_path(X, y[:, k], L1(1.0), datafit=ours.Poisson(), alphas=alphas, tol=1e-12) for k in range(3)]
    assert torch.allclose(path.objectives, sum(p.objectives for p in single), rtol=1e-10)
    assert torch.allclose(path.coefs, torch.stack([p.coefs for p in single], 2), atol=1e-5)
    assert torch.allclose(path.intercepts, torch.stack([p.intercepts for p in single], 1), atol=1e-5)
    assert bool(path.dual_gaps.isnan().all())
    assert bool(path.converged.all())


# --- one output ---------------------------------------------------------------------------------------------------


LOSSES = {"Logistic": Logistic(), "Poisson": Poisson(), "Huber": Huber(), "SquaredHinge": SquaredHinge()}


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_signed_coefficients_beside_an_intercept(loss, l2):
    X, y = data((80, 12))
    mine = getattr(ours, loss)()
    y, lift = (y > 0).astype(float), 0.3 * np.random.default_rng(6).standard_normal(80)
    penalty = NonNegative(L1L2(1.0, 1.0 - l2))
    start = torch.full((12,), -1.0), torch.tensor(0.5)
    for init in (None, start):
        path = fit_path(X, y, penalty, datafit=mine, alphas=[0.1, 0.03, 0.01], tol=1e-9, offset=lift, init=init)
        certify(path, Judge(X, y, LOSSES[loss], offset=lift), lambda a: Entries((1.0 - l2) * a, l2 * a, 0.0))
    assert float(path.coefs.min()) == 0.0
    assert path.intercepts.shape == (3,)
    assert int((path.coefs != 0).sum()) > 0


# --- pairs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_pairs_have_the_second_derivative(fit_intercept):
    X, y = data((40, 5))
    problem = framed(X, y, ours.Multinomial(), None, None, fit_intercept, False, None).problem
    eta, floor = normal((40, CLASSES), 1), 1e-3
    first, second = torch.tensor([0, 7, 3, 13]), torch.tensor([1, 14])
    pairs = PairHessian(problem)
    pairs.bend(eta, floor)
    pairs.add(first)
    pairs.add(second)
    chances = torch.softmax(eta, 1)
    rows = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]
    rows = rows + floor * (chances * (1 - chances)).max() * torch.eye(CLASSES, dtype=F64)
    columns = torch.as_tensor(X - X.mean(0) if fit_intercept else X)  # as the frame shows them
    hessian = torch.einsum("i,ij,ikm,il->jklm", problem.weights, columns, rows, columns).reshape(15, 15)
    edge = torch.einsum("i,ij,ikm->jkm", problem.weights, columns, rows).reshape(15, CLASSES)
    index = pairs.index
    assert torch.equal(index, torch.cat([first, second]))
    for start in (0, 4):
        assert torch.allclose(pairs.block(start), hessian[index[:, None], index[start:]], atol=1e-12)
        assert torch.allclose(pairs.edge(start), edge[index[start:]], atol=1e-12)
    assert torch.allclose(pairs.inverse(), torch.linalg.pinv(torch.einsum("i,ikm->km", problem.weights, rows)))
    w, v = normal((6,), 2), normal((40, CLASSES), 3)
    coef = torch.zeros(15, dtype=F64).index_copy_(0, index, w).view(5, CLASSES)
    assert torch.allclose(pairs.times(w), columns @ coef)
    assert torch.allclose(pairs.transposed(v), (columns.T @ v).reshape(-1)[index])
    assert torch.allclose(pairs.along(v), torch.einsum("i,ik,ikm,im->", problem.weights, v, rows, v))


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("loss", ["Multinomial", "Logistic"])
def test_a_model_without_a_penalty_is_minimised_with_its_intercepts(loss, fit_intercept):
    """A Newton step solves the equations of coefficients and intercepts together."""
    X, y = data((40, 5))
    classes = y if loss == "Multinomial" else y > 0
    problem = framed(X, classes, getattr(ours, loss)(), None, None, fit_intercept, False, None).problem
    outputs, none = problem.K or 1, torch.zeros_like(problem.no_coef())
    model, terms = PivotModel(problem, problem.null_eta()), EntryTerms.of(L1Form(0.0, 1e-3), none)
    picked = torch.zeros(none.numel(), dtype=torch.bool)
    for numbers in ([0, 3], [1, 4]):  # the second meet those that are there
        picked[numbers] = True
        model.add(picked, terms)
    units = torch.eye(model.size, dtype=F64)
    predictors = torch.stack([model.times(unit).reshape(40, outputs) for unit in units])
    rows = torch.stack(
        [problem.datafit.hessian_map(problem.null_eta(), problem.y)(p.view_as(problem.null_eta())) for p in predictors]
    ).reshape(len(units), 40, outputs)
    hessian = torch.einsum("aik,i,bik->ab", predictors, problem.weights, rows)
    hessian[range(model.head, model.size), range(model.head, model.size)] += 1e-3
    w, g = normal((model.size,), 2), normal((model.size,), 3)
    g[: model.head] -= g[: model.head].mean() if loss == "Multinomial" else 0.0  # a shift of all intercepts is flat
    slope = g.clone()
    slope[model.head :] -= 1e-3 * w[model.head :]
    found = model.minimiser(w, g, terms.within(model.index)) - w
    assert torch.allclose(hessian @ found, slope, atol=1e-6)  # the floor of the curvature is 1e-8


# --- tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 8), (25, 70)], ids=["tall", "wide"])
@pytest.mark.parametrize(
    ("penalty", "entries"),
    [
        (L1(1.0), Entries),
        (L1L2(1.0, 0.6), lambda a: Entries(0.6 * a, 0.4 * a)),
        (NonNegative(L1(1.0)), lambda a: Entries(a, 0.0, 0.0)),
    ],
    ids=["L1", "L1L2", "NonNegative"],
)
def test_tasks_are_exact(shape, penalty, entries):
    draws = np.random.default_rng(4)
    X, Y = draws.standard_normal(shape) + 1.0, draws.standard_normal((shape[0], 3))
    Y[:, 0] += X[:, 0]
    path = fit_path(X, Y, penalty, alphas=8, eps=1e-2, sample_weight=draws.uniform(0.5, 2.0, shape[0]))
    draws = np.random.default_rng(4)  # the same weights again
    draws.standard_normal(shape), draws.standard_normal((shape[0], 3))
    certify(path, Judge(X, Y, Quadratic(), weights=draws.uniform(0.5, 2.0, shape[0])), entries, gap=1e-12)


def test_tasks_have_weights_and_starts_of_their_own():
    draws = np.random.default_rng(5)
    X, Y, weights = draws.standard_normal((30, 6)), draws.standard_normal((30, 2)), draws.uniform(0.0, 2.0, (6, 2))
    weights[0, 1] = np.inf
    alphas = [0.2, 0.05]
    both = fit_path(X, Y, Weighted(L1(1.0), torch.tensor(weights)), alphas=alphas)
    for k in range(2):
        alone = fit_path(X, Y[:, k], Weighted(L1(1.0), torch.tensor(weights[:, k])), alphas=alphas)
        assert torch.allclose(both.coefs[..., k], alone.coefs, atol=1e-12)
        assert torch.allclose(both.intercepts[:, k], alone.intercepts, atol=1e-12)
    again = fit_path(
        X, Y, Weighted(L1(1.0), torch.tensor(weights)), alphas=alphas[1:], init=(both.coef(1), both.intercepts[1])
    )  # fmt: skip
    assert torch.allclose(again.coef(0), both.coef(1), atol=1e-12)


def test_dispatch():
    X, y = data(SHAPES["tall"])
    options = {"start": None, "tol": 1e-6, "max_iter": 9, "moments": None}
    softmax = framed(X, y, ours.Multinomial(), None, None, True, False, None).problem
    assert solver_for(softmax, L1(1.0), **options).name == "prox_newton"
    tasks = framed(X, np.stack([y, y], 1), ours.Quadratic(), None, None, True, False, None).problem
    assert solver_for(tasks, L1(1.0), **options).name == "pivoting"


def test_empty_sets_and_no_classes_left_out():
    """A class without a pair, and a strength at which there is none at all."""
    X, y = data(SHAPES["tall"])
    weights = torch.ones(6, CLASSES, dtype=F64)
    weights[:, 2] = math.inf
    path = fit_path(X, y, Weighted(L1(1.0), weights), alphas=[10.0, 0.02], tol=1e-9, **OPTIONS)
    certify(path, judge_of(X, y), lambda a: Table(a * weights.numpy()))
    assert int((path.coefs[..., 2] != 0).sum()) == 0
    assert path.n_nonzero.tolist()[0] == 0
