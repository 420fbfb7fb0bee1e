"""Norms of order and constraints reach the minimiser that an independent solver finds, under SGD and AdamW.

The solver is FISTA with restarts in numpy, float64, whose proximal maps are plain loops: pooling with a
stack, the sorted threshold.
"""

from functools import cache

import numpy as np
import pytest
import torch
from optimizer_catalog import FEATURES, INDEX, LeastSquares, least_squares
from torch.nn import Parameter

from torchreg import (
    SLOPE,
    Box,
    L1Ball,
    L2Ball,
    LInf,
    MaxNorm,
    ProxOptimizer,
    Simplex,
    UnitNorm,
    attach,
    labels,
    violation,
)

ALPHA, RADIUS, LENGTH, STEPS = 0.1, 3.0, 0.9, 1500
FALLING = np.linspace(4.0, 0.2, FEATURES)
PENALTIES = {
    "LInf": LInf(ALPHA, by=labels(INDEX)),
    "SLOPE": SLOPE(ALPHA, torch.from_numpy(FALLING)),
    "L1Ball": L1Ball(RADIUS),
    "L2Ball": L2Ball(LENGTH),
    "MaxNorm": MaxNorm(LENGTH / 3, by=labels(INDEX)),
    "Simplex": Simplex(RADIUS),
    "Box": Box(-0.2, 0.3),
}


def threshold(a: np.ndarray, radius: float) -> float:
    """The level above which a sums to the radius: one entry of the sorted vector after another."""
    level, total = 0.0, 0.0
    for k, x in enumerate(sorted(a, reverse=True), start=1):
        total += x
        if x > (total - radius) / k:
            level = (total - radius) / k
    return level


def onto_l1(x: np.ndarray, radius: float) -> np.ndarray:
    if np.abs(x).sum() <= radius:
        return x
    return np.sign(x) * np.maximum(np.abs(x) - threshold(np.abs(x), radius), 0.0)


def pooled(y: np.ndarray) -> np.ndarray:
    """Non-increasing regression: a stack of blocks (sum, count), the last two pooled while they rise."""
    stack: list[tuple[float, int]] = []
    for value in y:
        stack.append((float(value), 1))
        while len(stack) > 1 and stack[-1][0] * stack[-2][1] > stack[-2][0] * stack[-1][1]:
            (s, n), (t, m) = stack.pop(), stack.pop()
            stack.append((s + t, n + m))
    return np.concatenate([np.full(n, s / n) for s, n in stack])


def sorted_l1(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    order, out = np.argsort(-np.abs(x), kind="stable"), np.zeros_like(x)
    out[order] = np.maximum(pooled(np.abs(x)[order] - levels), 0.0)
    return out * np.sign(x)


def shortened(x: np.ndarray, radius: float) -> np.ndarray:
    return x * min(1.0, radius / max(float(np.linalg.norm(x)), 1e-300))


PROXES = {
    "LInf": lambda x, t: np.concatenate([g - onto_l1(g, t * ALPHA) for g in x.reshape(-1, 3)]),
    "SLOPE": lambda x, t: sorted_l1(x, t * ALPHA * FALLING),
    "L1Ball": lambda x, t: onto_l1(x, RADIUS),
    "L2Ball": lambda x, t: shortened(x, LENGTH),
    "MaxNorm": lambda x, t: np.concatenate([shortened(g, LENGTH / 3) for g in x.reshape(-1, 3)]),
    "Simplex": lambda x, t: np.maximum(x - threshold(x, RADIUS), 0.0),
    "Box": lambda x, t: np.minimum(np.maximum(x, -0.2), 0.3),
}
COSTS = {
    "LInf": lambda w: ALPHA * np.abs(w.reshape(-1, 3)).max(1).sum(),
    "SLOPE": lambda w: ALPHA * (FALLING * np.sort(np.abs(w))[::-1]).sum(),
}


@cache
def oracle(problem: LeastSquares, name: str) -> np.ndarray:
    gram, moment, prox = problem.gram.numpy(), problem.moment.numpy(), PROXES[name]
    step = 1.0 / np.linalg.eigvalsh(gram)[-1]
    w = v = prox(np.zeros(FEATURES), step)
    t = 1.0
    for _ in range(20_000):
        new = prox(v - step * (gram @ v - moment), step)
        if (v - new) @ (new - w) > 0:
            v, t = w, 1.0
            continue
        t, before = (1 + np.sqrt(1 + 4 * t * t)) / 2, t
        moved, w, v = np.abs(new - w).max(), new, new + (before - 1) / t * (new - w)
        if moved < 1e-15:
            break
    return w


def objective(problem: LeastSquares, name: str, w: np.ndarray) -> float:
    return problem.loss(torch.from_numpy(w)) + float(COSTS.get(name, lambda w: 0.0)(w))


@pytest.mark.parametrize(
    ("make", "decades"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), 0.4),
        (lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0), 0.8),
    ],
    ids=["SGD", "AdamW"],
)
def test_the_minimiser_of_an_independent_solver_is_reached(make, decades):
    problem = least_squares(decades)
    start = torch.full((FEATURES,), RADIUS / FEATURES, dtype=torch.float64)
    params = {name: Parameter(start.clone()) for name in PENALTIES}
    terms = {name: attach(penalty, {name: params[name]}) for name, penalty in PENALTIES.items()}
    opt = ProxOptimizer(make(list(params.values())), *terms.values())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS)
    for _ in range(STEPS):
        for p in params.values():
            p.grad = problem.gradient(p.detach())
        opt.step()
        schedule.step()
    for name, p in params.items():
        found, wanted = p.detach().numpy(), oracle(problem, name)
        gap = objective(problem, name, found) - objective(problem, name, wanted)
        assert abs(gap) < 1e-8, f"{name}: gap {gap:.1e}"
        assert np.array_equal(found == 0, wanted == 0), f"{name}: other zeros than the oracle's"
        assert np.isfinite(float(terms[name]())), f"{name}: outside"
        p.grad = problem.gradient(p.detach())
        assert violation(terms[name]) < 1e-4, f"{name}: violation {violation(terms[name]):.1e}"
    sizes, wanted = (np.abs(w) for w in (params["SLOPE"].detach().numpy(), oracle(problem, "SLOPE")))
    clusters = [len(np.unique(s.round(9))) for s in (sizes, wanted)]
    assert clusters[0] == clusters[1] == len(np.unique(sizes)), "sizes that should be equal are not exactly"
    assert clusters[0] < np.count_nonzero(sizes) + 1, "no cluster: the example shows nothing"


@pytest.mark.parametrize("name", PENALTIES)
def test_the_oracle_is_no_corner_case(name):
    """Each constraint binds and leaves something; zeros are neither none nor all."""
    w = oracle(least_squares(1.0), name)
    if name in ("LInf", "SLOPE", "L1Ball", "Simplex"):
        assert 0 < (w == 0).sum() < FEATURES
    free = np.linalg.solve(least_squares(1.0).gram.numpy(), least_squares(1.0).moment.numpy())
    assert np.abs(free - w).max() > 0.01


def test_rows_on_the_unit_sphere_reach_the_best_of_many_starts():
    """Not convex: the leading direction, which eigenvectors know."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    a = a @ a.T
    _, vectors = torch.linalg.eigh(a)
    for make in (lambda p: torch.optim.SGD(p, lr=0.05), lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0)):
        p = Parameter(torch.randn(2, 6, generator=draw, dtype=torch.float64))
        opt = ProxOptimizer(make([p]), attach(UnitNorm(), {"w": p}))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 800)
        for _ in range(800):
            p.grad = -(p.detach() @ a)
            opt.step()
            schedule.step()
        assert torch.allclose((p @ vectors[:, -1]).abs(), torch.ones(2, dtype=torch.float64), atol=1e-6)
