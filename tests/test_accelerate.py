"""Accelerate trains as the plain loop does, bit for bit: accumulation, clipping, bf16, checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from optimizers import same
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

from torchreg import L1, Group, PenaltyScheduler, ProxOptimizer, attach, columns, schedules, sparsity

accelerate = pytest.importorskip("accelerate")
BATCHES, EACH = 12, 8


@pytest.fixture(autouse=True)
def fresh():
    """Accelerate keeps its settings in singletons."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(EACH, 6, generator=draw), torch.randn(EACH, 2, generator=draw)) for _ in range(BATCHES)]


def made(model: nn.Module, make):
    term = attach(Group(L1(0.0), by=columns), model)
    opt = ProxOptimizer(make(model.parameters()), term)
    return term, opt, PenaltyScheduler(term, schedules.linear(0.0, 0.3, steps=6)), StepLR(opt, 4, 0.5)


MAKES = {"AdamW": lambda p: AdamW(p, lr=0.05, weight_decay=0.0), "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9)}


def plain(make, every: int, clip: float | None, autocast: bool):
    model = net()
    term, opt, ramp, decay = made(model, make)
    for k, (x, y) in enumerate(batches()):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = model(x)
        ((out.float() - y).square().mean() / every).backward()
        if k % every == every - 1:
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            opt.step()
            decay.step()
            opt.zero_grad()
    return list(model.parameters()), term, ramp


def accelerated(make, every: int, clip: float | None, autocast: bool):
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=every, mixed_precision="bf16" if autocast else "no"
    )
    model = net()
    term, opt, ramp, decay = made(model, make)
    model, opt, decay = accelerator.prepare(model, opt, decay)
    for x, y in batches():
        with accelerator.accumulate(model):
            accelerator.backward((model(x).float() - y).square().mean())
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            opt.step()
            decay.step()
            opt.zero_grad()
    assert opt.optimizer.terms == [term]
    return list(model.parameters()), term, ramp


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("clip", [None, 0.1], ids=["", "clipped"])
@pytest.mark.parametrize("every", [1, 3], ids=["", "accumulated"])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_the_weights_are_those_of_the_plain_loop(make, every, clip, autocast):
    wanted, lone, count = plain(make, every, clip, autocast)
    found, term, ramp = accelerated(make, every, clip, autocast)
    assert same(wanted, found)
    assert ramp.count == count.count == BATCHES // every
    assert term.alpha == lone.alpha > 0
    assert sparsity(term) == sparsity(lone)


def test_a_saved_run_goes_on_bit_for_bit(tmp_path):
    def run(start: int, stop: int, load: bool, save: bool):
        accelerator = accelerate.Accelerator(cpu=True)
        model = net()
        term, opt, ramp, decay = made(model, MAKES["AdamW"])
        model, opt, decay = accelerator.prepare(model, opt, decay)
        if load:
            accelerator.load_state(str(tmp_path / "state"))
        assert ramp.count == start
        for x, y in batches()[start:stop]:
            accelerator.backward((model(x) - y).square().mean())
            opt.step()
            decay.step()
            opt.zero_grad()
        if save:
            accelerator.save_state(str(tmp_path / "state"))
        return copy.deepcopy([p.detach() for p in model.parameters()]), term

    whole, term = run(0, BATCHES, load=False, save=False)
    run(0, 5, load=False, save=True)
    resumed, again = run(5, BATCHES, load=True, save=False)
    assert same(whole, resumed)
    assert term.alpha == again.alpha
    assert sparsity(again).zeros > 0
