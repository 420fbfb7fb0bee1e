"""A sparse X whose indices lead out of it is refused at every door, before anything reads memory by them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch

from torchreg import L1
from torchreg.linear import Lasso, Logistic, LogisticRegressionCV, RowChunks, fit_cv, fit_path, solve

N, P = 12, 4
TABLE = np.random.default_rng(0).normal(size=(N, P)) * (np.arange(N * P).reshape(N, P) % 3 > 0)
Y = np.random.default_rng(1).normal(size=N)
PATH = fit_path(TABLE, Y, L1(1.0), alphas=[0.1])
LASSO = Lasso(0.1).fit(TABLE, Y)

DOORS = {
    "fit_path": lambda X: fit_path(X, Y, L1(1.0), alphas=[0.1]),
    "fit_cv": lambda X: fit_cv(X, Y, L1(1.0), alphas=[0.1]),
    "solve": lambda X: solve(X, Y, L1(0.1)),
    "Path.predict": PATH.predict,
    "Path.decision": PATH.decision,
    "Fit.predict": PATH.at(0.1).predict,
    "Lasso.fit": lambda X: Lasso(0.1).fit(X, Y),
    "Lasso.predict": LASSO.predict,
    "LogisticRegressionCV.fit": lambda X: LogisticRegressionCV(l1_ratios=(1.0,), Cs=2).fit(X, Y > 0),
}


def as_torch(matrix):
    """The same arrays in a tensor, unchecked."""
    if matrix.format == "coo":
        places = torch.from_numpy(np.stack([matrix.row, matrix.col]).astype(np.int64))
        return torch.sparse_coo_tensor(places, torch.from_numpy(matrix.data), matrix.shape, check_invariants=False)
    make = torch.sparse_csr_tensor if matrix.format == "csr" else torch.sparse_csc_tensor
    parts = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")
        return make(*parts, size=matrix.shape, check_invariants=False)


def spoiled(layout: str, index: int):
    """A matrix with one index replaced, and the words that name it."""
    matrix = scipy.sparse.csr_matrix(TABLE).asformat(layout)
    if layout == "coo":
        matrix.col = matrix.col.copy()
        matrix.col[-1] = index
    else:
        matrix.indices[-1] = index
    return matrix, f"{'row' if layout == 'csc' else 'column'} {index}"


def beyond(layout: str) -> int:
    return N if layout == "csc" else P


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("library", ["scipy", "torch"])
@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
def test_an_index_outside_of_the_matrix_is_named(layout, library, door):
    for index in (beyond(layout), -1):
        matrix, words = spoiled(layout, index)
        with pytest.raises(ValueError, match=words):
            DOORS[door](matrix if library == "scipy" else as_torch(matrix))


@pytest.mark.parametrize("library", ["scipy", "torch"])
@pytest.mark.parametrize("layout", ["csr", "csc"])
@pytest.mark.parametrize("pointers", ["too far", "backwards", "not from 0", "short of the end"])
def test_pointers_that_lead_out_are_named(layout, library, pointers):
    matrix = scipy.sparse.csr_matrix(TABLE).asformat(layout)
    place, shift = {"too far": (-1, 5), "backwards": (2, 10**6), "not from 0": (0, 1), "short of the end": (-1, -1)}[
        pointers
    ]
    matrix.indptr[place] += shift
    if library == "scipy" and pointers == "short of the end":
        fit_path(matrix, Y, L1(1.0), alphas=[0.1])  # allowed: scipy's arrays may be longer
        return
    for door in ("fit_path", "Lasso.fit", "Path.predict"):
        with pytest.raises(ValueError, match="pointers"):
            DOORS[door](matrix if library == "scipy" else as_torch(matrix))


def test_blocks_are_looked_at():
    matrix = scipy.sparse.csr_matrix(TABLE).tobsr((2, 2))
    matrix.indices[0] = P // 2
    with pytest.raises(ValueError, match=f"column {P // 2}"):
        fit_path(matrix, Y, L1(1.0), alphas=[0.1])


def test_chunks_of_rows_are_looked_at_before_they_are_cut():
    matrix = scipy.sparse.csr_matrix(TABLE)
    matrix.indptr[3] = 10**8
    with pytest.raises(ValueError, match="pointers"):
        RowChunks(matrix, Y, size=5)


def test_scipys_arrays_may_be_longer_than_what_they_hold():
    matrix = scipy.sparse.csr_matrix(TABLE)
    longer = scipy.sparse.csr_matrix(TABLE)
    longer.data = np.append(longer.data, [7.0, 8.0])
    longer.indices = np.append(longer.indices, [10**8, -3]).astype(longer.indices.dtype)
    for datafit, y in ((None, Y), (Logistic(), (Y > 0).astype(float))):
        expected = fit_path(matrix, y, L1(1.0), datafit=datafit, alphas=[0.05])
        found = fit_path(longer, y, L1(1.0), datafit=datafit, alphas=[0.05])
        assert torch.equal(found.coefs, expected.coefs)


@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "bsr", "lil", "dok", "dia"])
def test_every_sound_layout_passes(layout):
    expected = fit_path(TABLE, Y, L1(1.0), alphas=[0.05]).coefs
    found = fit_path(scipy.sparse.csr_matrix(TABLE).asformat(layout), Y, L1(1.0), alphas=[0.05]).coefs
    torch.testing.assert_close(found, expected)
    assert torch.equal(found == 0, expected == 0)
