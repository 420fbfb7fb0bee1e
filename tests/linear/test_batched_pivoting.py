"""Block pivoting of several problems at once: the optimality conditions of each, whatever becomes of the others."""

import math

import pytest
import torch

from torchreg.linear.lockstep.exchanges import Patience
from torchreg.linear.lockstep.pivoting import BatchedPivots
from torchreg.linear.pivoting.subproblem import Subproblem

F64 = torch.float64
K, M, N = 4, 25, 60


def grams(n=N, seed=0, twice=()):
    """(K, M, M); in the problems ``twice`` columns 3 and 8 are the same."""
    X = torch.randn(K, n, M, dtype=F64, generator=torch.Generator().manual_seed(seed))
    X[:, :, 1:] += 0.8 * X[:, :, :-1]
    for k in twice:
        X[k, :, 8] = X[k, :, 3]
    y = torch.randn(K, n, 1, dtype=F64, generator=torch.Generator().manual_seed(seed + 1)) + X[:, :, :3].sum(2, True)
    return X.mT @ X / n, (X.mT @ y)[..., 0] / n


def pivots(gram, rank=M, ridged=False):
    solver = BatchedPivots([rank] * K, M, ridged, torch.device("cpu"))
    for start, end in ((0, 10), (10, M)):
        solver.append(gram[:, :end, start:end])
    return solver


def assert_optimal(problem, gram, w, atol=1e-11):
    g = problem.c - (gram @ w[..., None])[..., 0] - problem.l2 * w
    beyond = (g if problem.lower == 0.0 else g.abs()) - problem.l1
    torch.testing.assert_close(
        torch.where(w != 0, g - problem.l1 * w.sign(), 0.0), torch.zeros_like(w), rtol=0, atol=atol
    )
    assert bool((torch.where(w == 0, beyond, 0.0) <= atol).all())
    assert problem.lower == -math.inf or bool((w >= 0).all())


STRENGTHS = {
    "lasso": (torch.ones(M, dtype=F64), torch.zeros(M, dtype=F64), -math.inf),
    "some free": (
        torch.ones(M, dtype=F64).index_fill(0, torch.tensor([0, 7]), 0.0),
        torch.zeros(M, dtype=F64),
        -math.inf,
    ),
    "ridge": (torch.ones(M, dtype=F64), torch.full((M,), 0.7, dtype=F64), -math.inf),
    "nonnegative": (torch.ones(M, dtype=F64), torch.zeros(M, dtype=F64), 0.0),
    "nonnegative ridge": (torch.ones(M, dtype=F64), torch.full((M,), 0.7, dtype=F64), 0.0),
}


@pytest.mark.parametrize("strengths", STRENGTHS.values(), ids=list(STRENGTHS))
@pytest.mark.parametrize("rows", [N, 15], ids=["more rows", "more columns"])
def test_optimal_all_the_way_down(strengths, rows):
    l1, l2, lower = strengths
    gram, c = grams(rows)
    solver = pivots(gram, min(rows, M), bool(l2.any()))
    for alpha in [0.8**k for k in range(20)]:
        problem = Subproblem(c, alpha * l1, alpha * l2, lower)
        w = solver.solve(problem)
        assert not any(solver.lost)
        assert_optimal(problem, gram, w)


def test_dependent_columns():
    gram, c = grams(twice=(1, 3))
    solver = pivots(gram)
    for alpha in [0.8**k for k in range(30)]:
        problem = Subproblem(c, torch.full((M,), alpha, dtype=F64), torch.zeros(M, dtype=F64), -math.inf)
        assert_optimal(problem, gram, solver.solve(problem))
    assert not any(solver.lost)


def test_a_lost_problem_leaves_the_others_alone():
    gram, c = grams()
    solver = pivots(gram)
    problem = Subproblem(c, torch.full((M,), 0.1, dtype=F64), torch.zeros(M, dtype=F64), -math.inf)
    solver.solve(problem)
    solver.drop(2)
    w = solver.solve(problem)
    assert not bool(w[2].any())
    kept = torch.tensor([0, 1, 3])
    assert_optimal(Subproblem(c[kept], problem.l1, problem.l2, problem.lower), gram[kept], w[kept])
    assert solver.lost == [False, False, True, False]


def test_what_cannot_be_solved_is_lost():
    gram, c = grams()
    gram[1, 0, 1] = gram[1, 1, 0] = 10.0  # not positive semidefinite
    c[1] = 1.0
    solver = pivots(gram)
    problem = Subproblem(c, torch.full((M,), 0.01, dtype=F64), torch.zeros(M, dtype=F64), -math.inf)
    w = solver.solve(problem)
    assert solver.lost == [False, True, False, False]
    assert not bool(w[1].any())


def test_no_columns():
    solver = BatchedPivots([3, 3], 5, False, torch.device("cpu"))
    none = torch.zeros(0, dtype=F64)
    assert solver.solve(Subproblem(torch.zeros(2, 0, dtype=F64), none, none, -math.inf)).shape == (2, 0)


def test_patience_ends_with_one_column_at_a_time():
    patience = Patience(100)
    allowed = [patience.allowed(40) for _ in range(20)]
    assert allowed[:4] == [40] * 4
    assert set(allowed[4:14]) == {10}
    assert set(allowed[14:]) == {1}
    assert patience.again() == 0
    assert patience.allowed(39) == 39
    assert [patience.again() for _ in range(4)] == [9, 2, 1, 0]
    assert patience.astray(10_000)
