"""skip_nonfinite: a step whose gradients hold NaN or inf changes nothing at all, and is reported."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from optimizer_catalog import every_recipe, give_gradients, matrix, same, values
from test_checkpoints import equal_states
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from torchreg import L1, PenaltyScheduler, ProxOptimizer, attach, schedules

BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
told = pytest.mark.filterwarnings("ignore:A step was skipped")


def three() -> list[nn.Parameter]:
    return [matrix(1), matrix(2, (5, 3)), matrix(3, (3,))]


def spoil(params, where: int, value: float = math.nan) -> None:
    params[where].grad.view(-1)[1] = value


@told
@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@every_recipe
def test_a_run_with_spoilt_steps_is_the_run_without_them(recipe, closure):
    plain, spoilt = three(), three()
    opts = ProxOptimizer(recipe.make(plain), L1(0.1)), ProxOptimizer(recipe.make(spoilt), L1(0.1), skip_nonfinite=True)
    calls = []

    def step(k: int, where: int | None = None) -> None:
        def gradients() -> float:
            assert torch.is_grad_enabled()
            calls.append(k)
            give_gradients(spoilt, k)
            if where is not None:
                spoil(spoilt, where)
            return 0.5 + k

        if closure:
            with torch.no_grad():
                assert opts[1].step(gradients) == 0.5 + k
        else:
            gradients()
            assert opts[1].step() is None

    for k in range(8):
        if k % 3 == 0:
            before, state = values(spoilt), copy.deepcopy(opts[1].state_dict())
            step(100 + k, where=k % 2)
            assert same(before, spoilt)
            assert equal_states(state, opts[1].state_dict())
        step(k)
        give_gradients(plain, k)
        opts[0].step()
        assert same(plain, spoilt)
    assert len(calls) == 11
    assert opts[1].skipped.steps == 3


@told
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_every_kind_of_value_in_any_parameter_is_seen_and_large_ones_are_not_mistaken(value, dtype):
    params = [matrix(1, dtype=dtype), matrix(2, (0, 3)), matrix(3, (3,), torch.float32)]
    opt = ProxOptimizer(SGD(params, lr=0.0), L1(0.1), masters=True, skip_nonfinite=True)
    for k, p in enumerate(params):
        give_gradients(params, 0)
        p.grad.fill_(torch.finfo(p.dtype).max)
        opt.step()
        assert opt.skipped.steps == k - (k > 1)
        if p.numel():
            spoil(params, k, value)
            opt.step()
            assert opt.skipped.steps == k + 1 - (k > 1)


@told
def test_the_report_names_parameters_and_counts_steps():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    term = attach(L1(0.1), {"first": model[0].weight})
    params = list(model.parameters())
    named, unnamed = [("a", params[0]), ("b", params[1])], params[2:]
    opt = ProxOptimizer(Adam([{"params": named}]), term, skip_nonfinite=True)
    assert opt.skipped.steps == 0
    assert opt.skipped.parameters == {}
    for where in ([0], [0, 1]):
        give_gradients(params, 0)
        for k in where:
            spoil(params, k)
        opt.step()
    assert opt.skipped.steps == 2
    assert opt.skipped.parameters == {"first": 2, "b": 1}
    assert pickle.loads(pickle.dumps(opt)).skipped == copy.deepcopy(opt).skipped == opt.skipped
    opt = ProxOptimizer(SGD([{"params": params[:1]}, {"params": unnamed}], lr=0.1), L1(0.1), skip_nonfinite=True)
    give_gradients(params, 0)
    spoil(params, 3)
    opt.step()
    assert opt.skipped.parameters == {"group 1, parameter 1": 1}


def test_the_first_skip_is_told_and_the_next_ones_are_not():
    params = three()
    opt = ProxOptimizer(SGD(params, lr=0.1), attach(L1(0.1), {"w": params[0]}), skip_nonfinite=True)
    give_gradients(params, 0)
    spoil(params, 0)
    with pytest.warns(UserWarning, match="skipped: the gradients of w hold NaN or inf"):
        opt.step()
    opt.step()
    assert opt.skipped.steps == 2


@told
def test_schedules_do_not_count_a_skipped_step():
    params = three()
    term = attach(L1(0.0), {"w": params[0]})
    opt = ProxOptimizer(SGD(params, lr=0.1), term, skip_nonfinite=True)
    ramp = PenaltyScheduler(term, schedules.linear(0.0, 1.0, 10))
    for k in range(6):
        give_gradients(params, k)
        if k % 2:
            spoil(params, 2)
        opt.step()
        ramp.step()
    assert ramp.count == 3


@pytest.mark.parametrize("skip", [True, False])
def test_sparse_gradients_of_unpenalised_parameters(skip):
    table, p = nn.Embedding(4, 2, sparse=True), matrix(1, dtype=torch.float32)
    opt = ProxOptimizer(SGD([table.weight, p], lr=0.1), attach(L1(0.1), {"w": p}), skip_nonfinite=skip)
    for scale in (1.0, math.inf):
        opt.zero_grad()
        (table(torch.tensor([1, 1, 2])).sum() * scale + p.sum()).backward()
        before = values([table.weight, p])
        if skip and scale == math.inf:
            with pytest.warns(UserWarning, match="group 0, parameter 0"):
                opt.step()
        else:
            opt.step()
        assert same(before, [table.weight, p]) == (skip and scale == math.inf)


def test_by_default_a_step_is_the_bases_with_what_its_gradients_hold():
    params = three()
    opt = ProxOptimizer(SGD(params, lr=0.1), L1(0.1))
    give_gradients(params, 0)
    spoil(params, 0)
    opt.step()
    assert bool(params[0].isnan().any())
    assert opt.skipped.steps == 0


def test_without_any_gradient_nothing_happens():
    params = three()
    opt, before = ProxOptimizer(Adam(params), L1(0.1), skip_nonfinite=True), values(params)
    opt.step()
    assert same(before, params)
    assert opt.skipped.steps == 0


def test_a_base_that_needs_its_closure_says_so():
    class Twice(Optimizer):
        def step(self, closure):
            closure()
            return closure()

    params = three()
    opt = ProxOptimizer(Twice(params, {"lr": 0.1}), L1(0.1), metric="decoupled", skip_nonfinite=True)
    with pytest.raises(TypeError, match="closure"):
        opt.step(lambda: 0.0)


def test_a_captured_step_is_refused_with_nothing_done(monkeypatch):
    params = three()
    opt, before = ProxOptimizer(SGD(params, lr=0.1), L1(0.1), skip_nonfinite=True), values(params)
    give_gradients(params, 0)
    monkeypatch.setattr("torchreg.training.gradients.is_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"decides on the host.*GradScaler"):
        opt.step()
    assert same(before, params)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_a_step_compiled_in_one_graph_is_refused_and_one_with_breaks_runs_as_it_is():
    params = three()
    opt = ProxOptimizer(SGD(params, lr=0.1), L1(0.1), skip_nonfinite=True)
    give_gradients(params, 0)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="decides on the host"):
        torch.compile(opt.step, backend="eager", fullgraph=True)()
    torch._dynamo.reset()
    torch.compile(opt.step, backend="eager")()
    others = three()
    plain = ProxOptimizer(SGD(others, lr=0.1), L1(0.1))
    give_gradients(others, 0)
    plain.step()
    assert same(params, others)
