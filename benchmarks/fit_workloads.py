"""The data of benchmarks/fits.py: nothing is downloaded.

Choices, the same for every solver:
- alphas: 100 from alpha_max down, geometric, to 1e-2 * alpha_max where p > n and to 1e-3 * alpha_max where n > p;
  50 for the multinomial fit, where the peers that exist take minutes for 100.
- Dense columns have mean 0 and variance 1, y (quadratic) too, so that a dense fit without an intercept equals one with;
  sparse columns are used as they are, y has mean 0 and variance 1.
- Gaussian designs: each row an AR(1) process along the features with correlation rho; 50 true features at random
  places with coefficients from N(0, 1); noise such that the signal's standard deviation is 3 times the noise's.
  Logistic: y ~ Bernoulli(sigmoid(signal scaled to standard deviation 2)). Groups: 10 true groups of 5.
- rho = 0.5 where the name says nothing; 500x20000 has 0.6, as in earlier measurements.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from fit_problem import Problem, alpha_max
from scipy import sparse

TRUE_FEATURES, SIGNAL_TO_NOISE = 50, 3.0
TEXTS, NGRAMS = 20_000, 1_000_000


def problem(name: str, X, y: np.ndarray, *, loss="quadratic", group=1, count=100, folds=0, **notes) -> Problem:
    n, p = X.shape
    eps = 1e-2 if p > n else 1e-3
    alphas = alpha_max(X, y, loss, group, False) * np.geomspace(1, eps, count)
    fold = np.random.default_rng(1).permutation(n) % folds if folds else None
    return Problem(name, X, y, alphas, loss, group, fold, notes={"eps": eps, "alphas": count, **notes})


def ar_design(n: int, p: int, rho: float, rng: np.random.Generator) -> np.ndarray:
    X = np.empty((p, n))
    X[0] = rng.standard_normal(n)
    for j in range(1, p):
        X[j] = rho * X[j - 1] + np.sqrt(1 - rho**2) * rng.standard_normal(n)
    return standardised(X.T)


def standardised(X: np.ndarray) -> np.ndarray:
    """Mean 0, variance 1, constant columns left out, Fortran order."""
    X = X - X.mean(0)
    scale = X.std(0)
    keep = scale > 1e-10
    return np.asfortranarray(X[:, keep] / scale[keep])


def target(X, rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
    """(n,) the noiseless signal of standard normal coefficients at those places, variance 1."""
    signal = X[:, places] @ rng.standard_normal(len(places))
    return (signal - signal.mean()) / signal.std()


def noisy(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y = signal + rng.standard_normal(len(signal)) / SIGNAL_TO_NOISE
    return (y - y.mean()) / y.std()


def gaussian(name: str, n: int, p: int, rho: float = 0.5, *, loss="quadratic", group=1, folds=0) -> Problem:
    rng = np.random.default_rng(0)
    X = ar_design(n, p, rho, rng)
    first = rng.choice(p // group, TRUE_FEATURES // group, replace=False) * group
    signal = target(X, rng, (first[:, None] + np.arange(group)).ravel())
    y = noisy(signal, rng) if loss == "quadratic" else (rng.random(n) < 1 / (1 + np.exp(-2 * signal))).astype(float)
    return problem(name, X, y, loss=loss, group=group, folds=folds, rho=rho)


def polynomial(name: str, load: Callable, degree: int, loss: str = "quadratic", count: int = 100) -> Problem:
    from sklearn.preprocessing import PolynomialFeatures

    X, y = load(return_X_y=True)
    X = PolynomialFeatures(degree, include_bias=False).fit_transform(standardised(X))
    y = (y - y.mean()) / y.std() if loss == "quadratic" else y.astype(float)
    return problem(name, standardised(X), y, loss=loss, count=count, degree=degree)


def datasets(name: str) -> Callable:
    def load(**options):
        import sklearn.datasets

        return getattr(sklearn.datasets, f"load_{name}")(**options)

    return load


def zipf(name: str, n: int = 10_000, p: int = 200_000, per_row: float = 68.5) -> Problem:
    """Rows draw features with probability proportional to 1 / (rank + 20); values are |N(0, 1)| * idf."""
    rng = np.random.default_rng(0)
    weight = 1 / (np.arange(p) + 20.0)
    draws = rng.choice(p, size=int(n * per_row * 1.02), p=weight / weight.sum())
    X = sparse.csc_matrix((np.abs(rng.standard_normal(len(draws))), (rng.integers(n, size=len(draws)), draws)), (n, p))
    X = X @ sparse.diags(np.log((1 + n) / (1 + np.diff(X.indptr))) + 1)
    X = canonical(sparse.diags(1 / np.maximum(np.sqrt(X.multiply(X).sum(1).A1), 1e-12)) @ X)
    y = noisy(target(X, rng, rng.choice(2000, TRUE_FEATURES, replace=False)), rng)
    return problem(name, X, y, nnz=int(X.nnz))


def canonical(X) -> sparse.csc_matrix:
    X = sparse.csc_matrix(X)
    X.sum_duplicates()
    X.indices, X.indptr = X.indices.astype(np.int32), X.indptr.astype(np.int32)
    return X


def texts() -> list[str]:
    """Source of the functions and classes of the standard library, in the order of its files."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        try:
            source = path.read_text(encoding="utf-8")
            nodes = [node for node in ast.walk(ast.parse(source)) if hasattr(node, "body") and hasattr(node, "name")]
        except (SyntaxError, ValueError):
            continue
        lines = source.splitlines()
        found += ["\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes]
    return found


def tfidf(name: str) -> Problem:
    """Character 4- to 6-grams of at most 1,500 characters a text; the target is the log of the text's length."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    every = texts()
    chosen = [every[k] for k in np.random.default_rng(0).permutation(len(every))[:TEXTS]]
    digest = hashlib.sha256("\0".join(chosen).encode()).hexdigest()
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 6), max_features=NGRAMS, sublinear_tf=True)
    X = canonical(vectorizer.fit_transform(text[:1500] for text in chosen))
    y = np.log([len(text) for text in chosen])
    return problem(name, X, (y - y.mean()) / y.std(), nnz=int(X.nnz), sha256=digest)


WORKLOADS: dict[str, Callable[[str], Problem]] = {
    "lasso-1000x5000": partial(gaussian, n=1000, p=5000),
    "lasso-200x5000": partial(gaussian, n=200, p=5000, rho=0.9),
    "lasso-500x1000": partial(gaussian, n=500, p=1000, rho=0.95),
    "lasso-500x20000": partial(gaussian, n=500, p=20000, rho=0.6),
    "lasso-2000x20000": partial(gaussian, n=2000, p=20000),
    "lasso-5000x1000": partial(gaussian, n=5000, p=1000, rho=0.95),
    "lasso-2000x500": partial(gaussian, n=2000, p=500),
    "lasso-20000x1000": partial(gaussian, n=20000, p=1000),
    "diabetes-degree5": partial(polynomial, load=datasets("diabetes"), degree=5),
    "diabetes-degree6": partial(polynomial, load=datasets("diabetes"), degree=6),
    "diabetes-degree7": partial(polynomial, load=datasets("diabetes"), degree=7),
    "sparse-10000x200000": zipf,
    "tfidf-source": tfidf,
    "logistic-500x2000": partial(gaussian, n=500, p=2000, loss="logistic"),
    "logistic-5000x300": partial(gaussian, n=5000, p=300, loss="logistic"),
    "breast-cancer-degree3": partial(polynomial, load=datasets("breast_cancer"), degree=3, loss="logistic"),
    "digits-degree2": partial(polynomial, load=datasets("digits"), degree=2, loss="multinomial", count=50),
    "group-300x3000": partial(gaussian, n=300, p=3000, group=5),
    "group-2000x500": partial(gaussian, n=2000, p=500, group=5),
    "lassocv-1000x5000": partial(gaussian, n=1000, p=5000, folds=5),
    "lassocv-5000x1000": partial(gaussian, n=5000, p=1000, rho=0.95, folds=5),
    "lassocv-20000x1000": partial(gaussian, n=20000, p=1000, folds=5),
}


def gpu_workloads(scale: float) -> dict[str, Callable[[str], Problem]]:
    """Large ones for torchreg on CUDA: `scale` 0.1 makes both sides of every design a tenth."""

    def dense(n: int, p: int, folds: int = 0) -> Callable[[str], Problem]:
        return lambda name: gaussian(name, max(50, round(n * scale)), max(50, round(p * scale)), folds=folds)

    return {
        "gpu-20000x100000": dense(20_000, 100_000),
        "gpu-200000x5000": dense(200_000, 5_000),
        "gpu-sparse-1000000": lambda name: zipf(
            name, round(100_000 * scale), max(3000, round(1_000_000 * scale)), 100.0
        ),
        "gpucv-20000x100000": dense(20_000, 100_000, folds=5),
        "gpucv-200000x5000": dense(200_000, 5_000, folds=5),
    }
