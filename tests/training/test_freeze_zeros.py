"""freeze_zeros and thaw: masked training without shrinkage, against the loop that multiplies by a mask."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from optimizer_catalog import give_gradients, matrix, same, values
from test_checkpoints import through_disk
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, RMSprop

from torchreg import (
    L1,
    Group,
    PenaltyScheduler,
    ProxOptimizer,
    attach,
    attach_to,
    freeze_zeros,
    rows,
    schedules,
    sparsity,
    thaw,
)

BASES = {
    "AdamW": lambda p: AdamW(p, lr=0.05, weight_decay=0.1),
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "plain SGD": lambda p: SGD(p, lr=0.05),
    "RMSprop": lambda p: RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}
MOMENTA = ("exp_avg", "momentum_buffer", "grad_avg")
each_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES)
each_penalty = pytest.mark.parametrize("penalty", [L1(0.3), Group(L1(0.3), by=rows)], ids=["L1", "rows"])


def sparse(seed: int = 0, dtype=torch.float64) -> list[Parameter]:
    params = [matrix(seed, (6, 4), dtype), matrix(seed + 1, (3, 5), dtype)]
    with torch.no_grad():
        params[0][::2] = 0.0
        params[1][:, 1] = 0.0
    return params


def run(params: list[Parameter], opt, steps) -> None:
    for k in steps:
        give_gradients(params, k)
        opt.step()


def masked(params: list[Parameter], base, steps, masks: list[Tensor]) -> None:
    """The plain loop: a step, then weights and momenta times the mask."""
    for k in steps:
        run(params, base, [k])
        with torch.no_grad():
            for p, m in zip(params, masks, strict=True):
                p.mul_(m)
                for name in MOMENTA:
                    if isinstance(base.state.get(p, {}).get(name), Tensor):
                        base.state[p][name].mul_(m)


@pytest.mark.parametrize("closure", [False, True], ids=["", "closure"])
@pytest.mark.parametrize("hook", [False, True], ids=["wrapped", "attached"])
@each_penalty
@each_base
def test_it_is_the_loop_that_multiplies_by_a_mask_from_the_first_step_on(make, penalty, hook, closure):
    params, plain = sparse(), sparse()
    masks = [p != 0 for p in params]
    base = make(params)
    term = attach(penalty, params)
    opt = attach_to(base, term).base if hook else ProxOptimizer(base, term)
    freeze_zeros(term)
    for k in range(6):
        if closure:
            opt.step(lambda k=k: give_gradients(params, k))
        else:
            run(params, opt, [k])
    masked(plain, make(plain), range(6), masks)
    assert same(params, plain)
    assert all(torch.equal(p == 0, ~m) for p, m in zip(params, masks, strict=True))


@each_base
def test_zeros_of_now_are_those_that_the_penalty_has_made(make):
    params = [matrix(0, (6, 4)), matrix(1, (3, 5))]
    with torch.no_grad():
        params[0][1:3] *= 100.0  # which no step reaches
    opt = ProxOptimizer(make(params), term := attach(L1(2.0), params))
    run(params, opt, range(8))
    masks = [p != 0 for p in params]
    assert 0 < sum(int((~m).sum()) for m in masks) < 39
    plain = [Parameter(p.detach().clone()) for p in params]
    base = make(plain)
    base.load_state_dict({k: v for k, v in copy.deepcopy(opt.state_dict()).items() if k != "torchreg"})
    freeze_zeros(term)
    assert term.frozen
    run(params, opt, range(8, 14))
    masked(plain, base, range(8, 14), masks)
    assert same(params, plain)
    freeze_zeros(term)  # a second time changes nothing
    thaw(term)
    assert not term.frozen
    assert all("support" not in state for state in opt.state.values())
    run(params, opt, range(14, 17))
    run(plain, ProxOptimizer(base, attach(L1(2.0), plain)), range(14, 17))
    assert same(params, plain)  # the penalty acts again


@pytest.mark.parametrize("at", [0, 1, 4])
@each_base
def test_it_travels_with_a_checkpoint_and_goes_on_to_the_bit(make, at):
    params = sparse(dtype=torch.float32)
    opt = ProxOptimizer(make(params), term := attach(L1(0.3), params))
    freeze_zeros(term)
    run(params, opt, range(at))
    saved, kept = through_disk(opt.state_dict()), values(params)
    copies = [copy.deepcopy((params, opt)), pickle.loads(pickle.dumps((params, opt)))]
    run(params, opt, range(at, 7))
    other = sparse(5, torch.float32)
    again = ProxOptimizer(make(other), attach(L1(0.3), other))
    again.load_state_dict(saved)
    with torch.no_grad():
        for p, w in zip(other, kept, strict=True):
            p.copy_(w)
    for tensors, its in [(other, again), *copies]:
        assert its.terms[0].frozen
        run(tensors, its, range(at, 7))
        assert same(params, tensors)
    thaw(term)
    again.load_state_dict(through_disk(opt.state_dict()))
    assert not again.terms[0].frozen


def test_a_load_that_fails_leaves_it_as_it_was():
    params = sparse()
    opt = ProxOptimizer(Adam(params), term := attach(L1(0.3), params))
    run(params, opt, range(2))
    saved = through_disk(opt.state_dict())
    freeze_zeros(term)
    hook = opt.register_load_state_dict_post_hook(lambda opt: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        opt.load_state_dict(saved)
    assert term.frozen
    hook.remove()
    opt.load_state_dict(saved)
    assert not term.frozen


def test_an_optimizer_saved_without_torchreg_goes_on_from_the_zeros_of_the_weights():
    params = sparse()
    opt = ProxOptimizer(Adam(params), term := attach(L1(0.3), params))
    freeze_zeros(term)
    run(params, opt, range(3))
    saved = copy.deepcopy(opt.state_dict())
    for state in saved["state"].values():
        del state["support"]  # as a distributed load leaves out what a fresh optimizer has not
    kept = values(params)
    opt.load_state_dict(saved)
    run(params, opt, range(3, 6))
    assert all(torch.equal(p == 0, w == 0) for p, w in zip(params, kept, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masters_hold_the_zeros_too(dtype):
    params = sparse(dtype=dtype)
    opt = ProxOptimizer(Adam(params, lr=1e-3), term := attach(L1(0.3), params), masters=True)
    masks = [p != 0 for p in params]
    freeze_zeros(term)
    run(params, opt, range(3))
    again = through_disk(opt.state_dict())
    run(params, opt, range(3, 6))
    for p, m in zip(params, masks, strict=True):
        assert torch.equal(p != 0, m)
        assert torch.equal(opt.state[p]["master"] != 0, m)
        assert not bool(opt.state[p]["exp_avg"][~m].any())
    opt.load_state_dict(again)
    assert all(state["support"].numel() for state in opt.state.values())


def test_a_gradient_of_nan_does_not_reach_a_zero():
    params = sparse()
    opt = ProxOptimizer(Adam(params), term := attach(L1(0.3), params))
    freeze_zeros(term)
    give_gradients(params, 0)
    params[0].grad[0, 0] = torch.nan
    opt.step()
    assert not any(bool(p.isnan().any()) for p in params)
    assert not bool(opt.state[params[0]]["exp_avg"].isnan().any())


def test_a_scheduler_goes_on_and_the_strength_acts_again_after_the_thaw():
    params = sparse()
    opt = ProxOptimizer(SGD(params, lr=1.0), term := attach(L1(0.0), params))
    ramp = PenaltyScheduler(term, schedules.linear(0.0, 1e3, 4))
    freeze_zeros(term)
    run(params, opt, range(3))
    assert ramp.count == 3
    assert sparsity(term).zeros == 15
    thaw(term)
    run(params, opt, range(3, 4))
    assert sparsity(term).zeros == 39


def test_debiasing_finds_the_least_squares_fit_on_the_support_of_the_lasso():
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(60, 12, generator=draw, dtype=torch.float64)
    truth = torch.zeros(12, dtype=torch.float64)
    truth[:4] = torch.tensor([2.0, -1.0, 1.5, 3.0])
    y = X @ truth + 0.1 * torch.randn(60, generator=draw, dtype=torch.float64)
    w = Parameter(torch.zeros(12, dtype=torch.float64))
    opt = ProxOptimizer(SGD([w], lr=0.2), term := attach(L1(0.2), {"w": w}))

    def train(steps: int) -> None:
        for _ in range(steps):
            opt.zero_grad()
            ((X @ w - y).square().mean() / 2).backward()
            opt.step()

    train(300)
    support = w.detach() != 0
    assert 4 <= int(support.sum()) < 12
    freeze_zeros(term)
    train(600)
    fit = torch.linalg.lstsq(X[:, support], y[:, None]).solution[:, 0]
    torch.testing.assert_close(w.detach()[support], fit, rtol=1e-8, atol=1e-10)
    assert torch.equal(w != 0, support)


def test_what_is_no_term_or_has_no_optimizer_is_refused():
    p = matrix(0)
    for function in (freeze_zeros, thaw):
        with pytest.raises(TypeError, match="takes a term, got Parameter"):
            function(p)
        with pytest.raises(ValueError, match="ProxOptimizer"):
            function(attach(L1(0.1), {"p": p}))
