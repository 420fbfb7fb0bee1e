"""The one judge of all solvers: objective and duality gap in float64 numpy, from coefficients alone.

It shares no code with torchreg and knows no solver. Gap: with the dual point s * (minus the loss's gradient),
s = min(1, alpha / max_g |g_g|), g = -X' grad / n, primal minus dual is a sum of terms that are all >= 0,

    mean_i D_i + sum_g (alpha |w_g| - s w_g . g_g),    D_i the Fenchel gap of loss i:

(1 - s)^2 r_i^2 / 2 for the quadratic loss and KL(y + s (prob - y) | prob) for the likelihoods, so that nothing cancels.
With an intercept the dual point must sum to zero: the gap is that of the best intercept for the same w, plus what the
solver's own intercept loses to it.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """coefs: (a, problem.width) sparse, intercepts at the end."""
    found = np.array([_one(problem, coefs[k], alpha) for k, alpha in enumerate(problem.alphas)])
    null, lost = _one(problem, sparse.csr_matrix((1, problem.width)), np.inf)
    return Scores(found[:, 0], found[:, 1], null - lost)


def _one(problem: Problem, row: sparse.csr_matrix, alpha: float) -> tuple[float, float]:
    """Objective and gap; at alpha = inf and zeros the gap is what a zero intercept loses."""
    (n, p), classes = problem.X.shape, problem.classes
    w = np.zeros(problem.width)
    w[row.indices] = row.data
    w, intercept = w[: p * classes].reshape(p, classes), w[p * classes :]
    used = np.flatnonzero(w.any(1))
    fixed = np.asarray(problem.X[:, used] @ w[used]).reshape(n, classes)
    target = one_hot(problem.y) if problem.loss == "multinomial" else problem.y[:, None]
    loss = LOSSES[problem.loss]
    best = _best_intercept(loss, fixed, target) if problem.intercept else intercept
    losses, fitted = loss(fixed + best, target)
    mean, lost = losses.sum() / n, (loss(fixed + intercept, target)[0].sum() - losses.sum()) / n
    g = np.asarray(problem.X.T @ (target - fitted)) / n
    norms, top = _norms(w, problem.group), _norms(g, problem.group).max()
    price = alpha * norms if norms.any() else np.zeros_like(norms)
    s = min(1.0, alpha / top) if top > 0 else 1.0
    mixed = target + s * (fitted - target)
    inner = (w * g).reshape(len(norms), -1).sum(1)
    gap = GAPS[problem.loss](mixed, fitted).sum() / n + (price - s * inner).sum() + lost
    return float(mean + lost + price.sum()), float(gap)


def _best_intercept(loss: Callable, fixed: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(K,) by Newton's method on the mean loss; the softmax's is fixed up to a constant."""
    b = np.zeros(fixed.shape[1])
    for _ in range(100):
        fitted = loss(fixed + b, target)[1]
        slope = (fitted - target).mean(0)
        if np.abs(slope).max() <= 1e-15:
            break
        b = b - np.linalg.lstsq(_curvature(loss, fitted), slope, rcond=1e-10)[0]
    return b


def _curvature(loss: Callable, fitted: np.ndarray) -> np.ndarray:
    if loss is _quadratic:
        return np.ones((1, 1))
    if loss is _logistic:
        return (fitted * (1 - fitted)).mean(0, keepdims=True)
    return np.diag(fitted.mean(0)) - fitted.T @ fitted / len(fitted)


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
