"""The caller's arrays: checked on the way in, of the caller's kind on the way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_consistent_length, column_or_1d
from sklearn.utils.validation import validate_data
from torch import Tensor

from torchreg.linear.after_fork import one_thread_after_fork
from torchreg.linear.data.validation import check_offset, check_total, given_weights
from torchreg.linear.designs.arrays import check_finite, check_matrix, there
from torchreg.linear.designs.structure import check_structure
from torchreg.linear.designs.torch_rows import in_csr

Matrix = Any  # an array, a pandas frame, a scipy sparse matrix or a tensor, as the caller gives it
Array = Any  # numpy in, numpy out; torch in, torch out

_FLOATS = [np.float64, np.float32]


@dataclass(frozen=True)
class Data:
    """Checked training data.

    Args:
        X: a numpy array, a scipy CSR or CSC matrix or a tensor, float32 or float64, (n, p).
        y: float64 numbers or class numbers 0 to K - 1, numpy, (n,) or (n, K).
        weights: of the rows, float64 numpy, (n,), or None where all are 1.
        offset: added to the linear predictor, as the caller gives it, or None; the fit checks it.
    """

    X: Matrix
    y: np.ndarray
    weights: np.ndarray | None
    offset: Any = None

    @property
    def total(self) -> float:
        """The sum of the weights: the number of rows where there are none."""
        return float(self.X.shape[0] if self.weights is None else self.weights.sum())

    @property
    def features(self) -> int:
        """The number of columns."""
        return int(self.X.shape[1])

    def on(self, device: str | torch.device | None) -> torch.device:
        """Where a fit's tensors live: the device asked for, which must be there, else X's."""
        if device is not None:
            return there(device)
        return self.X.device if isinstance(self.X, Tensor) else torch.device("cpu")

    def weighted_by(self, factors: np.ndarray) -> Data:
        """The same rows with their weights multiplied."""
        return replace(self, weights=factors if self.weights is None else self.weights * factors)

    def only(self, rows: np.ndarray) -> Data:
        """The same rows, those that are not listed with weight 0."""
        mask = np.zeros(self.X.shape[0])
        mask[rows] = 1.0
        return self.weighted_by(mask)

    def out(self, value: Tensor) -> Array:
        """``value`` as the caller's kind of array, in X's precision."""
        if isinstance(self.X, Tensor):
            return value.to(self.X)
        return self.out_exactly(value).astype(self.X.dtype)

    def out_exactly(self, value: Tensor) -> Array:
        """``value`` as the caller's kind of array, in float64."""
        if isinstance(self.X, Tensor):
            return value.to(self.X.device)
        return value.cpu().numpy()[()]


def to_numpy(values: Any) -> Any:
    """A tensor as a numpy array; anything else as it is."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def dense(coef: Any) -> Array:
    """Coefficients that may be scipy sparse, as an array or the tensor that they are."""
    return coef.toarray() if issparse(coef) else coef


def checked_matrix(estimator: BaseEstimator, X: Matrix, *, reset: bool) -> Matrix:
    """X after scikit-learn's checks; a tensor stays a tensor, on its device."""
    one_thread_after_fork()
    check_structure(X)  # before scikit-learn changes the format by indices that it trusts
    if not isinstance(X, Tensor):
        _refuse_text(X)
        return validate_data(estimator, X, accept_sparse=["csr", "csc"], dtype=_FLOATS, reset=reset)
    X = _checked_tensor(X.detach())
    validate_data(estimator, X, skip_check_array=True, reset=reset)
    return X


def _refuse_text(X: Matrix) -> None:
    """Refuse an array or lists of text that look like digits, which scikit-learn takes in fits, not in predictions."""
    kind = np.asarray(X).dtype.kind if isinstance(X, list | tuple) else getattr(getattr(X, "dtype", None), "kind", "")
    if kind in ("U", "S"):
        raise ValueError(
            "dtype='numeric' is not compatible with arrays of bytes/strings. Convert your data to numeric values "
            "explicitly instead: X.astype(float), or leave out columns of codes that are no amounts."
        )


def _checked_tensor(X: Tensor) -> Tensor:
    if X.is_complex():
        raise ValueError(f"Complex data not supported\n{X}\n")
    check_matrix(tuple(X.shape), X)
    if X.dtype not in (torch.float32, torch.float64):
        X = X.double()
    if X.layout != torch.strided:
        X = in_csr(X)
    check_finite(X if X.layout == torch.strided else X.values(), "X")
    return X


def regression_data(estimator: BaseEstimator, X: Matrix, y: Any, sample_weight: Any, *, several: bool) -> Data:
    """Checked data with numbers as target; ``several`` allows a column for each target."""
    _demand(y, estimator)
    if isinstance(X, Tensor) or isinstance(y, Tensor):
        X = checked_matrix(estimator, X, reset=True)
        y = check_array(to_numpy(y), ensure_2d=False, dtype=np.float64, input_name="y")
        check_consistent_length(X, y)
    else:
        _refuse_text(X)
        check_structure(X)
        X, y = validate_data(
            estimator, X, y, accept_sparse=["csr", "csc"], dtype=_FLOATS, multi_output=several, y_numeric=True
        )
        if not isinstance(y, np.ndarray) or y.dtype != np.float64:
            y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
    y = y if several else column_or_1d(y, warn=True)
    return Data(X, y, checked_weights(sample_weight, X.shape[0]))


def labelled_data(estimator: BaseEstimator, X: Matrix, y: Any, sample_weight: Any) -> Data:
    """Checked data with the labels themselves as target."""
    _demand(y, estimator)
    if isinstance(X, Tensor) or isinstance(y, Tensor):
        X = checked_matrix(estimator, X, reset=True)
        y = column_or_1d(check_array(to_numpy(y), ensure_2d=False, dtype=None, input_name="y"), warn=True)
        check_consistent_length(X, y)
    else:
        _refuse_text(X)
        check_structure(X)
        X, y = validate_data(estimator, X, y, accept_sparse=["csr", "csc"], dtype=_FLOATS)
    return Data(X, y, checked_weights(sample_weight, X.shape[0]))


def _demand(y: Any, estimator: BaseEstimator) -> None:
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None."
        )


def checked_weights(weights: Any, rows: int) -> np.ndarray | None:
    """Weights of the rows as float64, (rows,); None where none are given."""
    if weights is None:
        return None
    checked = given_weights(weights, rows).contiguous().numpy()
    check_total(checked.max())
    return checked


def linear_predictor(X: Matrix, coef: Array, intercept: Array) -> Array:
    """``X coef' + intercept``, of X's kind; coef is (p,) or (K, p), scipy sparse too."""
    if issparse(coef) and not isinstance(X, Tensor):
        eta = X @ coef.T
        return (eta.toarray() if issparse(eta) else eta) + to_numpy(intercept)
    coef = dense(coef)
    if isinstance(X, Tensor):
        coef, intercept = (torch.as_tensor(part, dtype=X.dtype, device=X.device) for part in (coef, intercept))
    else:
        coef, intercept = to_numpy(coef), to_numpy(intercept)
    return X @ (coef.T if coef.ndim == 2 else coef) + intercept


def lifted(eta: Array, offset: Any) -> Array:
    """A linear predictor with an offset, if there is one, of the same shape."""
    if offset is None:
        return eta
    check_offset(getattr(offset, "shape", np.shape(to_numpy(offset))), eta.shape)
    if isinstance(eta, Tensor):
        return eta + torch.as_tensor(offset, dtype=eta.dtype, device=eta.device)
    return eta + np.asarray(to_numpy(offset), dtype=eta.dtype)


def through(function: Callable[[Tensor], Tensor], values: Array) -> Array:
    """A function of tensors, applied to an array of either kind."""
    if isinstance(values, Tensor):
        return function(values)
    return function(torch.from_numpy(np.ascontiguousarray(values))).numpy()
