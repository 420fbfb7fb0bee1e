"""Moments from chunks of rows against those of all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from torchreg.linear.chunks import RowChunks, moments_of_chunks

N, P = 203, 17
CLOSE = 1e-13  # sums of 203 terms in another order, relative to the largest entry


def data(outputs: int | None = None, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, P)) + mean + np.linspace(0, 3, N)[:, None]  # chunks differ in their means
    return X, X @ rng.standard_normal((P, outputs or 1)).squeeze() + 1.0 if outputs is None else X[:, :outputs] * 2 + 1


def expected(X: np.ndarray, y: np.ndarray, centred: bool) -> tuple[np.ndarray, np.ndarray, float]:
    if centred:
        X, y = (a - a.mean(0) - (a - a.mean(0)).mean(0) for a in (X, y))
    return X.T @ X / N, X.T @ y / N, float((y * y).sum() / N)


def assert_close(found: torch.Tensor, target: np.ndarray | float, close: float = CLOSE) -> None:
    target = np.asarray(target)
    assert tuple(found.shape) == target.shape
    assert float(np.abs(found.numpy() - target).max()) <= close * float(np.abs(target).max())


@pytest.mark.parametrize("size", [1, 7, 100, 203, 1000])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("outputs", [None, 3])
def test_chunks_of_any_size_give_the_moments_of_all_rows(size, centred, outputs):
    X, y = data(outputs)
    found = moments_of_chunks(RowChunks(X, y, size=size), fit_intercept=centred)
    for got, target in zip(vars(found.moments).values(), expected(X, y, centred), strict=True):
        assert_close(got, target)
    assert found.n == N
    assert_close(found.mean, X.mean(0) if centred else np.zeros(P), CLOSE if centred else 0.0)
    assert_close(found.y_mean, y.mean(0) if centred else np.zeros_like(y[0]), CLOSE if centred else 0.0)
    assert torch.equal(found.moments.gram, found.moments.gram.T)


@pytest.mark.parametrize("mean", [1e4, 1e8])
def test_a_huge_mean_costs_no_digits(mean):
    X, y = data(2, mean)
    found = moments_of_chunks(RowChunks(X, y, size=10))
    close = 1e-13 + 4e-16 * mean  # the mean itself is rounded at 2e-16 of its size
    for got, target in zip(vars(found.moments).values(), expected(X, y, True), strict=True):
        assert_close(got, target, close)


def test_a_column_that_moves_far_between_chunks_is_merged_exactly():
    X = np.concatenate([np.zeros((50, 1)), np.full((50, 1), 1e8)]) + np.random.default_rng(0).standard_normal((100, 1))
    found = moments_of_chunks(RowChunks(X, X[:, 0], size=50))
    assert float(found.moments.gram) == pytest.approx(float(X.var()), rel=1e-14)


@pytest.mark.parametrize("form", [scipy.sparse.csr_array, lambda X: torch.from_numpy(X), np.asfortranarray])
def test_chunks_may_be_of_any_library(form):
    X, y = data()
    X = np.where(np.abs(X) < 1.5, 0.0, X)
    found = moments_of_chunks([(form(X[:90]), y[:90]), (form(X[90:]), y[90:])])
    assert_close(found.moments.gram, expected(X, y, True)[0])


def test_a_memory_map_is_read_chunk_by_chunk(tmp_path):
    X, y = data()
    np.save(tmp_path / "X.npy", X)
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")  # read-only
    found = moments_of_chunks(RowChunks(stored, y, size=50))
    assert_close(found.moments.gram, expected(X, y, True)[0])


def test_nothing_of_the_callers_is_written_to():
    X, y = data()
    before = X.copy(), y.copy()
    moments_of_chunks([(X, y), (X, y)])
    assert np.array_equal(before[0], X)
    assert np.array_equal(before[1], y)


def test_what_can_be_read_only_once_is_refused():
    X, y = data()
    for once in (((X, y) for _ in range(2)), iter([(X, y)]), zip([X], [y], strict=True)):
        with pytest.raises(TypeError, match="read only once"):
            moments_of_chunks(once)
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
