"""Steps on an accelerator: the CPU's result, few launches, no waits; what lies elsewhere is refused by name."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from catalog import CATALOG, Pinball
from fake_device import watch
from torch.nn import Parameter
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

from torchreg import (
    L1,
    L1L2,
    L2,
    MCP,
    SCAD,
    Group,
    NonNegative,
    PenaltyScheduler,
    ProxOptimizer,
    Towards,
    Weighted,
    alpha_max,
    attach,
    attach_to,
    effective_step,
    labels,
    rows,
    schedules,
    violation,
)
from torchreg.penalties import Penalty

CPU = torch.device("cpu")
BASES = {
    "SGD": partial(SGD, lr=0.1),
    "SGD tensor lr": lambda p: SGD(p, lr=torch.tensor(0.1, dtype=p[0].dtype, device=p[0].device), momentum=0.5),
    "Adam": partial(Adam, lr=0.05),
    "AdamW fused": partial(AdamW, lr=0.05, fused=True),
    "AdamW single": partial(AdamW, lr=0.05, foreach=False),
    "NAdam": partial(NAdam, lr=0.05),
    "RAdam": partial(RAdam, lr=0.05),
    "RMSprop centered": partial(RMSprop, lr=0.01, centered=True),
    "Adagrad fused": partial(Adagrad, lr=0.1, fused=True),
    "Adagrad decay": partial(Adagrad, lr=0.1, lr_decay=0.1),
    "Adamax": partial(Adamax, lr=0.05),
    "Adadelta": partial(Adadelta, lr=1.0),
}
CAPTURABLE = {
    "Adam capturable": partial(Adam, lr=0.05, capturable=True),
    "NAdam capturable": partial(NAdam, lr=0.05, capturable=True, foreach=True),
    "RAdam capturable": partial(RAdam, lr=0.05, capturable=True, foreach=True),
}


def moved(value: object, device: torch.device) -> object:
    """A penalty, and what it is made of, with its tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(moved(v, device) for v in value)
    if isinstance(value, labels):
        return labels(value.index.to(device))
    if not isinstance(value, Penalty):
        return value
    return value.replaced(**{name: moved(v, device) for name, v in vars(value).items()})


def parameters(shape: tuple[int, ...], device: torch.device, count: int = 2, dtype=torch.float64) -> list[Parameter]:
    draw = torch.Generator().manual_seed(count)
    return [Parameter(torch.randn(shape, generator=draw, dtype=dtype).to(device)) for _ in range(count)]


def stepped(make, penalty, shape, device, *, steps: int = 4, count: int = 2, waits: bool = False, **options):
    """Parameters and their optimizer after some steps, in which nothing waits but torch's own reading of lr."""
    params = parameters(shape, device, count)
    opt = ProxOptimizer(make(params), attach(moved(penalty, device), params), **options)
    reads_lr = isinstance(opt.base, SGD) and isinstance(opt.base.param_groups[0]["lr"], torch.Tensor)
    draw = torch.Generator().manual_seed(1)
    for k in range(steps):
        for p in params:
            p.grad = torch.randn(shape, generator=draw, dtype=p.dtype).to(device)
        with watch(allow_waits=k == 0 or reads_lr or waits):  # the first makes the state
            opt.step()
    return params, opt


def assert_equal(found: list[Parameter], wanted: list[Parameter], rtol: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.cpu() == 0, b == 0)
        torch.testing.assert_close(a.cpu(), b, rtol=rtol, atol=0.01 * rtol)


@pytest.mark.parametrize("case", CATALOG, ids=lambda case: case.id)
@pytest.mark.parametrize("base", ["SGD", "AdamW fused"])
def test_every_penalty_gives_the_cpus_weights_and_waits_for_nothing(base, case, accelerator):
    size = {"waits": "Nuclear" in case.id or "Rank" in case.id}  # torch's singular value decomposition does
    if "TotalVariation" in case.id or case.id == "fused lasso":  # thousands of launches a step
        size = {"steps": 2, "count": 1}
        if case.id not in ("TotalVariation along dim 0", "fused lasso"):
            pytest.skip("slow, and the same code as of the two that are run")
    if base != "SGD" and case.make().groups is not None and not case.convex:  # thousands of launches a step
        size = {"steps": 2, "count": 1}
        if case.id not in ("Group MCP", "Group SCAD, weights 0 and inf", "Group MCP labels"):
            pytest.skip("slow, and the same code as of the three that are run")
    if base != "SGD" and "SLOPE" in case.id:  # likewise: an order found by many sorts
        size = {"steps": 2, "count": 1}
        if case.id != "SLOPE":
            pytest.skip("slow, and the same code as of the one that is run")
    found, _ = stepped(BASES[base], case.make(), case.shape, accelerator, **size)
    wanted, _ = stepped(BASES[base], case.make(), case.shape, CPU, **size)
    assert_equal(found, wanted, 1e-10)  # the order of an Adam step's factors, which group roots magnify


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("penalty", [L1(0.4), L2(0.4), L1L2(0.6, 0.4), Group(L1(0.3), by=rows)], ids=repr)
@pytest.mark.parametrize("base", BASES)
def test_every_optimizer_gives_the_cpus_weights_and_waits_for_nothing(base, penalty, foreach, accelerator):
    options = {"foreach": foreach, "steps": 7 if base == "RAdam" else 3}  # which adapts from the sixth on
    found, _ = stepped(BASES[base], penalty, (5, 3), accelerator, **options)
    wanted, _ = stepped(BASES[base], penalty, (5, 3), CPU, **options)
    assert_equal(found, wanted, 1e-10)


@pytest.mark.parametrize("base", CAPTURABLE)
def test_with_counters_on_the_device_too(base, accelerator):
    """torch's own capturable step reckons with float32 counters, which the CPU's does not."""
    found, _ = stepped(CAPTURABLE[base], L1(0.4), (5, 3), accelerator, steps=7)
    wanted, _ = stepped(partial(CAPTURABLE[base], capturable=False), L1(0.4), (5, 3), CPU, steps=7)
    assert_equal(found, wanted, 1e-3)


KINDS = {kind.__name__: kind for kind in (L1, L2, L1L2, MCP, SCAD)}
KINDS |= {"Group": lambda alpha: Group(L1(alpha), by=rows), "L1 + L2": lambda alpha: L1(alpha) + L2(0.1)}


@pytest.mark.parametrize("base", ["SGD", "SGD tensor lr", "AdamW fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_strength_on_the_device_is_the_number(kind, base, device):
    found, _ = stepped(BASES[base], KINDS[kind](torch.tensor(0.4, dtype=torch.float64)), (5, 3), device)
    wanted, _ = stepped(BASES[base], KINDS[kind](0.4), (5, 3), device)
    assert_equal(found, [w.cpu() for w in wanted], 1e-12)


def test_the_threshold_that_is_many_tensors_own_keeps_nan_and_has_no_negative_zeros(device):
    w = [torch.tensor([3.0, -3.0, 0.5, -0.5, 0.0, -0.0, torch.nan, torch.inf], device=device) for _ in range(2)]
    for strength in (torch.tensor(1.0, device=device), torch.zeros((), device=device)):
        taken = [x.clone() for x in w]
        L1(strength).prox_(taken, [0.75, 0.75])
        wanted = L1(float(strength)).prox(w[0].cpu(), 0.75)
        for x in taken:
            torch.testing.assert_close(x.cpu(), wanted, rtol=0, atol=0, equal_nan=True)
            assert torch.equal((x.cpu() == 0) & x.cpu().signbit(), torch.zeros(8, dtype=torch.bool))


@pytest.mark.parametrize("base", ["AdamW fused", "Adam", "Adagrad fused"])
def test_the_first_threshold_has_the_digits_of_the_cpus(base, accelerator):
    """Counters on a device are float32, in which 1 - 0.999 ** 1 is off by 1e-5."""
    steps = {}
    for device in (CPU, accelerator):
        params, opt = stepped(BASES[base], L1(0.0), (5, 3), device, steps=1)
        steps[device.type] = effective_step(opt.base)[params[0]].cpu()
    torch.testing.assert_close(steps["cpu"], steps[accelerator.type], rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("penalty", [L1(0.4), MCP(0.4), Group(L1(0.3), by=rows), Group(MCP(0.3), by=rows)], ids=repr)
@pytest.mark.parametrize("base", ["SGD", "AdamW single", "AdamW fused"])
def test_tensors_of_several_shapes_and_counts_are_each_stepped_as_alone(penalty, base, accelerator):
    """Those of one shape are stepped together; some are shorter, empty or transposed, or meet no gradient at times."""
    shapes = [(5, 3), (4, 3), (5, 3), (0, 3), (5, 3), (4, 3), (3, 5), (5, 3), (5, 3)]
    found = {}
    for device in (CPU, accelerator):
        draw = torch.Generator().manual_seed(0)
        params = [Parameter(torch.randn(s, generator=draw, dtype=torch.float64).to(device)) for s in shapes]
        params[-1] = Parameter(params[-1].detach().t().contiguous().t())
        opt = ProxOptimizer(BASES[base](params), attach(penalty, params))
        for k in range(4):
            for i, p in enumerate(params):
                grad = torch.randn(p.shape, generator=draw, dtype=p.dtype)
                grad[:1] = 0.0  # a row that meets none
                p.grad = grad.to(device) if (i + k) % 3 else None
            opt.step()
        found[device.type] = params
    assert_equal(found[accelerator.type], found["cpu"], 1e-10)


MANY = 20


@pytest.mark.parametrize(("base", "bound"), [("SGD", 40), ("AdamW fused", 34)])
@pytest.mark.parametrize("penalty", [L1, L2, L1L2], ids=lambda kind: kind.__name__)
def test_a_strength_on_the_device_takes_few_launches_too(penalty, base, bound, fake):
    params = parameters((64, 64), fake, MANY, torch.float32)
    opt = ProxOptimizer(BASES[base](params), attach(penalty(torch.full((), 1e-3, device=fake)), params))
    assert added(opt, params) <= bound


def test_a_scaled_step_takes_few_launches_too(fake):
    """GradScaler tells a fused base on the device whether to skip."""
    params = parameters((64, 64), fake, MANY, torch.float32)
    opt = ProxOptimizer(SGD(params, lr=0.1, fused=True), attach(L1(1e-3), params))
    opt.grad_scale, opt.found_inf = torch.ones((), device=fake), torch.zeros((), device=fake)
    assert added(opt, params) <= 16


def added(opt: ProxOptimizer, params: list[Parameter]) -> int:
    """Launches that a step takes beyond the base's own."""
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    with watch() as bare:
        opt.base.step()
    with watch() as seen:
        opt.step()
    assert seen.waits == bare.waits
    return seen.launches - bare.launches


def test_violation_and_alpha_max_wait_once(fake):
    torch.manual_seed(0)
    trunk, heads = torch.nn.Linear(4, 3), torch.nn.ModuleList(torch.nn.Linear(3, 2) for _ in range(5))
    found = {}
    for device in (CPU, fake):
        model = torch.nn.ModuleList([trunk, heads]).to(device)
        model.zero_grad()
        x = torch.linspace(-1, 1, 40).reshape(10, 4).to(device)
        loss = lambda model=model, x=x: sum(head(model[0](x)).square().mean() for head in model[1])  # noqa: E731
        term = attach(L1(1e-3), model[1])
        loss().backward()
        with watch() as seen:
            found[device.type] = violation(term, model=model), alpha_max(model, term, loss)
        assert seen.waits == (0 if device == CPU else 2)
    assert found["cpu"] == pytest.approx(found["fake"], rel=1e-6)


def test_alpha_max_keeps_the_accelerators_random_state(fake, monkeypatch):
    """Dropout in the loss draws from the accelerator's generator."""
    held = {"state": torch.arange(3)}
    monkeypatch.setattr(torch.fake, "get_rng_state", lambda device: held["state"].clone(), raising=False)
    monkeypatch.setattr(torch.fake, "set_rng_state", lambda state, device: held.update(state=state), raising=False)
    model = torch.nn.Linear(3, 1).to(fake)

    def loss():
        held["state"] = held["state"] + 1
        return model(torch.ones(2, 3, device=fake)).square().mean()

    alpha_max(model, attach(L1(1.0), model), loss)
    assert torch.equal(held["state"], torch.arange(3))


AWAY = {
    "L1's alpha": lambda: L1(torch.tensor(0.1)),
    "MCP's alpha": lambda: Group(MCP(torch.tensor(0.1)), by=rows),
    "L2's alpha": lambda: L1(0.1) + L2(torch.tensor(0.1)),
    "SCAD's alpha": lambda: NonNegative(SCAD(torch.tensor(0.1))),
    "Pinball's alpha": lambda: Pinball(torch.tensor(0.1)),
    "Group's weights": lambda: Group(L1(0.1), by=rows, weights=torch.ones(4)),
    "Weighted's weights": lambda: Weighted(L1(0.1), torch.ones(3)),
    "labels": lambda: Group(L1(0.1), by=labels(torch.tensor([0, 0, 1, 1]))),
    "Towards' reference": lambda: Towards(L1(0.1), torch.zeros(4, 3)),
}


@pytest.mark.parametrize("what", AWAY)
def test_what_lies_on_another_device_is_refused_by_name(what, accelerator):
    w = Parameter(torch.ones(4, 3, device=accelerator))
    with pytest.raises(ValueError, match=f"'head'.*{what} .*cpu.*{accelerator}") as caught:
        attach(AWAY[what](), {"head": w})
    assert str(accelerator) in str(caught.value).split(";")[-1]  # the remedy says where to


@pytest.mark.parametrize("wrap", [ProxOptimizer, attach_to])
def test_a_model_that_moved_after_attach_is_refused_by_the_optimizer(wrap, accelerator):
    w = Parameter(torch.ones(4, 3))
    term = attach(L1(torch.tensor(0.1)), {"head": w})
    term.parts[0].parameters["head"] = moved = Parameter(w.detach().to(accelerator))  # as Module.to does with it
    with pytest.raises(ValueError, match=r"'head' lies on .* L1's alpha on cpu"):
        wrap(SGD([moved], lr=0.1), term)
    assert term.owner is None


def test_another_strength_is_refused_and_the_old_one_kept(accelerator):
    w = Parameter(torch.ones(4, 3, device=accelerator))
    term = attach(L1(0.1), {"head": w})
    with pytest.raises(ValueError, match="'head' lies on"):
        term.alpha = torch.tensor(0.2)
    assert term.alpha == 0.1
    term.alpha = torch.full((), 0.2, device=accelerator)
    assert float(term.alpha) == pytest.approx(0.2)


def test_a_schedule_fills_a_strength_on_the_device_without_a_wait(accelerator):
    params = parameters((4, 3), accelerator)
    term = attach(L1(torch.zeros((), device=accelerator, dtype=torch.float64)), params)
    opt = ProxOptimizer(SGD(params, lr=0.1), term)
    ramp = PenaltyScheduler(term, schedules.linear(0.0, 0.5, steps=5))
    for p in params:
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in params]
    with watch(allow_waits=False):
        for _ in range(3):
            opt.step()
    assert ramp.last_alpha == float(term.alpha) == pytest.approx(0.3)
    for p, start in zip(params, before, strict=True):  # thresholds 0, 0.01 and 0.02
        torch.testing.assert_close(p.detach(), start.sign() * (start.abs() - 0.03).clamp(min=0.0))
