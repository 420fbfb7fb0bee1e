"""What the door lets in, and in which words it refuses: scikit-learn's where it has them."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.utils.validation import _check_sample_weight, check_array, check_consistent_length

from torchreg.linear.data.validation import as_offset, as_target, given_weights, normalised, validated
from torchreg.linear.datafits import Quadratic
from torchreg.linear.designs.arrays import check_finite, tensor_of
from torchreg.linear.designs.dense import Dense
from torchreg.linear.designs.inputs import as_design

GOOD = np.arange(12.0).reshape(4, 3)


def holed(bad: float, dtype: type = np.float64, order: str = "C") -> np.ndarray:
    X = GOOD.astype(dtype, order=order)
    X[2, 1] = bad
    return X


REFUSED = {
    "NaN": holed(np.nan),
    "NaN in columns": holed(np.nan, order="F"),
    "NaN in float32": holed(np.nan, np.float32),
    "infinity": holed(np.inf),
    "infinity in float32": holed(-np.inf, np.float32),
    "NaN and infinity": np.where(GOOD == 1, np.inf, holed(np.nan)),
    "both infinities": np.where(GOOD == 1, -np.inf, holed(np.inf)),
    "1-D": GOOD[0],
    "scalar": np.float64(3.0),
    "3-D": GOOD[None],
    "no rows": GOOD[:0],
    "no columns": GOOD[:, :0],
    "complex": GOOD + 1j,
    "strings": np.array([["a", "b"]]),
    "objects": np.array([["a", 1.0]], dtype=object),
    "NaN in sparse": scipy.sparse.csr_array(holed(np.nan)),
    "infinity in sparse": scipy.sparse.csc_array(holed(np.inf)),
    "complex sparse": scipy.sparse.csr_array(GOOD + 1j),
}


@pytest.mark.parametrize("case", REFUSED)
def theirs(X: np.ndarray) -> None:
    """What scikit-learn says; it takes float32 as it is."""
    dtype = "numeric" if X.dtype.kind in "USV" else [np.float64, np.float32]
    with np.errstate(invalid="ignore"):  # it adds up infinities of both signs
        check_array(X, accept_sparse=True, dtype=dtype, input_name="X")


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_scikit_learns_words(case):
    X = REFUSED[case]
    with pytest.raises((ValueError, TypeError)) as expected:
        theirs(X)
    with pytest.raises(expected.type) as ours:
        as_design(X)
    first, mine = (str(e.value).split("\n")[0].split("array=")[0].rstrip(".") for e in (expected, ours))
    assert mine == first


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("layout", ["to_sparse_csr", "to_sparse_csc", "to_sparse"])
def test_torch_tensors_are_refused_in_the_same_words(bad, layout):
    X = torch.from_numpy(holed(bad))
    with pytest.raises(ValueError, match=r"Input X contains (NaN|infinity)"):
        as_design(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        X = getattr(X, layout)()
    with pytest.raises(ValueError, match=r"Input X contains (NaN|infinity)"):
        as_design(X)
    with pytest.raises(ValueError, match="Complex data not supported"):
        as_design(X.to(torch.complex128))
    with pytest.raises(ValueError, match="Complex data not supported"):
        as_design(torch.ones(2, 2, dtype=torch.complex64))


def test_a_sparse_layout_without_rows_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blocks = torch.eye(4).to_sparse_bsr((2, 2))
    with pytest.raises(TypeError, match="to_sparse_csr"):
        as_design(blocks)


def test_things_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match="dtype datetime64"):
        as_design(np.array([["2020-01-01"]], dtype="datetime64[D]"))
    with pytest.raises((TypeError, ValueError)):
        as_design(object())
    with pytest.raises(TypeError, match="Sparse data was passed"):
        tensor_of(scipy.sparse.csr_array(GOOD))
    with pytest.raises((TypeError, ValueError), match=r"None|scalar"):
        as_design(None)


ACCEPTED = {
    "list": GOOD.tolist(),
    "int": GOOD.astype(int),
    "int32": GOOD.astype(np.int32),
    "uint16": GOOD.astype(np.uint16),
    "uint64": GOOD.astype(np.uint64),
    "bool": GOOD > 5,
    "float16": GOOD.astype(np.float16),
    "float32": GOOD.astype(np.float32),
    "long double": GOOD.astype(np.longdouble),
    "big-endian": GOOD.astype(">f4"),
    "objects": GOOD.astype(object),
    "columns": np.asfortranarray(GOOD),
    "reversed": GOOD[::-1, ::-1],
    "broadcast": np.broadcast_to(GOOD[0], (4, 3)),
    "field": np.array([tuple(row) for row in GOOD], dtype=[("a", "i1"), ("b", "f8"), ("c", "f8")])["b"][:, None],
    "torch int": torch.from_numpy(GOOD).long(),
    "torch bool": torch.from_numpy(GOOD) > 5,
    "torch that learns": torch.from_numpy(GOOD).clone().requires_grad_(),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_as_the_numbers_that_they_are(case):
    X = ACCEPTED[case]
    plain = np.asarray(X.detach() if isinstance(X, torch.Tensor) else X).astype(np.float64)
    w = np.arange(1.0, 1.0 + plain.shape[1])
    product = as_design(X).times(torch.from_numpy(w))
    assert not product.requires_grad
    assert product.tolist() == (plain @ w).tolist()


def test_read_only_memory_is_shared_without_a_warning(tmp_path):
    X = GOOD.copy()
    X.flags.writeable = False
    assert as_design(X).X.data_ptr() == X.ctypes.data
    np.save(tmp_path / "X.npy", GOOD)
    assert as_design(np.load(tmp_path / "X.npy", mmap_mode="r")).times(torch.ones(3).double()).tolist() == [
        3,
        12,
        21,
        30,
    ]
    sparse = scipy.sparse.csr_array(GOOD)
    for part in (sparse.data, sparse.indices, sparse.indptr):
        part.flags.writeable = False
    design = as_design(sparse)
    assert design.rows.values.data_ptr() == sparse.data.ctypes.data
    assert design.gram(torch.full((4,), 0.25).double()).diagonal().tolist() == [31.5, 41.5, 53.5]


def test_memory_outlives_the_callers_name_for_it():
    def made() -> Dense:
        return as_design(np.full((1000, 100), 2.0))

    design = made()
    np.full((1000, 100), 7.0)
    assert bool((design.X == 2.0).all())


def test_float32_whose_sum_overflows_is_finite():
    for huge in (torch.full((3, 4), 3e38), torch.tensor([1e308, 1e308, -1e308], dtype=torch.float64)):
        assert not huge.abs().sum().isfinite()
        check_finite(huge, "X")  # says nothing
        huge.view(-1)[1] = torch.inf
        with pytest.raises(ValueError, match="infinity"):
            check_finite(huge, "X")


def test_scipy_is_not_loaded_for_dense_data():
    import subprocess

    code = (
        "import sys, numpy, torch; from torchreg.linear.designs.inputs import as_design; "
        "as_design(numpy.eye(3)); print('scipy' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


@pytest.mark.parametrize("device", ["cuda:77", "xpu", "meta"])
def test_a_device_that_is_not_there_is_named(device):
    for X in (GOOD, scipy.sparse.csr_array(GOOD), torch.from_numpy(GOOD)):
        with pytest.raises(RuntimeError, match=f"'{device}' is not there; available: cpu"):
            as_design(X, device)


def test_devices_that_cannot_be():
    with pytest.raises(ValueError, match="mps"):
        as_design(GOOD, "mps")
    with pytest.raises(RuntimeError, match="device type"):
        as_design(GOOD, "abacus")
    assert as_design(GOOD, "cpu").device == torch.device("cpu")


def test_targets():
    design = as_design(GOOD)
    assert as_target([1, 2, 3, 4], design).dtype == torch.int64
    assert as_target(np.ones((4, 2), np.float32), design).shape == (4, 2)
    with pytest.raises(ValueError, match="Found input variables with inconsistent numbers of samples") as theirs:
        check_consistent_length(GOOD, np.ones(3))
    with pytest.raises(ValueError, match="inconsistent") as ours:
        as_target(np.ones(3), design)
    assert str(ours.value).startswith(str(theirs.value))
    with pytest.raises(ValueError, match="the target y is None"):
        as_target(None, design)
    with pytest.raises(ValueError, match="should be a 1d array"):
        as_target(3.0, design)
    with pytest.raises(ValueError, match="strings"):
        as_target(np.array(["a"] * 4), design)
    with pytest.raises(ValueError, match="Complex"):
        as_target(np.ones(4) * 1j, design)


WEIGHTS = {
    "2-D": np.ones((4, 1)), "short": np.ones(3), "NaN": np.full(4, np.nan), "infinite": np.array([1, np.inf, 1, 1]),
    "negative": np.array([1, -1, 1, 1.0]), "zero": np.zeros(4),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_bad_weights_in_scikit_learns_words(case):
    bad = WEIGHTS[case]
    with pytest.raises(ValueError, match=r"\S") as theirs:
        _check_sample_weight(bad, GOOD, ensure_non_negative=True, allow_all_zero_weights=False)
    with pytest.raises(ValueError, match=r"\S") as ours:
        validated(GOOD, np.ones(4), Quadratic(), bad, None, None)
    words = str(theirs.value).split("\n")[0].rstrip(".")
    assert str(ours.value).startswith(words)


def test_weights_add_up_to_one():
    design = as_design(GOOD)
    for scores in (None, 3.0, [1, 2, 3, 4], np.array([0, 0, 1e308, 1e308]), np.full(4, 5e-324)):
        assert float(normalised(given_weights(scores, design.n)).sum()) == pytest.approx(1.0, rel=1e-15)
    assert normalised(given_weights([0, 0, 3, 1], design.n)).tolist() == [0.0, 0.0, 0.75, 0.25]


def test_offsets():
    design = as_design(GOOD)
    assert as_offset(None, design, None) is None
    assert as_offset([1, 2, 3, 4], design, None).dtype == torch.float64
    assert as_offset(np.ones((4, 2)), design, 2).shape == (4, 2)
    with pytest.raises(ValueError, match=r"offset must have shape \(4, 2\), got \(4,\)"):
        as_offset(np.ones(4), design, 2)
    with pytest.raises(ValueError, match="Input offset contains NaN"):
        as_offset([1, np.nan, 1, 1], design, None)
