"""How many launches a proximal step adds on an accelerator, held to a table; the host waits for none of them.

A figure is what was counted, and a tenth is left as room: a change that doubles one fails. Torch's own
launches are taken off: the same step of the base alone is counted beside it.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from fake_device import watch
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

from torchreg import (
    L0,
    L1,
    L1L2,
    L2,
    MCP,
    SCAD,
    Group,
    NonNegative,
    PenaltyScheduler,
    ProxOptimizer,
    TargetSparsity,
    Weighted,
    alpha_max,
    attach,
    columns,
    rows,
    schedules,
    violation,
)

MANY, SHAPE, ROOM = 20, (16, 16), 1.1
BASES = {
    "SGD": partial(SGD, lr=0.1),
    "SGD tensor lr": lambda p: SGD(p, lr=torch.full((), 0.1, device=p[0].device), momentum=0.5),
    "Adam": partial(Adam, lr=0.05),
    "AdamW": partial(AdamW, lr=0.05),
    "AdamW fused": partial(AdamW, lr=0.05, fused=True),
    "Adam capturable": partial(Adam, lr=0.05, capturable=True),
    "NAdam": partial(NAdam, lr=0.05),
    "NAdam capturable": partial(NAdam, lr=0.05, capturable=True, foreach=True),
    "RAdam capturable": partial(RAdam, lr=0.05, capturable=True, foreach=True),
    "RMSprop centered": partial(RMSprop, lr=0.01, centered=True),
    "Adagrad fused": partial(Adagrad, lr=0.1, fused=True),
    "Adamax": partial(Adamax, lr=0.05),
}

# Launches for 20 matrices of one shape together, whatever their number.
PENALTIES = {
    "L1": lambda device: L1(1e-3),
    "L2": lambda device: L2(1e-3),
    "L1L2": lambda device: L1L2(1e-3),
    "L0": lambda device: L0(1e-3),
    "MCP": lambda device: MCP(1e-3),
    "SCAD": lambda device: SCAD(1e-3),
    "Weighted": lambda device: Weighted(L1(1e-3), torch.ones(SHAPE, device=device)),
    "NonNegative": lambda device: NonNegative(L1(1e-3)),
    "L1 + L2": lambda device: L1(1e-3) + L2(1e-3),
    "rows": lambda device: Group(L1(1e-3), by=rows),
    "columns": lambda device: Group(L1(1e-3), by=columns),
    "rows + L1": lambda device: Group(L1(1e-3), by=rows) + L1(1e-4),
    "rows of MCP": lambda device: Group(MCP(1e-3), by=rows),
    "rows of SCAD": lambda device: Group(SCAD(1e-3), by=rows),
    "rows of L0": lambda device: Group(L0(1e-3), by=rows),
}
STEPS = {  # SGD, AdamW, fused AdamW, whose counters lie on the device
    "L1": (3, 11, 20),
    "L2": (2, 13, 22),
    "L1L2": (4, 17, 26),
    "L0": (7, 14, 22),
    "MCP": (10, 32, 40),
    "SCAD": (15, 83, 91),
    "Weighted": (20, 26, 34),
    "NonNegative": (11, 19, 27),
    "L1 + L2": (9, 34, 42),
    "rows": (30, 171, 179),
    "columns": (30, 171, 179),
    "rows + L1": (35, 179, 187),
    "rows of MCP": (34, 386, 394),
    "rows of SCAD": (39, 413, 421),
    "rows of L0": (31, 448, 456),
}
OF_BASES = {  # with L1; where the counters of NAdam and RAdam lie on the device, a few for each
    "SGD tensor lr": 9,
    "Adam": 11,
    "Adam capturable": 20,
    "NAdam": 12,
    "NAdam capturable": 55,
    "RAdam capturable": 156,
    "RMSprop centered": 13,
    "Adagrad fused": 11,
    "Adamax": 12,
}
MASTERS = 12
COUNTS = {"SGD": MANY, "AdamW": 7, "AdamW fused": 12}
# Launches for each of the parameters of a term, under SGD.
TARGETS = {"magnitude": 176, "projection": 213, "feedback": 953}  # while the share of zeros rises
VALUES = {"L1": 4, "rows": 13, "rows of MCP": 19}
SIX_VIOLATIONS = {"L1": 104, "rows": 248, "rows of MCP": 464}  # of six parameters together, under fused AdamW
SIX_ALPHAS_MAX = {"L1": 58, "rows": 223}


def parameters(device: torch.device, count: int = MANY, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    draw = torch.Generator().manual_seed(count)
    return [Parameter(torch.randn(SHAPE, generator=draw).to(device, dtype)) for _ in range(count)]


def added(opt: ProxOptimizer, params: list[Parameter], steps: int = 1) -> int:
    """Launches that a step adds to the base's, the most of several; it waits for none."""
    found = []
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    for _ in range(steps):
        with watch() as bare:
            opt.base.step()
        with watch() as seen:
            opt.step()
        assert seen.waits == bare.waits
        found.append(seen.launches - bare.launches)
    return max(found)


def held(found: float, figure: float) -> None:
    assert found <= ROOM * figure + 1, f"{found} launches; the table has {figure}"


@pytest.mark.parametrize("base", COUNTS)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_many_matrices_takes_no_more_launches_than_the_table_has(name, base, fake):
    params = parameters(fake, COUNTS[base])
    opt = ProxOptimizer(BASES[base](params), attach(PENALTIES[name](fake), params))
    held(added(opt, params), STEPS[name][list(COUNTS).index(base)])


@pytest.mark.parametrize("base", OF_BASES)
def test_nor_does_that_of_any_optimizer(base, fake):
    params = parameters(fake)
    held(added(ProxOptimizer(BASES[base](params), attach(L1(1e-3), params)), params), OF_BASES[base])


@pytest.mark.parametrize("shape", [(64, 64), (300, 300)], ids=str)
def test_the_size_of_tensors_is_no_matter(shape, fake):
    """A CPU would take the larger ones one by one, since a launch is cheap there and its cache small."""
    params = [Parameter(torch.ones(shape, device=fake)) for _ in range(MANY)]
    held(added(ProxOptimizer(BASES["AdamW fused"](params), attach(L1(1e-3), params)), params), STEPS["L1"][2])


def test_masters_take_a_few_for_all(fake):
    params = parameters(fake, dtype=torch.bfloat16)
    held(added(ProxOptimizer(BASES["SGD"](params), attach(L1(1e-3), params), masters=True), params), MASTERS)


def test_a_schedule_takes_none(fake):
    """A number moves on the host; a tensor on the device is filled."""
    found = []
    for alpha in (0.0, torch.zeros((), device=fake)):
        params = parameters(fake)
        term = attach(L1(alpha), params)
        opt = ProxOptimizer(BASES["SGD"](params), term)
        before = added(opt, params)
        PenaltyScheduler(term, schedules.linear(0.0, 0.5, steps=50))
        found.append(added(opt, params) - before)
    assert found[0] <= 3  # at strength 0 there was no threshold
    assert found[1] <= 1


@pytest.mark.parametrize("method", TARGETS)
def test_a_target_for_the_share_of_zeros(method, fake):
    params = parameters(fake, 2)
    term = attach(L1(1e-3), params)
    opt = ProxOptimizer(BASES["SGD"](params), term)
    TargetSparsity(term, 0.5, steps=8, method=method)
    held(added(opt, params, steps=2), 2 * TARGETS[method])


@pytest.mark.parametrize("name", VALUES)
def test_the_value_of_a_term_takes_few_and_waits_for_nothing(name, fake):
    term = attach(PENALTIES[name](fake), parameters(fake, 5))
    with watch(allow_waits=False) as seen:
        term()
    held(seen.launches, 5 * VALUES[name])


@pytest.mark.parametrize("name", SIX_VIOLATIONS)
def test_the_violation_waits_once(name, fake):
    found = []
    for device in (torch.device("cpu"), fake):
        params = parameters(device, 6)
        opt = ProxOptimizer(BASES["AdamW fused"](params), attach(PENALTIES[name](device), params))
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
        with watch() as seen:
            found.append(violation(*opt.terms))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert seen.waits == 1
    held(seen.launches, SIX_VIOLATIONS[name])


@pytest.mark.parametrize("name", SIX_ALPHAS_MAX)
def test_the_least_alpha_that_zeroes_all(name, fake):
    found = []
    for device in (torch.device("cpu"), fake):
        params = torch.nn.ParameterList(parameters(device, 6))
        term = attach(PENALTIES[name](device), dict(params.named_parameters()))
        wanted = [(p.detach() * k).clone() for k, p in enumerate(params, 1)]

        def loss(params=params, wanted=wanted) -> torch.Tensor:
            joined, aims = (torch.cat([x.reshape(-1) for x in xs]) for xs in (params, wanted))
            return (joined - aims).square().sum()

        with watch() as bare:
            torch.autograd.grad(loss(), list(params))
        with watch() as seen:
            found.append(alpha_max(params, term, loss))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert seen.waits <= 2
    held(seen.launches - bare.launches, SIX_ALPHAS_MAX[name])
