"""The effective step of every optimizer is what its update really divides the gradient by."""

from __future__ import annotations

import re

import pytest
import torch
from optimizer_catalog import Lion, Recipe, every_recipe, matrix, with_layout
from torch import Tensor
from torch.nn import Parameter
from torch.optim import ASGD, SGD, Adafactor, Adam, Muon, Optimizer, Rprop

from torchreg import L1, ProxOptimizer, effective_step, register_effective_step

GRADIENT = torch.tensor([[10.0, -1.0, 0.1], [1e-2, -1e-3, 3.0]], dtype=torch.float64)
LONG = 1000  # steps, after which a constant gradient leaves no transient but these
TRANSIENT = {
    "RMSprop momentum": 1e-5,  # 0.99^1000 = 4e-5 of the variance is still missing
    "Adadelta": 1e-6,  # so is 0.99^1000 of its square average, to which the step answers slowly
    "RMSprop centered momentum": 5e-3,  # a constant gradient's variance decays for ever: slowed down below
}
LAYOUTS = ["foreach", "single", "fused", "tensor lr", "fused, tensor lr", "capturable"]


def last_update(base: Optimizer, p: Parameter, gradient: Tensor, steps: int) -> Tensor:
    """The last of many updates by one gradient, each taken at p = 0, so that no digit is lost."""
    for _ in range(steps):
        p.data.zero_()
        p.grad = gradient.to(p.dtype, copy=True)  # torch's foreach Nesterov writes into it
        base.step()
    return p.detach().clone()


def built(recipe: Recipe, p: Parameter) -> Optimizer:
    base = recipe.make([p])
    if base.defaults.get("centered") and base.defaults["momentum"]:
        base.param_groups[0]["alpha"] = 1.0 - 1e-5
    return base


@pytest.mark.parametrize("layout", ["default", *LAYOUTS])
@every_recipe
def test_constant_gradient_moves_by_effective_step_times_gradient(recipe, layout, monkeypatch):
    p = Parameter(torch.zeros_like(GRADIENT))
    base = with_layout(built(recipe, p), layout, monkeypatch)
    moved = last_update(base, p, GRADIENT, LONG)
    step = effective_step(base)[p]
    assert_shapes(step, p)
    exact = 1e-4 if layout == "capturable" else 1e-9  # counters on the device are float32: RAdam's root loses digits
    torch.testing.assert_close(moved, -step * GRADIENT, rtol=max(exact, TRANSIENT.get(recipe.id, 0.0)), atol=0.0)


def assert_shapes(step: float | Tensor, p: Tensor) -> None:
    assert not isinstance(step, Tensor) or step.shape in (p.shape, torch.Size([]))


@pytest.mark.parametrize("layout", LAYOUTS)
@every_recipe
def test_layouts_agree_from_the_first_step_on(recipe, layout, monkeypatch):
    found = []
    for chosen in ("default", layout):  # in turn: "capturable" changes torch for the second
        p = Parameter(torch.zeros_like(GRADIENT))
        base = with_layout(recipe.make([p]), chosen, monkeypatch)
        found.append([])
        for k in range(12):  # RAdam changes its rule at the sixth
            p.grad = GRADIENT * [1.0, -2.0, 0.5][k % 3] + k
            base.step()
            step = torch.as_tensor(effective_step(base)[p], dtype=torch.float64)
            found[-1].append(step.broadcast_to(p.shape))
    # float32 counters too are taken in float64; but with them torch steps by 1e-6 else, and a decay feels the weights
    rtol = 1e-6 if layout == "capturable" and recipe.decay else 1e-12
    torch.testing.assert_close(*found, rtol=rtol, atol=0.0)


@every_recipe
def test_bf16_parameters_get_a_float32_step_near_the_true_one(recipe):
    p = Parameter(torch.zeros(2, 3, dtype=torch.bfloat16))
    base = built(recipe, p)
    moved = last_update(base, p, GRADIENT, 60)
    step = effective_step(base)[p]
    assert not isinstance(step, Tensor) or (step.dtype is torch.float32 and bool(step.isfinite().all()))
    reference = Parameter(torch.zeros(2, 3, dtype=torch.float32))
    reference_base = built(recipe, reference)
    slack = last_update(reference_base, reference, GRADIENT.float(), 60) / (
        -effective_step(reference_base)[reference] * GRADIENT
    )
    torch.testing.assert_close(  # a bf16 state has 8 bits: each of ~60 lossy averages may be off by a few 2^-8
        moved.double(), -step * GRADIENT.bfloat16().double() * slack.double(), rtol=0.08, atol=0.0
    )


@every_recipe
def test_a_parameter_that_was_not_stepped_has_no_effective_step_and_no_state(recipe):
    stepped, idle = matrix(1), matrix(2)
    base = recipe.make([stepped, idle])
    before = len(base.state)  # Adagrad makes its state when built
    idle.grad = None
    stepped.grad = torch.ones_like(stepped)
    base.step()
    states = {p: set(s) for p, s in base.state.items()}
    assert set(effective_step(base)) == {stepped}
    assert {p: set(s) for p, s in base.state.items()} == states
    assert len(base.state) >= before


@pytest.mark.parametrize("make", [SGD, Adam], ids=["SGD", "Adam"])
def test_asking_before_the_first_step_leaves_the_state_empty(make):
    p = matrix(1)
    p.grad = torch.ones_like(p)
    base = make([p], lr=0.1)
    effective_step(base)
    assert not base.state


@pytest.mark.parametrize("make", [Rprop, ASGD, Muon, Lion], ids=lambda c: c.__name__)
def test_an_unknown_class_is_refused_and_the_ways_out_are_named(make):
    p = matrix(1)
    base = make([p], lr=0.1)
    for ask in (lambda: effective_step(base), lambda: ProxOptimizer(base, L1(0.1))):
        with pytest.raises(ValueError, match=make.__name__) as error:
            ask()
        for way_out in (
            "metric='decoupled'",
            "(group, state, p) -> step",
            f"@register_effective_step({make.__name__})",
        ):
            assert way_out in str(error.value)


@pytest.mark.parametrize("metric", ["euclidean", 3, None], ids=str)
def test_a_metric_that_is_none_is_refused(metric):
    with pytest.raises(ValueError, match=re.escape(repr(metric))):
        ProxOptimizer(SGD([matrix(1)], lr=0.1), L1(0.1), metric=metric)


def test_a_rule_holds_for_the_exact_class_only():
    class MyAdam(Adam):
        pass

    class Mine(MyAdam):
        pass

    p = matrix(1)
    with pytest.raises(ValueError, match="MyAdam"):
        effective_step(MyAdam([p]))

    @register_effective_step(MyAdam)
    def rule(group, state, parameter):
        return 2.0 * group["lr"]

    assert rule({"lr": 1.0}, {}, p) == 2.0  # the decorator hands the function back
    p.grad = torch.ones_like(p)
    base = MyAdam([p], lr=0.25)
    base.step()
    assert effective_step(base) == {p: 0.5}
    with pytest.raises(ValueError, match="Mine"):
        effective_step(Mine([p]))


@pytest.mark.parametrize("kind", [int, "Adam", Parameter], ids=str)
def test_only_optimizer_classes_can_be_registered(kind):
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        register_effective_step(kind)


def soft(w: Tensor, threshold: float | Tensor) -> Tensor:
    return w.sign() * (w.abs() - threshold).clamp(min=0.0)


@pytest.mark.parametrize("make", [Muon, Lion, Rprop, ASGD, Adafactor, Adam, SGD], ids=lambda c: c.__name__)
def test_decoupled_is_the_bare_step_and_then_the_threshold_lr_alpha(make):
    bare, wrapped = matrix(1), matrix(1)
    base, reference = make([wrapped], lr=0.1), make([bare], lr=0.1)
    opt = ProxOptimizer(base, L1(2.0), metric="decoupled")
    for k in range(5):
        bare.grad = matrix(10 + k).detach()
        wrapped.grad = bare.grad.clone()
        reference.step()
        opt.step()
        bare.data.copy_(soft(bare.data, 0.2))
        torch.testing.assert_close(wrapped, bare, rtol=1e-12, atol=1e-15)
    assert bool((wrapped == 0).any())


def test_a_function_is_given_group_state_and_parameter_and_its_step_is_used():
    bare, wrapped = matrix(1), matrix(1)
    base, reference = Adam([wrapped], lr=0.1), Adam([bare], lr=0.1)
    step = torch.linspace(0.0, 1.0, wrapped.numel(), dtype=torch.float64).reshape(wrapped.shape)

    def metric(group, state, p):
        assert group is base.param_groups[0]
        assert state is base.state[p]
        assert p is wrapped
        return step * group["lr"]

    opt = ProxOptimizer(base, L1(2.0), metric=metric)
    bare.grad = matrix(3).detach()
    wrapped.grad = bare.grad.clone()
    reference.step()
    opt.step()
    torch.testing.assert_close(wrapped.detach(), soft(bare.detach(), 0.2 * step), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("layout", ["foreach", "single", "fused", "capturable"])
@every_recipe
def test_on_a_device_too(recipe, layout, accelerator):
    p = Parameter(torch.zeros_like(GRADIENT, device=accelerator))
    base = with_layout(built(recipe, p), layout, None)
    moved = last_update(base, p, GRADIENT.to(accelerator), LONG)
    step = effective_step(base)[p]
    own = 1e-4 if layout == "capturable" else 1e-6  # torch's own counters are float32 there: its RAdam loses digits
    exact = max(own, TRANSIENT.get(recipe.id, 0.0))
    torch.testing.assert_close(moved, -step * GRADIENT.to(accelerator), rtol=exact, atol=0.0)
