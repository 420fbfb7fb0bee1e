"""Who is told that zeros were undone: those whose zeros are undone step after step, and nobody else."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD

from torchreg import L1, ProxOptimizer, attach


def made() -> tuple[nn.Linear, ProxOptimizer]:
    torch.manual_seed(0)
    net = nn.Linear(20, 10)
    return net, ProxOptimizer(SGD(net.parameters(), lr=0.1), attach(L1(10.0), net))


def train(net, opt, between, steps: int = 12) -> list[str]:
    """What is told while someone else does something between steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k in range(steps):
            for p in net.parameters():
                p.grad = torch.zeros_like(p)
            opt.step()
            with torch.no_grad():
                between(net, k)
    return [str(w.message) for w in caught if "no longer zero" in str(w.message)]


def shrink(net, k: int) -> None:
    if k in (5, 8):
        net.weight.data = net.weight.data[:, : net.weight.shape[1] // 3].clone()
    net.weight.add_(0.0)  # a write that undoes nothing


def reload(start):
    def between(net, k: int) -> None:
        net.weight.mul_(1.0)
        if k == 6:
            net.load_state_dict(start)

    return between


def test_a_parameter_that_was_shrunk_accuses_nobody():
    net, opt = made()
    assert train(net, opt, shrink) == []


def test_weights_that_were_loaded_once_accuse_nobody():
    net, opt = made()
    assert train(net, opt, reload(copy.deepcopy(net.state_dict()))) == []
    assert bool((net.weight == 0).all())


def test_who_writes_at_every_step_is_told_of_once():
    net, opt = made()
    assert len(train(net, opt, lambda net, k: net.weight.add_(1e-3))) == 1


@pytest.mark.parametrize("every", [1, 4])
def test_who_writes_now_and_then_is_told_of_too(every):
    net, opt = made()
    assert len(train(net, opt, lambda net, k: net.weight.add_(1e-3) if k % every == 0 else None, steps=20)) == 1
