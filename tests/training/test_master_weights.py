"""Half-precision parameters with float32 masters: the rounding of the float32 run, whose small steps add up."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from optimizer_catalog import L1_ALPHA, every_recipe, least_squares, same, values
from test_checkpoints import equal_states
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from torchreg import L1, MCP, Group, ProxOptimizer, attach, columns, rows, sparsity

HALVES = [torch.bfloat16, torch.float16]
LAYOUTS = [{"foreach": False}, {"foreach": True}, {"fused": True}]
PENALTIES = [L1(0.05), MCP(0.05, 30.0), Group(L1(0.05), by=rows)]


def pair(dtype: torch.dtype) -> tuple[list[Parameter], list[Parameter]]:
    """The same numbers in half precision and in float32; the last is float32 in both."""
    draw = torch.Generator().manual_seed(0)
    half = [torch.randn(shape, generator=draw).to(dtype) for shape in ((4, 3), (5, 2), (3,))]
    half.append(torch.randn(2, 2, generator=draw))
    return [Parameter(x) for x in half], [Parameter(x.float().clone()) for x in half]


def give(params: list[Parameter], seed: int, dtype: torch.dtype) -> None:
    """Gradients that half precision holds exactly."""
    draw = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=draw).to(dtype).to(p.dtype)


def rounded(full: list[Parameter], like: list[Parameter]) -> list[torch.Tensor]:
    return [x.detach().to(p.dtype) for x, p in zip(full, like, strict=True)]


def states_equal(opt: ProxOptimizer, reference: ProxOptimizer) -> bool:
    state = copy.deepcopy(opt.base.state_dict())
    for entry in state["state"].values():
        entry.pop("master", None)
    state["state"] = {k: state["state"][k] for k in sorted(state["state"]) if state["state"][k]}  # SGD's may be empty
    return equal_states(state, reference.base.state_dict())


@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize("dtype", HALVES)
@every_recipe
def test_parameters_are_the_rounding_of_the_float32_run(recipe, dtype, closure):
    half, full = pair(dtype)
    opt = ProxOptimizer(recipe.make(half), L1(0.05), masters=True)
    reference = ProxOptimizer(recipe.make(full), L1(0.05))
    for k in range(8):
        give(full, k, dtype)
        reference.step()

        def gradients(k: int = k) -> float:
            opt.zero_grad()
            assert all(p.grad is None for p in half)
            assert all(held is p for held, p in zip(opt.param_groups[0]["params"], half, strict=True))
            give(half, k, dtype)
            return 0.5

        if closure:
            assert opt.step(gradients) == 0.5
        else:
            gradients()
            opt.step()
        assert same(rounded(full, half), half)
        assert all(p.grad.dtype is p.dtype for p in half)
    assert states_equal(opt, reference)
    assert any(bool((p == 0).any()) for p in half) == any(bool((p == 0).any()) for p in full)


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_and_penalty(layout, penalty):
    half, full = pair(torch.bfloat16)
    opt = ProxOptimizer(AdamW(half, lr=0.02, **layout), penalty, masters=True)
    reference = ProxOptimizer(AdamW(full, lr=0.02, **layout), penalty)
    for k in range(8):
        for params, step in ((half, opt.step), (full, reference.step)):
            give(params, k, torch.bfloat16)
            step()
    assert same(rounded(full, half), half)
    assert states_equal(opt, reference)


def test_steps_below_half_the_distance_to_the_next_number_add_up_to_zero():
    step = 2.0**-10  # neighbours of 1 in bfloat16 are 2^-8 and 2^-7 away
    with pytest.warns(UserWarning, match=r"masters=True"):
        stuck = ProxOptimizer(SGD([Parameter(torch.ones(2, 2, dtype=torch.bfloat16))], lr=step), L1(1.0))
    moving = ProxOptimizer(SGD([Parameter(torch.ones(2, 2, dtype=torch.bfloat16))], lr=step), L1(1.0), masters=True)
    for k in range(1, 1025):
        for opt in (stuck, moving):
            (p,) = opt.param_groups[0]["params"]
            p.grad = torch.zeros_like(p)
            opt.step()
        assert torch.equal(p, torch.full((2, 2), 1.0 - k * step).bfloat16())
        assert bool((p == 0).all()) == (k == 1024)
    assert torch.equal(stuck.param_groups[0]["params"][0], torch.ones(2, 2, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", HALVES)
def test_the_lasso_is_found_to_the_precision_of_its_weights(dtype):
    problem = least_squares(0.4)
    solution = problem.elastic_net(L1_ALPHA, 0.0)
    w = Parameter(torch.zeros(len(solution), dtype=dtype))
    opt = ProxOptimizer(Adam([w], lr=0.05), attach(L1(L1_ALPHA), {"w": w}), masters=True)
    decay = CosineAnnealingLR(opt, 1500)
    for _ in range(1500):
        w.grad = problem.gradient(w.detach().double()).to(dtype)
        opt.step()
        decay.step()
    assert torch.equal(w == 0, solution == 0)
    # each gradient is that of the rounded weights; the minimum is flat by the least curvature, about 0.15
    eps = torch.finfo(dtype).eps
    assert float((w.detach() - solution).abs().max()) < 8 * eps * float(solution.abs().max())


def test_entries_that_others_change_start_anew_and_the_rest_goes_on():
    half, full = pair(torch.bfloat16)
    opts = [ProxOptimizer(Adam(half, lr=1e-3), L1(0.05), masters=True), ProxOptimizer(Adam(full, lr=1e-3), L1(0.05))]
    for k in range(6):
        for params, opt in zip((half, full), opts, strict=True):
            give(params, k, torch.bfloat16)
            opt.step()
        if k == 2:
            with torch.no_grad():
                for params in (half, full):
                    params[0][1] = 0.25
    assert same(rounded(full, half), half)


def reloaded(how: str, half: list[Parameter], opt: ProxOptimizer) -> tuple[list[Parameter], ProxOptimizer]:
    if how == "state_dict":
        fresh = [Parameter(p.detach().clone()) for p in half]
        new = ProxOptimizer(Adam(fresh, lr=1e-3), L1(0.05), masters=True)
        new.load_state_dict(copy.deepcopy(opt.state_dict()))
        return fresh, new
    new = copy.deepcopy(opt) if how == "deepcopy" else pickle.loads(pickle.dumps(opt))
    return new.param_groups[0]["params"], new


@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_a_copy_goes_on_bit_for_bit(how):
    half, full = pair(torch.bfloat16)
    opt, reference = ProxOptimizer(Adam(half, lr=1e-3), L1(0.05), masters=True), ProxOptimizer(Adam(full), L1(0.05))
    for k in range(8):
        if k == 4:
            half, opt = reloaded(how, half, opt)
            assert all(opt.state[p]["exp_avg"].dtype is torch.float32 for p in half)
        for params, o in ((half, opt), (full, reference)):
            give(params, k, torch.bfloat16)
            o.step()
    assert same(rounded(full, half), half)
    assert states_equal(opt, reference)


def test_checkpoints_without_masters_and_with_them_load_each_other():
    half, bare = pair(torch.bfloat16)[0], pair(torch.bfloat16)[0]
    opt, base = ProxOptimizer(Adam(half), L1(0.05), masters=True), Adam(bare)
    for params, o in ((half, opt), (bare, base)):
        give(params, 0, torch.bfloat16)
        o.step()
    saved = [copy.deepcopy(o.state_dict()) for o in (base, opt.base)]
    opt.load_state_dict(saved[0])
    base.load_state_dict(saved[1])
    for params, o in ((half, opt), (bare, base)):
        give(params, 1, torch.bfloat16)
        o.step()
        assert all(bool(p.isfinite().all()) for p in params)
    assert opt.state[half[0]]["exp_avg"].dtype is torch.float32
    torch.testing.assert_close(opt.state[half[0]]["master"].bfloat16(), half[0].detach(), rtol=0.0, atol=0.0)


def test_what_stands_between_steps_are_the_parameters_themselves():
    half, _ = pair(torch.bfloat16)
    opt = ProxOptimizer(AdamW(half, lr=0.1), L1(0.05), masters=True)

    def failing() -> None:
        raise OSError("the data are gone")

    for k in range(3):
        give(half, k, torch.bfloat16)
        clip_grad_norm_(half, 1e-3)
        before = values(half)
        with pytest.raises(OSError, match="gone"):
            opt.step(failing)
        assert same(before, half)
        opt.step()
        assert all(held is p for held, p in zip(opt.param_groups[0]["params"], half, strict=True))
        assert set(opt.state) == set(half)


def test_a_parameter_without_a_gradient_is_neither_stepped_nor_given_a_state():
    half, _ = pair(torch.float16)
    opt = ProxOptimizer(Adam(half, lr=0.1), L1(0.05), masters=True)
    give(half[:1], 0, torch.float16)
    before = values(half[1:])
    opt.step()
    assert same(before, half[1:])
    assert set(opt.state) == {half[0]}


def test_frozen_parameters_are_not_copied():
    half, _ = pair(torch.bfloat16)
    half[1].requires_grad_(False)
    opt = ProxOptimizer(Adam(half, lr=0.1), attach(L1(0.05), {"w": half[0]}), masters=True)
    seen = []
    opt.base.register_step_pre_hook(lambda o, *_: seen.extend(p.dtype for p in o.param_groups[0]["params"]))
    give([half[0], *half[2:]], 0, torch.bfloat16)
    opt.step()
    assert seen == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert opt.state[half[0]]["exp_avg"].dtype is torch.float32


def test_group_penalties_count_on_the_rounded_weights():
    w = Parameter(torch.ones(8, 8, dtype=torch.bfloat16))
    term = attach(Group(L1(1.0), by=columns), {"w": w})
    opt = ProxOptimizer(SGD([w], lr=2.0**-9), term, masters=True)
    steps = 0
    while sparsity(term).zeros < 64:
        w.grad = torch.zeros_like(w)
        opt.step()
        steps += 1
        assert steps < 600
    # a column of norm sqrt(8) falls by 2^-9 sqrt(8) a step: 512 of them, one more where float32 rounds up
    assert math.isclose(steps, 512, abs_tol=1)
