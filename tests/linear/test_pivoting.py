"""The engine of exact least-squares paths, part by part: tableau, oracles, exchanges and what helps where they fail."""

from itertools import product

import numpy as np
import pytest
import torch
from helpers import F64, QUICK, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from torchreg.linear.designs.inputs import as_design
from torchreg.linear.oracle import DataOracle, GramOracle
from torchreg.linear.pivoting.descent import descended
from torchreg.linear.pivoting.solver import PivotSolver
from torchreg.linear.pivoting.subproblem import Subproblem, misfit
from torchreg.linear.pivoting.tableau import Tableau

CPU = torch.device("cpu")
ROUNDING = 1e-10  # of the largest entry: products of a matrix of condition 1e3 with its inverses


def positive(m, seed=0, rank=None):
    X = normal((rank or 3 * m, m), seed, 1.0)
    gram = X.T @ X / len(X)
    return (gram + gram.T) / 2.0


def near(a, b, tolerance=ROUNDING):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


def indices(*numbers):
    return torch.tensor(numbers)


def filled(m=9, ridge=0.0, seed=0):
    tableau = Tableau(CPU, m)
    tableau.append(positive(m, seed), torch.full((m,), ridge, dtype=F64))
    return tableau


def by_definition(gram, active):
    """The tableau by its formula."""
    a, b = active.nonzero().flatten(), (~active).nonzero().flatten()
    table = torch.empty_like(gram)
    H = torch.linalg.inv(gram[a[:, None], a])
    table[a[:, None], a] = H
    table[a[:, None], b] = -H @ gram[a[:, None], b]
    table[b[:, None], a] = gram[b[:, None], a] @ H
    table[b[:, None], b] = gram[b[:, None], b] - gram[b[:, None], a] @ H @ gram[a[:, None], b]
    return table


# --- tableau -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("chosen", [(2,), (0, 8), (5, 1, 3), tuple(range(9))], ids=str)
def test_a_pivot_is_the_formula_and_its_own_inverse(chosen, ridge):
    tableau = filled(ridge=ridge)
    full = tableau.gram + torch.diag(tableau.ridge)
    assert torch.equal(tableau.table, full)
    tableau.pivot(indices(*chosen))
    near(tableau.table, by_definition(full, tableau.active))
    assert tableau.active.nonzero().flatten().tolist() == sorted(chosen)
    tableau.pivot(indices(*chosen))
    near(tableau.table, full)
    assert not tableau.active.any()


def test_columns_in_and_out_at_once_or_one_by_one():
    one, many = filled(), filled()
    one.pivot(indices(0, 2, 4))
    many.pivot(indices(0, 2, 4))
    one.pivot(indices(2, 5, 0, 7))
    for column in (7, 5, 2, 0):
        many.pivot(indices(column))
    near(one.table, many.table)
    assert one.active.nonzero().flatten().tolist() == [4, 5, 7]
    near(one.table, by_definition(one.gram, one.active))


@pytest.mark.parametrize("ridge", [0.0, 0.2])
def test_columns_that_come_later(ridge):
    """After pivots, by ones and by many, across the growth of the buffers: as if they had been there from the first."""
    m = 150
    gram = positive(m, 3)
    strengths = ridge * torch.linspace(0.5, 1.5, m, dtype=F64)
    tableau, size = Tableau(CPU, m), 0
    for k, chosen in ((5, (0, 3)), (1, (5,)), (90, (3, 40, 77)), (54, (149, 0, 96))):
        size += k
        tableau.append(gram[:size, size - k : size], strengths[size - k : size])
        near(tableau.table, by_definition(gram[:size, :size] + torch.diag(strengths[:size]), tableau.active))
        tableau.pivot(indices(*chosen))
    assert torch.equal(tableau.gram, gram)
    assert torch.equal(tableau.ridge, strengths)
    before = tableau.table.clone()
    tableau.rebuild()
    near(before, tableau.table)
    assert tableau.active.nonzero().flatten().tolist() == [5, 40, 77, 96, 149]


def test_rebuild_with_another_matrix_and_ridge():
    tableau = filled()
    tableau.pivot(indices(1, 6))
    other, ridge = positive(9, 8), torch.full((9,), 0.7, dtype=F64)
    tableau.rebuild(other, ridge)
    near(tableau.table, by_definition(other + torch.diag(ridge), tableau.active))
    assert tableau.active.nonzero().flatten().tolist() == [1, 6]


def test_the_product_gives_coefficients_and_what_they_take():
    tableau, c = filled(ridge=0.1), normal((9,), 4)
    tableau.pivot(indices(1, 2, 7))
    active = tableau.active
    product = tableau.table @ torch.where(active, c, 0.0)
    w = torch.where(active, product, 0.0)
    full = tableau.gram + torch.diag(tableau.ridge)
    near((full @ w)[active], c[active])
    near((full @ w)[~active], product[~active])


# --- oracles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_gram_matrix_serves_as_well_as_the_data(centre, scale, dtype):
    X, y = (normal((30, 12), 1) + 5.0).to(dtype), normal((30,), 2)
    weights = torch.linspace(0.0, 2.0, 30, dtype=F64)
    weights = weights / weights.sum()
    design = as_design(X).standardised(weights, centre=centre, scale=scale)
    data = DataOracle(design, weights, y)
    energy = (weights * y.square()).sum()
    gram = GramOracle(design.gram(weights), design.transposed(weights * y), energy)
    near(data.cross, gram.cross)
    near(data.energy, gram.energy)
    for new in (indices(3, 0), indices(11), indices(5, 7, 1)):
        first, second = data.append(new), gram.append(new)
        near(first, second)
        assert torch.equal(first[-len(new) :], first[-len(new) :].T)
    assert data.chosen.tolist() == gram.chosen.tolist() == [3, 0, 11, 5, 7, 1]
    w = normal((6, 4), 3)
    for a, b in zip(data.correlations(w), gram.correlations(w), strict=True):
        near(a, b)
    plain = X.double()
    plain = plain - (weights @ plain if centre else 0.0)
    if scale:
        spread = X.double() - weights @ X.double()
        plain = plain / (weights @ spread.square()).sqrt()
    residual = y[:, None] - plain[:, data.chosen] @ w
    near(data.correlations(w)[0], plain.T @ (weights[:, None] * residual))
    near(data.correlations(w)[1], (weights[:, None] * residual.square()).sum(0))


def test_squares_of_a_gram_matrix_are_never_negative():
    X = normal((9, 4), 1)
    w = normal((4, 1), 2)
    gram = GramOracle(X.T @ X, X.T @ X @ w[:, 0], (X @ w).square().sum())
    gram.append(torch.arange(4))
    assert (gram.correlations(w)[1] >= 0).all()


# --- subproblems ---------------------------------------------------------------------------------------------------


def value(gram, problem, w):
    return w @ (gram @ w / 2.0 + problem.l2 * w / 2.0 - problem.c) + problem.l1 @ w.abs()


def least(gram, problem):
    """The least value over all sign patterns: of each the minimiser, where it has these signs."""
    m = len(problem.c)
    matrix, c, l1 = (gram + torch.diag(problem.l2)).numpy(), problem.c.numpy(), problem.l1.numpy()
    best = 0.0
    for pattern in product((-1, 0, 1) if problem.lower else (0, 1), repeat=m):
        signs = np.array(pattern)
        inside = signs != 0
        if not inside.any():
            continue
        w = np.zeros(m)
        w[inside] = np.linalg.lstsq(matrix[np.ix_(inside, inside)], (c - l1 * signs)[inside], rcond=1e-10)[0]
        w = np.where(w * signs > 0, w, 0.0) if (l1 > 0).all() else w
        if problem.lower == 0.0:
            w = np.maximum(w, 0.0)
        best = min(best, float(value(gram, problem, torch.tensor(w))))
    return best


def solver_of(gram, l2, rank=None):
    solver = PivotSolver(CPU, len(gram), rank or len(gram))
    solver.append(gram, l2)
    return solver


def check(gram, problem, w, tolerance=1e-10):
    """Optimal: no misfit of correlations or signs, relative to the energy."""
    true = problem.c - gram @ w - problem.l2 * w
    assert problem.lower != 0.0 or (w >= 0).all()
    reach = true if problem.lower == 0.0 else true.abs()
    distance = torch.where(w == 0.0, (reach - problem.l1).clamp(min=0.0), (true - problem.l1 * w.sign()).abs())
    assert distance.max() <= tolerance * problem.c.abs().max()


NUMBERS = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0])


@st.composite
def subproblems(draw):
    m, n = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    X = torch.tensor(draw(st.lists(st.lists(NUMBERS, min_size=m, max_size=m), min_size=n, max_size=n)), dtype=F64)
    y = torch.tensor(draw(st.lists(NUMBERS, min_size=n, max_size=n)), dtype=F64)
    l1 = torch.tensor(draw(st.lists(st.sampled_from([0.25, 0.5, 1.0, 3.0]), min_size=m, max_size=m)), dtype=F64)
    l2 = draw(st.sampled_from([0.0, 0.0, 0.5])) * torch.ones(m, dtype=F64)
    lower = draw(st.sampled_from([-np.inf, 0.0]))
    return X.T @ X, Subproblem(X.T @ y, l1, l2, lower), min(m, n)


@settings(QUICK, max_examples=300)
@given(subproblems())
def test_exchanges_find_the_least_of_all_sign_patterns(drawn):
    """Integer columns: dependent, equal and zero ones, and ties."""
    gram, problem, rank = drawn
    w = solver_of(gram, problem.l2, rank).solve(problem)
    check(gram, problem, w)
    assert float(value(gram, problem, w)) == pytest.approx(least(gram, problem), abs=1e-10)


@settings(QUICK, max_examples=100)
@given(subproblems(), st.lists(st.sampled_from([-1.0, 0.0, 0.0, 2.0]), min_size=5, max_size=5))
def test_any_start_ends_in_the_same_minimum(drawn, start):
    gram, problem, rank = drawn
    solver = solver_of(gram, problem.l2, rank)
    begin = torch.tensor(start[: len(gram)], dtype=F64).clamp(min=problem.lower)
    solver.begin(begin)
    w = solver.solve(problem)
    check(gram, problem, w, 2e-9)  # of a start on dependent columns there is no inverse; what costs 1e-9 is mended
    assert float(value(gram, problem, w)) == pytest.approx(least(gram, problem), abs=1e-10)


FAILURES = {
    "none": (),
    "blocks": ("_blocks",),
    "the way too": ("_blocks", "_follow"),
}


@pytest.mark.parametrize("failing", list(FAILURES.values()), ids=list(FAILURES))
@pytest.mark.parametrize("lower", [-np.inf, 0.0], ids=["free", "nonnegative"])
@pytest.mark.parametrize("kind", ["regular", "duplicates", "rank 6", "ridge"])
def test_every_fallback_finds_the_same(monkeypatch, failing, lower, kind):
    """With what comes before it made to fail."""
    gram = {
        "regular": positive(20, 1),
        "duplicates": positive(10, 1).repeat(2, 2),
        "rank 6": positive(20, 1, rank=6),
        "ridge": positive(20, 1, rank=6),
    }[kind]
    l2 = torch.full((20,), 0.1 if kind == "ridge" else 0.0, dtype=F64)
    c = gram @ normal((20,), 7)
    expected = solver_of(gram, l2)
    solver = solver_of(gram, l2, rank=6 if kind == "rank 6" else 20)
    for name in failing:
        monkeypatch.setattr(solver, name, lambda *_: None)
    top = float(c.abs().max())
    for strength in (1.1 * top, 0.8 * top, 0.3 * top, 0.29 * top, 0.05 * top, 1e-3 * top):
        problem = Subproblem(c, torch.full_like(c, strength), l2, lower)
        w = solver.solve(problem)
        check(gram, problem, w, 1e-9)
        best = value(gram, problem, expected.solve(problem))
        assert float(value(gram, problem, w) - best) <= 1e-9 * float(problem.c.abs().max())
    assert solver.fallbacks > 0 or not failing


def test_a_ridge_that_changes_with_every_problem():
    """As along an elastic-net path: the tableau keeps an older ridge, which proximal point steps take off."""
    gram = positive(15, 2)
    c = normal((15,), 3)
    solver = solver_of(gram, torch.full((15,), 1.0, dtype=F64))
    for ridge in (1.0, 0.95, 0.9, 0.5, 0.45, 0.02, 0.0):
        problem = Subproblem(c, torch.full_like(c, 0.1), torch.full_like(c, ridge), -np.inf)
        w = solver.solve(problem)
        check(gram, problem, w)


def test_columns_come_and_the_matrix_is_replaced():
    gram, c = positive(12, 4), normal((12,), 5)
    l2 = torch.zeros(12, dtype=F64)
    solver = PivotSolver(CPU, 12, 12)
    assert solver.solve(Subproblem(c[:0], c[:0], c[:0], -np.inf)).shape == (0,)
    for size, k in ((5, 5), (6, 1), (12, 6)):
        solver.append(gram[:size, size - k : size], l2[size - k : size])
        problem = Subproblem(c[:size], torch.full((size,), 0.2, dtype=F64), l2[:size], -np.inf)
        check(gram[:size, :size], problem, solver.solve(problem))
    other = positive(12, 6)
    solver.replace(other, l2)
    problem = Subproblem(c, torch.full((12,), 0.1, dtype=F64), l2, -np.inf)
    check(other, problem, solver.solve(problem))


# --- descent and misfit --------------------------------------------------------------------------------------------


@settings(QUICK, max_examples=200)
@given(subproblems(), st.lists(st.sampled_from([-1.0, 0.0, 0.0, 2.0]), min_size=5, max_size=5))
def test_descent_is_never_worse_than_its_start_and_ends_at_the_minimum(drawn, start):
    gram, problem, _ = drawn
    begin = torch.tensor(start[: len(gram)], dtype=F64).clamp(min=problem.lower)
    bounded = torch.full_like(problem.c, problem.lower == 0.0, dtype=torch.bool)
    before = begin.clone()
    w = descended(gram + torch.diag(problem.l2), problem.c, problem.l1, bounded, begin)
    assert torch.equal(begin, before)
    assert float(value(gram, problem, w)) <= min(float(value(gram, problem, begin)), 0.0) + 1e-14
    assert float(value(gram, problem, w)) == pytest.approx(least(gram, problem), abs=1e-9)


@pytest.mark.parametrize("size", [5, 12, 30])
def test_descent_on_hilbert_matrices_does_not_blow_up(size):
    number = torch.arange(size, dtype=F64)
    gram = 1.0 / (number[:, None] + number + 1.0)
    c = gram @ normal((size,), 1)
    for share in (0.5, 1e-3, 1e-6, 1e-9):
        problem = Subproblem(c, torch.full_like(c, share * float(c.abs().max())), 0.0 * c, -np.inf)
        w = descended(gram, c, problem.l1, torch.zeros(size, dtype=torch.bool), torch.zeros_like(c))
        assert float(value(gram, problem, w)) <= 0.0
        assert problem.l1 @ w.abs() <= c @ w + 1e-15
        # optimal to the rounding of correlations, eps |w|_1
        true = (c - gram @ w).abs() - problem.l1
        assert float(true.max()) <= 1e-12 * float(c.abs().max()) + 1e-14 * float(w.abs().sum())


def test_misfit_counts_every_fault():
    gram, c = positive(6, 1), normal((6,), 2)
    l1, none = torch.full_like(c, 0.3), torch.zeros_like(c)
    problem = Subproblem(c, l1, none, -np.inf)
    solver = solver_of(gram, none)
    w = solver.solve(problem)
    active, signs, g = solver.tableau.active.clone(), solver.signs.clone(), c - gram @ w
    assert misfit(problem, active, signs, w, g) <= 1e-12
    assert misfit(problem, active, -signs, w, g) > 0.01  # signs
    assert misfit(problem, active & False, signs, w, 1.1 * g) > 0.01  # correlations
    assert misfit(problem, active & False, signs, 0.0 * w, c) > 0.01  # without any coefficient
    assert misfit(problem, active, signs, w * torch.nan, g) == np.inf
    saddle = Subproblem(0.1 * l1, l1, none, -np.inf)
    assert misfit(saddle, active | True, none + 1.0, 1e20 * l1, l1) > 0.01  # stationary, and worse than zero
    assert misfit(problem, active, signs, w, torch.where(active, 1.1 * g, g)) > 0.01  # equations of active columns
    bounded = Subproblem(c, l1, none, 0.0)
    assert misfit(bounded, active, signs.abs(), -w.abs(), g) > 0.01
