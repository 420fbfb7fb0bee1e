"""mode="dual_averaging": the textbook's iterates, the minimiser's zeros without noise, steady zeros with it."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from optimizer_catalog import (
    FEATURES,
    L1_ALPHA,
    RECIPES,
    Recipe,
    give_gradients,
    least_squares,
    matrix,
    same,
    values,
)
from test_checkpoints import equal_states, through_disk
from test_decisive import PENALTIES, objective, oracles
from test_grad_scaler import BASES, LAYOUTS, scaled_step, scaler, three
from test_interrupts import At
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

import torchreg.training.dual_averaging as module
from torchreg import (
    L0,
    L1,
    L1L2,
    MCP,
    SCAD,
    Group,
    NonNegative,
    PenaltyScheduler,
    ProxOptimizer,
    Towards,
    Weighted,
    attach,
    attach_to,
    clip_grad_norm_,
    columns,
    rows,
    schedules,
)

DUAL = {"mode": "dual_averaging"}


def linear(seed: int) -> tuple[Tensor, Tensor]:
    """The planted linear model: 200 x 300, 15 weights that are not zero."""
    draw = torch.Generator().manual_seed(seed)
    X, truth = torch.randn(200, 300, generator=draw), torch.zeros(300)
    truth[torch.randperm(300, generator=draw)[:15]] = torch.randn(15, generator=draw)
    return X, X @ truth + 0.5 * torch.randn(200, generator=draw)


def noisy(X: Tensor, y: Tensor, alpha: float, mode: str, steps: int = 1500) -> tuple[Tensor, float]:
    """The weights after training on batches of 32, and how often a weight came or went in the last tenth."""
    draw, w = torch.Generator().manual_seed(9), Parameter(torch.zeros(300))
    opt = ProxOptimizer(AdamW([w], lr=0.01), attach(L1(alpha), {"w": w}), mode=mode)
    decay, flips = CosineAnnealingLR(opt, steps), 0
    for k in range(steps):
        rows_of = torch.randint(200, (32,), generator=draw)
        w.grad = X[rows_of].T @ (X[rows_of] @ w.detach() - y[rows_of]) / 32
        before = w.detach() != 0
        opt.step()
        decay.step()
        flips += int(((w != 0) != before).sum()) if k >= steps * 9 // 10 else 0
    return w.detach(), flips / 300


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_under_the_noise_of_batches_a_fifth_of_the_wrong_entries_and_no_flicker(share):
    from sklearn.linear_model import Lasso

    wrong = {"prox": 0, "dual_averaging": 0}
    for seed in range(2 if share < 0.05 else 1):
        X, y = linear(seed)
        alpha = share * float((X.T @ y / 200).abs().max())
        exact = Lasso(alpha=alpha, fit_intercept=False, tol=1e-10, max_iter=10**6).fit(X.double(), y.double()).coef_
        for mode in wrong:
            w, flips = noisy(X, y, alpha, mode)
            wrong[mode] += int(((w.numpy() != 0) != (exact != 0)).sum())
            assert flips < 0.05 or mode == "prox"
    assert wrong["prox"] > 10
    assert wrong["dual_averaging"] <= wrong["prox"] / 5


@pytest.mark.parametrize(
    "recipe", [pytest.param(r, marks=[pytest.mark.slow] if r.steps > 3000 else [], id=r.id) for r in RECIPES]
)
def test_without_noise_every_optimizer_reaches_the_oracle_with_its_zeros(recipe: Recipe):
    problem = least_squares(recipe.decades, recipe.decay)
    names = ["L1", "L1L2", "Group"] if recipe.id == "SGD momentum" else ["L1"]
    params = {name: Parameter(torch.zeros(FEATURES, dtype=torch.float64)) for name in names}
    terms = [attach(PENALTIES[name], {name: p}) for name, p in params.items()]
    opt = ProxOptimizer(recipe.make(list(params.values())), *terms, **DUAL)
    decay = CosineAnnealingLR(opt, recipe.steps)
    for _ in range(recipe.steps):
        for p in params.values():
            p.grad = problem.gradient(p.detach())
        opt.step()
        decay.step()
    for name, p in params.items():
        oracle, found = oracles(problem)[name], p.detach()
        gap = objective(problem, name, found) - objective(problem, name, oracle)
        assert -1e-11 < gap < recipe.gap, f"{name}: gap {gap:.1e}"
        assert torch.equal(found == 0, oracle == 0), name


@pytest.mark.parametrize("by", ["entries", "one group each"])
def test_with_plain_sums_it_is_the_textbooks_iteration_whatever_the_schedules(monkeypatch, by):
    """``z -= t g`` and ``w = soft(z, sum of t_j alpha_j)``, Xiao 2010, with moving lr and alpha."""
    monkeypatch.setattr(module, "KEPT", 1.0)
    draw = torch.Generator().manual_seed(3)
    start = torch.randn(40, 1, generator=draw, dtype=torch.float64)
    start += 0.5 * start.sign()
    hessian = torch.rand(40, 1, generator=draw, dtype=torch.float64) + 0.5
    p, z, total = Parameter(start.clone()), start.clone(), 0.0
    penalty = L1(0.0) if by == "entries" else Group(L1(0.0), by=rows)
    opt = ProxOptimizer(SGD([p], lr=0.1), term := attach(penalty, {"p": p}), **DUAL)
    seen = 0
    for k in range(300):
        alpha, lr = 1.0 + 0.9 * math.sin(0.1 * k), 0.05 / (1.0 + 0.01 * k)
        term.alpha, opt.param_groups[0]["lr"] = alpha, lr
        w = z - z.clamp(-total, total)
        noise = 0.2 * torch.randn(40, 1, generator=draw, dtype=torch.float64)  # no group jumps over zero
        z, total = z - lr * (hessian * (w - start.roll(1, 0)) + noise), total + lr * alpha
        p.grad = hessian * (p.detach() - start.roll(1, 0)) + noise
        opt.step()
        expected = z - z.clamp(-total, total)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-9)
        seen += int((expected == 0).sum())
    assert 1000 < seen < 11000


def test_a_step_counts_with_the_third_power_of_the_threshold_summed_until_then():
    draw, p, past = torch.Generator().manual_seed(0), Parameter(torch.zeros(50, dtype=torch.float64)), []
    opt = ProxOptimizer(SGD([p], lr=0.3), attach(L1(10.0), {"p": p}), **DUAL)
    for n in range(1, 31):
        past.append(torch.randn(50, generator=draw, dtype=torch.float64))
        p.grad = past[-1].clone()
        opt.step()
        powers = [j * (j + 1) * (j + 2) for j in range(1, n + 1)]
        mean = sum(c * g for c, g in zip(powers, past, strict=True)) / sum(powers)
        state = opt.state[p]
        torch.testing.assert_close(state["dual"] / state["threshold"], -mean / 10.0)
    assert state["threshold"].shape == ()  # one number for all, where the step is one
    assert bool((p == 0).all())


def test_sums_a_million_times_a_weight_cost_it_no_digits():
    """SGD on a quadratic whose gradients are 1e3 at weights of 1e-3; z and its threshold reach 1e5 weights' sizes."""
    goal = torch.tensor([2e-3, -5e-3, 1e-6, 3e-4], dtype=torch.float64)
    p = Parameter(torch.zeros(4))
    opt = ProxOptimizer(SGD([p], lr=2e-7), attach(L1(1e3), {"p": p}), **DUAL)
    opt.base.state[p].update(dual=1e3 * torch.tensor([1.0, -1.0, 0.2, 0.0]), threshold=torch.tensor(1e3))
    with torch.no_grad():
        p[:2] = torch.tensor([1e-3, -1e-3])
    for _ in range(400):
        p.grad = (1e6 * (p.detach().double() - goal)).float()
        opt.step()
    expected = torch.tensor([1e-3, -4e-3, 0.0, 0.0], dtype=torch.float64)  # soft(goal, 1e3 / 1e6)
    torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("penalty", [L1(0.1), Group(L1(0.1), by=rows)], ids=repr)
def test_weights_that_are_loaded_take_the_plain_step_from_where_they_are(penalty):
    p = Parameter(matrix(0).detach())
    opt = ProxOptimizer(SGD([p], lr=0.1), attach(L1(5.0), {"p": p}), **DUAL)
    for k in range(50):
        give_gradients([p], k)
        opt.step()
    assert bool((p == 0).all())
    opt.remove_term(opt.terms[0])
    opt.add_term(attach(penalty, {"p": p}))
    new = matrix(7).detach()
    with torch.no_grad():
        p.copy_(new)
    give_gradients([p], 50)
    expected = penalty.prox(new - 0.1 * p.grad, 0.1)
    opt.step()
    torch.testing.assert_close(p.detach(), expected)
    opt.zero_grad()
    with torch.no_grad():
        p.fill_(math.nan)
    give_gradients([p], 51)
    opt.step()
    with torch.no_grad():
        p.copy_(new)  # after a NaN as well
    give_gradients([p], 50)
    opt.step()
    torch.testing.assert_close(p.detach(), expected)


SLOPES = [L1(1.0), NonNegative(L1(1.0)), Weighted(L1(1.0), 2.0), L1L2(1.0, 0.5), Group(L1(1.0), by=rows)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
@pytest.mark.parametrize("penalty", SLOPES, ids=repr)
def test_a_step_that_a_scaler_skips_changes_nothing(make, layout, penalty):
    plain, scaled = three(), three()
    torch._foreach_mul_([p.data for p in plain + scaled], 0.1)
    opts = [ProxOptimizer(make(p, **LAYOUTS[layout]), penalty, **DUAL) for p in (plain, scaled)]
    scale = scaler()
    for k in range(8):
        if k == 4:
            before, state = values(scaled), copy.deepcopy(opts[1].state_dict())
            scaled_step(opts[1], scale, scaled, k, bad=math.inf)
            assert same(before, scaled)
            assert equal_states(state, opts[1].state_dict())
        give_gradients(plain, k)
        opts[0].step()
        scaled_step(opts[1], scale, scaled, k)
    assert same(plain, scaled)
    assert any(bool((p == 0).any()) for p in plain)


def test_a_step_that_is_skipped_on_the_host_or_has_no_gradient_changes_nothing():
    params = three()
    opt = ProxOptimizer(Adam(params, lr=0.1), L1(0.1), skip_nonfinite=True, **DUAL)
    for k in range(5):
        give_gradients(params, k)
        opt.step()
    before, state = values(params), copy.deepcopy(opt.state_dict())
    params[0].grad[0, 0] = math.nan
    with pytest.warns(UserWarning, match="skipped"):
        opt.step()
    opt.zero_grad()
    opt.step()
    for p in params:
        p.requires_grad_(False)
    opt.step()
    assert same(before, params)
    assert equal_states(state, opt.state_dict())


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.first, self.second, self.third = (Parameter(torch.randn(6, 4, generator=draw)) for _ in range(3))


def wrapped(make, net: Net, mode: str = "dual_averaging") -> ProxOptimizer:
    terms = [attach(L1(0.3), {"first": net.first}), attach(Group(L1(0.3), by=columns), {"second": net.second})]
    return ProxOptimizer(make(list(net.parameters())), *terms, mode=mode)


def train(net: Net, opt, steps: range) -> None:
    for k in steps:
        give_gradients(list(net.parameters()), k)
        opt.step()


MAKES = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "SGD with momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: AdamW(p, lr=0.05),
}
every_make = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


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
    assert bool((net.first == 0).any())
    assert other.mode == "dual_averaging"


@every_make
def test_checkpoints_of_the_modes_load_each_other_and_sums_start_where_there_are_none(make):
    net, other, third = Net(0), Net(0), Net(0)
    plain = wrapped(make, net, "prox")
    train(net, plain, range(6))
    dual = wrapped(make, other)
    other.load_state_dict(net.state_dict())
    dual.load_state_dict(plain.state_dict())
    back = wrapped(make, third, "prox")
    train(other, dual, range(6, 9))
    third.load_state_dict(other.state_dict())
    back.load_state_dict(dual.state_dict())
    assert all(bool(p.isfinite().all()) for p in other.parameters())
    shrunk = third.first.detach().clone()
    train(third, back, range(9, 10))
    train(other, wrapped(make, other, "prox"), range(0))
    assert not torch.equal(shrunk, third.first)


def test_reading_the_state_of_a_fresh_optimizer_changes_no_weight():
    for make in MAKES.values():
        net = Net(0)
        before = values(list(net.parameters()))
        opt = wrapped(make, net)
        dcp.get_optimizer_state_dict(net, opt)
        assert same(before, values(list(net.parameters())))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_make
def test_with_masters_it_is_the_rounding_of_the_float32_run(make, dtype):
    half = [Parameter(matrix(k, (4, 3), torch.float32).detach().to(dtype)) for k in range(2)]
    full = [Parameter(p.detach().float()) for p in half]
    opts = [
        ProxOptimizer(make(half), attach(L1(1.0), {"w": half[0]}), masters=True, **DUAL),
        ProxOptimizer(make(full), attach(L1(1.0), {"w": full[0]}), **DUAL),
    ]
    for k in range(10):
        give_gradients(half, k)
        for p, q in zip(half, full, strict=True):
            q.grad = p.grad.float()
        for opt in opts:
            opt.step()
    assert same([p.to(dtype) for p in full], half)
    assert bool((half[0] == 0).any())
    assert opts[0].state[half[0]]["dual"].dtype is torch.float32
    again = ProxOptimizer(make(half), attach(L1(1.0), {"w": half[0]}), masters=True, **DUAL)
    again.load_state_dict(through_disk(opts[0].state_dict()))
    assert equal_states(again.state_dict(), opts[0].state_dict())


@every_make
def test_a_closure_sees_the_sparse_weights_and_changes_nothing(make):
    plain, closed = three(), three()
    seen: list[int] = []
    opts = [ProxOptimizer(make(p), L1(1.0), **DUAL) for p in (plain, closed)]
    for k in range(12):
        give_gradients(plain, k)
        opts[0].step()

        def gradients(k=k) -> float:
            seen.append(sum(int((p == 0).sum()) for p in closed))
            give_gradients(closed, k)
            return 0.5

        assert opts[1].step(gradients) == 0.5
    assert same(plain, closed)
    assert len(seen) == 12
    assert seen[-1] > 0


@pytest.mark.parametrize(("made", "kind"), [("ProxOptimizer", "L1"), ("attach_to", "rows")])
def test_a_compiled_step_is_the_step(kind, made):
    runs = []
    for compiled in (False, True):
        torch._dynamo.reset()
        params, alpha = three(), torch.tensor(1.0)
        penalty = L1(alpha) if kind == "L1" else Group(L1(alpha), by=rows)
        base = SGD(params, lr=torch.tensor(0.1), momentum=0.9)
        term = attach(penalty, params)
        if made == "attach_to":
            attach_to(base, term, **DUAL)
        opt = ProxOptimizer(base, term, **DUAL) if made == "ProxOptimizer" else base
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step = torch.compile(opt.step, backend="eager") if compiled else opt.step
            for k in range(4):
                give_gradients(params, k)
                step()
        runs.append(values(params))
    for eager, fast in zip(*runs, strict=True):
        torch.testing.assert_close(eager, fast, rtol=1e-5, atol=1e-6)
    assert bool((runs[0][0] == 0).any())


def test_clipping_that_is_told_of_leaves_the_minimiser():
    problem = least_squares()
    w = Parameter(torch.zeros(FEATURES, dtype=torch.float64))
    opt = ProxOptimizer(Adam([w], lr=0.1), attach(L1(L1_ALPHA), {"w": w}), **DUAL)
    decay = CosineAnnealingLR(opt, 1500)
    for _ in range(1500):
        w.grad = problem.gradient(w.detach())
        clip_grad_norm_(opt, 0.5)
        opt.step()
        decay.step()
    oracle = oracles(problem)["L1"]
    assert objective(problem, "L1", w.detach()) - objective(problem, "L1", oracle) < 1e-6
    assert torch.equal(w == 0, oracle == 0)


def test_entries_without_a_gradient_die_and_a_ramp_of_alpha_starts_without_a_past():
    p = Parameter(torch.ones(4, 2))
    term = attach(Group(L1(0.0), by=rows), {"p": p})
    opt = ProxOptimizer(Adam([p], lr=0.01), term, **DUAL)
    PenaltyScheduler(term, schedules.linear(0.0, 0.5, steps=20))
    for _ in range(300):
        p.grad = torch.zeros(4, 2)
        p.grad[1] = 1e-3 * p.detach()[1]
        opt.step()
    assert bool((p == 0).all())


def test_a_group_that_lives_keeps_turning():
    """Sums of the direction itself would slow it down without bound: a thousand steps, then the minimum turns."""
    p, goal = Parameter(torch.tensor([[3.0, 0.0]])), torch.tensor([[3.0, 0.0]])
    penalty = Group(L1(1.0), by=rows, weights=1.0)
    opt = ProxOptimizer(SGD([p], lr=0.1), attach(penalty, {"p": p}), **DUAL)
    for k in range(1200):
        goal = torch.tensor([[0.0, 3.0]]) if k == 1000 else goal
        p.grad = p.detach() - goal
        opt.step()
    torch.testing.assert_close(p.detach(), penalty.prox(goal, 1.0), rtol=1e-4, atol=1e-4)


def test_terms_and_groups_that_come_and_go():
    first, second = Parameter(torch.ones(3, 2)), Parameter(torch.ones(3, 2))
    opt = ProxOptimizer(SGD([first], lr=0.1), L1(1.0), **DUAL)
    give_gradients([first], 0)
    opt.step()
    opt.add_param_group({"params": [second]})
    for k in range(40):
        give_gradients([first, second], k)
        opt.step()
    assert {"dual", "threshold"} <= opt.state[second].keys()
    opt.remove_term(opt.terms[0])
    before, zeros = values([first, second]), int((first == 0).sum())
    opt.zero_grad()
    opt.step()
    assert same(before, [first, second])
    assert zeros > 0
    with pytest.raises(ValueError, match="MCP"):
        opt.add_term(attach(MCP(0.1), {"first": first}))
    assert opt.terms == []


@pytest.mark.parametrize(
    ("penalty", "match"),
    [
        (MCP(0.1), "MCP"),
        (SCAD(0.1), "slope"),
        (L0(0.1), "L0"),
        (Group(MCP(0.1), by=rows), "mode='prox'"),
        (Group(L1(0.1), by=rows) + L1(0.1), "slope"),
        (NonNegative(Group(L1(0.1), by=rows)), "slope"),
        (Towards(L1(0.1), torch.ones(3, 2)), "slope"),
    ],
    ids=repr,
)
def test_penalties_without_one_slope_are_refused(penalty, match):
    p = Parameter(torch.ones(3, 2))
    base = SGD([p], lr=0.1)
    with pytest.raises(ValueError, match=match):
        ProxOptimizer(base, term := attach(penalty, {"p": p}), **DUAL)
    with pytest.raises(ValueError, match=match):
        attach_to(base, term, **DUAL)
    assert term.owner is None
    assert not base._optimizer_step_pre_hooks


def test_other_modes_lazy_terms_and_sums_in_half_precision_are_refused():
    p = Parameter(torch.ones(3, 2))
    with pytest.raises(ValueError, match="dual_averaging'], got 'dual'"):
        ProxOptimizer(SGD([p], lr=0.1), L1(0.1), mode="dual")
    with pytest.raises(ValueError, match="lazy"):
        ProxOptimizer(SGD([p], lr=0.1), attach(L1(0.1), {"p": p}, lazy=True), **DUAL)
    half = Parameter(torch.ones(3, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="masters=True"):
        attach_to(SGD([half], lr=0.1), attach(L1(0.1), {"half": half}), **DUAL)


@pytest.mark.parametrize("closure", [False, True], ids=["", "closure"])
def test_an_interrupt_at_any_line_of_a_step_loses_no_zero(closure):
    net = Net(0)
    opt = wrapped(MAKES["AdamW"], net)
    for term in opt.terms:
        term.alpha = 0.6
    train(net, opt, range(80))
    assert 0 < int((net.first == 0).sum()) < 24
    start, n, interrupted = (net, opt), 1 if closure else 2, True
    while interrupted:
        n += 7
        net, opt = copy.deepcopy(start)
        before, mean = net.first.detach().clone(), opt.state[net.first]["dual"] / opt.state[net.first]["threshold"]
        give_gradients(list(net.parameters()), 12)
        interrupted = At(n)(lambda m=net, o=opt: o.step((lambda: give(m)) if closure else None))
        held = (before == 0) & (mean.abs() < 0.5)  # no step of one gradient revives these
        assert bool(held.any())
        assert not bool((net.first[held] != 0).any()), n
        give(net)
        opt.step()
        after = opt.state[net.first]["dual"] / opt.state[net.first]["threshold"]
        assert not bool((net.first[held] != 0).any()), n
        assert float((after - mean)[held].abs().max()) < 0.5, n
        assert all(bool(p.isfinite().all()) for p in net.parameters()), n
    assert n > 200


def give(net: nn.Module) -> None:
    give_gradients(list(net.parameters()), 12)
