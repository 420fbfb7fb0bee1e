"""Dense copies: the base moves z while gradients are taken at the sparse w; nothing else may move either of them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from controls import LargerHalf
from optimizer_catalog import give_gradients, matrix, same, values
from test_checkpoints import equal_states, through_disk
from test_grad_scaler import BASES, LAYOUTS, scaled_step, scaler, three
from test_interrupts import At
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.nn import Parameter
from torch.optim import SGD, AdamW

from torchreg import L1, ProxOptimizer, attach, attach_to
from torchreg.training import dense_copy

MAKES = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "SGD with momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda p: AdamW(p, lr=0.05, weight_decay=0.0),
}
every_make = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


def controlled(make, params, **options) -> ProxOptimizer:
    term = attach(L1(1.0), params)
    term.control = LargerHalf()
    return ProxOptimizer(make(list(params.values()) if isinstance(params, dict) else params), term, **options)


def dense_of(opt, p: Parameter) -> torch.Tensor:
    return p.detach() + opt.state[p]["dense"]


def half_of(dense: list[torch.Tensor]) -> list[torch.Tensor]:
    sizes = torch.cat([z.abs().flatten() for z in dense])
    middle = sizes.sort().values[(len(sizes) + 1) // 2 - 1]
    return [torch.where(z.abs() > middle, z, 0.0) for z in dense]


def gradient(w: torch.Tensor, k: int) -> torch.Tensor:
    """Of something that depends on where it is taken."""
    draw = torch.Generator().manual_seed(k)
    return torch.tanh(3.0 * w) + torch.randn(w.shape, generator=draw, dtype=w.dtype)


@every_make
def test_it_is_the_plain_loop_that_steps_a_dense_copy_with_gradients_at_the_sparse_one(make):
    params = [matrix(k, (5, 3)) for k in range(2)]
    opt = controlled(make, params)
    dense = [Parameter(p.detach().clone()) for p in params]
    base, sparse = make(dense), [p.detach().clone() for p in params]
    for k in range(30):
        for p, z, w in zip(params, dense, sparse, strict=True):
            p.grad, z.grad = gradient(p.detach(), k), gradient(w, k)
        base.step()
        sparse = half_of([z.detach() for z in dense])
        opt.step()
        for p, z, w in zip(params, dense, sparse, strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(dense_of(opt, p), z.detach(), rtol=1e-9, atol=1e-9)
    assert sum(int((p == 0).sum()) for p in params) == 15


def test_the_state_is_the_dense_copy_at_the_zeros_alone():
    params = [matrix(0, (5, 4))]
    opt = controlled(MAKES["AdamW"], params)
    for k in range(5):
        give_gradients(params, k)
        opt.step()
    (p,) = params
    hidden = opt.state[p]["dense"]
    assert hidden.shape == p.shape
    assert torch.equal(hidden != 0, p == 0)


@pytest.mark.parametrize("first", [0, 3], ids=["at the first step", "later"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_a_step_that_a_scaler_skips_changes_neither(make, layout, first):
    if (make, layout, first) == (BASES["SGD"], "fused", 0):
        pytest.skip("torch's fused SGD leaves its momentum uninitialised when its first step is skipped")
    plain, scaled = three(), three()
    opts = [controlled(lambda p: make(p, **LAYOUTS[layout]), p) for p in (plain, scaled)]
    scale = scaler()
    for k in range(6):
        if k == first:
            before, hidden = values(scaled), [dict(opts[1].state[p]).get("dense") for p in scaled]
            hidden = [None if h is None else h.clone() for h in hidden]
            scaled_step(opts[1], scale, scaled, k, bad=math.inf)
            assert same(before, scaled)
            assert all(
                h is None or torch.equal(h, opts[1].state[p]["dense"]) for h, p in zip(hidden, scaled, strict=True)
            )
        give_gradients(plain, k)
        opts[0].step()
        scaled_step(opts[1], scale, scaled, k)
    assert same(plain, scaled)


class Turning(LargerHalf):
    """Keeps others at each call, as a share of zeros that rises does."""

    def __init__(self) -> None:
        self.calls = 0

    def after(self, sites, shrink):
        self.calls += 1
        for site in sites:
            even = torch.arange(site.here.numel()).view(site.here.shape) % 2 == self.calls % 2
            dense_copy.keep(site, even)


def test_a_step_that_is_skipped_on_the_device_keeps_what_was_kept_whatever_the_control_says():
    params, scale = three(), scaler()
    term = attach(L1(1.0), params)
    term.control = Turning()
    opt = ProxOptimizer(AdamW(params, lr=0.1, fused=True), term)
    for k in range(4):
        scaled_step(opt, scale, params, k)
    before, hidden = values(params), [opt.state[p]["dense"].clone() for p in params]
    scaled_step(opt, scale, params, 4, bad=math.inf)
    assert term.control.calls == 5
    assert same(before, params)
    assert all(torch.equal(h, opt.state[p]["dense"]) for h, p in zip(hidden, params, strict=True))


def test_a_closure_and_a_skip_on_the_host_and_frozen_parameters():
    plain, closed = three(), three()
    opts = [controlled(MAKES["AdamW"], p, skip_nonfinite=True) for p in (plain, closed)]
    for k in range(5):
        give_gradients(plain, k)
        opts[0].step()
        opts[1].step(lambda k=k: give_gradients(closed, k))
    assert same(plain, closed)
    before, state = values(closed), copy.deepcopy(opts[1].state_dict())
    closed[0].grad[0, 0] = math.nan
    with pytest.warns(UserWarning, match="skipped"):
        opts[1].step()
    opts[1].zero_grad()
    opts[1].step()
    for p in closed:
        p.requires_grad_(False)
    opts[1].step()
    assert same(before, closed)
    assert equal_states(state, opts[1].state_dict())


def test_entries_that_somebody_writes_to_start_anew_and_the_rest_goes_on():
    params = [matrix(0, (5, 4))]
    opt = controlled(MAKES["SGD"], params)
    for k in range(5):
        give_gradients(params, k)
        opt.step()
    (p,) = params
    dense, written = dense_of(opt, p).clone(), (p == 0).nonzero()[0]
    with torch.no_grad():
        p[tuple(written)] = 7.0
    dense[tuple(written)] = 7.0
    give_gradients(params, 5)
    expected = dense - 0.1 * p.grad
    opt.step()
    torch.testing.assert_close(dense_of(opt, p), expected)
    torch.testing.assert_close(p.detach(), half_of([expected])[0])


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.first, self.second = (Parameter(torch.randn(6, 4, generator=draw)) for _ in range(2))
        self.bias = Parameter(torch.randn(3, generator=draw))


def wrapped(make, net: Net) -> ProxOptimizer:
    term = attach(L1(1.0), {"first": net.first, "second": net.second})
    term.control = LargerHalf()
    return ProxOptimizer(make(list(net.parameters())), term)


def train(net: nn.Module, opt, steps: range) -> None:
    for k in steps:
        give_gradients(list(net.parameters()), k)
        opt.step()


@pytest.mark.parametrize("how", ["torch", "dcp", "deepcopy"])
@every_make
def test_a_run_that_is_resumed_is_bit_equal(make, how):
    net, resumed = Net(0), Net(1)
    opt, other = wrapped(make, net), wrapped(make, resumed)
    train(net, opt, range(6))
    if how == "torch":
        saved = through_disk({"net": net.state_dict(), "opt": opt.state_dict()})
        resumed.load_state_dict(saved["net"])
        other.load_state_dict(saved["opt"])
    elif how == "dcp":
        state = copy.deepcopy(dcp.get_state_dict(net, opt))
        dcp.set_state_dict(resumed, other, model_state_dict=state[0], optim_state_dict=state[1])
    else:
        resumed, other = copy.deepcopy((net, opt))
    train(net, opt, range(6, 12))
    train(resumed, other, range(6, 12))
    assert same(values(list(net.parameters())), values(list(resumed.parameters())))
    assert equal_states(opt.state_dict(), other.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_make
def test_with_masters_it_is_the_rounding_of_the_float32_run(make, dtype):
    half = [Parameter(matrix(k, (4, 3), torch.float32).detach().to(dtype)) for k in range(2)]
    full = [Parameter(p.detach().float()) for p in half]
    opts = [controlled(make, half, masters=True), controlled(make, full)]
    for k in range(10):
        give_gradients(half, k)
        for p, q in zip(half, full, strict=True):
            q.grad = p.grad.float()
        for opt in opts:
            opt.step()
    assert same([p.to(dtype) for p in full], half)
    assert all(opts[0].state[p]["dense"].dtype is torch.float32 for p in half)


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
@pytest.mark.parametrize("made", ["ProxOptimizer", "attach_to"])
def test_a_compiled_step_is_the_step(made):
    runs = []
    for compiled in (False, True):
        torch._dynamo.reset()
        params = three()
        base = SGD(params, lr=torch.tensor(0.1), momentum=0.9)
        term = attach(L1(1.0), params)
        term.control = LargerHalf()
        if made == "attach_to":
            attach_to(base, term)
        opt = ProxOptimizer(base, term) if made == "ProxOptimizer" else base
        step = torch.compile(opt.step, backend="eager") if compiled else opt.step
        for k in range(4):
            give_gradients(params, k)
            step()
        runs.append(values(params))
    for eager, fast in zip(*runs, strict=True):
        torch.testing.assert_close(eager, fast, rtol=1e-5, atol=1e-6)


def test_an_interrupt_at_any_line_of_a_step_leaves_sparse_weights_and_their_dense_copies():
    net = Net(0)
    opt = wrapped(MAKES["AdamW"], net)
    train(net, opt, range(6))
    zeros = [p.detach() == 0 for p in (net.first, net.second)]
    dense = [dense_of(opt, p).clone() for p in (net.first, net.second)]
    start, n, interrupted = (net, opt), 0, True
    while interrupted:
        n += 2
        net, opt = copy.deepcopy(start)
        give_gradients(list(net.parameters()), 6)
        interrupted = At(n)(opt.step)
        params = net.first, net.second
        for p, zero, z in zip(params, zeros, dense, strict=True):
            was = p.detach() == 0
            assert int((was != zero).sum()) <= 2, n  # the support of before, or of after the step
            assert torch.equal(opt.state[p]["dense"] != 0, was), n
            assert float((dense_of(opt, p) - z).abs().max()) < 0.2, n
        train(net, opt, range(7, 8))
        assert sum(int((p == 0).sum()) for p in params) == 24, n
    assert n > 200


class Failing(SGD):
    """Fails in its step, after it has moved the first parameter."""

    def step(self, closure=None):
        with torch.no_grad():
            self.param_groups[0]["params"][0].sub_(0.125)
        raise RuntimeError("lost the device")


@pytest.mark.parametrize("made", ["ProxOptimizer", "attach_to"])
def test_a_base_that_fails_in_its_step_leaves_zeros_or_has_them_put_back_at_the_next(made):
    params = three()
    term = attach(L1(1.0), params)
    term.control = LargerHalf()
    base = SGD(params, lr=0.1)
    opt = ProxOptimizer(base, term) if made == "ProxOptimizer" else base
    if made == "attach_to":
        attach_to(base, term)
    for k in range(4):
        give_gradients(params, k)
        opt.step()
    before, zero = dense_of(opt, params[0]).clone(), params[0].detach() == 0
    if made == "ProxOptimizer":
        base.step = lambda closure=None: Failing.step(base)
        with pytest.raises(RuntimeError, match="lost"):
            opt.step()
        del base.step
        assert torch.equal(params[0].detach() == 0, zero)
        torch.testing.assert_close(dense_of(opt, params[0]), before - 0.125)
    else:

        def closure():
            with torch.no_grad():
                params[0].sub_(0.125)
            raise RuntimeError("lost the device")

        with pytest.raises(RuntimeError, match="lost"):
            opt.step(closure)
    give_gradients(params, 5)
    expected = before - 0.125 - 0.1 * params[0].grad
    opt.step()
    torch.testing.assert_close(dense_of(opt, params[0]), expected)


def test_what_would_be_moved_row_by_row_is_refused():
    params = three()
    term = attach(L1(1.0), params, lazy=True)
    term.control = LargerHalf()
    with pytest.raises(ValueError, match=r"lazy=True, and LargerHalf\(\)"):
        ProxOptimizer(SGD(params, lr=0.1), term)
    assert term.owner is None


def test_a_control_may_ask_for_the_step_that_it_replaces():
    plain, asked = three(), three()

    class Asks(LargerHalf):
        def after(self, sites, shrink):
            shrink()

        def before(self, sites):
            pass

    for mode in ("prox", "dual_averaging"):
        term = attach(L1(0.5), asked)
        term.control = Asks()
        opts = (
            ProxOptimizer(SGD(plain, lr=0.1), attach(L1(0.5), plain), mode=mode),
            ProxOptimizer(SGD(asked, lr=0.1), term, mode=mode),
        )
        for k in range(5):
            for params, opt in zip((plain, asked), opts, strict=True):
                give_gradients(params, k)
                opt.step()
        assert same(plain, asked)
