"""What solvers share: a line search, a Cholesky factor, conjugate gradients, the largest eigenvalue."""

import ast
from pathlib import Path

import pytest
import torch

import torchreg.linear
from torchreg.linear.solvers.linear_algebra import (
    conjugate_gradients,
    largest_eigenvalue,
    line_search,
    safe_cholesky,
)

F64 = torch.float64
EPS = torch.finfo(F64).eps


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def of_rank(rank, size, seed=0):
    table = drawn(rank, size, seed=seed)
    return table.T @ table


def test_a_line_search_takes_the_longest_step_that_is_accepted():
    asked = []

    def trial(step):
        asked.append(step)
        return ("found", step) if step <= 0.2 else None

    assert line_search(trial, 10) == ("found", 0.125)
    assert asked == [1.0, 0.5, 0.25, 0.125]
    assert line_search(trial, 3) is None
    assert len(asked) == 7


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_the_factor_of_what_is_positive_definite_has_no_more_ridge(batch, ridge):
    square = torch.stack([of_rank(20, 8, seed) for seed in range(3)]) if batch else of_rank(20, 8)
    factor, regular = safe_cholesky(square.clone(), torch.full((*batch, 8), ridge, dtype=F64))
    assert regular
    torch.testing.assert_close(factor, factor.tril())
    torch.testing.assert_close(factor @ factor.mT, square + ridge * torch.eye(8, dtype=F64), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("units", [1.0, 1e-150, 1e150])
@pytest.mark.parametrize(("size", "rank"), [(1, 0), (8, 3), (40, 1), (40, 39)])
def test_what_is_singular_is_raised_by_little(size, rank, units):
    square = units * of_rank(rank, size)
    factor, regular = safe_cholesky(square.clone())
    added = (factor @ factor.T - square) / units
    assert regular
    assert factor.isfinite().all()
    assert (factor.diagonal() > 0.0).all()
    assert float(added.abs().max()) <= 1e4 * EPS * size * float(square.diagonal().max() / units + (rank == 0))


@pytest.mark.parametrize("least", [1e-7, 1e-3])
def test_pivots_are_as_large_as_asked_for(least):
    square = of_rank(3, 8)
    unit = square.diagonal().sqrt()
    square = square / unit / unit[:, None]
    factor, regular = safe_cholesky(square.clone(), least=least, growth=10.0)
    assert regular == (float(factor.diagonal().min()) >= least)
    assert regular or least == 1e-3  # which no ridge near rounding can give


@pytest.mark.parametrize("bad", [float("nan"), -1.0])
def test_what_has_no_factor_is_told(bad):
    square = torch.eye(3, dtype=F64)
    square[1, 1] = bad
    assert not safe_cholesky(square)[1]


@pytest.mark.parametrize("shape", [(30,), (10, 3)])
@pytest.mark.parametrize("scaled", [False, True])
def test_conjugate_gradients_solve(shape, scaled):
    H, side = of_rank(60, 30) + 0.1 * torch.eye(30, dtype=F64), drawn(*shape, seed=1)
    solve = (lambda r: (r.reshape(-1) / H.diagonal()).view(shape)) if scaled else torch.clone
    image = torch.zeros(30, dtype=F64)
    last = image

    def times(v):
        nonlocal last
        last = H @ v.reshape(-1)
        return last.view(shape)

    found = conjugate_gradients(
        times, solve, side, tol=1e-13, limit=200, follow=lambda length: image.add_(length * last)
    )
    expected = torch.linalg.solve(H, side.reshape(-1)).view(shape)
    torch.testing.assert_close(found.x, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(image, H @ found.x.reshape(-1), rtol=1e-9, atol=1e-11)
    assert 0 < found.steps <= 60


def test_conjugate_gradients_stop_where_asked():
    H, side = of_rank(60, 30), drawn(30, seed=1)
    rough = conjugate_gradients(H.mv, torch.clone, side, tol=0.3, limit=200)
    assert float((side - H @ rough.x).norm()) <= 0.3 * float(side.norm())
    assert conjugate_gradients(H.mv, torch.clone, side, tol=0.0, limit=5).steps == 5
    nothing = conjugate_gradients(H.mv, torch.clone, torch.zeros(30, dtype=F64), tol=0.1, limit=5)
    assert not nothing.x.any()


def test_conjugate_gradients_are_cut_off_where_the_matrix_is_not_convex():
    """At once the side itself goes down; later, what the convex directions have given."""
    side = torch.ones(3, dtype=F64)
    down = conjugate_gradients(lambda v: -v, torch.clone, side, tol=1e-9, limit=9)
    torch.testing.assert_close(down.x, side)
    H = torch.diag(torch.tensor([3.0, 1.0, -1.0], dtype=F64))
    cut = conjugate_gradients(H.mv, torch.clone, side, tol=1e-9, limit=9)
    assert cut.steps == 2
    torch.testing.assert_close(cut.x, side)  # one step of length <side, side> / <side, H side> = 1


def test_single_precision_stays_so():
    H, side = of_rank(60, 30).float(), drawn(30, seed=1).float()
    found = conjugate_gradients(H.mv, torch.clone, side, tol=1e-3, limit=200)
    assert found.x.dtype == torch.float32
    assert float((side - H @ found.x).norm()) <= 2e-3 * float(side.norm())


def test_the_largest_eigenvalue_is_met_from_below():
    H = of_rank(60, 30)
    found, largest = float(largest_eigenvalue(H.mv, drawn(30))), float(torch.linalg.eigvalsh(H)[-1])
    assert 0.9 * largest <= found <= largest * (1.0 + 1e-12)
    assert float(largest_eigenvalue(torch.zeros_like, drawn(30))) == 0.0


def test_solvers_have_no_numerics_of_their_own():
    """One batch of small problems factors itself: it looks at each problem's pivots."""
    root = Path(torchreg.linear.__file__).parent
    for path in root.rglob("*.py"):
        if path.name == "linear_algebra.py" or "lockstep" in path.parts:
            continue
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & {"cholesky", "cholesky_ex"}, path
