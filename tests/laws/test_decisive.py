"""The decisive test: every optimizer, wrapped, reaches the minimiser of loss + penalty with exactly its zeros.

Float64, full batch, cosine lr to 0. The oracles know nothing of torchreg: scikit-learn for L1 and L1L2, FISTA in
numpy for Group, hand-written optimality conditions for Group and MCP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from optimizer_catalog import (
    FEATURES,
    GROUP_ALPHA,
    INDEX,
    L1_ALPHA,
    L1_RATIO,
    MCP_GAMMA,
    RECIPES,
    LeastSquares,
    Recipe,
    every_recipe,
    least_squares,
)
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adam, AdamW

from torchreg import L1, L1L2, MCP, Group, Penalty, ProxOptimizer, attach, labels

LEVEL = GROUP_ALPHA * math.sqrt(3.0)  # Group's default weights are the roots of the groups' sizes
PENALTIES: dict[str, Penalty] = {
    "L1": L1(L1_ALPHA),
    "L1L2": L1L2(L1_ALPHA, L1_RATIO),
    "Group": Group(L1(GROUP_ALPHA), by=labels(INDEX)),
    "MCP": MCP(L1_ALPHA, MCP_GAMMA),
}
CONVEX = ("L1", "L1L2", "Group")
by_problem = pytest.mark.parametrize(("decades", "decay"), sorted({(r.decades, r.decay) for r in RECIPES}))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def oracles(problem: LeastSquares) -> dict[str, Tensor]:
    return {
        "L1": problem.elastic_net(L1_ALPHA, 0.0),
        "L1L2": problem.elastic_net(L1_ALPHA * L1_RATIO, L1_ALPHA * (1.0 - L1_RATIO)),
        "Group": problem.group_lasso(LEVEL),
    }


def objective(problem: LeastSquares, name: str, w: Tensor) -> float:
    """Loss + penalty, the penalty written out by hand."""
    if name == "Group":
        return problem.loss(w) + LEVEL * sum(float(x.norm()) for x in w.split(3))
    ratio = 1.0 if name == "L1" else L1_RATIO
    return problem.loss(w) + L1_ALPHA * float(ratio * w.abs().sum() + (1.0 - ratio) / 2 * w.square().sum())


def train(
    problem: LeastSquares,
    make: Callable[[list[Parameter]], torch.optim.Optimizer],
    steps: int,
    *,
    closure: bool,
    **kwargs,
) -> tuple[dict[str, Tensor], Tensor]:
    """One optimizer, one parameter per penalty; the solutions, and MCP's support at nine tenths of the way."""
    params = {name: Parameter(torch.zeros(FEATURES, dtype=torch.float64)) for name in PENALTIES}
    terms = [attach(penalty, {name: params[name]}) for name, penalty in PENALTIES.items()]
    opt = ProxOptimizer(make(list(params.values())), *terms, **kwargs)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)

    def gradients() -> float:
        for p in params.values():
            p.grad = problem.gradient(p.detach())
        return 0.0

    for k in range(steps):
        if closure:
            opt.step(gradients)
        else:
            gradients()
            opt.step()
        schedule.step()
        if k == steps * 9 // 10:
            support = params["MCP"].detach() != 0
    return {name: p.detach() for name, p in params.items()}, support


@by_problem
def test_the_oracles_are_minimisers_and_their_zeros_are_not_marginal(decades, decay):
    problem = least_squares(decades, decay)
    w = oracles(problem)
    assert problem.group_violation(w["Group"], LEVEL) < 1e-11
    assert 0 < sum(float(x.norm()) == 0.0 for x in w["Group"].split(3)) < FEATURES // 3
    for name, l1, l2 in (("L1", L1_ALPHA, 0.0), ("L1L2", L1_ALPHA * L1_RATIO, L1_ALPHA * (1.0 - L1_RATIO))):
        gradient, zero = problem.smooth_gradient(w[name]) + l2 * w[name], w[name] == 0
        assert float((gradient + l1 * w[name].sign())[~zero].abs().max()) < 1e-8
        assert float(gradient[zero].abs().max()) < 0.97 * l1  # strictly inside: the support is well defined
        assert 0 < int(zero.sum()) < FEATURES
    assert decades >= 1.0 or torch.linalg.cond(problem.gram) <= 100.0


@every_recipe
def test_every_optimizer_reaches_the_oracle_with_its_zeros(recipe: Recipe):
    check(recipe, closure=False)


@every_recipe
def test_and_does_so_under_a_closure(recipe: Recipe):
    check(recipe, closure=True)


def check(recipe: Recipe, *, closure: bool) -> None:
    problem = least_squares(recipe.decades, recipe.decay)
    found, support = train(problem, recipe.make, recipe.steps, closure=closure)
    for name in CONVEX:
        oracle = oracles(problem)[name]
        gap = objective(problem, name, found[name]) - objective(problem, name, oracle)
        assert -1e-11 < gap < recipe.gap, f"{name}: gap {gap:.1e}"  # not below: the oracle is the minimiser
        assert torch.equal(found[name] == 0, oracle == 0), f"{name}: other zeros than the oracle's"
    violation = problem.mcp_violation(found["MCP"], L1_ALPHA, MCP_GAMMA)
    assert violation < recipe.violation, f"MCP: violation {violation:.1e}"
    assert torch.equal(found["MCP"] != 0, support), "MCP: the support changed in the last tenth"
    assert 0 < int(support.sum()) < FEATURES


def test_a_threshold_in_the_wrong_metric_fails_this_test():
    problem = least_squares()
    found, _ = train(problem, lambda p: Adam(p, lr=0.1), 3000, closure=False, metric="decoupled")
    for name in CONVEX:
        oracle = oracles(problem)[name]
        assert objective(problem, name, found[name]) - objective(problem, name, oracle) > 1e-3
        assert not torch.equal(found[name] == 0, oracle == 0)
    assert problem.mcp_violation(found["MCP"], L1_ALPHA, MCP_GAMMA) > 1e-3


def test_decoupled_decay_runs_and_gives_zeros():
    found, _ = train(least_squares(), lambda p: AdamW(p, lr=0.1, weight_decay=0.1), 300, closure=False)
    for w in found.values():
        assert bool(w.isfinite().all())
        assert 0 < int((w == 0).sum()) < FEATURES
