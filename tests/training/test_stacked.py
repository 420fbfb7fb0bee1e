"""One optimizer over stacked parameters steps each as an optimizer of its own does."""

import pytest
import torch
from catalog import CATALOG
from torch.nn import Parameter
from torch.optim import SGD, Adam

from torchreg import ProxOptimizer, attach

STEPS, MODELS = 4, 3
FACTORS = (0.0, 0.5, 1.0)  # of the penalty's own strength


def draws(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(shape, step):
    """Of each model; where the first entry of the first model, and the last row of the last, have never met any."""
    found = [draws(shape, 100 * step + k) for k in range(MODELS)]
    found[0].reshape(-1)[:1] = 0.0
    found[-1][-1:] = 0.0
    return found


def optimizers(case, make):
    made = []
    for k, factor in enumerate(FACTORS):
        p = Parameter(draws(case.shape, k) / 2)
        penalty = case.make()
        at = penalty if penalty.several else penalty.with_alpha(factor * float(penalty.alpha))
        made.append((p, ProxOptimizer(make([p]), attach(at, {"p": p}))))
    return made


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1), lambda p: Adam(p, lr=0.1)], ids=["SGD", "Adam"])
@pytest.mark.parametrize("case", CATALOG, ids=lambda case: case.id)
def test_each_penalty_steps_every_model_as_it_is_stepped_alone(case, make):
    alone = optimizers(case, make)
    (_, first), *others = optimizers(case, make)
    stacked = first.stacked([optimizer for _, optimizer in others])
    (stack,) = stacked.stacks.values()
    for step in range(STEPS):
        found = gradients(case.shape, step)
        stack.grad = torch.stack(found)
        stacked.step()
        for (p, optimizer), grad in zip(alone, found, strict=True):
            p.grad = grad.clone()
            optimizer.step()
    for k, (p, _) in enumerate(alone):
        torch.testing.assert_close(stack[k].detach(), p.detach(), rtol=1e-7, atol=1e-9)
        assert torch.equal(stack[k] == 0, p == 0)
