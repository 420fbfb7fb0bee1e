"""TargetSparsity under what surrounds a step: closures, accumulation, scalers, masters, compilation, skipped steps."""

from __future__ import annotations

import math

import pytest
import torch
from fake_device import watch
from optimizer_catalog import give_gradients, matrix, same, values
from test_checkpoints import through_disk
from test_compiled_step import Counting
from test_grad_scaler import LAYOUTS, scaled_step, scaler
from torch.distributed.checkpoint import state_dict as dcp
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW

from torchreg import (
    L1,
    Group,
    ProxOptimizer,
    TargetSparsity,
    attach,
    attach_to,
    clip_grad_norm_,
    columns,
    sparsity,
)

STEPS = 20
METHODS = ["projection", "magnitude", "feedback"]
KINDS = {"L1": L1(0.0), "columns": Group(L1(0.0), by=columns)}
each_method = pytest.mark.parametrize("method", METHODS)


def two(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [matrix(1, (8, 6), dtype), matrix(2, (5, 8), dtype)]


def aimed(method, kind="L1", base=None, params=None, **options):
    params = two() if params is None else params
    base = Adam(params, lr=0.01) if base is None else base(params)
    opt = ProxOptimizer(base, term := attach(KINDS[kind], params), **options)
    return params, opt, targeted(term, method, kind)


def targeted(term, method: str, kind: str) -> TargetSparsity:
    """With shrinkage where there can be some."""
    options = {"every": 4} if method == "feedback" else {"shrinkage": 0.5 * (kind == "L1" and method == "projection")}
    return TargetSparsity(term, 0.8, steps=STEPS, method=method, **options)


def run(params, opt, steps=range(STEPS)) -> None:
    for k in steps:
        give_gradients(params, k)
        opt.step()


@pytest.mark.parametrize("how", ["closure", "attached", "accumulated", "foreach off"])
@pytest.mark.parametrize("kind", ["L1", "columns"])
@each_method
def test_however_a_step_is_made_it_is_the_same(method, kind, how):
    params, opt, target = aimed(method, kind)
    run(params, opt)
    others = two()
    base = Adam(others, lr=0.01)
    term = attach(KINDS[kind], others)
    foreach = False if how == "foreach off" else None
    its = attach_to(base, term).base if how == "attached" else ProxOptimizer(base, term, foreach=foreach)
    its.target = targeted(term, method, kind)
    for k in range(STEPS):
        if how == "closure":
            assert its.step(lambda k=k: give_gradients(others, k) or 7.0) == 7.0
            continue
        give_gradients(others, k)
        if how == "accumulated":
            halves = [p.grad / 2.0 for p in others]
            for p, half in zip(others, halves, strict=True):
                p.grad = half + half
        its.step()
    if how == "foreach off":  # the metric's roots are rounded otherwise one by one
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p, q)
            assert torch.equal(p == 0, q == 0)
    else:
        assert same(params, others)
        assert its.target.history == target.history
    assert its.target.phase == "frozen"


@pytest.mark.parametrize("layout", LAYOUTS)
@each_method
def test_a_scaler_changes_nothing_and_a_step_that_it_skips_does_not_count(method, layout):
    params, opt, target = aimed(method, base=lambda p: Adam(p, lr=0.01, **LAYOUTS[layout]))
    plain, other, _ = aimed(method, base=lambda p: Adam(p, lr=0.01, **LAYOUTS[layout]))
    scale = scaler()
    for k in range(STEPS):
        if k in (1, 9) and layout != "fused":
            before = values(params), target.count
            scaled_step(opt, scale, params, k, bad=math.inf)
            assert same(before[0], params)
            assert target.count == before[1]
        scaled_step(opt, scale, params, k)
        run(plain, other, [k])
    assert same(params, plain)


@pytest.mark.parametrize("at", [0, 1, 2, 6, 12, 15, 16, 18])
@each_method
def test_where_a_fused_base_skips_the_count_goes_on_and_stays_exact(method, at):
    params, opt, target = aimed(method, base=lambda p: Adam(p, lr=0.01, fused=True))
    scale = scaler()
    for k in range(STEPS):
        before = values(params)
        scaled_step(opt, scale, params, k, bad=math.inf if k == at else math.nan)
        assert all(bool(p.isfinite().all()) for p in params)
        if k == at:  # what is kept has not moved
            assert all(bool(((p == w) | (p == 0) | (w == 0)).all()) for p, w in zip(params, before, strict=True))
        if k >= 16 or (k >= 12 and method != "feedback"):
            assert sparsity(opt.terms[0]).zeros == 71
    assert target.count == STEPS


def test_nothing_waits_for_the_device(accelerator):
    for method in METHODS:
        params = [Parameter(p.detach().to(accelerator)) for p in two()]
        params, opt, _ = aimed(method, params=params)
        for k in range(STEPS):
            for p, like in zip(params, two(), strict=True):
                give_gradients([like], k)
                p.grad = like.grad.to(accelerator)
            with watch(allow_waits=k == 0):  # the first makes the state
                opt.step()


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float16, "L1"), (torch.bfloat16, "columns")])
@each_method
def test_masters_are_aimed_at_and_parameters_are_their_rounding(method, kind, dtype):
    half, full = two(dtype), [Parameter(p.detach().float()) for p in two(dtype)]
    params, opt, _ = aimed(method, kind, params=half, masters=True)
    plain, other, _ = aimed(method, kind, params=full)
    for k in range(STEPS):
        if k == 11:
            saved = through_disk(opt.state_dict())
            opt.load_state_dict(saved)
        give_gradients(half, k)
        for p, q in zip(half, full, strict=True):
            q.grad = p.grad.float()
        opt.step()
        other.step()
    for p, q in zip(params, plain, strict=True):
        assert torch.equal(p, q.to(dtype))
        assert torch.equal(opt.state[p]["master"], q)


@pytest.mark.filterwarnings("ignore:.*a step below half the distance")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@each_method
def test_every_dtype_has_the_exact_count(method, dtype):
    params, opt, _ = aimed(method, params=two(dtype))
    run(params, opt)
    assert sparsity(opt.terms[0]).zeros == 71


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("method", "kind"), [("projection", "L1"), ("projection", "columns"), ("magnitude", "L1"), ("feedback", "L1")]
)
def test_a_compiled_step_is_compiled_anew_only_where_the_phase_changes(method, kind):
    plain, other, _ = aimed(method, kind, base=lambda p: AdamW(p, lr=torch.tensor(0.01)))
    params, opt, target = aimed(method, kind, base=lambda p: AdamW(p, lr=torch.tensor(0.01)))
    torch._dynamo.reset()
    seen = Counting()
    step = torch.compile(opt.step, backend=seen)
    compiled = []
    for k in range(STEPS):
        run(plain, other, [k])
        give_gradients(params, k)
        step()
        target.step()
        target.step()  # as often as one likes
        assert target.count == k + 1
        compiled.append(seen.compiled)
    changes = [k for k in range(2, STEPS) if compiled[k] > compiled[k - 1]]
    shrunk = {12, 13} if (method, kind) == ("projection", "L1") else set()  # up to the ramp's end
    assert len(changes) <= 3 + bool(shrunk)
    assert set(changes) <= {2, 3, 15, 16} | shrunk
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
        assert torch.equal(p == 0, q == 0)


def test_a_captured_step_keeps_as_many_as_a_tensor_says_and_other_methods_are_refused(monkeypatch):
    plain, other, _ = aimed("projection")
    params, opt, target = aimed("projection")
    run(params, opt, range(5))
    run(plain, other, range(5))
    for name in ("step_count", "pruning"):
        monkeypatch.setattr(f"torchreg.training.{name}.is_capturing", lambda: True)
    for k in range(5, 12):
        run(params, opt, [k])  # as a replay finds it: the count moves by step alone
        assert target.count == k
        target.step()
    monkeypatch.undo()
    run(plain, other, range(5, 12))
    assert same(params, plain)
    aims = [aimed(method) for method in ("magnitude", "feedback")]
    monkeypatch.setattr("torchreg.training.pruning.is_capturing", lambda: True)
    for params, opt, _ in aims:
        with pytest.raises(RuntimeError, match="capture anew"):
            run(params, opt, [0])


def test_the_dummy_step_of_a_distributed_checkpoint_makes_the_state_and_moves_nothing():
    for method in METHODS:
        for base in (lambda p: Adam(p, lr=0.01), lambda p: SGD(p, lr=0.01, momentum=0.9)):
            model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 5))
            opt = ProxOptimizer(base(model.parameters()), term := attach(L1(0.0), model))
            target = TargetSparsity(term, 0.8, steps=10, begin=0.0, method=method)
            before = values(list(model.parameters()))
            state = dcp.get_optimizer_state_dict(model, opt)
            assert same(before, list(model.parameters()))
            assert target.count == 0
            assert ("dense" if method == "projection" else "support") in state["state"]["0.weight"]


def test_gradients_of_nan_are_skipped_and_do_not_count():
    params, opt, target = aimed("projection", skip_nonfinite=True)
    run(params, opt, range(9))
    before = values(params)
    give_gradients(params, 9)
    params[0].grad[0, 0] = torch.nan
    with pytest.warns(UserWarning, match="skip"):
        opt.step()
    assert same(before, params)
    assert target.count == 9


def test_clipping_leaves_the_choice_of_weights_as_it_is():
    """Which does not depend on what multiplies all steps alike."""
    for base in (lambda p: SGD(p, lr=0.05), lambda p: SGD(p, lr=0.05, momentum=0.9)):
        params, opt, _ = aimed("projection", base=base)
        plain, other, _ = aimed("projection", base=base)
        for k in range(STEPS):
            give_gradients(params, k)
            give_gradients(plain, k)
            clip_grad_norm_(opt, 1.0)
            torch.nn.utils.clip_grad_norm_(plain, 1.0)
            opt.step()
            other.step()
        assert same(params, plain)


def test_dual_averaging_and_feedback_go_together():
    params, opt, target = aimed("feedback", mode="dual_averaging")
    run(params, opt)
    assert sparsity(opt.terms[0]).zeros == 71
    assert target.phase == "frozen"


def test_what_others_write_to_a_zero_is_taken_as_a_weight():
    params, opt, _ = aimed("projection")
    run(params, opt, range(9))
    zero = (params[0] == 0).nonzero()[0].tolist()
    with torch.no_grad():
        params[0][zero[0], zero[1]] = 50.0
    run(params, opt, range(9, STEPS))
    assert params[0][zero[0], zero[1]].item() > 49.0
    assert sparsity(opt.terms[0]).zeros == 71


ON_DEVICE = [("projection", "L1", False), ("magnitude", "L1", False), ("projection", "columns", True)]


@pytest.mark.parametrize(("method", "kind", "capturable"), [*ON_DEVICE, ("feedback", "L1", True)])
def test_on_an_accelerator_it_is_the_cpus_run_and_nothing_waits(method, kind, capturable, accelerator):
    there = [Parameter(p.detach().to(accelerator)) for p in two()]
    layout = {"foreach": False} if not capturable else {"capturable": True, "foreach": False}
    params, opt, target = aimed(method, kind, params=there, base=lambda p: AdamW(p, lr=0.01, **layout))
    plain, other, lone = aimed(method, kind, base=lambda p: AdamW(p, lr=0.01, foreach=False))
    for k in range(STEPS):
        give_gradients(plain, k)
        for p, q in zip(params, plain, strict=True):
            p.grad = q.grad.to(accelerator)
        other.step()
        with watch(allow_waits=k == 0):  # the first makes the state
            opt.step()
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-4, atol=1e-6)
        assert torch.equal(p.detach().cpu() == 0, q.detach() == 0)
    assert [r[:3] for r in target.history] == [r[:3] for r in lone.history]
