"""ProxOptimizer is the base's step and then the prox in the base's metric, in every way that it can be run."""

from __future__ import annotations

import pytest
import torch
from optimizer_catalog import every_recipe, give_gradients, matrix, same, values
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop, lr_scheduler

from torchreg import (
    L0,
    L1,
    L1L2,
    L2,
    MCP,
    SCAD,
    Group,
    NonNegative,
    Penalty,
    ProxOptimizer,
    Weighted,
    attach,
    columns,
    effective_step,
    labels,
    rows,
    whole,
)

KINDS = {
    "L1": lambda a: L1(a),
    "L2": lambda a: L2(a),
    "L1L2": lambda a: L1L2(a),
    "L0": lambda a: L0(a),
    "MCP": lambda a: MCP(a),
    "SCAD": lambda a: SCAD(a),
    "Group rows": lambda a: Group(L1(a), by=rows),
    "Group columns": lambda a: Group(L1(a), by=columns),
    "Group L0": lambda a: Group(L0(a), by=rows),
    "sum": lambda a: Group(L1(a), by=rows) + L1(a) + L2(a),
}


def three(seed: int = 0) -> list[Parameter]:
    return [matrix(seed + 1), matrix(seed + 2, (5, 3)), matrix(seed + 3, (3,))]


def one_of_each_kind(
    alpha: float, kinds=tuple(KINDS)
) -> tuple[list[Parameter], dict[str, Parameter], dict[Tensor, Penalty]]:
    """Parameters, the penalised ones by name, and the penalty of each."""
    named = {f"{name} {k}": matrix(3 * j + k, (4 + k, 3)) for j, name in enumerate(kinds) for k in range(2)}
    penalties = {p: KINDS[name[:-2]](alpha) for name, p in named.items()}
    return [*named.values(), matrix(99, (3,))], named, penalties


def wrap(base: Optimizer, named: dict[str, Parameter], alpha: float, **kwargs) -> ProxOptimizer:
    return ProxOptimizer(base, *[attach(KINDS[name[:-2]](alpha), {name: p}) for name, p in named.items()], **kwargs)


class Reference:
    """The definition: the bare base's step, then each parameter's prox with the effective step, out of place."""

    def __init__(self, base: Optimizer, penalties: dict[Tensor, Penalty]) -> None:
        self.base, self.penalties = base, penalties

    def step(self) -> None:
        self.base.step()
        steps = effective_step(self.base)
        for p, penalty in self.penalties.items():
            if p.grad is not None:
                p.data.copy_(penalty.prox(p.detach(), steps[p]))


@every_recipe
def test_alpha_zero_is_the_bare_base_bit_for_bit(recipe):
    kinds = [name for name in KINDS if name != "Group L0"]  # a search, too slow for 100 steps
    (bare, *_), (wrapped, named, _) = one_of_each_kind(0.0, kinds), one_of_each_kind(0.0, kinds)
    base, opt = recipe.make(bare), wrap(recipe.make(wrapped), named, 0.0)
    for k in range(100):
        give_gradients(bare, k)
        give_gradients(wrapped, k)
        base.step()
        opt.step()
    assert same(bare, wrapped)


@pytest.mark.parametrize("foreach", [None, True, False])
@every_recipe
def test_a_step_is_the_base_step_and_then_the_prox(recipe, foreach):
    (plain, _, penalties), (wrapped, named, _) = one_of_each_kind(0.3), one_of_each_kind(0.3)
    reference, opt = Reference(recipe.make(plain), penalties), wrap(recipe.make(wrapped), named, 0.3, foreach=foreach)
    for k in range(6):
        give_gradients(plain, k)
        give_gradients(wrapped, k)
        reference.step()
        opt.step()
    for a, b in zip(plain, wrapped, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
        assert torch.equal(a == 0, b == 0)
    assert any(bool((p == 0).any()) for p in wrapped)


LARGE = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.t(),
    "column slice": lambda x: x[:, 1:],
    "channels last": lambda x: x[:, :500].reshape(600, 20, 5, 5).to(memory_format=torch.channels_last),
    "flat": lambda x: x.reshape(1, -1),
    "tall": lambda x: x.reshape(-1, 1),
}
COARSE = {
    "L1": lambda w: L1(0.3),
    "L1L2": lambda w: L1L2(0.3),
    "MCP": lambda w: MCP(0.3),
    "Weighted": lambda w: Weighted(
        L1(0.3), torch.rand(w.shape, generator=torch.Generator().manual_seed(1), dtype=w.dtype)
    ),
    "rows": lambda w: Group(L1(0.1), by=rows),
    "columns": lambda w: Group(L1(0.1), by=columns),
    "whole": lambda w: Group(L1(0.01), by=whole),
    "labels": lambda w: Group(L1(0.1), by=labels(torch.arange(w.shape[0]) % 7)),
    "NonNegative": lambda w: NonNegative(L1(0.3)),
    "sparse group": lambda w: Group(L1(0.1), by=rows) + L1(0.1),
}
BASES = {
    "SGD": lambda p: SGD(p, lr=0.5, momentum=0.9),
    "amsgrad": lambda p: Adam(p, lr=0.1, amsgrad=True),
    "fused": lambda p: AdamW(p, lr=0.1, fused=True, weight_decay=0.0),
    "centered": lambda p: RMSprop(p, lr=0.1, centered=True),
}


@pytest.mark.parametrize(
    ("base", "penalty", "layout"),
    [("amsgrad", penalty, layout) for penalty in COARSE for layout in LARGE]
    + [
        (base, penalty, layout)
        for base in BASES
        for penalty in ("L1", "rows")
        for layout in ("contiguous", "transposed")
    ],
)
def test_a_large_tensor_taken_in_pieces_gets_the_same_step(base, penalty, layout):
    base, make, layout = BASES[base], COARSE[penalty], LARGE[layout]
    draw = torch.Generator().manual_seed(0)
    start, *grads = (torch.randn(600, 501, generator=draw, dtype=torch.float64) for _ in range(2))
    plain, wrapped = (Parameter(layout(start.clone())) for _ in range(2))
    assert plain.numel() > 1 << 18
    penalty = make(plain.detach())
    reference = Reference(base([plain]), {plain: penalty})
    opt = ProxOptimizer(base([wrapped]), attach(penalty, {"w": wrapped}))
    for grad in grads:
        plain.grad, wrapped.grad = layout(grad.clone()), layout(grad.clone())
        reference.step()
        opt.step()
    torch.testing.assert_close(plain, wrapped, rtol=1e-9, atol=1e-12)
    assert torch.equal(plain == 0, wrapped == 0)


@pytest.mark.filterwarnings("ignore:.*masters=True")
def test_many_tensors_of_several_dtypes_are_stepped_in_buckets():
    sizes, dtypes = [(40, 40), (300, 3), (1, 1), (0, 5), (1200, 30)], [torch.float64, torch.float32, torch.bfloat16]
    plain, wrapped = ([matrix(k, s, d) for k, s in enumerate(sizes) for d in dtypes] for _ in range(2))
    reference = Reference(SGD(plain, lr=0.5), dict.fromkeys(plain, L1(0.3)))
    opt = ProxOptimizer(SGD(wrapped, lr=0.5), L1(0.3), foreach=True)
    give_gradients(plain, 0)
    give_gradients(wrapped, 0)
    reference.step()
    opt.step()
    for a, b in zip(plain, wrapped, strict=True):
        unit = torch.finfo(a.dtype).eps  # one ulp of the weight, and the rounding of the threshold 0.15
        torch.testing.assert_close(a, b, rtol=unit, atol=0.15 * unit)


def test_each_parameter_group_has_the_threshold_of_its_own_lr():
    a, b, free = matrix(1), matrix(2), matrix(3, (3,))
    start = values([a, b])
    base = SGD([{"params": [a], "lr": 0.1}, {"params": [b, free], "lr": 0.4, "momentum": 0.5}])
    opt = ProxOptimizer(base, L1(0.5))
    give_gradients([a, b, free], 1)
    opt.step()
    for p, w, lr, threshold in ((a, start[0], 0.1, 0.05), (b, start[1], 0.4, 0.4)):
        moved = w - lr * p.grad
        torch.testing.assert_close(p.detach(), moved.sign() * (moved.abs() - threshold).clamp(min=0.0))


SCHEDULES = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=12),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=3),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.8**k),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[4]
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(
    "make", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: AdamW(p, lr=0.1)], ids=["SGD", "AdamW"]
)
def test_schedulers_drive_the_wrapper_as_they_drive_the_base(make, schedule):
    plain, wrapped = three(), three()
    reference = Reference(make(plain), dict.fromkeys(plain[:2], L1(0.1)))
    opt = ProxOptimizer(make(wrapped), L1(0.1))
    schedules = schedule(reference.base), schedule(opt)  # any warning is an error
    for k in range(10):
        give_gradients(plain, k)
        give_gradients(wrapped, k)
        reference.step()
        opt.step()
        for s in schedules:
            s.step()
        assert schedules[0].get_last_lr() == schedules[1].get_last_lr()
    torch.testing.assert_close(plain, wrapped, rtol=1e-12, atol=1e-14)


def test_a_scheduler_that_watches_the_loss():
    p = matrix(1)
    opt = ProxOptimizer(SGD([p], lr=0.1), L1(0.1))
    schedule = lr_scheduler.ReduceLROnPlateau(opt, patience=0)
    for loss in (1.0, 1.0, 1.0):
        schedule.step(loss)
    assert opt.param_groups[0]["lr"] < 0.1


def test_a_scheduler_called_before_the_step_warns_as_it_does_on_the_base():
    schedule = lr_scheduler.StepLR(ProxOptimizer(SGD([matrix(1)], lr=0.1), L1(0.1)), 3)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        schedule.step()


def test_accumulated_gradients_take_one_prox():
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def train(batches):
        torch.manual_seed(0)
        model = nn.Linear(3, 4, dtype=torch.float64)
        opt = ProxOptimizer(Adam(model.parameters(), lr=0.1), attach(L1(0.5), model))
        for _ in range(5):
            opt.zero_grad()
            for batch in data.chunk(batches):
                (model(batch).square().mean() / batches).backward()
            opt.step()
        return model.weight

    torch.testing.assert_close(train(4), train(1), rtol=1e-9, atol=1e-12)


@every_recipe
def test_a_parameter_without_a_gradient_stays(recipe):
    params = three()
    opt = ProxOptimizer(recipe.make(params), L1(10.0))
    before = values(params)
    give_gradients(params, 0)
    params[0].grad = None
    opt.step()
    assert torch.equal(params[0], before[0])
    assert not torch.equal(params[1], before[1])
    give_gradients(params, 1)
    opt.step()
    after = values(params)
    assert not torch.equal(after[0], before[0])
    opt.zero_grad()
    opt.step()
    assert same(params, after)


@every_recipe
def test_a_closure_is_called_once_with_gradients_enabled_and_its_loss_returned(recipe):
    plain, wrapped = three(), three()
    opts = [ProxOptimizer(recipe.make(p), L1(0.1)) for p in (plain, wrapped)]
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        calls.append(1)
        give_gradients(wrapped, len(calls))
        return torch.tensor(float(len(calls)))

    for k in range(1, 200):
        give_gradients(plain, k)
        assert opts[0].step() is None
        assert float(opts[1].step(closure)) == k == len(calls)
        assert same(plain, wrapped)
