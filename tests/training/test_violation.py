"""`violation` is 0 at a stationary point whatever the optimizer, rises beside it, and equals conditions by hand."""

from __future__ import annotations

import math

import pytest
import torch
from catalog import CATALOG
from optimizer_catalog import (
    GROUP_ALPHA,
    INDEX,
    L1_ALPHA,
    L1_RATIO,
    MCP_GAMMA,
    RECIPES,
    every_recipe,
    give_gradients,
    least_squares,
    matrix,
)
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW

from torchreg import L1, L1L2, MCP, Group, ProxOptimizer, Weighted, attach, labels, rows, violation
from torchreg.linear import Lasso

F64 = torch.float64
LEVEL = GROUP_ALPHA * math.sqrt(3.0)  # Group's default weights are the roots of the groups' sizes


def solutions(problem):
    """Penalties with their minimisers, found without torchreg."""
    return {
        "L1": (L1(L1_ALPHA), problem.elastic_net(L1_ALPHA, 0.0)),
        "L1L2": (L1L2(L1_ALPHA, L1_RATIO), problem.elastic_net(L1_ALPHA * L1_RATIO, L1_ALPHA * (1 - L1_RATIO))),
        "Group": (Group(L1(GROUP_ALPHA), by=labels(INDEX)), problem.group_lasso(LEVEL)),
    }


def at(w, grad):
    p = Parameter(w.clone())
    p.grad = grad.clone()
    return p


@every_recipe
def test_it_vanishes_at_the_minimiser_and_rises_when_a_weight_moves(recipe):
    problem = least_squares(0.4)
    for name, (penalty, w) in solutions(problem).items():
        p = Parameter(w + 0.01)
        opt = ProxOptimizer(recipe.make([p]), attach(penalty, {"w": p}))
        for group in opt.param_groups:
            group["weight_decay"] = 0.0  # which is no part of loss + penalty
        for k in range(3):  # gives the optimizer its state and its metric
            give_gradients([p], k)
            opt.step()
        p.data.copy_(w)
        p.grad = problem.gradient(w)
        assert violation(*opt.terms) < 1e-8, name  # the oracles' own, mostly
        for k in (int((w == 0).nonzero()[0]), int((w != 0).nonzero()[0])):
            p.data.copy_(w)
            p.data[k] += 1e-3
            p.grad = problem.gradient(p.detach())
            assert violation(*opt.terms) > 1e-6, (name, k)


def test_it_vanishes_at_a_solution_of_our_own_fits():
    problem = least_squares(0.4)
    coef = torch.from_numpy(
        Lasso(alpha=0.1, fit_intercept=False, tol=1e-14).fit(problem.X.numpy(), problem.y.numpy()).coef_
    )
    p = at(coef, problem.gradient(coef))
    assert 0 < int((p == 0).sum()) < p.numel()
    assert violation(attach(L1(0.1), {"w": p})) < 1e-8
    assert violation(attach(L1(0.2), {"w": p})) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if r.id in ("SGD momentum", "Adam", "Adagrad")], ids=lambda r: r.id
)
def test_training_drives_it_to_zero_and_it_can_be_read_when_the_rate_is_zero(recipe):
    problem = least_squares(recipe.decades)
    p = Parameter(torch.zeros(30, dtype=F64))
    opt = ProxOptimizer(recipe.make([p]), attach(MCP(L1_ALPHA, MCP_GAMMA), {"w": p}))
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(opt, recipe.steps)
    found = []
    for k in range(recipe.steps):
        p.grad = problem.gradient(p.detach())
        if k == 10:
            found.append(violation(*opt.terms))
        opt.step()
        rates.step()
    p.grad = problem.gradient(p.detach())
    assert opt.param_groups[0]["lr"] == 0.0
    found.append(violation(*opt.terms))
    assert found[0] > 1e-3 > 1e-8 > found[1]
    # in the metric of a last step that is small it is what the optimality conditions leave open, to rounding / step
    assert found[1] == pytest.approx(problem.mcp_violation(p.detach(), L1_ALPHA, MCP_GAMMA), abs=1e-9)


def test_it_equals_the_optimality_conditions_written_by_hand():
    w = torch.tensor([0.0, 0.0, 3.0, -3.0], dtype=F64)
    g = torch.tensor([0.2, -0.9, 0.1, 0.1], dtype=F64)
    by_hand = {"zero": 0.9 - 0.5, "positive": abs(0.1 + 0.5), "negative": abs(0.1 - 0.5)}
    assert violation(attach(L1(0.5), {"w": at(w, g)})) == pytest.approx(max(by_hand.values()), rel=1e-15)
    assert violation(attach(L1(0.5), {"w": at(w[:2], g[:2])})) == pytest.approx(by_hand["zero"], rel=1e-15)
    blocks = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=F64)
    slopes = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=F64)
    assert violation(attach(Group(L1(2.0), rows, weights=1.0), {"w": at(blocks, slopes)})) == pytest.approx(3.0)


def test_the_step_is_the_owners_effective_step():
    w, g = torch.tensor([0.3, -2.0], dtype=F64), torch.tensor([1.0, -0.5], dtype=F64)
    for make, t in ((lambda p: SGD(p, lr=0.1, momentum=0.5), 0.2), (lambda p: SGD(p, lr=5.0), 5.0)):
        p = at(w, g)
        term = attach(L1(0.25), {"w": p})
        expected = ((w - L1(0.25).prox(w - t * g, t)) / t).abs().max()
        assert violation(term, optimizer=make([p])) == pytest.approx(float(expected), rel=1e-14)
        opt = ProxOptimizer(make([p]), term)
        assert violation(*opt.terms) == pytest.approx(float(expected), rel=1e-14)


@pytest.mark.parametrize(
    "lr", [0.1, torch.tensor(0.1), 0.0, torch.tensor(0.0)], ids=["0.1", "tensor", "zero", "zero tensor"]
)
def test_adam_before_and_after_its_first_step(lr):
    p = at(torch.tensor([0.0, 1.0]), torch.tensor([0.25, -0.5]))
    term = attach(L1(0.5), {"w": p})
    opt = ProxOptimizer(Adam([p], lr=lr, foreach=False), term)
    assert violation(term) == 0.0  # a stationary point is one in every metric
    opt.step()
    p.data.copy_(torch.tensor([0.0, 1.0]))
    assert violation(term) == pytest.approx(0.0, abs=1e-8)  # float64 at a step of 1e-3: far below


@pytest.mark.parametrize("case", [c for c in CATALOG if c.slope and not c.spares], ids=lambda c: c.id)
def test_it_is_zero_for_every_penalty_where_alpha_max_says_that_zero_is_stationary(case):
    grad = torch.randn(case.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    penalty = case.make()
    alpha = float(penalty.alpha_max(grad))
    if math.isinf(alpha):
        p = at(case.centre, grad)
        assert violation(attach(penalty.with_alpha(1e9), {"w": p}), optimizer=SGD([p], lr=0.01)) > 0.0
        return
    p = at(case.centre, grad)
    assert violation(attach(penalty.with_alpha(alpha * 1.001), {"w": p}), optimizer=SGD([p], lr=0.01)) == 0.0
    assert violation(attach(penalty.with_alpha(alpha * 0.9), {"w": p}), optimizer=SGD([p], lr=0.01)) > 0.0


def test_low_precision_is_measured_in_float64():
    w, g = torch.tensor([0.5, 0.0]), torch.tensor([-0.25, 0.125])
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        p = at(w.to(dtype), g.to(dtype))
        assert violation(attach(L1(0.25), {"w": p}), optimizer=SGD([p], lr=1e-6)) == pytest.approx(0.0, abs=1e-9)


def test_a_model_adds_its_other_trainable_parameters():
    model = nn.Sequential(nn.Linear(3, 2), nn.Embedding(4, 2, sparse=True))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model[0].weight.data.zero_()
    model[0].weight.grad[0, 0] = 0.5
    model[0].bias.grad[1] = -0.75
    model[1].weight.grad = torch.zeros(4, 2).to_sparse(1)
    term = attach(L1(0.5), model[0].weight)
    assert violation(term) == 0.0
    assert violation(term, model=model) == 0.75
    model[0].bias.requires_grad_(False)
    assert violation(term, model=model) == 0.0


def test_several_terms_and_a_nan():
    a, b = at(torch.zeros(2), torch.tensor([1.0, 0.0])), at(torch.ones(2), torch.tensor([0.0, 0.0]))
    terms = attach(L1(0.5), {"a": a}), attach(Weighted(L1(1.0), torch.tensor([0.25, 0.125])), {"b": b})
    assert violation(*terms) == 0.5
    assert violation(terms[1], terms[0]) == 0.5
    b.grad[1] = math.nan
    assert math.isnan(violation(*terms))


def test_it_changes_nothing():
    p = matrix(1)
    opt = ProxOptimizer(AdamW([p], lr=0.1), L1(0.1))
    give_gradients([p], 0)
    opt.step()
    before = p.detach().clone(), p.grad.clone(), opt.state[p]["exp_avg_sq"].clone()
    violation(*opt.terms)
    assert all(torch.equal(a, b) for a, b in zip(before, (p, p.grad, opt.state[p]["exp_avg_sq"]), strict=True))
    assert p.requires_grad


def test_gradients_that_are_not_there_are_asked_for():
    p, q = matrix(1), matrix(2)
    term = attach(L1(0.1), {"w": p, "v": q})
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"\['v'\] have none; call loss.backward"):
        violation(term)
    q.requires_grad_(False)  # frozen: nothing is asked of it
    assert violation(term) > 0.0
    p.grad.zero_()
    with pytest.warns(UserWarning, match="Every gradient is zero"):
        assert violation(term) == pytest.approx(0.1)
    p.requires_grad_(False)
    with pytest.raises(ValueError, match="parameters require a gradient"):
        violation(term)


def test_bad_input_is_refused():
    p, q = at(torch.zeros(2), torch.ones(2)), matrix(1)
    with pytest.raises(ValueError, match="needs a term"):
        violation()
    with pytest.raises(TypeError, match="takes terms, got L1"):
        violation(L1(0.1))
    with pytest.raises(ValueError, match="none of the SGD's"):
        violation(attach(L1(0.1), {"w": p}), optimizer=SGD([q], lr=0.1))
    with pytest.raises(ValueError, match="No effective step is known for LBFGS"):
        violation(attach(L1(0.1), {"w": p}), optimizer=torch.optim.LBFGS([p]))
