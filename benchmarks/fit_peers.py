"""Every solver as a function (problem, tol) -> coefficients per alpha; libraries are imported when they are used.

A solver gets data in the layout that it works on without a copy. What it prepares from them is its own time.
`tol` is the library's own number, in the library's own units; the ladders below go from loose to exhaustion.
"""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from fit_problem import Problem
from scipy import sparse

MANY = 10_000_000
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
RESIDENT: dict[int, Problem] = {}


def centring(path: Callable) -> Callable:
    """Intercepts for least squares without them: a centred copy of dense X, implicit centring of sparse X."""

    def run(problem: Problem, tol: float):
        if not problem.intercept:
            return path(problem, tol)
        if problem.loss != "quadratic":
            raise NotImplementedError("no intercept with this loss")
        mean, level = np.asarray(problem.X.mean(0)).ravel(), problem.y.mean()
        X = problem.X if problem.sparse else np.asfortranarray(problem.X - mean)
        offsets = {"X_offset": mean, "X_scale": np.ones_like(mean)} if problem.sparse else {}
        coefs = path(replace(problem, X=X, y=problem.y - level), tol, **offsets)
        return coefs, level - coefs @ mean

    return run


def sklearn_path(problem: Problem, tol: float, **offsets):
    from sklearn.linear_model import lasso_path

    if problem.group > 1:
        raise NotImplementedError("no group lasso")
    return lasso_path(problem.X, problem.y, alphas=problem.alphas, tol=tol, max_iter=1_000_000, **offsets)[1].T


def sklearn_logistic(problem: Problem, tol: float, solver: str = "liblinear"):
    from sklearn.linear_model import LogisticRegression

    n, warm = len(problem.y), solver == "saga"
    if problem.intercept and not warm:
        raise NotImplementedError("liblinear penalises the intercept")
    options = {"solver": solver, "fit_intercept": problem.intercept, "warm_start": warm, "random_state": 0}
    model = LogisticRegression(l1_ratio=1, tol=tol, max_iter=MANY, **options)
    X = sparse.csr_matrix(problem.X) if problem.sparse else np.ascontiguousarray(problem.X)
    coefs, intercepts = [], []
    for alpha in problem.alphas:
        model.set_params(C=1 / (n * alpha)).fit(X, problem.y)
        coefs.append(model.coef_.T.copy())
        intercepts.append(np.broadcast_to(model.intercept_, len(model.coef_)).copy())
    return np.array(coefs), np.array(intercepts)


def celer_path(problem: Problem, tol: float, **offsets):
    """celer's estimators call this function; its tolerance is an absolute gap, scaled here as they scale it."""
    from celer import celer_path

    kind = "logreg" if problem.loss == "logistic" else "grouplasso" if problem.group > 1 else "lasso"
    n = len(problem.y)
    options = {"max_iter": 1000, "prune": True, "alphas": problem.alphas, "tol": tol, **offsets}
    y = problem.y
    if kind == "logreg":
        y = 2 * y - 1
        options |= {"use_PN": True, "alphas": problem.alphas * n, "tol": tol * n * np.log(2)}
    if kind == "grouplasso":
        options["groups"] = problem.group
    return celer_path(problem.X, y, kind, **options)[1].T


def skglm_path(problem: Problem, tol: float):
    """Warm-started loop over the public solver classes; tol is relative to alpha_max, since skglm's is absolute."""
    from skglm.utils.jit_compilation import compiled_clone

    solver, datafit, penalty = (compiled_clone(part) if k else part for k, part in enumerate(skglm_parts(problem, tol)))
    n, p = problem.X.shape
    w, Xw, coefs = np.zeros(p + problem.intercept), np.zeros(n), []
    y = 2 * problem.y - 1 if problem.loss == "logistic" else problem.y
    for alpha in problem.alphas:
        penalty.alpha = alpha
        w = solver._solve(problem.X, y, datafit, penalty, w, Xw)[0]
        coefs.append(sparse.csr_matrix(w))
    found = sparse.vstack(coefs, format="csc")
    return found[:, :p], found[:, p:].toarray().sum(1)


def skglm_parts(problem: Problem, tol: float) -> tuple[object, object, object]:
    from skglm import datafits, penalties, solvers

    options = {"tol": tol * problem.alphas[0], "fit_intercept": problem.intercept}
    if problem.group > 1:
        p, size = problem.X.shape[1], problem.group
        pointers, index = np.arange(0, p + 1, size, dtype=np.int32), np.arange(p, dtype=np.int32)
        penalty = penalties.WeightedGroupL2(1.0, np.ones(p // size), pointers, index)
        return solvers.GroupBCD(max_iter=100_000, **options), datafits.QuadraticGroup(pointers, index), penalty
    if problem.loss == "logistic":
        return solvers.ProxNewton(max_iter=1000, **options), datafits.Logistic(), penalties.L1(1.0)
    return solvers.AndersonCD(max_iter=1000, **options), datafits.Quadratic(), penalties.L1(1.0)


def adelie_path(problem: Problem, tol: float):
    import adelie as ad

    p, K, n = problem.X.shape[1], problem.classes, len(problem.y)
    X = ad.matrix.sparse(problem.X, n_threads=THREADS) if problem.sparse else problem.X
    options = {"intercept": problem.intercept, "adev_tol": 1.0, "irls_tol": tol, "irls_max_iters": MANY}
    if K > 1:  # the loss is divided by K; a group for every coefficient: the outputs side by side, as one design
        return adelie_multinomial(problem, tol)
    glm = (ad.glm.binomial if problem.loss == "logistic" else ad.glm.gaussian)(problem.y, weights=np.full(n, 1 / n))
    groups = np.arange(0, p, problem.group)
    state = ad.grpnet(X, glm, groups=groups, penalty=np.ones(len(groups)), **common(problem.alphas, tol), **options)
    return sparse.csr_matrix(state.betas), np.asarray(state.intercepts)


def adelie_multinomial(problem: Problem, tol: float):
    raise NotImplementedError("adelie's multinomial family has a group of K coefficients for each feature, no plain L1")


def adelie_covariance(problem: Problem, tol: float):
    import adelie as ad

    n, p = problem.X.shape
    A, v = problem.X.T @ problem.X / n, problem.X.T @ problem.y / n
    groups = np.arange(0, p, problem.group)
    options = common(problem.alphas, tol) | {"rdev_tol": 0.0}
    state = ad.gaussian_cov(np.asfortranarray(A), v, groups=groups, penalty=np.ones(len(groups)), **options)
    return sparse.csr_matrix(state.betas)


def common(alphas: np.ndarray, tol: float) -> dict[str, object]:
    options = {"lmda_path": alphas, "tol": tol, "early_exit": False, "progress_bar": False}
    return options | {"n_threads": THREADS, "max_iters": MANY}


def torchreg_path(problem: Problem, tol: float, device: str = "cpu"):
    import torch

    from torchreg import L1, Group, labels
    from torchreg.linear import Logistic, Multinomial, Quadratic, fit_path

    datafit = {"quadratic": Quadratic, "logistic": Logistic, "multinomial": Multinomial}[problem.loss]()
    penalty = L1(1.0)
    if problem.group > 1:
        index = torch.arange(problem.X.shape[1]) // problem.group
        penalty = Group(penalty, by=labels(index), weights=1.0)
    options = {"alphas": problem.alphas, "tol": tol, "fit_intercept": problem.intercept, "device": device}
    y = problem.y.astype(np.int64) if problem.loss == "multinomial" else problem.y
    return fit_path(problem.X, y, penalty, datafit=datafit, **options)


def torchreg_resident(problem: Problem, tol: float, device: str = "cpu"):
    """The same with X already on the device: its copy is part of the first, warming run alone."""
    import torch

    if id(problem) not in RESIDENT:
        X = problem.X
        if problem.sparse:
            X = X.tocsr()
            X = torch.sparse_csr_tensor(*map(torch.from_numpy, (X.indptr, X.indices, X.data)), X.shape)
        RESIDENT[id(problem)] = replace(
            problem, X=torch.as_tensor(X).to(device), y=torch.from_numpy(problem.y).to(device)
        )
    return torchreg_path(RESIDENT[id(problem)], tol, device)


def emulated_cuml(problem: Problem, tol: float, device: str = "cpu"):
    """An emulation of cuML's coordinate descent."""
    import torch
    from fit_cuml import coordinate_descent

    if problem.sparse:
        raise NotImplementedError("cuML's coordinate descent takes dense X alone")
    X, y = (torch.from_numpy(array).to(device) for array in (problem.X, problem.y))
    return coordinate_descent(X, y, problem.alphas.tolist(), tol).cpu().numpy()


def sklearn_cv(problem: Problem, tol: float):
    from sklearn.linear_model import LassoCV

    model = LassoCV(
        alphas=problem.alphas,
        cv=splits(problem),
        fit_intercept=problem.intercept,
        tol=tol,
        max_iter=1_000_000,
        n_jobs=2,
    )
    return model.fit(problem.X, problem.y).mse_path_


def celer_cv(problem: Problem, tol: float):
    from celer import LassoCV

    model = LassoCV(
        alphas=problem.alphas, cv=splits(problem), fit_intercept=problem.intercept, tol=tol, max_iter=1000, n_jobs=2
    )
    return model.fit(problem.X, problem.y).mse_path_


def folds_of(path: Callable) -> Callable:
    """Cross-validation as a loop over the folds and the full data, for libraries whose own is missing or fails."""

    def run(problem: Problem, tol: float):
        losses = []
        for train, test in splits(problem):
            X = np.asfortranarray(problem.X[train])
            found = path(replace(problem, X=X, y=problem.y[train]), tol)
            coefs, intercepts = found if isinstance(found, tuple) else (found, np.zeros(len(problem.alphas)))
            predicted = np.asarray(coefs @ problem.X[test].T) + intercepts[:, None]
            losses.append(((predicted - problem.y[test]) ** 2).mean(1))
        path(problem, tol)
        return np.array(losses).T

    return run


def torchreg_cv(problem: Problem, tol: float, device: str = "cpu"):
    from torchreg import L1
    from torchreg.linear import fit_cv

    options = {"alphas": problem.alphas, "tol": tol, "fit_intercept": problem.intercept, "device": device}
    return fit_cv(problem.X, problem.y, L1(1.0), cv=splits(problem), **options).losses.T


def splits(problem: Problem) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (np.flatnonzero(problem.folds != k), np.flatnonzero(problem.folds == k)) for k in range(problem.folds.max() + 1)
    ]


SOLVERS: dict[str, tuple[str, Callable]] = {
    "torchreg": ("torchreg", torchreg_path),
    "torchreg resident": ("torchreg", torchreg_resident),
    "torchreg cv": ("torchreg", torchreg_cv),
    "cuml emulated": ("torch", emulated_cuml),
    "scikit-learn": ("sklearn", centring(sklearn_path)),
    "liblinear": ("sklearn", sklearn_logistic),
    "saga": ("sklearn", lambda problem, tol: sklearn_logistic(problem, tol, "saga")),
    "scikit-learn cv": ("sklearn", sklearn_cv),
    "celer": ("celer", centring(celer_path)),
    "celer cv": ("celer", celer_cv),
    "celer folds": ("celer", folds_of(centring(celer_path))),
    "skglm": ("skglm", skglm_path),
    "skglm folds": ("skglm", folds_of(skglm_path)),
    "adelie": ("adelie", adelie_path),
    "adelie cov": ("adelie", centring(adelie_covariance)),
    "adelie folds": ("adelie", folds_of(adelie_path)),
    "adelie cov folds": ("adelie", folds_of(centring(adelie_covariance))),
}
DISTRIBUTIONS = {"sklearn": "scikit-learn", "torchreg": "torchreg-penalty"}


def version(library: str) -> str:
    return importlib.metadata.version(DISTRIBUTIONS.get(library, library))


def quiet() -> None:
    """Solvers warn of unreached tolerances; the evaluator judges them instead."""
    warnings.simplefilter("ignore")
