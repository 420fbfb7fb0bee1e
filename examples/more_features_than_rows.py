"""Ten thousand features, two hundred rows: a whole lasso path, each solution with a proof.

The duality gap bounds how far an objective is from its minimum, whatever the solver did. Here it is
relative to the empty model's loss, and computed once more from its definition (a scaled residual).
"""

import time

import numpy as np
from sklearn.linear_model import lasso_path

from torchreg import L1
from torchreg.linear import fit_path

ROWS, FEATURES, USEFUL = 200, 10_000, 10


def planted():
    """A target that depends on the first few features."""
    draw = np.random.default_rng(0)
    X = draw.standard_normal((ROWS, FEATURES))
    return X, X[:, :USEFUL] @ np.linspace(3.0, 1.0, USEFUL) + draw.standard_normal(ROWS)


def proof(x, y, coef, intercept, alpha) -> float:
    """The duality gap of the lasso: primal objective minus dual objective, at a scaled residual."""
    residual = y - x @ coef - intercept
    scale = min(1.0, alpha * ROWS / np.abs(x.T @ residual).max())
    centred = y - y.mean()  # an intercept: the dual residual adds up to zero
    primal = (residual @ residual) / (2 * ROWS) + alpha * np.abs(coef).sum()
    dual = (centred @ centred - np.square(centred - scale * residual).sum()) / (2 * ROWS)
    return primal - dual


def main() -> float:
    X, y = planted()
    begin = time.perf_counter()
    path = fit_path(X, y, L1(1.0), alphas=50, eps=0.01)
    ours = time.perf_counter() - begin
    gaps = path.dual_gaps / path.null_objective
    print(f"{'alpha':>8}  {'non-zero':>8}  {'useful':>6}  {'relative gap':>12}  {'by definition':>13}")
    for k in range(0, 50, 7):
        coef, alpha = path.coef(k), float(path.alphas[k])
        gap = proof(X, y, coef.numpy(), float(path.intercepts[k]), alpha) / path.null_objective
        useful = int((coef[:USEFUL] != 0).sum())
        print(f"{alpha:8.4f}  {int(path.n_nonzero[k]):8d}  {useful:6d}  {gaps[k]:12.1e}  {gap:13.1e}")
    worst = float(gaps.max())
    print(f"largest relative gap of {len(path)} solutions: {worst:.1e}")

    begin = time.perf_counter()
    lasso_path(X - X.mean(0), y - y.mean(), alphas=path.alphas.numpy(), tol=1e-10, max_iter=100_000)
    theirs = time.perf_counter() - begin
    print(
        f"{ours:.2f} s; scikit-learn's lasso_path, to a relative gap of 1e-10, takes {theirs / ours:.1f} times as long"
    )
    return worst


if __name__ == "__main__":
    main()
