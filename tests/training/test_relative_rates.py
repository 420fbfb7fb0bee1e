"""Optimizers whose lr is not the step: Adafactor and Prodigy reach the lasso, others are refused as "decoupled"."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_catalog import Lion, least_squares, matrix
from torch.nn import Parameter
from torch.optim import SGD, Adafactor, Muon

from torchreg import L1, ProxOptimizer, attach, attach_to, effective_step

po = pytest.importorskip("pytorch_optimizer")
OfTransformers = pytest.importorskip("transformers.optimization").Adafactor
F64 = torch.float64
ALPHA = 0.1
MAKES = {
    "Adafactor": lambda p: Adafactor(p, lr=0.05),
    "transformers, scaled": lambda p: OfTransformers(p, lr=0.05, relative_step=False),
    "transformers": lambda p: OfTransformers(p, lr=0.05, relative_step=False, scale_parameter=False),
    "transformers, relative": lambda p: OfTransformers(p, lr=None),
    "Prodigy": po.Prodigy,
}
every_make = pytest.mark.parametrize("make", MAKES)


@pytest.mark.parametrize("shape", [(30,), (6, 5)], ids=["vector", "factored"])
@every_make
def test_the_lasso_is_scikit_learns(make, shape):
    problem = least_squares(0.4)
    oracle = problem.elastic_net(ALPHA, 0.0)
    p = Parameter(torch.zeros(shape, dtype=F64))
    opt = ProxOptimizer(MAKES[make]([p]), attach(L1(ALPHA), {"w": p}))
    top = opt.param_groups[0]["lr"]
    for k in range(3000):
        if top is not None:
            opt.param_groups[0]["lr"] = top * (1 + math.cos(math.pi * k / 3000)) / 2
        p.grad = problem.gradient(p.detach().reshape(-1)).reshape(shape)
        opt.step()
    w = p.detach().reshape(-1)
    gap = problem.loss(w) - problem.loss(oracle) + ALPHA * float(w.abs().sum() - oracle.abs().sum())
    assert gap < 1e-6  # Adafactor's scale is that of the weights before the step, which vanishes with lr
    assert torch.equal(w == 0, oracle == 0)


@pytest.mark.parametrize("shape", [(6,), (2, 3)], ids=["vector", "factored"])
@every_make
def test_the_effective_step_is_what_the_update_divides_by(make, shape):
    """At a constant gradient of rank one, whose factored second moment is exact."""
    p = Parameter(torch.ones(shape, dtype=F64))
    gradient = torch.tensor([3.0, -0.5, 0.01, -6.0, 1.0, -0.02], dtype=F64).reshape(shape)
    base = MAKES[make]([p])
    for _ in range(2000):
        base.param_groups[0]["lr"] = 1e-4 if make == "Adafactor" else base.param_groups[0]["lr"]
        p.data.fill_(1.0)
        p.grad = gradient.clone()
        base.step()
    moved = p.detach() - 1.0
    slack = {"Adafactor": 1e-3, "Prodigy": 0.1}.get(make, 1e-9)  # of weights after the step; 0.999^k of v is missing
    torch.testing.assert_close(moved, -effective_step(base)[p] * gradient, rtol=slack, atol=0.0)


@every_make
def test_rows_that_meet_no_gradient_are_not_erased(make):
    p = Parameter(torch.ones(3, 4, dtype=F64))
    opt = ProxOptimizer(MAKES[make]([p]), attach(L1(1e-5), {"w": p}))
    for _ in range(3):
        p.grad = torch.tensor([[0.0], [1.0], [0.0]], dtype=F64).expand(3, 4).clone()
        opt.step()
    torch.testing.assert_close(p.detach()[[0, 2]], torch.ones(2, 4, dtype=F64), rtol=1e-4, atol=0.0)


LEARNED = ["Prodigy", "DAdaptAdam", "DAdaptAdaGrad", "DAdaptSGD", "DAdaptLion", "DAdaptAdan"]


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_step_is_no_decoupled_one(name):
    p = matrix(1)
    base, term = getattr(po, name)([p]), attach(L1(0.1), {"w": p})
    for wrap in (ProxOptimizer, attach_to):
        with pytest.raises(ValueError, match=r"lr=1 .* learns it.*d=1e-06.*group\['d'\] \* group\['lr'\]"):
            wrap(base, term, metric="decoupled")
    assert term.owner is None
    before = p.detach().clone()
    opt = ProxOptimizer(base, term, metric=lambda group, state, p: group["d"] * group["lr"])  # the remedy
    p.grad = torch.ones_like(p)
    opt.step()
    torch.testing.assert_close(p.detach(), before, rtol=0.0, atol=1e-4)


def test_relative_steps_and_ratios_of_norms():
    p = matrix(1)
    for base in (OfTransformers([p], lr=None), po.AdaFactor([p])):
        with pytest.raises(ValueError, match=r"relative_step=True does not use it.*relative_step=False"):
            ProxOptimizer(base, L1(0.1), metric="decoupled")
    with pytest.raises(ValueError, match="metric='auto', which knows it"):
        ProxOptimizer(OfTransformers([p], lr=None), L1(0.1), metric="decoupled")
    with pytest.raises(ValueError, match=r"beta1=0\.9.*beta1=None"):
        ProxOptimizer(OfTransformers([p], lr=0.1, relative_step=False, beta1=0.9), L1(0.1))
    for name in ("Lamb", "LARS"):
        with pytest.warns(UserWarning, match=rf"{name} multiplies lr by a ratio of norms"):
            ProxOptimizer(getattr(po, name)([p]), L1(0.1), metric="decoupled")
    for base in (SGD([p], lr=0.1), Lion([p]), Muon([p]), Adafactor([p]), po.AdaFactor([p], relative_step=False)):
        ProxOptimizer(base, L1(0.1), metric="decoupled")
