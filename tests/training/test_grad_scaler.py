"""GradScaler with plain, foreach and fused bases: right gradients, skipped steps that change nothing, no new wait."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from optimizer_catalog import give_gradients, matrix, same, values
from test_checkpoints import equal_states
from torch.amp import GradScaler
from torch.optim import SGD, Adagrad, Adam, AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from torchreg import L0, L1, MCP, Group, NonNegative, PenaltyScheduler, ProxOptimizer, attach, rows, schedules

LAYOUTS = {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
BASES = {
    "SGD": lambda p, **layout: SGD(p, lr=0.1, momentum=0.9, **layout),
    "SGD without momentum": lambda p, **layout: SGD(p, lr=0.1, **layout),
    "Adam": lambda p, **layout: Adam(p, lr=0.01, **layout),
    "AdamW": lambda p, **layout: AdamW(p, lr=0.01, **layout),
    "Adagrad": lambda p, **layout: Adagrad(p, lr=0.01, **layout),
}
PENALTIES = [L1(0.1), NonNegative(L1(0.1)), L0(0.01), MCP(0.1, 3.0), Group(L1(0.1), by=rows)]
SCALE = 2.0**10  # a power of two: scaling and unscaling lose nothing

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())


def three() -> list[torch.nn.Parameter]:
    return [matrix(1, dtype=torch.float32), matrix(2, (5, 3), torch.float32), matrix(3, (3, 2), torch.float32)]


def scaler() -> GradScaler:
    return GradScaler("cpu", init_scale=SCALE, growth_interval=10**6)


def scaled_step(opt, scale: GradScaler, params, seed: int, *, unscale=False, bad=math.nan) -> None:
    give_gradients(params, seed)
    for p in params:
        p.grad *= scale.get_scale()
    if not math.isnan(bad):
        params[-1].grad.view(-1)[1] = bad
    scale.scale(torch.ones(()))  # makes the scaler's tensors, as scaling the loss does
    if unscale:
        scale.unscale_(opt)
    scale.step(opt)
    scale.update()


@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscaled before, as to clip"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@every_layout
@every_base
def test_a_scaled_run_is_the_run_without_a_scaler(make, layout, penalty, unscale):
    plain, scaled = three(), three()
    opts = [ProxOptimizer(make(p, **LAYOUTS[layout]), penalty) for p in (plain, scaled)]
    scale = scaler()
    for k in range(6):
        give_gradients(plain, k)
        opts[0].step()
        scaled_step(opts[1], scale, scaled, k, unscale=unscale)
    assert same(plain, scaled)
    assert equal_states(opts[0].state_dict(), opts[1].state_dict())


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("first", [0, 3], ids=["at the first step", "later"])
@every_layout
@every_base
def test_an_inf_skips_step_and_prox_and_halves_the_scale(make, layout, first, penalty):
    if (make, layout, first) == (BASES["SGD"], "fused", 0):
        pytest.skip("torch's fused SGD leaves its momentum uninitialised when its first step is skipped")
    plain, scaled = three(), three()
    opts = [ProxOptimizer(make(p, **LAYOUTS[layout]), penalty) for p in (plain, scaled)]
    scale = scaler()
    for k in range(6):
        if k == first:
            before = values(scaled)
            scaled_step(opts[1], scale, scaled, k, bad=math.inf)
            assert same(before, scaled)
            assert scale.get_scale() == SCALE / 2
        give_gradients(plain, k)
        opts[0].step()
        scaled_step(opts[1], scale, scaled, k)
    assert same(plain, scaled)
    assert not hasattr(opts[1], "found_inf")
    assert not hasattr(opts[1].base, "grad_scale")


class Waits(TorchDispatchMode):
    """Counts the reads of a tensor by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


@every_layout
@every_base
def test_the_scaler_waits_for_the_device_no_more_often_than_with_the_bare_base(make, layout):
    def waits(wrap) -> int:
        params, scale = three(), scaler()
        opt = wrap(make(params, **LAYOUTS[layout]))
        scaled_step(opt, scale, params, 0)
        give_gradients(params, 1)
        with Waits() as seen:
            scale.step(opt)
        scale.update()
        return seen.count

    assert waits(lambda base: ProxOptimizer(base, L1(0.1))) == waits(lambda base: base)


def test_a_skip_on_the_host_does_not_count_for_a_schedule_and_one_on_the_device_does():
    for layout, skips_count in (("plain", False), ("foreach", False), ("fused", True)):
        params, scale = three(), scaler()
        term = attach(L1(0.0), params)
        opt = ProxOptimizer(Adam(params, **LAYOUTS[layout]), term)
        ramp, made = PenaltyScheduler(term, schedules.linear(0.0, 1.0, steps=10)), 0
        for k in range(6):
            bad = k in (0, 3)
            scaled_step(opt, scale, params, k, bad=math.inf if bad else math.nan)
            ramp.step()
            made += skips_count or not bad
            assert ramp.count == made


def test_skip_nonfinite_and_the_scaler_agree_on_a_fused_base():
    params, scale = three(), scaler()
    opt = ProxOptimizer(AdamW(params, fused=True), L1(0.1), skip_nonfinite=True)
    scaled_step(opt, scale, params, 0)
    before, state = values(params), copy.deepcopy(opt.state_dict())
    with pytest.warns(UserWarning, match="A step was skipped"):
        scaled_step(opt, scale, params, 1, bad=math.inf)
    assert same(before, params)
    assert equal_states(state, opt.state_dict())
    assert (opt.skipped.steps, scale.get_scale()) == (1, SCALE / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_a_penalty_is_that_of_the_float32_weights(dtype):
    model = torch.nn.Linear(64, 64)
    term, x = attach(L1(0.1), model), torch.randn(8, 64)
    with torch.autocast("cpu", dtype=dtype):
        loss = model(x).float().square().mean()
        value, direct = term(), L1(0.1)(model)
    assert value.dtype is direct.dtype is torch.float32
    assert torch.equal(value, L1(0.1).value(model.weight.detach()))
    (gradient,) = torch.autograd.grad(value, model.weight)
    assert torch.equal(gradient, 0.1 * model.weight.detach().sign())
    (loss + direct).backward()
    assert model.weight.grad.dtype is torch.float32
