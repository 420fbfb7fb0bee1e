"""Least squares with group penalties: an independent judge, other people's solvers, and the limits of the method.

Tolerances: TOL is the gap asked for. A coefficient differs from the true one by the root of a gap, so that two solvers
agree in objectives to TOL and in coefficients to its root.
"""

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import F64
from linear_oracle import Blocks, Judge, certify
from sklearn.linear_model import MultiTaskLasso

from torchreg import L1, L1L2, Group, NonNegative, columns, labels, rows, whole
from torchreg.linear import Quadratic
from torchreg.linear.frame import framed
from torchreg.linear.groupwise.partition import group_of_rows
from torchreg.linear.moments import moments_of
from torchreg.linear.oracle import oracle_of
from torchreg.linear.path import fit_path
from torchreg.linear.solvers import group_newton
from torchreg.linear.solvers.dispatch import solver_for
from torchreg.linear.solvers.proximal_path import proximal_points

TOL = 1e-10
DRAWS = np.random.default_rng(3)
TALL, WIDE = DRAWS.standard_normal((80, 30)), DRAWS.standard_normal((30, 90))
GROUPINGS = {
    "contiguous": lambda p: np.arange(p) // 5,
    "interleaved": lambda p: np.arange(p) % 6,
    "unequal": lambda p: np.minimum(np.arange(p) // np.maximum(1, np.arange(p) % 7), p // 4),
    "single": lambda p: np.arange(p),
    "one": lambda p: np.zeros(p, int),
    "gaps": lambda p: 3 * (np.arange(p) // 4) + 1,  # numbers that no column bears
}


def target(X, outputs=None, seed=0):
    rng = np.random.default_rng(seed)
    shape = () if outputs is None else (outputs,)
    return X[:, :4] @ rng.standard_normal((4, *shape)) + 0.5 * rng.standard_normal((len(X), *shape)) + 2.0


def group(index, weights=1.0):
    weights = torch.as_tensor(weights) if isinstance(weights, np.ndarray) else weights
    return Group(L1(1.0), by=labels(torch.as_tensor(index)), weights=weights)


def tight(X, y, penalty, **options):
    return fit_path(X, y, penalty, **{"alphas": 12, "eps": 0.02, "tol": TOL, **options})


@pytest.mark.parametrize("X", [TALL, WIDE], ids=["n>p", "p>n"])
@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("intercept", [True, False])
def test_every_point_of_any_grouping_is_optimal(X, grouping, intercept):
    index, y = GROUPINGS[grouping](X.shape[1]), target(X)
    path = tight(X, y, group(index), fit_intercept=intercept)
    sizes = np.bincount(index)
    certify(path, Judge(X, y, fit_intercept=intercept), lambda a: Blocks(index, np.full(len(sizes), a)), gap=TOL)
    assert bool(path.converged.all())
    assert int(path.n_nonzero[0]) == 0 < int(path.n_nonzero[-1])


@pytest.mark.parametrize("penalty", ["sparse", "ridge"])
@pytest.mark.parametrize("grouping", ["contiguous", "unequal"])
@pytest.mark.parametrize("X", [TALL, WIDE], ids=["n>p", "p>n"])
def test_inner_penalties_and_ridges(X, grouping, penalty):
    index, y = GROUPINGS[grouping](X.shape[1]), target(X)
    ones = np.ones(index.max() + 1)
    if penalty == "sparse":
        ours, theirs = group(index) + L1(0.5), lambda a: Blocks(index, a * ones, inner=0.5 * a)
    else:
        ours = Group(L1L2(1.0, 0.6), by=labels(torch.as_tensor(index)), weights=1.0)

        def theirs(a):
            return Blocks(index, 0.6 * a * ones, l2=0.4 * a)

    path = tight(X, y, ours)
    certify(path, Judge(X, y), theirs, gap=TOL)
    if penalty == "sparse":
        inside = path.coefs.numpy() != 0
        alive = np.stack([np.bincount(index, row) > 0 for row in inside])[:, index]
        assert (alive & ~inside).any()  # zeros within groups that are not zero


@pytest.mark.parametrize("X", [TALL, WIDE], ids=["n>p", "p>n"])
def test_celer_finds_no_better_objective(X):
    celer = pytest.importorskip("celer")  # which has no wheel for some machines
    y = target(X) - 2.0
    path = tight(X, y, group(np.arange(X.shape[1]) // 5), fit_intercept=False)
    judge = Judge(X, y, fit_intercept=False)
    for k, alpha in enumerate(path.alphas.tolist()):
        model = celer.GroupLasso(groups=5, alpha=alpha, tol=1e-12, fit_intercept=False, max_iter=1000).fit(X, y)
        penalty = Blocks(np.arange(X.shape[1]) // 5, np.full(X.shape[1] // 5, alpha))
        best = judge.objective(penalty, model.coef_)
        assert abs(float(path.objectives[k]) - best) <= 1e-8 * judge.null()[0]
        np.testing.assert_allclose(path.coefs[k].numpy(), model.coef_, atol=1e-4)


@pytest.mark.parametrize("X", [TALL, WIDE], ids=["n>p", "p>n"])
def test_multi_task_is_scikit_learns(X):
    Y = target(X, 3)
    path = tight(X, Y, Group(L1(1.0), by=rows, weights=1.0))
    for k, alpha in enumerate(path.alphas.tolist()[1:], 1):
        model = MultiTaskLasso(alpha=alpha, tol=1e-12, max_iter=100_000).fit(X, Y)
        np.testing.assert_allclose(path.coefs[k].numpy(), model.coef_.T, atol=1e-5)
        np.testing.assert_allclose(path.intercepts[k].numpy(), model.intercept_, atol=1e-5)


@pytest.mark.parametrize("X", [TALL, WIDE], ids=["n>p", "p>n"])
@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("grouping", ["rows", "labels", "whole"])
def test_groups_of_rows_with_several_outputs(X, outputs, grouping):
    Y, p = target(X, outputs), X.shape[1]
    of_row = {"rows": np.arange(p), "labels": np.arange(p) % 7, "whole": np.zeros(p, int)}[grouping]
    by = {"rows": rows, "labels": labels(torch.as_tensor(of_row)), "whole": whole}[grouping]
    path = tight(X, Y, Group(L1(1.0), by=by, weights=1.0))
    index = np.repeat(of_row[:, None], outputs, 1)
    certify(path, Judge(X, Y), lambda a: Blocks(index, np.full(of_row.max() + 1, a)), gap=TOL)


def test_groups_of_one_are_l1():
    ours, theirs = tight(WIDE, target(WIDE), group(np.arange(90))), tight(WIDE, target(WIDE), L1(1.0))
    np.testing.assert_allclose(ours.alphas, theirs.alphas, rtol=1e-12)
    np.testing.assert_allclose(ours.coefs, theirs.coefs, atol=1e-5)


@pytest.mark.parametrize("X", [TALL, WIDE], ids=["n>p", "p>n"])
def test_free_and_forbidden_groups(X):
    index = np.arange(X.shape[1]) // 5
    weights = np.ones(index.max() + 1)
    weights[1], weights[2] = 0.0, np.inf
    y = target(X) + 3.0 * X[:, 7] + X[:, 12]
    path = tight(X, y, group(index, weights))
    coefs = path.coefs.numpy()
    assert (coefs[:, index == 2] == 0).all()
    assert (coefs[:, index == 1] != 0).all()
    np.testing.assert_array_equal((coefs[0] != 0), index == 1)  # the grid begins where all others are zero
    allowed = np.flatnonzero(index != 2)
    finite = np.where(np.isinf(weights), 1.0, weights)
    for k, alpha in enumerate(path.alphas.tolist()):
        judge, penalty = Judge(X[:, allowed], y), Blocks(index[allowed], alpha * finite)
        assert judge.violation(penalty, coefs[k][allowed]) <= 1e-5 * judge.null()[1]


def test_nothing_is_penalised():
    path = tight(TALL, target(TALL), group(np.arange(30) // 5, np.zeros(6)), alphas=[1.0])
    best = np.linalg.lstsq(TALL - TALL.mean(0), target(TALL) - target(TALL).mean(), rcond=None)[0]
    np.testing.assert_allclose(path.coefs[0], best, atol=1e-6)


def test_all_is_zero_from_alpha_max_on():
    X, y, penalty = WIDE, target(WIDE), group(np.arange(90) // 5)
    top = tight(X, y, penalty).alpha_max
    path = fit_path(X, y, penalty, alphas=[2.0 * top, top, 0.999 * top])
    assert path.n_nonzero.tolist()[:2] == [0, 0]
    assert 0 < int(path.n_nonzero[2]) <= 5


@pytest.mark.parametrize("X", [TALL, WIDE], ids=["n>p", "p>n"])
def test_non_negative(X):
    index, y = np.arange(X.shape[1]) // 5, target(X)
    path = tight(X, y, NonNegative(group(index)))
    coefs = path.coefs.numpy()
    assert (coefs >= 0).all()
    assert (coefs > 0).any()
    judge = Judge(X, y)
    for k, alpha in enumerate(path.alphas.tolist()):
        slope = X.T @ (y - X @ coefs[k] - float(path.intercepts[k])) / len(X)
        for g in range(index.max() + 1):
            w, s = coefs[k][index == g], slope[index == g]
            norm = np.linalg.norm(w)
            if norm == 0:
                assert np.linalg.norm(np.maximum(s, 0)) <= alpha * (1 + 1e-6)
            else:
                rest = s - alpha * w / norm
                assert np.abs(np.where(w > 0, rest, np.maximum(rest, 0))).max() <= 1e-5 * judge.null()[1]


@pytest.mark.parametrize("X", [TALL, WIDE], ids=["n>p", "p>n"])
def test_sparse_group_lasso_is_that_of_proximal_gradient(X):
    y, penalty = target(X), group(np.arange(X.shape[1]) // 5) + L1(0.3)
    path = tight(X, y, penalty, alphas=4)
    frame = framed(X, y, Quadratic(), None, None, True, False, None)
    penalties = [penalty.with_alpha(a) for a in path.alphas.tolist()]
    options = {"start": None, "tol": 1e-12, "max_iter": 100_000, "moments": frame.moments}
    points = list(proximal_points(frame.problem, penalties, **options))
    for k, point in enumerate(points):
        np.testing.assert_allclose(path.coefs[k], point.dense(X.shape[1]), atol=1e-5)


@pytest.mark.parametrize("X", [TALL, WIDE], ids=["n>p", "p>n"])
def test_sparse_designs_are_dense_ones(X):
    thin = np.where(np.abs(X) > 1.0, X, 0.0)
    y, penalty = target(X), group(np.arange(X.shape[1]) // 5)
    dense = tight(thin, y, penalty)
    for kind in (scipy.sparse.csr_matrix, scipy.sparse.csc_matrix):
        found = tight(kind(thin), y, penalty)
        np.testing.assert_allclose(found.coefs, dense.coefs, atol=1e-6)


def test_weights_are_repetitions():
    X, y, times = TALL, target(TALL), np.arange(80) % 3
    penalty = group(np.arange(30) % 6)
    weighted = tight(X, y, penalty, sample_weight=times)
    repeated = tight(np.repeat(X, times, 0), np.repeat(y, times), penalty)
    np.testing.assert_allclose(weighted.coefs, repeated.coefs, atol=1e-6)


DEGENERATE = {
    "duplicates": np.repeat(WIDE[:, :30], 3, 1),
    "zeros": np.where(np.arange(90) % 4, WIDE, 0.0),
    "walk": WIDE.cumsum(1),
    "far": WIDE + 100.0,
    "scales": WIDE * 10.0 ** (np.arange(90) % 7 - 3),
    "few rows": WIDE[:3],
    "one row": WIDE[:1],
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("grouping", ["contiguous", "interleaved", "single"])
@pytest.mark.parametrize("inner", [0.0, 0.5])
def test_degenerate_designs(kind, grouping, inner):
    X, index = DEGENERATE[kind], GROUPINGS[grouping](90)
    y = target(WIDE)[: len(X)]
    penalty = group(index) + L1(inner) if inner else group(index)
    path = tight(X, y, penalty, fit_intercept=False, alphas=8, eps=1e-3)
    size = index.max() + 1
    judge = Judge(X, y, fit_intercept=False)
    certify(path, judge, lambda a: Blocks(index, np.full(size, a), inner=inner * a), gap=TOL, rounding=1e-10)


def test_a_start_changes_the_way_and_not_the_end():
    X, y, penalty = WIDE, target(WIDE), group(np.arange(90) // 5)
    cold = tight(X, y, penalty)
    alpha = [float(cold.alphas[6])]
    wrong = (torch.ones(90, dtype=F64), torch.tensor(0.0, dtype=F64))
    for init in ((cold.coefs[6], cold.intercepts[6]), wrong):
        warm = tight(X, y, penalty, alphas=alpha, init=init)
        np.testing.assert_allclose(warm.coefs[0], cold.coefs[6], atol=1e-5)


def test_a_long_way_and_a_fine_grid_lead_to_the_same_point():
    X, y, penalty = WIDE, target(WIDE), group(np.arange(90) // 5)
    fine = tight(X, y, penalty, alphas=60)
    far = tight(X, y, penalty, alphas=[float(fine.alphas[-1])])
    np.testing.assert_allclose(far.coefs[0], fine.coefs[-1], atol=1e-5)


def test_a_constant_target_has_no_coefficients():
    path = fit_path(TALL, np.full(80, 3.0), group(np.arange(30) // 5), alphas=[1.0, 0.1])
    assert not bool(path.coefs.any())
    assert path.intercepts.tolist() == pytest.approx([3.0, 3.0])


def test_the_solver_is_chosen_by_the_groups():
    problem = framed(TALL, target(TALL, 2), Quadratic(), None, None, True, False, None).problem
    options = {"start": None, "tol": 1e-6, "max_iter": 100, "moments": None}
    for by, name in ((rows, "group_newton"), (columns, "proximal_gradient")):
        assert solver_for(problem, Group(L1(1.0), by=by), **options).name == name


@pytest.mark.parametrize("outputs", [None, 3])
def test_rows_of_groups(outputs):
    coef = torch.zeros(6) if outputs is None else torch.zeros(6, outputs)
    index = torch.tensor([2, 2, 0, 0, 2, 4])
    assert group_of_rows(labels(index), coef).tolist() == index.tolist()
    assert group_of_rows(whole, coef).tolist() == [0] * 6
    if outputs is not None:
        assert group_of_rows(columns, coef) is None
        assert group_of_rows(rows, coef).tolist() == list(range(6))


@pytest.mark.parametrize("outputs", [None, 3])
@pytest.mark.parametrize("inner", [0.0, 0.3])
def test_the_order_of_columns_does_not_matter(outputs, inner):
    """Groups that follow each other are summed in another way than groups in any order."""
    y, index = target(WIDE, outputs), np.arange(90) // 5
    shuffle = np.random.default_rng(1).permutation(90)
    paths = [
        tight(X, y, group(labels) + L1(inner)) for X, labels in ((WIDE, index), (WIDE[:, shuffle], index[shuffle]))
    ]
    np.testing.assert_allclose(paths[0].coefs[:, shuffle], paths[1].coefs, atol=1e-5)


@pytest.mark.parametrize("outputs", [None, 3])
def test_groups_of_many_more_columns_than_rows(outputs):
    """Their Gram matrix is never formed: it would be of 20,000 numbers for each row."""
    X = np.random.default_rng(2).standard_normal((20, 4000))
    y, index = target(X, outputs), np.arange(4000) // 1000
    path = tight(X, y, group(index), alphas=6)
    blocks = index if outputs is None else np.repeat(index[:, None], outputs, 1)
    certify(path, Judge(X, y), lambda a: Blocks(blocks, np.full(4, a)), gap=TOL)


@pytest.mark.parametrize("outputs", [None, 3])
def test_both_oracles_know_the_correlations_of_their_set(outputs):
    problem = framed(TALL, target(TALL, outputs), Quadratic(), None, None, True, False, None).problem
    data, gram = (oracle_of(problem, moments) for moments in (None, moments_of(problem)))
    some = torch.tensor([4, 9, 2])
    w = torch.randn(3, *data.cross.shape[1:], dtype=F64)
    for oracle in (data, gram):
        oracle.append(some)
        whole_g = oracle.correlations(w[:, None])[0][:, 0]
        torch.testing.assert_close(oracle.within(w), whole_g[some])
        places = torch.tensor([2, 0, 1]), torch.tensor([0, 1])
        part = moments_of(problem).gram[some]
        torch.testing.assert_close(oracle.products(*places), part[places[0]][:, some[places[1]]])
    rows = data.factor(torch.tensor([2, 0]))
    torch.testing.assert_close(rows @ rows.T, moments_of(problem).gram[[2, 4]][:, [2, 4]])
    assert gram.factor(some) is None


@pytest.mark.parametrize("X", [TALL, WIDE], ids=["n>p", "p>n"])
def test_alpha_max_is_that_of_the_penalised_groups_after_the_free_ones(X):
    index = np.arange(X.shape[1]) // 5
    weights = np.ones(index.max() + 1)
    weights[1] = 0.0
    y = target(X) + 3.0 * X[:, 7]
    penalty = group(index, weights)
    free = np.column_stack([np.ones(len(X)), X[:, index == 1]])
    rest = y - free @ np.linalg.lstsq(free, y, rcond=None)[0]
    slopes = np.linalg.norm((X.T @ rest / len(X)).reshape(-1, 5), axis=1)
    top = fit_path(X, y, penalty, alphas=1).alpha_max
    assert top == pytest.approx(np.delete(slopes, 1).max(), rel=1e-8)
    path = tight(X, y, penalty, alphas=[top * (1 + 1e-6), 0.99 * top])
    assert path.n_nonzero[0] == 5 < path.n_nonzero[1]


def test_repeated_strengths():
    X, y, penalty = WIDE, target(WIDE), group(np.arange(90) // 5)
    once = tight(X, y, penalty, alphas=20)
    twice = tight(X, y, penalty, alphas=np.repeat(once.alphas.numpy(), 2))
    np.testing.assert_allclose(twice.coefs[::2], once.coefs, atol=1e-5)
    np.testing.assert_allclose(twice.coefs[1::2], once.coefs, atol=1e-5)


@pytest.mark.parametrize("kind", ["duplicates", "walk", "scales"])
@pytest.mark.parametrize("inner", [0.0, 0.5])
def test_proximal_points_alone_lead_to_the_solution(kind, inner, monkeypatch):
    """Where Newton steps never lead on; a step of curvature c is off by eps / c relative to the largest eigenvalue."""
    monkeypatch.setattr(group_newton.GroupNewton, "_newton_step", lambda *_: False)
    X, y, index = DEGENERATE[kind], target(WIDE), np.arange(90) // 5
    path = tight(X, y, group(index) + L1(inner) if inner else group(index), alphas=6, eps=0.1, tol=1e-7)
    certify(path, Judge(X, y), lambda a: Blocks(index, np.full(18, a), inner=inner * a), gap=1e-7)


@pytest.mark.parametrize("outputs", [None, 3])
@pytest.mark.parametrize("inner", [0.0, 0.5])
def test_directions_by_iteration_lead_to_the_same_point(outputs, inner, monkeypatch):
    X, y, penalty = WIDE, target(WIDE, outputs), group(np.arange(90) // 5) + L1(inner)
    factored = tight(X, y, penalty)
    monkeypatch.setattr(group_newton.GroupQuadratic, "is_factored", lambda *_: False)
    iterated = tight(X, y, penalty)
    assert bool(iterated.converged.all())
    np.testing.assert_allclose(factored.coefs, iterated.coefs, atol=1e-5)
