"""One fit to compare solvers on, and its way to other processes: plain .npy files in a folder.

Needs numpy and scipy alone, since peers live in environments of their own. Everyone minimises

    (1/n) sum_i loss_i(X_i w, y_i) + alpha * sum_g |w_g|        (groups of one feature: the lasso)

with loss half the squared error, or the negative log likelihood. With `intercept`, X_i w gains an unpenalised constant.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Problem:
    """X: (n, p), Fortran order or CSC, float64; y: (n,), for classes 0.0, 1.0, ...; alphas descend."""

    name: str
    X: np.ndarray | sparse.csc_matrix
    y: np.ndarray
    alphas: np.ndarray
    loss: str = "quadratic"  # or logistic, multinomial
    group: int = 1  # size of the contiguous groups
    folds: np.ndarray | None = None  # (n,) number of the fold that holds each row out
    intercept: bool = False
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def sparse(self) -> bool:
        return sparse.issparse(self.X)

    @property
    def classes(self) -> int:
        """Columns of the coefficients: K of a multinomial fit, else 1."""
        return int(self.y.max()) + 1 if self.loss == "multinomial" else 1

    @property
    def width(self) -> int:
        """Of a row of coefficients on disk: p K and, at the end, K intercepts."""
        return (self.X.shape[1] + 1) * self.classes

    @property
    def wide(self) -> bool:
        return self.X.shape[1] > self.X.shape[0]

    def save(self, folder: Path) -> None:
        X = (
            {"X_data": self.X.data, "X_indices": self.X.indices, "X_indptr": self.X.indptr}
            if self.sparse
            else {"X": self.X}
        )
        folds = {} if self.folds is None else {"folds": self.folds}
        for name, array in {**X, **folds, "y": self.y, "alphas": self.alphas}.items():
            np.save(folder / f"{name}.npy", array)
        n, p = self.X.shape
        text = {"name": self.name, "loss": self.loss, "group": self.group, "n": n, "p": p, "notes": self.notes}
        text["intercept"] = self.intercept
        (folder / "problem.json").write_text(json.dumps(text))

    @classmethod
    def load(cls, folder: Path) -> Problem:
        text = json.loads((folder / "problem.json").read_text())
        shape = text.pop("n"), text.pop("p")
        arrays = {path.stem: _array(path) for path in folder.glob("*.npy")}
        X = arrays.get("X")
        if X is None:
            X = sparse.csc_matrix((arrays["X_data"], arrays["X_indices"], arrays["X_indptr"]), shape=shape)
        return cls(X=X, y=arrays["y"], alphas=arrays["alphas"], folds=arrays.get("folds"), **text)


def _array(path: Path) -> np.ndarray:
    """In memory; beyond 2 GiB a private map of the file, whose pages the solvers' processes share."""
    large = path.stat().st_size > 2**31
    return np.asarray(np.load(path, mmap_mode="c" if large else None))


def one_hot(y: np.ndarray) -> np.ndarray:
    return (y[:, None] == np.arange(int(y.max()) + 1)).astype(float)


def alpha_max(X: np.ndarray | sparse.csc_matrix, y: np.ndarray, loss: str, group: int, intercept: bool) -> float:
    """Least alpha at which all coefficients are zero."""
    target = one_hot(y) if loss == "multinomial" else y
    null = {"quadratic": 0.0, "logistic": 0.5, "multinomial": 1 / target.shape[-1]}[loss]
    residual = target - (target.mean(0) if intercept else null)
    slopes = np.abs(X.T @ residual).reshape(X.shape[1], -1)
    if group > 1:
        slopes = np.linalg.norm(slopes.reshape(-1, group), axis=1)
    return float(slopes.max()) / X.shape[0]


def write_coefs(stem: str, found: object) -> None:
    """Coefficients (a, p), (a, p, K) or sparse (a, p K), or a pair of them and intercepts (a, [K]), as three raw files.

    alpha, place and value of each entry; intercepts, zero where none are given, come after the coefficients.
    """
    coefs, intercepts = found if isinstance(found, tuple) else (found, None)
    flat = sparse.coo_matrix(coefs if sparse.issparse(coefs) else np.asarray(coefs).reshape(coefs.shape[0], -1))
    if intercepts is not None:
        flat = sparse.hstack([flat, np.asarray(intercepts).reshape(flat.shape[0], -1)]).tocoo()
    for name, array, dtype in (("row", flat.row, "i4"), ("col", flat.col, "i4"), ("value", flat.data, "f8")):
        np.asarray(array, dtype).tofile(f"{stem}.{name}")


def read_coefs(stem: str, shape: tuple[int, int]) -> sparse.csr_matrix:
    row, col = (np.fromfile(f"{stem}.{name}", "i4") for name in ("row", "col"))
    return sparse.csr_matrix((np.fromfile(f"{stem}.value", "f8"), (row, col)), shape=shape)
