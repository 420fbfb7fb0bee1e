"""torch's learning rate schedulers on a ProxOptimizer: the rates and the weights of the base with the prox by hand."""

from __future__ import annotations

import pytest
import torch
from optimizer_catalog import give_gradients, matrix
from torch import nn
from torch.func import functional_call, grad
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as lr

from torchreg import L1, Group, ProxOptimizer, effective_step, rows, weights

SCHEDULES = {
    "LambdaLR": lambda o: lr.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: lr.MultiplicativeLR(o, lambda k: 0.95),
    "StepLR": lambda o: lr.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: lr.ConstantLR(o, 0.3, 4),
    "LinearLR": lambda o: lr.LinearLR(o, 0.1, 1.0, 5),
    "ExponentialLR": lambda o: lr.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda o: lr.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: lr.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=True),
    "OneCycleLR": lambda o: lr.OneCycleLR(o, 0.2, 10, cycle_momentum=True),
    "ChainedScheduler": lambda o: lr.ChainedScheduler([lr.ConstantLR(o, 0.5, 3), lr.ExponentialLR(o, 0.9)]),
    "SequentialLR": lambda o: lr.SequentialLR(o, [lr.LinearLR(o, 0.1, 1.0, 4), lr.CosineAnnealingLR(o, 4)], [4]),
}
BASES = {"SGD": lambda p: SGD(p, lr=0.1, momentum=0.9), "Adam": lambda p: Adam(p, lr=0.1)}
PENALTIES = [L1(0.1), Group(L1(0.1), by=rows)]


def three() -> list[Parameter]:
    return [matrix(1), matrix(2, (5, 3))]


def by_hand(base, penalty) -> None:
    """The base's step and the prox that `ProxOptimizer` promises after it."""
    base.step()
    with torch.no_grad():
        for p, step in effective_step(base).items():
            p.copy_(penalty.prox(p, step))


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_rates_and_weights_are_those_of_the_base_with_the_prox_by_hand(schedule, make, penalty):
    ours, hand = three(), three()
    opt, base = ProxOptimizer(make(ours), penalty), make(hand)
    schedules = schedule(opt), schedule(base)
    for k in range(10):
        give_gradients(ours, k)
        opt.step()
        give_gradients(hand, k)
        by_hand(base, penalty)
        for moved in schedules:
            moved.step()
        assert opt.param_groups[0]["lr"] == base.param_groups[0]["lr"]
        assert opt.param_groups[0].get("momentum") == base.param_groups[0].get("momentum")
        assert opt.param_groups[0].get("betas") == base.param_groups[0].get("betas")
    for p, q in zip(ours, hand, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)  # in place, a group is scaled by a quotient
        assert torch.equal(p == 0, q == 0)


def test_a_plateau_lowers_the_rate():
    params = three()
    opt = ProxOptimizer(SGD(params, lr=0.1), L1(0.1))
    plateau = lr.ReduceLROnPlateau(opt, patience=1, factor=0.5)
    for k in range(6):
        give_gradients(params, k)
        opt.step()
        plateau.step(1.0)
    assert opt.param_groups[0]["lr"] == opt.base.param_groups[0]["lr"] == 0.025


@pytest.mark.parametrize("clip", [lambda p: clip_grad_norm_(p, 0.3), lambda p: clip_grad_value_(p, 0.1)])
def test_clipped_gradients_are_those_that_are_used(clip):
    ours, hand = three(), three()
    opt, base = ProxOptimizer(BASES["Adam"](ours), L1(0.1)), BASES["Adam"](hand)
    for k in range(5):
        for params in (ours, hand):
            give_gradients(params, k)
            clip(params)
        opt.step()
        by_hand(base, L1(0.1))
    for p, q in zip(ours, hand, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_functional_training_has_the_gradients_of_the_module():
    """torch.func: the penalty of a dict of parameters, in a loss that is differentiated as a function."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x, y = matrix(5, (8, 4)).detach(), matrix(6, (8, 1)).detach()
    penalty, names = Group(L1(0.1), by=rows), list(weights(net))

    def loss(params: dict[str, torch.Tensor]) -> torch.Tensor:
        data = (functional_call(net, params, (x,)) - y).square().mean()
        return data + penalty({name: params[name] for name in names})

    params = {name: p.detach() for name, p in net.named_parameters()}
    found = grad(loss)(params)
    ((net(x) - y).square().mean() + penalty(net)).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-12, atol=1e-14)
    stacked = {name: torch.stack([p, 2 * p]) for name, p in params.items()}  # an ensemble of two
    each = torch.func.vmap(grad(loss))(stacked)
    for name, g in each.items():
        torch.testing.assert_close(g[0], found[name], rtol=1e-12, atol=1e-14)
