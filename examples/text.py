"""Which module is a piece of code from? Few words tell, out of thousands.

The texts are the functions and methods of two packages of the standard library that do similar
things; their tf-idf matrix is sparse, and stays sparse through the whole path of logistic fits.
"""

import ast
import asyncio
import multiprocessing
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from torchreg import L1
from torchreg.linear import Logistic, fit_cv

PACKAGES = asyncio, multiprocessing


def functions(package) -> list[str]:
    """The source of each function and method of a package, its own name left out."""
    texts = []
    for path in sorted(Path(package.__file__).parent.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        scopes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Module | ast.ClassDef)]
        for node in (node for scope in scopes for node in scope.body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                texts.append(ast.get_source_segment(source, node).replace(package.__name__, ""))
    return texts


def main() -> float:
    texts = [functions(package) for package in PACKAGES]
    labels = np.repeat([0.0, 1.0], [len(some) for some in texts])
    order = np.random.default_rng(0).permutation(len(labels))
    words = TfidfVectorizer(token_pattern=r"[A-Za-z]{2,}", min_df=2, sublinear_tf=True)
    X, y = words.fit_transform([*texts[0], *texts[1]])[order], labels[order]
    train, test = slice(0, 3 * len(y) // 4), slice(3 * len(y) // 4, None)
    print(f"{X.shape[0]} functions, {X.shape[1]} words, {X.nnz / np.prod(X.shape):.2%} of the entries not zero")

    cv = fit_cv(X[train], y[train], L1(1.0), datafit=Logistic(), cv=5, alphas=30, eps=0.03)
    fit = cv.best
    right = (fit.predict(X[test]).numpy() > 0.5) == y[test]
    gap = float((cv.path.dual_gaps / cv.path.null_objective).max())
    print(f"alpha {fit.alpha:.2e}: {int((fit.coef != 0).sum())} words kept, largest relative gap {gap:.0e}")
    print(f"test accuracy {right.mean():.3f}, by the larger class alone {max(y[test].mean(), 1 - y[test].mean()):.3f}")

    names, by_weight = words.get_feature_names_out(), np.argsort(fit.coef.numpy())
    for package, strongest in zip(PACKAGES, (by_weight[:8], by_weight[:-9:-1]), strict=True):
        print(f"{package.__name__:>15}: {', '.join(names[strongest])}")
    return float(right.mean())


if __name__ == "__main__":
    main()
