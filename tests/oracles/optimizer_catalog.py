"""The one table of optimizers, and the least-squares problems with oracles on which they are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

SAMPLES, FEATURES, GROUP = 200, 30, 3
L1_ALPHA, L1_RATIO, GROUP_ALPHA, MCP_GAMMA = 0.05, 0.7, 0.12, 3.0
INDEX = torch.arange(FEATURES) // GROUP


@dataclass(frozen=True)
class Recipe:
    """An optimizer and what it takes to reach the oracle with it, cosine lr to 0.

    Attributes:
        make: parameters -> optimizer.
        steps: how many it needs.
        decades: the columns' scales go from 10^-decades to 10^decades.
        gap: what the convex objectives' distance to the oracle's must stay under.
        violation: what MCP's violation of its optimality conditions must stay under.
        decay: coupled weight decay, which makes the oracle an elastic net.
    """

    id: str
    make: Callable[[list[Parameter]], Optimizer]
    steps: int
    decades: float = 1.0
    gap: float = 1e-8
    violation: float = 1e-8
    decay: float = 0.0


RECIPES = [
    Recipe("SGD", lambda p: SGD(p, lr=0.15), 4000, 0.4),
    Recipe("SGD momentum", lambda p: SGD(p, lr=0.02, momentum=0.9), 1500, 0.4),
    Recipe("SGD dampening", lambda p: SGD(p, lr=0.08, momentum=0.9, dampening=0.5), 1500, 0.4),
    Recipe("SGD Nesterov", lambda p: SGD(p, lr=0.02, momentum=0.9, nesterov=True), 1500, 0.4),
    Recipe("Adam", lambda p: Adam(p, lr=0.1), 3000),
    Recipe("Adam amsgrad", lambda p: Adam(p, lr=0.2, amsgrad=True), 3000),
    Recipe("Adam decay", lambda p: Adam(p, lr=0.1, weight_decay=0.1), 3000, decay=0.1),
    Recipe("AdamW", lambda p: AdamW(p, lr=0.1, weight_decay=0.0), 3000),
    Recipe("NAdam", lambda p: NAdam(p, lr=0.1), 3000),
    Recipe("RAdam", lambda p: RAdam(p, lr=0.05), 4000),
    # In MCP's flat part the gradient vanishes and an RMS of it soon too: eps keeps the step below gamma there,
    # from where on the prox is a hard threshold that kills weights.
    Recipe("RMSprop", lambda p: RMSprop(p, lr=0.05, eps=1e-3), 3000),
    Recipe("RMSprop momentum", lambda p: RMSprop(p, lr=0.004, momentum=0.9, eps=0.03), 4000),
    Recipe("RMSprop centered", lambda p: RMSprop(p, lr=0.01, centered=True), 3000),
    # The variance of a converging gradient falls to 0, so steps grow without bound while momentum lags behind them:
    # slow however it is tuned. It finds the right support, but only these gaps.
    Recipe(
        "RMSprop centered momentum",
        lambda p: RMSprop(p, lr=0.005, momentum=0.9, centered=True, alpha=0.9995),
        8000,
        gap=1e-5,
        violation=1e-3,
    ),
    Recipe("Adagrad", lambda p: Adagrad(p, lr=1.0), 3000),
    Recipe("Adamax", lambda p: Adamax(p, lr=0.05), 3000),
    Recipe("Adadelta", lambda p: Adadelta(p, lr=1.0, rho=0.99, eps=3e-6), 14000),
]


@dataclass(frozen=True)
class LeastSquares:
    """``mean((X w - y)^2) / 2 + decay / 2 |w|^2`` in float64, with the minimisers of its penalised forms."""

    X: Tensor
    y: Tensor
    decay: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "gram", self.X.T @ self.X / SAMPLES)
        object.__setattr__(self, "moment", self.X.T @ self.y / SAMPLES)

    def gradient(self, w: Tensor) -> Tensor:
        """Of the data term alone: the optimizer adds the decay itself."""
        return torch.mv(self.gram, w) - self.moment

    def smooth_gradient(self, w: Tensor) -> Tensor:
        return self.gradient(w) + self.decay * w

    def loss(self, w: Tensor) -> float:
        return float((self.X @ w - self.y).square().mean() / 2 + self.decay / 2 * w.square().sum())

    def elastic_net(self, l1: float, l2: float) -> Tensor:
        """scikit-learn's minimiser of loss + l1 |w|_1 + l2 / 2 |w|^2."""
        from sklearn.linear_model import ElasticNet, Lasso

        common = {"fit_intercept": False, "tol": 1e-14, "max_iter": 10**6}
        l2 += self.decay
        model = ElasticNet(alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), **common) if l2 else Lasso(alpha=l1, **common)
        return torch.from_numpy(model.fit(self.X.numpy(), self.y.numpy()).coef_)

    def group_lasso(self, level: float) -> Tensor:
        """Minimiser of loss + level * sum of the norms of consecutive triples: FISTA with restarts, in numpy."""
        G = (self.gram + self.decay * torch.eye(FEATURES, dtype=torch.float64)).numpy()
        c, step = self.moment.numpy(), 1.0 / np.linalg.eigvalsh(self.gram.numpy() + self.decay * np.eye(FEATURES))[-1]
        w = v = np.zeros(FEATURES)
        t = 1.0
        for _ in range(30_000):
            z = (v - step * (G @ v - c)).reshape(-1, GROUP)
            norms = np.linalg.norm(z, axis=1, keepdims=True)
            new = (np.where(norms > step * level, 1 - step * level / np.maximum(norms, 1e-300), 0.0) * z).reshape(-1)
            if (v - new) @ (new - w) > 0:
                v, t = w, 1.0
                continue
            t, before = (1 + np.sqrt(1 + 4 * t * t)) / 2, t
            w, v = new, new + (before - 1) / t * (new - w)
        return torch.from_numpy(w)

    def group_violation(self, w: Tensor, level: float) -> float:
        """How far w is from the group lasso's optimality conditions, by hand."""
        worst = 0.0
        for g, x in zip(self.smooth_gradient(w).split(GROUP), w.split(GROUP), strict=True):
            norm = float(x.norm())
            off = float(g.norm()) - level if norm == 0.0 else float((g + level * x / norm).abs().max())
            worst = max(worst, off)
        return worst

    def mcp_violation(self, w: Tensor, alpha: float, gamma: float) -> float:
        """How far w is from MCP's optimality conditions: gradient + (alpha - |w| / gamma)_+ sign(w) = 0, by hand."""
        g = self.smooth_gradient(w)
        slope = (alpha - w.abs() / gamma).clamp(min=0.0)
        return float(torch.where(w == 0, (g.abs() - alpha).clamp(min=0.0), (g + slope * w.sign()).abs()).max())


@cache
def least_squares(decades: float = 1.0, decay: float = 0.0) -> LeastSquares:
    """The decisive problem: 200 x 30, column scales 10^-decades .. 10^decades, four groups of noise."""
    draw = torch.Generator().manual_seed(0)
    scales = torch.logspace(-decades, decades, FEATURES, dtype=torch.float64)
    X = torch.randn(SAMPLES, FEATURES, generator=draw, dtype=torch.float64)
    truth = torch.randn(FEATURES, generator=draw, dtype=torch.float64)
    truth[torch.isin(INDEX, torch.tensor([1, 3, 4, 6])) | (torch.arange(FEATURES) % 4 == 0)] = 0.0
    y = X @ truth + 0.5 * torch.randn(SAMPLES, generator=draw, dtype=torch.float64)
    return LeastSquares(X * scales, y, decay)


class Lion(Optimizer):
    """A hand-written third-party optimizer whose step has no diagonal metric (Chen et al., 2023)."""

    def __init__(self, params, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.sub_(group["lr"] * (0.9 * mean + 0.1 * p.grad).sign())
                mean.lerp_(p.grad, 0.01)


def matrix(seed: int, shape: tuple[int, ...] = (4, 3), dtype: torch.dtype = torch.float64) -> Parameter:
    return Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype))


def with_layout(base: Optimizer, layout: str, monkeypatch: pytest.MonkeyPatch | None) -> Optimizer:
    """The same optimizer with another layout of its state; skips where torch has no such layout."""
    if "fused" in layout and isinstance(base, Adagrad):  # which makes its state at once
        base = Adagrad(base.param_groups[0]["params"], **base.defaults | {"fused": True})
    group = base.param_groups[0]
    if layout == "foreach":
        group["foreach"] = True
    elif layout != "default":
        group["foreach"] = False
    for flag in ("fused", "capturable"):
        if flag in layout:
            if flag not in group:
                pytest.skip(f"{type(base).__name__} has no {flag} layout")
            group[flag] = True
    if "tensor lr" in layout:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    if layout == "capturable" and monkeypatch is not None:  # torch runs it on the CPU only while compiling
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return base


every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.id)


def give_gradients(params: list[Parameter], seed: int) -> None:
    """Random gradients that depend on the seed and the position alone; ``requires_grad`` alone decides who gets one."""
    for k, p in enumerate(params):
        draw = torch.Generator().manual_seed(1000 * seed + k)
        grad = torch.randn(p.shape, generator=draw, dtype=torch.float64)
        p.grad = grad.to(p.dtype).contiguous(memory_format=torch.preserve_format) if p.requires_grad else None


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal bit for bit, but for the sign of zeros."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def values(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in params]
