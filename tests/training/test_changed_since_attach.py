"""What changes after attach is refused by name before anything moves, and a load is whole or not at all."""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager

import pytest
import torch
from test_interrupts import At
from torch import nn
from torch.optim import SGD, Adam, AdamW

from torchreg import (
    L1,
    L2,
    Group,
    PenaltyScheduler,
    ProxOptimizer,
    Sum,
    Towards,
    Weighted,
    attach,
    attach_to,
    rows,
    schedules,
)

OWNERS = {
    "ProxOptimizer": lambda base, term: ProxOptimizer(base, term),
    "attach_to": lambda base, term: attach_to(base, term).base,
}
each_owner = pytest.mark.parametrize("own", OWNERS.values(), ids=OWNERS)


def made(own, penalty=None, make=SGD, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    base = make(net.parameters(), lr=0.1, **options)
    return net, own(base, attach(L1(0.1) if penalty is None else penalty, {"first": net[0].weight}))


def give(net) -> None:
    for p in net.parameters():
        p.grad = torch.ones_like(p)


@contextmanager
def unmoved(net, match: str, kind=ValueError):
    """An error is raised, and no weight has moved."""
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(kind, match=match):
        yield
    assert all(torch.equal(before[name], p) for name, p in net.state_dict().items())


LATE = {
    "maximize": ({"maximize": True}, "Parameter group 0: .*maximize=True"),
    "momentum": ({"momentum": 1.0}, r"Parameter group 0: .*momentum < 1, got 1\.0"),
    "differentiable": ({"differentiable": True}, "differentiable=True"),
}


@each_owner
@pytest.mark.parametrize(("options", "says"), LATE.values(), ids=LATE)
def test_options_that_are_refused_at_the_door_are_refused_later_too(own, options, says):
    net, opt = made(own)
    give(net)
    opt.step()
    good = {key: opt.param_groups[0][key] for key in options}
    state = copy.deepcopy(opt.state_dict())
    opt.param_groups[0].update(options)
    with unmoved(net, says):
        opt.step()
    opt.param_groups[0].update(good)
    opt.step()
    state["param_groups"][0].update(options)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=says.replace("Parameter group", "checkpoint's parameter group")):
        opt.load_state_dict(state)
    assert opt.state_dict()["param_groups"] == before["param_groups"]
    bare = SGD(net[1].parameters(), lr=0.1)
    if isinstance(opt, ProxOptimizer):
        with pytest.raises(ValueError, match=says.replace("Parameter group 0: ", "")):
            opt.add_param_group({"params": [torch.ones(2, requires_grad=True)], **options})
    assert bare.param_groups[0].get("momentum") == 0


ALPHAS = {
    "L1": L1,
    "Group": lambda a: Group(L1(a), by=rows),
    "a term of a sum": lambda a: L2(0.1) + L1(a),
    "a sum": lambda a: Sum((L1(1.0), L2(0.1)), alpha=a),
    "Weighted": lambda a: Weighted(L1(a), torch.ones(4, 3)),
}


@each_owner
@pytest.mark.parametrize("make", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf")])
def test_a_tensor_strength_that_is_no_strength_any_more_is_refused_at_the_step(own, make, value):
    alpha = torch.tensor(0.1)
    net, opt = made(own, make(alpha))
    give(net)
    opt.step()
    alpha.fill_(value)
    with unmoved(net, f"strength of 'first' has changed.*finite alpha >= 0, got {str(value)[:4]}.*clamp_"):
        opt.step()
    alpha.fill_(0.2)
    opt.step()


def test_a_learned_strength_that_gradient_steps_make_negative_is_refused():
    alpha = torch.tensor(0.05, requires_grad=True)
    net, opt = made(OWNERS["ProxOptimizer"], L1(alpha))
    give(net)
    opt.step()
    with torch.no_grad():
        alpha -= 0.1
    with unmoved(net, "strength of 'first'.*-0.0"):
        opt.step()


class OnDevice:
    """A CUDA event, for a host without one: it has come once asked ``after`` times."""

    def __init__(self, after: int) -> None:
        self.left = after

    def query(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_strength_on_a_device_is_read_once_its_copy_has_come(monkeypatch):
    from torchreg.training.step_checks import StepChecks

    checks = StepChecks([], SGD([torch.ones(2)], lr=0.1))
    (part,) = attach(L1(0.1), {"w": torch.ones(2)}).parts
    checks._asked.append((part, torch.tensor(float("nan")), OnDevice(2)))
    checks._answered()
    checks._answered()
    with pytest.raises(ValueError, match="strength of 'w'"):
        checks._answered()
    checks._answered()  # told once


def test_what_a_schedule_gives_is_checked_and_named():
    net, opt = made(OWNERS["ProxOptimizer"], L1(torch.tensor(0.0, dtype=torch.float16)))
    scheduler = PenaltyScheduler(opt.terms[0], lambda k: [0.1, float("nan"), 1e6][k])
    give(net)
    with pytest.raises(ValueError, match=r"gives alpha = nan at step 1"):
        opt.step()
    with pytest.raises(ValueError, match=r"1e\+06 at step 2.*float16"):
        scheduler._move(2)
    assert float(opt.terms[0].alpha) == pytest.approx(0.1, rel=1e-3)


SHRUNK = {
    "Weighted": lambda: Weighted(L1(0.1), torch.ones(4, 3)),
    "Towards": lambda: Towards(L1(0.1), torch.zeros(4, 3)),
    "Group": lambda: Group(L1(0.1), by=rows, weights=torch.ones(4)),
}


@each_owner
@pytest.mark.parametrize("make", SHRUNK.values(), ids=SHRUNK)
def test_a_penalty_that_does_not_fit_a_resized_parameter_is_refused_before_the_step(own, make):
    net, opt = made(own, make())
    give(net)
    opt.step()
    net[0].weight.data = net[0].weight.data[:2].clone()
    give(net)
    with unmoved(net, r"'first' has shape \(2, 3\) now.*does not fit.*Nothing was stepped"):
        opt.step()


@each_owner
def test_a_state_that_does_not_fit_a_resized_parameter_is_refused_by_name(own):
    net, opt = made(own, make=Adam)
    give(net)
    opt.step()
    net[0].weight.data = net[0].weight.data[:2].clone()
    give(net)
    with unmoved(net, r"'first', 'exp_avg' of shape \(4, 3\).*shape \(2, 3\).*state.pop"):
        opt.step()
    opt.state.pop(net[0].weight)
    opt.step()


def test_the_state_of_another_shape_is_refused_at_the_load_or_left():
    net, opt = made(OWNERS["ProxOptimizer"], make=Adam)
    give(net)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0]["exp_avg"] = torch.zeros(2, 3)
    fresh, other = made(OWNERS["ProxOptimizer"], make=Adam)
    with pytest.raises(ValueError, match=r"'first', 'exp_avg' of shape \(2, 3\).*shape \(4, 3\).*strict=False"):
        other.load_state_dict(saved)
    assert not other.state
    with pytest.warns(UserWarning, match=r"no state for \['group 0, parameter 0'\]"):
        other.load_state_dict(saved, strict=False)
    give(fresh)
    other.step()
    assert all(bool(p.isfinite().all()) for p in fresh.parameters())


def everything(opt) -> dict:
    """All that a load may change."""
    state = copy.deepcopy(opt.state_dict())
    return {**state, "alphas": [float(t.alpha) for t in opt.terms], "counts": [t.scheduler.count for t in opt.terms]}


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def pair(dtype, masters: bool, late=lambda k: 0.3) -> ProxOptimizer:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
    terms = [attach(L1(torch.tensor(0.1)), {"first": net[0].weight}), attach(L1(0.2), {"second": net[1].weight})]
    opt = ProxOptimizer(AdamW(net.parameters(), lr=0.1), *terms, masters=masters)
    PenaltyScheduler(terms[0], schedules.linear(0.1, 0.2, 10))
    PenaltyScheduler(terms[1], late)
    return opt


def stepped(opt: ProxOptimizer, steps: int) -> ProxOptimizer:
    for _ in range(steps):
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        opt.step()
    return opt


@pytest.mark.parametrize("masters", [False, True])
def test_a_load_that_fails_at_its_last_schedule_changes_nothing(masters):
    dtype = torch.bfloat16 if masters else torch.float32

    def late(k: int) -> float:
        if k == 5:
            raise OSError("no such schedule")
        return 0.3

    saved = stepped(pair(dtype, masters), 5).state_dict()
    opt = stepped(pair(dtype, masters, late), 2)
    before = everything(opt)
    with pytest.raises(OSError, match="no such schedule"):
        opt.load_state_dict(saved)
    assert same(everything(opt), before)
    stepped(opt, 2)


def test_a_bare_optimizers_hook_that_fails_leaves_the_strengths_too():
    saved = stepped(pair(torch.float32, False), 5).state_dict()
    opt = stepped(pair(torch.float32, False), 2)
    before = everything(opt)

    def fail(optimizer) -> None:
        raise OSError("a hook of mine")

    opt.base.register_load_state_dict_post_hook(fail)
    with pytest.raises(OSError, match="mine"):
        opt.load_state_dict(saved)
    assert same(everything(opt), before)


def test_attach_to_restores_all_strengths_or_none():
    torch.manual_seed(0)
    nets = [nn.Linear(3, 4), nn.Linear(3, 4)]
    bases = [SGD(net.parameters(), lr=0.1) for net in nets]
    pairs = [
        [attach(L1(torch.tensor(a)), {"w": net.weight}), attach(L1(a), {"b": net.bias})]
        for a, net in zip((0.1, 0.2), nets, strict=True)
    ]
    for base, terms in zip(bases, pairs, strict=True):
        attach_to(base, *terms)
    PenaltyScheduler(pairs[0][1], schedules.constant(0.1))
    calls = []

    def late(k: int) -> float:
        calls.append(k)
        if len(calls) > 1:
            raise OSError("no such schedule")
        return 0.2

    PenaltyScheduler(pairs[1][1], late)
    with pytest.raises(OSError, match="no such schedule"):
        bases[1].load_state_dict(bases[0].state_dict())
    assert [float(t.alpha) for t in pairs[1]] == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("masters", [False, True])
def test_an_interrupt_at_any_line_of_a_load_leaves_it_whole_or_undone(masters):
    dtype = torch.bfloat16 if masters else torch.float32
    saved = stepped(pair(dtype, masters), 5).state_dict()
    start, n, interrupted = stepped(pair(dtype, masters), 2), 0, True
    before, outcomes = everything(start), set()
    while interrupted:
        n += 7  # every seventh line; the first in turn
        opt = copy.deepcopy(start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            interrupted = At(n)(lambda o=opt: o.load_state_dict(saved))
        undone = same(everything(opt), before)
        whole = same({k: v for k, v in everything(opt).items() if k in saved}, dict(saved))
        assert undone or whole, n
        outcomes.add(undone)
        assert all(id(p) in {id(q) for q in opt.param_groups[0]["params"]} for p in opt.state), n
    assert outcomes == {True, False}
