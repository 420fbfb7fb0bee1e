"""Where a fast path meets the plain one, and a user's object meets ours."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from torchreg import L1, L1L2, L2, MCP, Group, ProxOptimizer, Separable, Towards, attach, effective_step, rows

LARGE = (1 << 20) + 5  # beyond every piece of the fast paths, and no multiple of a vector


@dataclass(frozen=True, eq=False)
class Scaled(Separable):
    """A user's penalty whose behaviour no spec can see."""

    alpha: float
    size: Any

    def phi(self, x):
        return self.alpha * self.size(x)

    def shrink(self, x, step):
        return x


def test_penalties_that_differ_in_a_function_alone_stay_apart():
    a, b = torch.ones(4), torch.ones(4)
    sizes = {"a": lambda x: x.abs(), "b": lambda x: 100 * x.abs()}
    term = attach(lambda name, p: Scaled(0.1, sizes[name]), {"a": a, "b": b})
    assert float(term()) == pytest.approx(0.1 * 4 + 10.0 * 4)
    with pytest.raises(TypeError, match="method"):
        Scaled(0.1, sizes["a"]).spec()


@pytest.mark.parametrize("penalty", [L1(0.1), L1L2(0.1), L1L2(0.1, 0.0), L2(0.1), MCP(0.1)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("many", [False, True])
def test_in_place_equals_prox_beyond_every_piece(penalty, dtype, many):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(LARGE, generator=generator).to(dtype)
    step = torch.rand(LARGE, generator=generator)
    step[:3] = torch.tensor([0.0, 1e-30, torch.inf])
    moved = [w.clone(), w.clone()] if many else [w.clone()]
    penalty.prox_(moved, [step] * len(moved))
    exact = penalty.prox(w, step)
    # one rounding more in float32: the fast path multiplies by a reciprocal
    rtol = 1e-6 if dtype is torch.float32 else 0.0
    for result in moved:
        torch.testing.assert_close(result, exact, rtol=rtol, atol=1e-12)
        assert not ((result == 0) & torch.signbit(result)).any()


@pytest.mark.parametrize("penalty", [L1(1.0), L2(1.0)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_gradient_of_a_large_tensor_is_that_of_a_small_one(penalty, dtype):
    scale = 65536.0  # the first scale of a GradScaler
    grads = []
    for count in (1000, LARGE):
        w = torch.full((count,), 0.01, dtype=dtype, requires_grad=True)
        (penalty.value(w) * scale).backward()
        grads.append(w.grad[:1000])
    assert torch.equal(*grads)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_sgd_dampens_its_momentum_alone(momentum, dampening):
    p = Parameter(torch.zeros(1, dtype=torch.float64))
    base = torch.optim.SGD([p], lr=0.1, momentum=momentum, dampening=dampening)
    for _ in range(400):
        before = float(p.detach())
        p.grad = torch.ones_like(p)
        base.step()
    assert before - float(p.detach()) == pytest.approx(effective_step(base)[p], rel=1e-12)


@pytest.mark.parametrize("step", [None, -1.0, True, "0.1", torch.ones(3)])
def test_a_metric_that_gives_no_step_is_named(step):
    p = Parameter(torch.ones(2, 2))
    p.grad = torch.ones_like(p)
    opt = ProxOptimizer(torch.optim.SGD([p], lr=0.1), L1(0.1), metric=lambda group, state, parameter: step)
    with pytest.raises(ValueError, match=r"The metric <lambda> (gave|must give)"):
        opt.step()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (1, 3), (2, 3), (1, 1, 1)])
def test_a_metric_may_give_any_step_that_broadcasts(shape):
    p = Parameter(torch.full((2, 3), 0.5))
    p.grad = torch.zeros_like(p)
    term = attach(L1(0.1), {"p": p})
    ProxOptimizer(torch.optim.SGD([p], lr=0.1), term, metric=lambda group, state, parameter: torch.ones(shape)).step()
    torch.testing.assert_close(p.detach(), torch.full((2, 3), 0.4))


def test_what_cannot_work_is_refused_when_it_is_made():
    with pytest.raises(TypeError, match="floating"):
        Towards(L1(0.1), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="finite"):
        Towards(L1(0.1), torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match="one weight per group"):
        Group(L1(0.1), by=rows, weights=torch.ones(2, 2))
    with pytest.raises(TypeError, match=r"L1\(0.1\)"):
        attach(L1, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="momentum < 1"):
        ProxOptimizer(torch.optim.SGD([Parameter(torch.ones(2, 2))], lr=0.1, momentum=1.0), L1(0.1))


def _stepped(penalty, lr=0.1):
    p = Parameter(torch.ones(2, 2))
    p.grad = torch.ones_like(p)
    opt = ProxOptimizer(torch.optim.Adam([p], lr=lr), attach(penalty, {"p": p}))
    opt.step()
    return opt


def test_a_checkpoint_of_another_penalty_is_refused_before_anything_changes():
    state = _stepped(L1(0.1), lr=0.7).state_dict()
    opt = _stepped(MCP(0.1))
    with pytest.raises(ValueError, match="MCP"):
        opt.load_state_dict(state)
    assert opt.param_groups[0]["lr"] == 0.1
    state["torchreg"]["parts"][0]["alpha"] = float("nan")
    opt = _stepped(L1(0.1))
    with pytest.raises(ValueError, match="alpha"):
        opt.load_state_dict(state)
    assert opt.param_groups[0]["lr"] == 0.1


def test_a_tensor_alpha_goes_on_being_the_callers_knob_after_loading():
    knob = torch.tensor(0.5)
    opt = _stepped(L1(knob))
    state = _stepped(L1(torch.tensor(0.2))).state_dict()
    with pytest.warns(UserWarning, match=r"0\.2"):
        opt.load_state_dict(state)
    assert opt.terms[0].alpha is knob
    assert float(knob) == pytest.approx(0.2)


def test_a_proximal_step_before_the_first_step_changes_nothing():
    p = Parameter(torch.ones(2, 2))
    p.grad = torch.ones_like(p)
    ProxOptimizer(torch.optim.Adam([p], lr=0.1), L1(10.0)).prox()
    assert torch.equal(p, torch.ones(2, 2))


def test_groups_of_parameters_may_be_named_but_not_a_set():
    model = torch.nn.Linear(2, 2)
    opt = ProxOptimizer(torch.optim.SGD([Parameter(torch.ones(2, 2))], lr=0.1), L1(0.1))
    with pytest.raises(TypeError, match="order"):
        opt.add_param_group({"params": set(model.parameters())})
    opt.add_param_group({"params": list(model.parameters())})
    assert len(opt.terms[0].parameters) == 2


def test_an_owned_term_builds_no_graph():
    model = torch.nn.Linear(2, 2)
    term = attach(L1(0.1), model)
    assert term().requires_grad
    opt = ProxOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), term)
    assert term.owner is opt
    assert not term().requires_grad
