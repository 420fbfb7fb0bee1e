"""The demo's linear model: few weights, so that one can read which are exactly zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD

from torchreg.penalties import L1, L2, Penalty, Weighted
from torchreg.text_table import text_table
from torchreg.training import ProxOptimizer, attach

LINEAR_ALPHA = 0.1
_STEPS = 2000


@dataclass(frozen=True)
class LinearProblem:
    """A regression on named features, both standardised.

    Args:
        X: features, shape (n, features).
        y: target, shape (n,).
        names: of the features.
    """

    X: Tensor
    y: Tensor
    names: tuple[str, ...]

    def fit(self, penalty: Penalty, fits: int = 1) -> Tensor:
        """Weights (features, fits) that minimise half the mean squared error + penalty, fit by fit."""
        X, y = self.X.double(), self.y.double()[:, None]  # noqa: N806
        w = nn.Parameter(torch.zeros(X.shape[1], fits, dtype=X.dtype))
        gram, cross = X.T @ X / len(X), X.T @ y / len(X)
        step = 1.0 / float(torch.linalg.eigvalsh(gram)[-1])
        optimizer = ProxOptimizer(SGD([w], lr=step, momentum=0.9, nesterov=True), attach(penalty, {"w": w}))
        for _ in range(_STEPS):
            w.grad = gram @ w.detach() - cross
            optimizer.step()
        return w.detach()

    def path(self, alphas: Tensor) -> Tensor:
        """L1 weights (alphas, features), all fitted at once: a column for each alpha, weighted by it."""
        return self.fit(Weighted(L1(1.0), alphas.double()), len(alphas)).T


def linear_table(problem: LinearProblem) -> str:
    """L1 and L2 weights side by side; a weight that is exactly zero is written 0."""
    fits = [problem.fit(penalty)[:, 0].tolist() for penalty in (L1(LINEAR_ALPHA), L2(LINEAR_ALPHA))]
    written = [[" 0" if w == 0 else f"{w: .4f}" for w in fit] for fit in fits]
    return text_table(("feature", " L1 weights", " L2 weights"), zip(problem.names, *written, strict=True))
