"""Targets and freezes of groups over several tensors: against the plain loop over units, and what compact removes."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction

import pytest
import torch
from fake_device import watch
from optimizer_catalog import give_gradients, same, values
from sklearn.datasets import load_digits
from test_checkpoints import through_disk, weights_of
from test_compiled_step import Counting
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW

from torchreg import (
    L1,
    MCP,
    PenaltyScheduler,
    ProxOptimizer,
    TargetSparsity,
    alpha_max,
    attach_to,
    compact,
    copy_zeros,
    coupled,
    effective_step,
    freeze_zeros,
    penalty_metrics,
    schedules,
    sparsity,
    thaw,
    violation,
)

STEPS = 20
METHODS = ["projection", "magnitude", "feedback"]
BASES = {
    "AdamW": lambda p: AdamW(p, lr=0.01),
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "plain SGD": lambda p: SGD(p, lr=0.05),
}
each_method = pytest.mark.parametrize("method", METHODS)
each_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES)


class Residual(nn.Module):
    """8 units that are added up and 10 hidden ones."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 8), nn.BatchNorm1d(8)
        self.inner, self.outer = nn.Linear(8, 10), nn.Linear(10, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = functional.relu(self.norm(self.stem(x)))
        return self.head(x + self.outer(torch.tanh(self.inner(x))))


def net(seed: int = 0, dtype=torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return Residual().to(dtype)


def made(method="auto", share=0.5, make=BASES["AdamW"], penalty=None, hook=False, dtype=torch.float32, **options):
    model = net(dtype=dtype)
    groups = coupled(model, torch.randn(4, 5, dtype=dtype))
    term = groups.attach(L1(1e-3) if penalty is None else penalty)
    base = make(model.parameters())
    opt = base if hook else ProxOptimizer(base, term)
    if hook:
        attach_to(base, term)
    return model, groups, opt, term, TargetSparsity(term, share, **{"steps": STEPS, "method": method, **options})


def train(model: nn.Module, opt, steps=range(STEPS)) -> None:
    for k in steps:
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(k)).to(next(model.parameters()).dtype)
        opt.zero_grad()
        (model(x) - x[:, :3].sin()).square().mean().backward()
        opt.step()


def zero_units(groups) -> list[bool]:
    """By a plain loop over units and tensors."""
    named = groups.parameters
    return [
        all(not bool(named[n].detach()[index == k].any()) for n, index in groups.index.items())
        for k in range(groups.count)
    ]


def joint(groups, tensors: dict[str, Tensor]) -> Tensor:
    """The sum over each unit's entries of all tensors, by a plain loop."""
    return torch.stack(
        [sum(tensors[n][index == k].double().sum() for n, index in groups.index.items()) for k in range(groups.count)]
    )


def least(share: float, number: int) -> int:
    return math.ceil(Fraction(str(share)) * number)


def spared(scores: Tensor, groups) -> Tensor:
    scores = scores.clone()
    for layer in groups.layers:
        scores[max(layer, key=lambda k: float(scores[k]))] = math.inf
    return scores


def kept(scores: Tensor, groups, share: float) -> Tensor:
    k = groups.count - math.ceil(round(share * groups.count, 9))
    mask = torch.zeros(groups.count, dtype=torch.bool)
    mask[spared(scores, groups).topk(k).indices] = True
    return mask


def shares(share: float) -> list[float]:
    begin, end = STEPS // 10, 6 * STEPS // 10
    part = [min(max((k + 1 - begin) / (end - begin), 0.0), 1.0) for k in range(STEPS)]
    return [share * (1.0 - (1.0 - x) ** 3) for x in part]


def test_layers_are_the_stream_and_the_hidden_units():
    groups = coupled(net(), torch.randn(4, 5))
    stream = {int(k) for k in groups.index["stem.bias"]}
    assert {frozenset(layer) for layer in groups.layers} == {
        frozenset(stream),
        frozenset(range(groups.count)) - stream,
    }


@pytest.mark.parametrize(
    ("method", "share", "penalty", "every"),
    [(m, s, L1(1e-3), None) for m in METHODS for s in (0.01, 0.5, 0.88)] + [("feedback", 0.5, MCP(1e-3, 3.0), 10)],
    ids=str,
)
def test_the_count_of_zero_units_is_exact_from_the_freeze_on(method, share, penalty, every):
    model, groups, opt, term, target = made(method, share, penalty=penalty, every=every)
    train(model, opt, range(target.freezes))
    masks = None
    for k in range(target.freezes, STEPS + 3):
        dead = zero_units(groups)
        assert sum(dead) == least(share, 18)
        assert (sparsity(term).zero_groups, sparsity(term).groups) == (sum(dead), 18)
        assert masks is None or masks == dead
        masks = dead
        train(model, opt, range(k, k + 1))
    assert target.phase == "frozen"
    assert target.history[-1].measured == least(share, 18) / 18
    assert penalty_metrics(term)["group_sparsity"] == least(share, 18) / 18
    for name, mask in target.mask.items():
        assert torch.equal(mask, ~torch.tensor([*dead, False])[groups.index[name]])


@each_base
def test_projection_is_the_loop_that_steps_a_dense_copy_and_keeps_the_largest_units(make):
    model, groups, opt, *_ = made("projection", 0.7, make, dtype=torch.float64)
    plain = copy.deepcopy(model)
    base = make(plain.parameters())
    w = {name: plain.get_parameter(name) for name in groups.index}
    z = {name: p.detach().clone() for name, p in w.items()}
    for k, share in enumerate(shares(0.7)):
        train(model, opt, range(k, k + 1))
        before = {name: p.detach().clone() for name, p in w.items()}
        train(plain, base, range(k, k + 1))
        if k < 8 * STEPS // 10:
            steps = effective_step(base)
            z = {name: z[name] + p.detach() - before[name] for name, p in w.items()}
            alive = kept(joint(groups, {name: z[name].square() / steps[p] for name, p in w.items()}), groups, share)
        with torch.no_grad():
            for name, p in w.items():
                mask = torch.cat([alive, torch.ones(1, dtype=torch.bool)])[groups.index[name]]
                p.copy_((z[name] if k < 8 * STEPS // 10 else p) * mask)
                z[name] = torch.where(mask, z[name], z[name] * (1 - 10 / STEPS))
                for entry in ("exp_avg", "momentum_buffer"):
                    if k >= 8 * STEPS // 10 and entry in base.state.get(p, {}):
                        base.state[p][entry].mul_(mask)
        for found, wanted in zip(model.parameters(), plain.parameters(), strict=True):
            # rounding of another order, which Adam's quotient of small numbers enlarges
            torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)
            assert torch.equal(found == 0, wanted == 0)
    assert sum(zero_units(groups)) == 13


def test_magnitude_is_gradual_pruning_by_the_joint_norm():
    model, groups, opt, *_ = made("magnitude", 0.7)
    plain = copy.deepcopy(model)
    base = BASES["AdamW"](plain.parameters())
    w = {name: plain.get_parameter(name) for name in groups.index}
    alive = torch.ones(18, dtype=torch.bool)
    for k, share in enumerate(shares(0.7)):
        train(model, opt, range(k, k + 1))
        train(plain, base, range(k, k + 1))
        if 2 <= k < 16:
            norms = joint(groups, {name: p.detach().square() for name, p in w.items()}).sqrt()
            alive = kept(torch.where(alive, norms, 0.0), groups, share)
        with torch.no_grad():
            for name, p in w.items():
                mask = torch.cat([alive, torch.ones(1, dtype=torch.bool)])[groups.index[name]]
                p.mul_(mask)
                base.state[p]["exp_avg"].mul_(mask)
        assert same(weights_of(model), weights_of(plain))


def test_feedback_sets_the_alpha_at_which_so_many_units_will_be_zero():
    """Each unit's own strength is its norm in the metric, over the square root of its size, as no step moves it.

    No strength holds more units at zero than that of so many gradients, whose norms stand in the weights' place.
    """
    model, groups, opt, term, target = made("feedback", 0.6, BASES["plain SGD"], every=1)
    train(model, opt, range(2))
    assert not any(zero_units(groups))
    named = groups.parameters
    levels = joint(groups, {n: p.detach().square() for n, p in named.items()}).sqrt()
    levels = levels / (1 * 0.05 * groups.sizes.double().sqrt())  # the horizon is one step
    wanted = math.ceil(round(shares(0.6)[2] * 18, 9))
    bounds = joint(groups, {n: p.grad.square() for n, p in named.items()}).sqrt() / groups.sizes.double().sqrt()
    expected = min(float(values.sort().values[wanted - 1]) for values in (levels, bounds))
    torch.testing.assert_close(target.last_alpha, expected, rtol=1e-5, atol=0.0)
    assert term.alpha == target.last_alpha


@pytest.mark.parametrize(
    ("method", "make", "hook"),
    [
        ("projection", "AdamW", False),
        ("projection", "SGD", True),
        ("magnitude", "SGD", False),
        ("feedback", "AdamW", True),
    ],
)
def test_a_run_goes_on_to_the_bit_after_a_load_at_any_step(method, make, hook):
    def fresh():
        return made(method, 0.6, BASES[make], hook=hook)

    whole, _, opt, _, target = fresh()
    states = {}
    for k in range(STEPS):
        states[k] = through_disk({"model": whole.state_dict(), "opt": opt.state_dict()})
        train(whole, opt, range(k, k + 1))
    for at in (0, 7, 15, 17):
        model, groups, opt, _, again = fresh()
        model.load_state_dict(states[at]["model"])
        opt.load_state_dict(states[at]["opt"])
        assert again.count == at
        train(model, opt, range(at, STEPS))
        assert same(weights_of(whole), weights_of(model)), at
        assert again.history == target.history
        assert sum(zero_units(groups)) == 11


@each_method
def test_a_copy_or_a_pickle_goes_on_to_the_bit(method):
    model, _, opt, _, _ = made(method)
    train(model, opt, range(9))
    pair = copy.deepcopy((model, opt)), pickle.loads(pickle.dumps((model, opt)))
    train(model, opt, range(9, STEPS))
    for other, its in pair:
        train(other, its, range(9, STEPS))
        assert same(weights_of(model), weights_of(other))
        assert sparsity(its.terms[0]).zero_groups == 9


@each_method
def test_a_layer_whose_units_would_all_go_keeps_its_largest(method):
    """The hidden units are small: all ten would go before any of the stream's."""
    model, groups, opt, _, _ = made(method, 0.7)
    with torch.no_grad():
        for p in (model.inner.weight, model.inner.bias):
            p.mul_(1e-3)
    for k in range(STEPS):
        train(model, opt, range(k, k + 1))
        dead = zero_units(groups)
        assert all(not all(dead[g] for g in layer) for layer in groups.layers)
    assert sum(dead) == 13
    x = torch.randn(3, 5, requires_grad=True)
    model(x).sum().backward()
    assert bool(x.grad.any())
    with pytest.raises(
        ValueError, match=r"would leave 1 of 18 units, but each of 2 layer\(s\) needs one.*0\.888 at most"
    ):
        made(method, 0.9)
    assert made(method, 0.888)[4].kept_of(18) == 18


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_method
def test_masters_have_the_zeros(method, dtype):
    model = net(dtype=dtype)
    groups = coupled(net(), torch.randn(4, 5))
    groups = type(groups)(model, groups.index, groups.count, groups.layers)
    opt = ProxOptimizer(AdamW(model.parameters(), lr=0.01), term := groups.attach(L1(1e-3)), masters=True)
    TargetSparsity(term, 0.5, steps=STEPS, method=method)
    train(model, opt)
    assert sum(zero_units(groups)) == sparsity(term).zero_groups == 9
    for name, p in groups.parameters.items():
        assert torch.equal(opt.state[p]["master"] == 0, p == 0) or name == "norm.bias"


def test_freeze_zeros_is_the_loop_that_multiplies_by_a_mask_and_thaw_ends_it():
    model, groups, opt, term, _ = made("projection", 0.5)
    train(model, opt)
    thaw(term)
    assert (term.control, term.target) == (None, None)
    freeze_zeros(term)
    plain = copy.deepcopy(model)
    base = BASES["AdamW"](plain.parameters())
    base.load_state_dict({k: v for k, v in copy.deepcopy(opt.state_dict()).items() if k != "torchreg"})
    masks = {n: p != 0 for n, p in plain.named_parameters() if n in groups.index}
    term.alpha = 100.0  # does not act
    for k in range(STEPS, STEPS + 5):
        train(model, opt, range(k, k + 1))
        train(plain, base, range(k, k + 1))
        with torch.no_grad():
            for n, m in masks.items():
                plain.get_parameter(n).mul_(m)
                base.state[plain.get_parameter(n)]["exp_avg"].mul_(m)
    assert same(weights_of(model), weights_of(plain))
    assert sum(zero_units(groups)) == 9
    saved = through_disk({"model": model.state_dict(), "opt": opt.state_dict()})
    thaw(term)
    train(model, opt, range(1))
    assert all(zero_units(groups))  # the joint penalty acts again, whose strength is 100
    opt.load_state_dict(saved["opt"])
    model.load_state_dict(saved["model"])
    assert term.frozen
    train(model, opt, range(2))
    assert sum(zero_units(groups)) == 9


def test_after_a_thaw_the_step_is_the_joint_one():
    model, _, opt, term, _ = made("projection", 0.5)
    train(model, opt)
    thaw(term)
    other = copy.deepcopy(model)
    again = ProxOptimizer(BASES["AdamW"](other.parameters()), coupled(other, torch.randn(4, 5)).attach(L1(0.5)))
    again.base.load_state_dict({k: v for k, v in copy.deepcopy(opt.state_dict()).items() if k != "torchreg"})
    term.alpha = 0.5
    train(model, opt, range(3))
    train(other, again, range(3))
    assert same(weights_of(model), weights_of(other))
    assert 0 < sparsity(term).zero_groups < 18


def test_an_average_takes_the_zeros():
    model, groups, opt, term, _ = made()
    average = torch.optim.swa_utils.AveragedModel(model)
    for k in range(STEPS):
        train(model, opt, range(k, k + 1))
        average.update_parameters(model)
    copy_zeros(term, average)
    its = type(groups)(average.module, groups.index, groups.count)
    assert zero_units(its) == zero_units(groups)


def test_what_moves_a_term_already_is_refused_in_any_order():
    model, groups, _, term, target = made()
    with pytest.raises(ValueError, match="moved by TargetSparsity"):
        TargetSparsity(term, 0.5, steps=10)
    with pytest.raises(ValueError, match="settles them by itself"):
        freeze_zeros(term)
    with pytest.raises(ValueError, match="moves this term already"):
        PenaltyScheduler(term, schedules.constant(0.1))
    assert term.target is target
    thaw(term)
    freeze_zeros(term)
    with pytest.raises(ValueError, match="moved by freeze_zeros"):
        TargetSparsity(term, 0.5, steps=10)
    assert term.frozen
    thaw(term)
    ramp = PenaltyScheduler(term, schedules.constant(0.1))
    freeze_zeros(term)
    with pytest.raises(ValueError, match="moved by PenaltyScheduler"):
        TargetSparsity(term, 0.5, steps=10)
    assert (term.scheduler, term.frozen) == (ramp, True)
    before = weights_of(model)
    for make in (
        lambda t: ProxOptimizer(SGD(model.parameters(), lr=0.1), t, mode="dual_averaging"),
        lambda t: attach_to(SGD(model.parameters(), lr=0.1), t, mode="dual_averaging"),
    ):
        fresh = groups.attach(L1(0.1))
        with pytest.raises(ValueError, match=r"dual_averaging.*coupled groups \(18 over 9 parameters\).*mode='prox'"):
            make(fresh)
        assert fresh.owner is None
    assert same(before, weights_of(model))


def test_a_parameter_that_is_frozen_on_the_ramp_is_refused_and_not_after_it():
    model, groups, opt, _, _ = made("feedback")
    train(model, opt, range(9))
    model.outer.bias.requires_grad_(False)
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"'outer.bias'.*frozen while TargetSparsity"):
        train(model, opt, range(9, 10))
    assert same(before, weights_of(model))
    model.outer.bias.requires_grad_(True)
    train(model, opt, range(9, 17))
    model.outer.bias.requires_grad_(False)
    train(model, opt, range(17, STEPS))
    assert sum(zero_units(groups)) == 9


@each_method
def test_a_step_that_raises_leaves_the_zeros(method):
    model, groups, opt, _, target = made(method, 0.6)
    for at in (1, 6, 12, 15, 17) if method != "feedback" else (17,):
        train(model, opt, range(target.count, at))
        zeros, count = [p == 0 for p in groups.parameters.values()], target.count
        boom = opt.base.register_step_post_hook(lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(model, opt, range(at, at + 1))
        boom.remove()
        assert all(torch.equal(z, p == 0) for z, p in zip(zeros, groups.parameters.values(), strict=True))
        assert target.count == count
    train(model, opt, range(target.count, STEPS))
    assert sum(zero_units(groups)) == 11


@each_method
def test_what_never_gets_a_gradient_stays_and_its_units_with_it(method):
    model, groups, opt, term, _ = made(method, 0.5)
    was = values([model.outer.bias])
    for k in range(STEPS):
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(k))
        opt.zero_grad()
        model(x).square().mean().backward()
        model.outer.bias.grad = None
        opt.step()
    assert same(was, [model.outer.bias])
    dead = zero_units(groups)
    assert not any(dead[int(k)] for k in groups.index["stem.bias"])
    assert sum(dead) == sparsity(term).zero_groups == 9  # of the ten hidden units


class Skipping(nn.Module):
    """The head reads the inputs beside the hidden units."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(5, 6), nn.Linear(11, 3)

    def forward(self, x):
        return self.head(torch.cat([torch.tanh(self.hidden(x)), x], 1))


@each_method
def test_entries_of_no_unit_are_trained_and_never_zero(method):
    torch.manual_seed(0)
    model = Skipping()
    groups = coupled(model, torch.randn(4, 5))
    assert groups.index["head.weight"][0].tolist() == [*range(6), *[6] * 5]
    opt = ProxOptimizer(AdamW(model.parameters(), lr=0.01), term := groups.attach(L1(1e-3)))
    target = TargetSparsity(term, 0.5, steps=STEPS, method=method)
    for k in range(STEPS):
        was = values([model.head.weight])[0][:, 6:]
        train(model, opt, range(k, k + 1))
        assert bool((model.head.weight[:, 6:] != was).all())
        assert bool((model.head.weight[:, 6:] != 0).all())
    assert sum(zero_units(groups)) == sparsity(term).zero_groups == 3
    assert sparsity(term).groups == 6
    assert bool(target.mask["head.weight"][:, 6:].all())
    thaw(term)
    train(model, opt, range(1))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model.head.weight.grad[1, 8] = -70.0
    term.alpha = 0.0
    assert violation(term) == pytest.approx(70.0, rel=1e-6)


@each_base
def test_violation_is_zero_at_a_minimum_and_the_joint_residual_elsewhere(make):
    torch.manual_seed(0)
    model = net(dtype=torch.float64)
    groups = coupled(model, torch.randn(4, 5, dtype=torch.float64))
    alpha = 0.3
    opt = ProxOptimizer(make(model.parameters()), term := groups.attach(L1(alpha)))
    train(model, opt, range(4))
    with torch.no_grad():
        model.inner.weight[2], model.inner.bias[2] = 0.0, 0.0
    opt.zero_grad()
    given = {n: torch.randn_like(p) for n, p in groups.parameters.items()}
    for n, p in groups.parameters.items():
        p.grad = given[n]
    steps, worst = effective_step(opt.base), 0.0
    plain = isinstance(opt.base, SGD)
    for k in range(groups.count):
        at = [
            (p.detach()[i == k], given[n][i == k])
            for (n, i), p in zip(groups.index.items(), groups.parameters.values(), strict=True)
        ]
        w, g = torch.cat([a for a, _ in at]), torch.cat([b for _, b in at])
        level = alpha * len(w) ** 0.5
        if plain:
            t = float(steps[model.stem.weight])
            y = w - t * g
            u = y * max(1.0 - t * level / float(y.norm()), 0.0)
            worst = max(worst, float(((w - u) / t).norm()))
    found = violation(term)
    assert found == pytest.approx(worst, rel=1e-9) if plain else found > 0
    for k in range(groups.count):  # a stationary point: g = -alpha sqrt(size) w / ||w||, and less at a zero
        named = groups.parameters
        w = torch.cat([named[n].detach()[i == k] for n, i in groups.index.items()])
        level = alpha * len(w) ** 0.5
        for n, i in groups.index.items():
            m = i == k
            own = named[n].detach()[m]
            named[n].grad[m] = -level * own / w.norm() if bool(w.any()) else 0.9 * level / len(w) ** 0.5
    assert violation(term) < 1e-9


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_step_is_the_plain_one_and_compiled_anew_only_where_the_phase_changes():
    def fresh():
        return made("feedback", 0.6, lambda p: AdamW(p, lr=torch.tensor(0.01)), dtype=torch.float64)

    plain, _, other, *_ = fresh()
    model, groups, opt, _, target = fresh()
    torch._dynamo.reset()
    seen, compiled = Counting(), []
    step = torch.compile(opt.step, backend=seen)
    for k in range(STEPS):
        train(plain, other, range(k, k + 1))
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(k)).double()
        opt.zero_grad()
        (model(x) - x[:, :3].sin()).square().mean().backward()
        step()
        target.step()
        compiled.append(seen.compiled)
    changes = [k for k in range(2, STEPS) if compiled[k] > compiled[k - 1]]
    assert set(changes) <= {2, 3, 15, 16}
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)  # the rate is a float32 tensor
        assert torch.equal(p == 0, q == 0)
    assert sum(zero_units(groups)) == 11


@each_method
def test_on_an_accelerator_it_is_the_cpus_run_and_nothing_waits(method, accelerator):
    def fresh(device):
        model = net()
        groups = coupled(model, torch.randn(4, 5))
        model.to(device)
        options = {"capturable": True} if device != "cpu" and method == "feedback" else {}
        base = AdamW(model.parameters(), lr=0.01, foreach=False, **options)
        opt = ProxOptimizer(base, term := groups.attach(L1(1e-3)))
        TargetSparsity(term, 0.6, steps=STEPS, method=method, every=4 if method == "feedback" else None)
        return list(model.parameters()), opt

    there, opt = fresh(accelerator)
    here, other = fresh("cpu")
    for k in range(STEPS):
        give_gradients(here, k)
        for p, q in zip(there, here, strict=True):
            p.grad = q.grad.to(accelerator)
        other.step()
        with watch(allow_waits=k == 0):  # the first makes the state
            opt.step()
    for p, q in zip(there, here, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-4, atol=1e-6)
        assert torch.equal(p.detach().cpu() == 0, q.detach() == 0)
    assert sparsity(opt.terms[0]).zero_groups == 11


def test_alpha_max_says_what_to_use():
    model, _, _, term, _ = made()
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"coupled groups.*TargetSparsity\(term"):
        alpha_max(model, term, lambda: model(torch.ones(4, 5)).sum())
    assert same(before, weights_of(model))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@each_method
def test_each_layer_may_have_the_same_share(method, share):
    model, groups, opt, term, target = made(method, share, scope="parameter")
    train(model, opt)
    dead = zero_units(groups)
    assert sorted(sum(dead[k] for k in layer) for layer in groups.layers) == [least(share, 8), least(share, 10)]
    assert target.history[-1].measured == sparsity(term).zero_groups / 18 == sum(dead) / 18
    with pytest.raises(ValueError, match=r"at 0\.9 would leave 0 of 8 units.*ask for 0\.875 at most"):
        made(method, 0.9, scope="parameter")


class Block(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.down = None
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.down is None else self.down(x)))


class ResNet(nn.Module):
    """Two stages of two blocks each."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 8, 1), Block(8, 16, 2), Block(16, 16, 1))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.blocks(functional.relu(self.norm(self.stem(x)))).mean((2, 3)))


@pytest.mark.parametrize("method", ["auto", "magnitude"])
def test_half_of_the_channels_of_a_resnet_go_and_compact_removes_exactly_these(method):
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:512, None] / 16.0
    y = torch.tensor(digits.target)[:512]
    model = ResNet()
    groups = coupled(model, x[:2])
    assert groups.count == 8 + 8 + 8 + 16 + 16 + 16  # two streams and one inner width a block
    assert sorted(map(len, groups.layers)) == [8, 8, 8, 16, 16, 16]
    opt = ProxOptimizer(Adam(model.parameters(), lr=3e-3), term := groups.attach(L1(1e-3)))
    target = TargetSparsity(term, 0.5, steps=60, method=method)
    assert target.method == ("projection" if method == "auto" else method)
    for k in range(60):
        at = torch.arange(64 * k, 64 * (k + 1)) % 512
        opt.zero_grad()
        functional.cross_entropy(model(x[at]), y[at]).backward()
        opt.step()
    dead = torch.tensor(zero_units(groups))
    assert int(dead.sum()) == sparsity(term).zero_groups == 36
    model.eval()
    smaller, report = compact(model, x[:2])
    for name, index in groups.index.items():  # each kept unit is there, and no other
        if name.endswith(("bn1.weight", "bn2.weight", "norm.weight")):
            assert smaller.get_parameter(name).numel() == int((~dead[index]).sum())
            assert torch.equal(smaller.get_parameter(name), model.get_parameter(name)[~dead[index]])
    assert smaller.head.in_features == int((~dead[groups.index["blocks.3.bn2.weight"]]).sum())
    assert report.exact_in_training
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), model(x), rtol=1e-5, atol=1e-5)
        assert float((model(x).argmax(1) == y).float().mean()) > 0.5


class Transformer(nn.Module):
    """A block of attention and an MLP, before a head."""

    def __init__(self, d=16, heads=4, hidden=24):
        super().__init__()
        self.heads, self.first, self.second = heads, nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down, self.head = nn.Linear(d, hidden), nn.Linear(hidden, d), nn.Linear(d, 5)

    def forward(self, x):
        b, t = x.shape[:2]
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, -1))
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))
        return self.head(x + self.down(functional.gelu(self.up(self.second(x)))))


@each_method
def test_half_of_the_heads_and_neurons_of_a_transformer_go_and_compact_removes_exactly_these(method):
    torch.manual_seed(0)
    model, x = Transformer(), torch.randn(32, 6, 16)
    groups = coupled(model, x[:2])
    assert groups.count == 4 + 24
    assert sorted(map(len, groups.layers)) == [4, 24]
    opt = ProxOptimizer(AdamW(model.parameters(), lr=3e-3), term := groups.attach(L1(1e-3)))
    TargetSparsity(term, 0.5, steps=40, method=method)
    for _ in range(40):
        opt.zero_grad()
        functional.mse_loss(model(x), x[..., :5].flip(1)).backward()
        opt.step()
    dead = torch.tensor(zero_units(groups))
    assert int(dead.sum()) == 14
    heads, neurons = groups.index["qkv.bias"].unique(), groups.index["up.bias"]
    model.eval()
    smaller, _ = compact(model, x[:2])
    assert smaller.up.out_features == smaller.down.in_features == int((~dead[neurons]).sum())
    assert smaller.out.in_features == 4 * int((~dead[heads]).sum())
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), model(x), rtol=1e-5, atol=1e-5)
