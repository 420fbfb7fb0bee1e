"""The one judge of all solvers: objective and duality gap in float64 numpy, from coefficients alone.

It shares no code with torchreg and knows no solver. Gap: with the dual point s * (minus the loss's gradient),
s = min(1, alpha / max_g |g_g|), g = -X' grad / n, primal minus dual is a sum of terms that are all >= 0,

    mean_i D_i + sum_g (alpha |w_g| - s w_g . g_g),    D_i the Fenchel gap of loss i:

(1 - s)^2 r_i^2 / 2 for the quadratic loss and KL(y + s (prob - y) | prob) for the likelihoods, so that nothing cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from fit_problem import Problem, one_hot
from scipy import sparse


@dataclass(frozen=True)
class Scores:
    """Per alpha: objective and gap. null: the objective of no coefficients."""

    objectives: np.ndarray
    gaps: np.ndarray
    null: float


def score(problem: Problem, coefs: sparse.csr_matrix) -> Scores:
    """coefs: (a, p * K) sparse."""
    n, p = problem.X.shape
    K = problem.classes
    found = np.array([_one(problem, coefs[k], alpha, n, p, K) for k, alpha in enumerate(problem.alphas)])
    null, _ = _one(problem, sparse.csr_matrix((1, p * K)), 0.0, n, p, K)
    return Scores(found[:, 0], found[:, 1], null)


def _one(problem: Problem, row: sparse.csr_matrix, alpha: float, n: int, p: int, K: int) -> tuple[float, float]:  # noqa: N803
    w = np.zeros(p * K)
    w[row.indices] = row.data
    w = w.reshape(p, K)
    used = np.flatnonzero(w.any(1))
    eta = np.asarray(problem.X[:, used] @ w[used]).reshape(n, K)
    target = one_hot(problem.y) if problem.loss == "multinomial" else problem.y[:, None]
    losses, fitted = LOSSES[problem.loss](eta, target)
    norms = _norms(w, problem.group)
    objective = losses.sum() / n + alpha * norms.sum()
    g = np.asarray(problem.X.T @ (target - fitted)) / n
    top = _norms(g, problem.group).max()
    s = min(1.0, alpha / top) if top > 0 else 1.0
    mixed = target + s * (fitted - target)
    inner = (w * g).reshape(len(norms), -1).sum(1)
    gap = GAPS[problem.loss](mixed, fitted).sum() / n + (alpha * norms - s * inner).sum()
    return float(objective), float(gap)


def _norms(w: np.ndarray, group: int) -> np.ndarray:
    return np.linalg.norm(w.reshape(-1, group), axis=1) if group > 1 else np.abs(w).ravel()


def _quadratic(eta, y):
    return 0.5 * (y - eta) ** 2, eta


def _logistic(eta, y):
    return np.logaddexp(0, eta) - y * eta, 0.5 * (1 + np.tanh(0.5 * eta))


def _multinomial(eta, y):
    top = eta.max(1, keepdims=True)
    total = np.exp(eta - top).sum(1, keepdims=True)
    return (np.log(total) + top) - (y * eta).sum(1, keepdims=True), np.exp(eta - top) / total


def _kl(a, b):
    """a log(a / b) - a + b >= 0, elementwise; sums to KL(a | b) over distributions."""
    ratio = np.where(a > 0, a / np.maximum(b, 1e-300), 1.0)
    return np.where(a > 0, a * np.log(ratio) - a + b, b)


LOSSES = {"quadratic": _quadratic, "logistic": _logistic, "multinomial": _multinomial}
GAPS = {
    "quadratic": lambda mixed, fitted: 0.5 * (mixed - fitted) ** 2,
    "logistic": lambda mixed, fitted: _kl(mixed, fitted) + _kl(1 - mixed, 1 - fitted),
    "multinomial": _kl,
}
