"""scikit-learn in a process of its own, which can be stopped, and cuML where it is installed: peers of fit_gpu.py."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from gpu_record import NotRunError
from torch import Tensor

CHUNK = 5  # strengths between two notes of how far it is
STARTS_WITHIN = 90.0  # seconds, imports and data
TOLERANCE = 1e-4  # scikit-learn's default


class Peer:
    """A process that fits the problem, of fit_gpu.py, whose data it reads from files."""

    def __init__(self, given: Any) -> None:
        for package in ("sklearn", "scipy"):
            if importlib.util.find_spec(package) is None:
                raise NotRunError(f"{package} is not installed")
        self.folder = Path(tempfile.mkdtemp())
        self.given = given

    def __enter__(self) -> Self:
        X = self.given.X.cpu()
        if X.layout == torch.strided:
            np.save(self.folder / "X.npy", X.numpy())
        else:
            for name, part in (("indptr", X.crow_indices()), ("indices", X.col_indices()), ("data", X.values())):
                np.save(self.folder / f"{name}.npy", part.numpy())
        np.save(self.folder / "y.npy", self.given.y.cpu().numpy())
        (self.folder / "problem.json").write_text(json.dumps({"shape": list(X.shape), "alphas": self.given.alphas}))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)

    def path(self, seconds: float) -> tuple[int, float, Tensor]:
        """How many strengths were done within the limit, the seconds that they took, their coefficients."""
        told = self._run("path", seconds)
        done = told.get("done", 0)
        coefs = torch.from_numpy(np.load(self.folder / f"coefs-{done}.npy")) if done else torch.empty(0)
        return done, told.get("seconds", 0.0), coefs

    def cv(self, seconds: float) -> float | None:
        """The seconds of a cross-validation; None if the limit was reached."""
        return self._run("cv", seconds).get("seconds")

    def _run(self, what: str, seconds: float) -> dict[str, Any]:
        log = self.folder / "log"
        with log.open("w") as out:
            child = subprocess.Popen([sys.executable, __file__, what, str(self.folder)], stdout=out, stderr=out)
        try:
            self._wait(child, self.folder / "ready", STARTS_WITHIN)
            self._wait(child, None, seconds)
        finally:
            child.kill()
            code = child.wait()
        if code > 0:
            raise RuntimeError(f"scikit-learn: {log.read_text().strip().splitlines()[-1]}")
        told = self.folder / "told.json"
        return json.loads(told.read_text()) if told.exists() else {}

    @staticmethod
    def _wait(child: subprocess.Popen, file: Path | None, seconds: float) -> None:
        """Until the file is there, or the process has ended, or for so long."""
        until = time.monotonic() + seconds
        while child.poll() is None and time.monotonic() < until and not (file is not None and file.exists()):
            time.sleep(0.02)


def fit(what: str, folder: Path) -> None:
    """What the process does."""
    text = json.loads((folder / "problem.json").read_text())
    X, y, alphas = _design(folder, text["shape"]), np.load(folder / "y.npy"), np.array(text["alphas"])
    import sklearn.linear_model

    warnings.simplefilter("ignore")  # of tolerances that are not reached; the gap tells
    (folder / "ready").touch()
    began = time.perf_counter()
    if what == "cv":
        options = {"fit_intercept": False, "tol": TOLERANCE, "max_iter": 100_000, "n_jobs": os.cpu_count()}
        sklearn.linear_model.LassoCV(alphas=alphas, cv=5, **options).fit(X, y)
        _tell(folder, {"seconds": time.perf_counter() - began})
        return
    options = {"tol": TOLERANCE, "max_iter": 100_000, "check_input": False, "copy_X": False}
    options |= {"Xy": X.T @ y, "precompute": X.T @ X if X.shape[0] > X.shape[1] else False}
    found = np.zeros((X.shape[1], 0), X.dtype)
    for k in range(0, len(alphas), CHUNK):
        start = found[:, -1].copy() if k else np.zeros(X.shape[1], X.dtype)
        new = sklearn.linear_model.lasso_path(X, y, alphas=alphas[k : k + CHUNK], coef_init=start, **options)[1]
        seconds = time.perf_counter() - began
        found = np.concatenate([found, new], 1)
        np.save(folder / f"coefs-{found.shape[1]}.npy", found.T)
        _tell(folder, {"done": found.shape[1], "seconds": seconds})


def _design(folder: Path, shape: Sequence[int]) -> Any:
    if (folder / "X.npy").exists():
        return np.asfortranarray(np.load(folder / "X.npy"))
    from scipy import sparse

    data, indices, indptr = (np.load(folder / f"{name}.npy") for name in ("data", "indices", "indptr"))
    X = sparse.csr_matrix((data, indices, indptr), shape=shape).tocsc()
    X.indices, X.indptr = X.indices.astype(np.int32), X.indptr.astype(np.int32)
    return X


def _tell(folder: Path, what: dict[str, Any]) -> None:
    (folder / "told.part").write_text(json.dumps(what))
    (folder / "told.part").replace(folder / "told.json")


def cuml_lasso(X: Tensor, y: Tensor, alphas: Sequence[float], tol: float, seconds: float) -> Tensor:
    """cuML's coefficients (a, p) of the strengths that are done in time; each starts from zero."""
    try:
        from cuml.linear_model import Lasso
    except ImportError as error:
        raise NotRunError("cuML is not installed") from error
    began, coefs = time.monotonic(), []
    for alpha in alphas:
        model = Lasso(alpha=alpha, fit_intercept=False, max_iter=100_000, tol=tol, solver="cd", output_type="numpy")
        coefs.append(torch.as_tensor(np.asarray(model.fit(X, y).coef_)))
        if time.monotonic() - began > seconds:
            break
    return torch.stack(coefs)


if __name__ == "__main__":
    fit(sys.argv[1], Path(sys.argv[2]))
