"""Every design against the centred, scaled, float64 matrix that it never forms."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchreg.linear.designs import inputs
from torchreg.linear.designs.dense import Dense
from torchreg.linear.designs.inputs import as_design
from torchreg.linear.designs.sparse import Sparse

F64 = torch.float64
N, P = 70, 40
# Sums of N terms, each rounded at 2^-53 of sum |a| |b|, which is what errors are divided by below; a
# rank-one correction adds as much again times |mean| / deviation, at most 8 where Gram matrices use it.
CLOSE = 3e-14
LOOSE = 1e-12  # Gram matrices where a constant column has 20 times the deviation of the others: squared, 400 times


def entries(kind: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, P)) + rng.uniform(-2, 2, P)
    if "sparse" in kind or "scipy" in kind:
        X = np.where(rng.random((N, P)) < (0.02 if "thin" in kind else 0.3), X, 0.0)
    X[:, 3] = 0.0
    X[:, 5] = 2.0
    X[:, 7] = X[:, 8]
    return X


def torch_sparse(X: np.ndarray, monkeypatch, *, layout: str = "csr") -> Sparse:
    """By torch's own products, as where scipy is missing."""
    monkeypatch.setattr(inputs, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(X)
        made = {"csr": tensor.to_sparse_csr, "csc": tensor.to_sparse_csc, "coo": tensor.to_sparse}[layout]()
    return as_design(made)


def scattered(X: np.ndarray) -> scipy.sparse.csr_array:
    """CSR with int64 indices out of order, an explicit zero and entries in two parts."""
    rows, columns = np.nonzero(X)
    order = np.random.default_rng(1).permutation(len(rows))
    order = order[np.argsort(rows[order], kind="stable")]
    rows, columns = rows[order], columns[order]
    values = X[rows, columns]
    rows, columns = np.repeat(rows, 2), np.repeat(columns, 2)
    values = np.stack([0.25 * values, 0.75 * values], 1).ravel()
    zero = np.flatnonzero(X[-1] == 0)[:1]
    indptr = np.concatenate([[0], np.bincount(rows, minlength=N).cumsum()])
    indptr[-1] += 1
    indices = np.concatenate([columns, zero])
    made = scipy.sparse.csr_array((np.append(values, 0.0), indices, indptr), shape=X.shape)
    made.indices, made.indptr = made.indices.astype(np.int64), made.indptr.astype(np.int64)
    return made


KINDS = {
    "rows": lambda X, m: as_design(X),
    "columns": lambda X, m: as_design(np.asfortranarray(X)),
    "torch": lambda X, m: as_design(torch.from_numpy(X)),
    "strided": lambda X, m: as_design(torch.from_numpy(np.repeat(np.repeat(X, 2, 0), 3, 1))[::2, ::3]),
    "reversed": lambda X, m: as_design(np.ascontiguousarray(X[::-1])[::-1]),
    "float32": lambda X, m: as_design(X.astype(np.float32)),
    "float32 columns": lambda X, m: as_design(np.asfortranarray(X.astype(np.float32))),
    "big-endian": lambda X, m: as_design(X.astype(">f8")),
    "scipy csr": lambda X, m: as_design(scipy.sparse.csr_array(X)),
    "scipy csc": lambda X, m: as_design(scipy.sparse.csc_matrix(X)),
    "scipy csc thin": lambda X, m: as_design(scipy.sparse.csc_matrix(X)),
    "scipy coo": lambda X, m: as_design(scipy.sparse.coo_matrix(X)),
    "scipy float32": lambda X, m: as_design(scipy.sparse.csr_matrix(X.astype(np.float32))),
    "scipy scattered": lambda X, m: as_design(scattered(X)),
    "scipy csc scattered": lambda X, m: as_design(scattered(X).tocsc()),
    "torch sparse": torch_sparse,
    "torch sparse thin": torch_sparse,
    "torch sparse csc": lambda X, m: torch_sparse(X, m, layout="csc"),
    "torch sparse coo": lambda X, m: torch_sparse(X, m, layout="coo"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_view = pytest.mark.parametrize(("centre", "scale"), list(itertools.product([False, True], repeat=2)))
each_weighting = pytest.mark.parametrize("weighted", [False, True])


def weights_of(weighted: bool, n: int = N) -> torch.Tensor:
    if not weighted:
        return torch.full((n,), 1.0 / n, dtype=F64)
    weights = torch.rand(n, generator=torch.Generator().manual_seed(2), dtype=F64)
    weights[::9] = 0.0
    return weights / weights.sum()


def seen(X: torch.Tensor, weights: torch.Tensor, centre: bool, scale: bool) -> torch.Tensor:
    """The matrix, formed: a mean in two steps, and scale 1 for columns that do not vary."""
    mean = weights @ X
    mean = mean + weights @ (X - mean)
    spread = (weights @ (X - mean).square()).sqrt()
    X = X - mean if centre else X
    return X / torch.where(spread > 1e-13 * mean.abs(), spread, 1.0) if scale else X


def made(kind: str, monkeypatch, weights, centre: bool, scale: bool):
    X = entries(kind)
    X = X.astype(np.float32).astype(np.float64) if "float32" in kind else X
    design = KINDS[kind](X, monkeypatch)
    return design.standardised(weights, centre=centre, scale=scale), seen(torch.from_numpy(X), weights, centre, scale)


def assert_product(found: torch.Tensor, a: torch.Tensor, b: torch.Tensor, close: float = CLOSE) -> None:
    size = a.abs() @ b.abs()
    assert found.dtype == F64
    assert found.shape == size.shape
    assert not size.numel() or float((found - a @ b).abs().max()) <= close * float(size.max())


def random(*shape: int, seed: int = 4) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@each_kind
@each_view
@each_weighting
def test_products_are_those_of_the_matrix(kind, centre, scale, weighted, monkeypatch):
    weights = weights_of(weighted)
    design, X = made(kind, monkeypatch, weights, centre, scale)
    assert (design.n, design.p, design.device) == (N, P, torch.device("cpu"))
    for batch in ((), (1,), (6,), (0,)):
        assert_product(design.times(random(P, *batch)), X, random(P, *batch))
        assert_product(design.transposed(random(N, *batch)), X.T, random(N, *batch))
    turned = random(6, N).T  # a batch laid out by columns
    assert_product(design.transposed(turned), X.T, turned)


@each_kind
@each_view
@each_weighting
def test_gram_is_that_of_the_matrix_and_exactly_symmetric(kind, centre, scale, weighted, monkeypatch):
    weights = weights_of(weighted)
    design, X = made(kind, monkeypatch, weights, centre, scale)
    other = weights_of(not weighted)  # not those that it is centred with
    for w in (weights, other):
        gram = design.gram(w)
        assert torch.equal(gram, gram.T)
        assert_product(gram, X.T, w[:, None] * X, LOOSE if "thin" in kind else CLOSE)


@each_kind
@each_weighting
def test_moments_are_those_of_the_raw_columns(kind, weighted, monkeypatch):
    weights = weights_of(weighted)
    design, X = made(kind, monkeypatch, weights, False, False)
    mean, variance = design.standardised(weights, centre=True, scale=True).moments(weights)
    torch.testing.assert_close(mean, weights @ X, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(variance, weights @ (X - weights @ X).square(), rtol=1e-12, atol=1e-28)


@each_kind
@each_view
@each_weighting
def test_a_selection_grows_as_the_matrix_does(kind, centre, scale, weighted, monkeypatch):
    weights = weights_of(weighted)
    design, X = made(kind, monkeypatch, weights, centre, scale)
    selection = design.selection(weights)
    assert selection.times(random(0, 2)).shape == (N, 2)
    assert selection.transposed(random(N)).shape == (0,)
    close = LOOSE if "thin" in kind else CLOSE
    order = torch.randperm(P, generator=torch.Generator().manual_seed(3))
    for new in order.split([1, 0, 7, 3, 12, 17]):
        block = selection.append(new)
        chosen = X[:, selection.index]
        assert_product(block, chosen.T, weights[:, None] * X[:, new], close)
        corner = block[len(block) - len(new) :]
        assert torch.equal(corner, corner.T)
        m = len(selection.index)
        for batch in ((), (3,)):
            assert_product(selection.times(random(m, *batch)), chosen, random(m, *batch))
            assert_product(selection.transposed(random(N, *batch)), chosen.T, random(N, *batch))
        for start in (0, m // 2):
            other = weights_of(not weighted)
            gram = selection.gram(other, start)
            assert_product(gram, chosen.T, other[:, None] * chosen[:, start:], close)
            assert torch.equal(gram[start:], gram[start:].T)
    assert torch.equal(selection.index, order)


@each_kind
@pytest.mark.parametrize("rows", [torch.tensor([5, 2, 2, 60]), torch.arange(N) % 3 == 0, slice(4, 30)], ids=str)
def test_a_subset_keeps_mean_and_scale(kind, rows, monkeypatch):
    design, X = made(kind, monkeypatch, weights_of(True), True, True)
    part, kept = design.subset(rows), X[rows]
    assert part.n == len(kept)
    assert_product(part.times(random(P)), kept, random(P))
    assert_product(part.transposed(random(len(kept))), kept.T, random(len(kept)))
    assert_product(part.gram(weights_of(False, len(kept))), kept.T, kept / len(kept))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 300), (300, 3), (2, 500)])
@pytest.mark.parametrize("layout", ["rows", "columns", "scipy csr", "torch sparse"])
def test_extreme_shapes(shape, layout, monkeypatch):
    X = np.random.default_rng(0).standard_normal(shape)
    weights = weights_of(False, shape[0])
    design = KINDS[layout](X, monkeypatch).standardised(weights, centre=True, scale=False)
    formed = seen(torch.from_numpy(X), weights, True, False)
    for found, expected in (
        (design.times(random(shape[1])), formed @ random(shape[1])),
        (design.transposed(random(shape[0])), formed.T @ random(shape[0])),
        (design.gram(weights), formed.T @ (weights[:, None] * formed)),
    ):
        assert float((found - expected).abs().max()) <= CLOSE * 10.0 * max(shape)


@pytest.mark.parametrize("mean", [1e2, 1e5, 1e8, -1e12])
@pytest.mark.parametrize("layout", ["rows", "columns", "strided", "float32"])
def test_a_huge_mean_costs_no_digits(mean, layout, monkeypatch):
    weights = weights_of(True)
    X = entries("dense") + mean
    X = X.astype(np.float32).astype(np.float64) if layout == "float32" else X
    design = KINDS[layout](X, monkeypatch).standardised(weights, centre=True, scale=True)
    formed = seen(torch.from_numpy(X), weights, True, True)
    # From 1e3 deviations on, the mean is subtracted from every entry; below, three digits may go.
    # Means are rounded at 1e-16 of themselves: at 1e12 that alone moves entries by 1e-4 of a deviation.
    close = max(CLOSE * 1e3, abs(mean) * 2e-16) if abs(mean) > 1e8 or mean < 1e3 else CLOSE * 10 + abs(mean) * 2e-16
    assert_product(design.times(random(P)), formed, random(P), close)
    assert_product(design.transposed(random(N)), formed.T, random(N), close)
    assert_product(design.gram(weights), formed.T, weights[:, None] * formed, close)
    selection = design.selection(weights)
    assert_product(selection.append(torch.arange(P)), formed.T, weights[:, None] * formed, close)


def test_constant_columns_get_scale_one_and_become_zero():
    X = np.full((9, 3), [0.1, 1e9 + 0.1, 0.0])
    design = as_design(X).standardised(weights_of(False, 9), centre=True, scale=True)
    assert design.scale.tolist() == [1.0, 1.0, 1.0]
    assert float(design.gram(weights_of(False, 9)).abs().max()) < 1e-13


def test_one_constant_column_does_not_slow_the_others_down():
    X = np.random.default_rng(0).standard_normal((50, 4))
    X[:, 0] = 1.0
    assert as_design(X).standardised(weights_of(False, 50), centre=True, scale=False).distance < 8.0


def test_float32_is_read_as_the_numbers_that_it_stores():
    X = entries("dense").astype(np.float32)
    single, double = (
        as_design(x).standardised(weights_of(True), centre=True, scale=True) for x in (X, X.astype(float))
    )
    torch.testing.assert_close(single.gram(weights_of(True)), double.gram(weights_of(True)), rtol=0, atol=1e-14)
    torch.testing.assert_close(single.times(random(P)), double.times(random(P)), rtol=0, atol=1e-13)


def test_half_precision_is_read_too():
    X = torch.from_numpy(entries("dense")).bfloat16()
    torch.testing.assert_close(as_design(X).times(random(P)), X.double() @ random(P), rtol=0, atol=1e-13)


class Largest(TorchDispatchMode):
    """The most entries that any operation has put out."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        views = func._schema.returns and any(r.alias_info is not None for r in func._schema.returns)
        if not views:
            sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            self.entries = max([self.entries, *sizes])
        return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("distance", [0.0, 100.0, 1e9])
def test_nothing_as_large_as_the_data_is_made(dtype, centre, distance, monkeypatch):
    monkeypatch.setattr("torchreg.linear.designs.dense._ROOM", 1 << 12)
    monkeypatch.setattr("torchreg.linear.designs.dense._BLOCK", 1 << 10)
    X = torch.rand(2000, 16, dtype=dtype)
    weights = weights_of(True, 2000)
    with Largest() as largest:
        design = as_design(X)
        seen = design.standardised(weights, centre=centre, scale=centre)
        seen = Dense(X, seen.mean, seen.scale, distance if centre else 0.0)
        seen.gram(weights), seen.gram(weights_of(False, 2000))
        seen.times(random(16)), seen.transposed(random(2000))
    assert largest.entries <= 256 * 16 + 2000


def test_a_float64_matrix_is_shared_not_copied():
    for X in (np.ones((3, 4)), np.asfortranarray(np.ones((3, 4), np.float32)), torch.ones(3, 4)):
        design = as_design(X)
        assert design.X.data_ptr() == (X.data_ptr() if isinstance(X, torch.Tensor) else X.ctypes.data)
    X = scipy.sparse.csc_array(np.eye(4))
    assert as_design(X).columns.values.data_ptr() == X.data.ctypes.data
    X = scipy.sparse.csr_array(np.eye(4))
    assert as_design(X).rows.values.data_ptr() == X.data.ctypes.data


@each_kind
def test_nothing_of_the_callers_is_written_to(kind, monkeypatch):
    X = entries(kind)
    before = X.copy()
    design = KINDS[kind](X, monkeypatch)
    own = design.X.clone() if isinstance(design, Dense) else design.columns.values.clone()
    view = design.standardised(weights_of(True), centre=True, scale=True)
    view.gram(weights_of(True)), view.times(random(P)), view.transposed(random(N)), view.subset(torch.arange(4))
    selection = view.selection(weights_of(True))
    selection.append(torch.arange(3))
    selection.append(torch.arange(3, 9))
    after = design.X if isinstance(design, Dense) else design.columns.values
    assert torch.equal(own, after)
    assert np.array_equal(before, X)


def test_unsorted_scipy_input_stays_unsorted():
    X = scattered(entries("scipy"))
    before = X.indices.copy(), X.data.copy()
    as_design(X).gram(weights_of(False))
    assert all(np.array_equal(a, b) for a, b in zip(before, (X.indices, X.data), strict=True))


def test_a_wide_gram_matrix_spans_several_strips():
    X = random(30, 700)
    weights = weights_of(True, 30)
    for design in (as_design(X), as_design(scipy.sparse.csr_array(X.numpy())), as_design(X.float())):
        close = 1e-6 if design.device and getattr(design, "X", X).dtype == torch.float32 else CLOSE
        assert_product(design.gram(weights), X.T, weights[:, None] * X, close)
    thin = torch.where(torch.rand(30, 700, generator=torch.Generator().manual_seed(0)) < 0.02, X, 0.0)
    design = as_design(scipy.sparse.csr_array(thin.numpy())).standardised(weights, centre=True, scale=False)
    formed = seen(thin, weights, True, False)
    assert_product(design.gram(weights), formed.T, weights[:, None] * formed)


@pytest.mark.parametrize("kind", ["rows", "columns", "float32", "scipy csr", "scipy csc thin"])
def test_a_device_gives_the_same(kind, accelerator):
    weights = weights_of(True)
    X = torch.from_numpy(entries(kind))
    array = {"scipy csr": scipy.sparse.csr_array, "scipy csc thin": scipy.sparse.csc_array}.get(kind, np.asarray)
    design = as_design(array(X.numpy()), accelerator).standardised(weights.to(accelerator), centre=True, scale=True)
    formed = seen(X, weights, True, True)
    assert_product(design.times(random(P).to(accelerator)).cpu(), formed, random(P))
    assert_product(design.transposed(random(N, 3).to(accelerator)).cpu(), formed.T, random(N, 3))
    assert_product(design.gram(weights.to(accelerator)).cpu(), formed.T, weights[:, None] * formed)
    block = design.selection(weights.to(accelerator)).append(torch.arange(9, device=accelerator)).cpu()
    assert_product(block, formed[:, :9].T, weights[:, None] * formed[:, :9])
