"""Moments from chunks of rows against those of all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from torchreg.linear.chunks import ChunkMoments, RowChunks, moments_of_chunks

N, P = 203, 17
CLOSE = 1e-13  # sums of 203 terms in another order, relative to the largest entry


def data(outputs: int | None = None, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, P)) + mean + np.linspace(0, 3, N)[:, None]  # chunks differ in their means
    return X, X @ rng.standard_normal((P, outputs or 1)).squeeze() + 1.0 if outputs is None else X[:, :outputs] * 2 + 1


def expected(X: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Gram matrix, cross products and mean squares about the means."""
    share = np.full(len(X), 1 / len(X)) if weights is None else weights / weights.sum()
    X, y = (a - share @ a - share @ (a - share @ a) for a in (X, y))
    return X.T @ (share * X.T).T, X.T @ (share * y.T).T, share @ (y * y)


def assert_close(found: torch.Tensor, target: np.ndarray | float, close: float = CLOSE) -> None:
    target = np.asarray(target)
    assert tuple(found.shape) == target.shape
    assert float(np.abs(found.numpy() - target).max()) <= close * float(np.abs(target).max())


def assert_moments(found: ChunkMoments, target: tuple[np.ndarray, ...], close: float = CLOSE) -> None:
    for got, wanted in zip((found.gram, found.cross, found.energy), target, strict=True):
        assert_close(got, wanted, close)


@pytest.mark.parametrize("size", [1, 7, 100, 203, 1000])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("outputs", [None, 3])
def test_chunks_of_any_size_give_the_moments_of_all_rows(size, weighted, outputs):
    X, y = data(outputs)
    weights = np.random.default_rng(1).uniform(0.1, 3.0, N) if weighted else None
    found = moments_of_chunks(RowChunks(X, y, sample_weight=weights, size=size))
    assert_moments(found, expected(X, y, weights))
    assert found.n == N
    assert found.total == pytest.approx(N if weights is None else weights.sum(), rel=1e-14)
    assert_close(found.mean, np.average(X, 0, weights))
    assert_close(found.y_mean, np.average(y, 0, weights))
    assert torch.equal(found.gram, found.gram.T)


@pytest.mark.parametrize("mean", [1e4, 1e8])
def test_a_huge_mean_costs_no_digits(mean):
    X, y = data(2, mean)
    found = moments_of_chunks(RowChunks(X, y, size=10))
    assert_moments(found, expected(X, y), 1e-13 + 4e-16 * mean)  # the mean itself is rounded at 2e-16 of its size


@pytest.mark.parametrize("mean", [0.0, 1e8])
def test_rows_of_weight_zero_are_as_good_as_absent(mean):
    X, y = data(2, mean)
    weights = np.where(np.arange(N) < 90, 0.0, 2.0)  # whole chunks of them, the first among them
    found = moments_of_chunks(RowChunks(X, y, sample_weight=weights, size=40))
    assert_moments(found, expected(X[90:], y[90:]), CLOSE + 1e-16 * mean)
    assert found.n == N


def test_chunks_without_weights_weigh_one_a_row():
    X, y = data()
    found = moments_of_chunks([(X[:50], y[:50]), (X[50:], y[50:], 3.0)])
    assert_moments(found, expected(X, y, np.where(np.arange(N) < 50, 1.0, 3.0)))


def test_a_column_that_moves_far_between_chunks_is_merged_exactly():
    X = np.concatenate([np.zeros((50, 1)), np.full((50, 1), 1e8)]) + np.random.default_rng(0).standard_normal((100, 1))
    found = moments_of_chunks(RowChunks(X, X[:, 0], size=50))
    assert float(found.gram) == pytest.approx(float(X.var()), rel=1e-14)


@pytest.mark.parametrize("form", [scipy.sparse.csr_array, lambda X: torch.from_numpy(X), np.asfortranarray])
def test_chunks_may_be_of_any_library(form):
    X, y = data()
    X = np.where(np.abs(X) < 1.5, 0.0, X)
    found = moments_of_chunks([(form(X[:90]), y[:90]), (form(X[90:]), y[90:])])
    assert_close(found.gram, expected(X, y)[0])


def test_a_memory_map_is_read_chunk_by_chunk(tmp_path):
    X, y = data()
    np.save(tmp_path / "X.npy", X)
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")  # read-only
    found = moments_of_chunks(RowChunks(stored, y, size=50))
    assert_close(found.gram, expected(X, y)[0])


def test_nothing_of_the_callers_is_written_to():
    X, y = data()
    before = X.copy(), y.copy()
    moments_of_chunks([(X, y), (X, y)])
    moments_of_chunks([(X, y, y - y.min())])
    assert np.array_equal(before[0], X)
    assert np.array_equal(before[1], y)


def test_what_can_be_read_only_once_is_refused():
    X, y = data()
    for once in (((X, y) for _ in range(2)), iter([(X, y)]), zip([X], [y], strict=True)):
        with pytest.raises(TypeError, match="read only once"):
            moments_of_chunks(once)
        assert len(list(once)) > 0  # nothing of it was taken
    with pytest.raises(TypeError, match="iterable of pairs"):
        moments_of_chunks(3)


@pytest.mark.parametrize(
    ("chunks", "error", "message"),
    [
        ([], ValueError, "no chunk"),
        ([(np.ones((3, 2)), np.ones(4))], ValueError, r"inconsistent numbers of samples: \[3, 4\]"),
        ([(np.ones((3, 2)), np.ones(3)), (np.ones((3, 4)), np.ones(3))], ValueError, "got 2 and 4 columns"),
        ([(np.ones((3, 2)), np.ones(3)), (np.ones((3, 2)), np.ones((3, 2)))], ValueError, "same columns and outputs"),
        ([(np.full((3, 2), np.nan), np.ones(3))], ValueError, "Input X contains NaN"),
        ([(np.ones((3, 2)), np.full(3, np.nan))], ValueError, "Input y contains NaN"),
        ([(np.full((3, 2), np.inf), np.ones(3))], ValueError, "Input X contains infinity"),
        ([(np.full((3, 2), 1e200), np.ones(3)), (np.ones((3, 2)), np.ones(3))], ValueError, "more than float64 holds"),
        ([(np.ones((3, 2)), np.ones(3), np.full(3, 1e308))], ValueError, "more than float64 holds"),
        ([(np.ones((3, 2)), np.ones(3), np.zeros(3))] * 2, ValueError, "at least one non-zero"),
        ([(np.ones((3, 2)), np.ones(3), -np.ones(3))], ValueError, "Negative values"),
        ([(np.ones((3, 2)), np.ones(3), np.ones(2))], ValueError, r"sample_weight.shape == \(2,\)"),
        ([(np.ones((3, 2)), None)], ValueError, "y is None"),
        ([(np.ones((3, 2)), np.ones(3), None, None)], TypeError, "pair"),
        ([np.ones((3, 2))], TypeError, "pair"),
        ([(np.ones((0, 2)), np.ones(0))], ValueError, r"0 sample\(s\)"),
    ],
)
def test_bad_chunks(chunks, error, message):
    with pytest.raises(error, match=message):
        moments_of_chunks(chunks)


def test_bad_row_chunks():
    with pytest.raises(ValueError, match="size >= 1"):
        RowChunks(np.ones((3, 2)), np.ones(3), size=0)
    with pytest.raises(ValueError, match="inconsistent"):
        RowChunks(np.ones((3, 2)), np.ones(4))
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[3, 3, 4\]"):
        RowChunks(np.ones((3, 2)), np.ones(3), sample_weight=np.ones(4))


@pytest.mark.parametrize("size", [0, -1, 2.5, "8192", None])
def test_chunks_have_a_whole_number_of_rows(size):
    with pytest.raises(ValueError, match="RowChunks needs size >= 1, a whole number, got"):
        RowChunks(*data(), size=size)


def test_rows_that_cannot_be_sliced_are_refused():
    sparse = pytest.importorskip("scipy.sparse")
    X, y = data()
    for rows, name in ((X.tolist(), "list"), (sparse.coo_matrix(X), "coo_matrix")):
        with pytest.raises(TypeError, match=f"arrays whose rows can be sliced, got {name}"):
            RowChunks(rows, y)
