"""TargetSparsity: exact counts, each method against the plain loop that it stands for, and going on after a load."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction

import pytest
import torch
from optimizer_catalog import give_gradients, matrix, same, values
from sklearn.datasets import load_digits
from test_checkpoints import through_disk, weights_of
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, AdamW, RMSprop

from torchreg import (
    L0,
    L1,
    L2,
    MCP,
    NM,
    SCAD,
    Box,
    Group,
    MaxNorm,
    NonNegative,
    PenaltyScheduler,
    ProxOptimizer,
    TargetSparsity,
    TopK,
    Weighted,
    attach,
    attach_to,
    columns,
    copy_zeros,
    effective_step,
    freeze_zeros,
    labels,
    rows,
    schedules,
    sparsity,
    thaw,
)

STEPS = 20
METHODS = ["projection", "magnitude", "feedback"]
BASES = {
    "AdamW": lambda p: AdamW(p, lr=0.01),
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "plain SGD": lambda p: SGD(p, lr=0.05),
}
PENALTIES = {
    "L1": L1(1e-4),
    "MCP": MCP(1e-4, 3.0),
    "rows": Group(L1(1.0), by=rows),
    "columns": Group(L1(1.0), by=columns),
}
each_method = pytest.mark.parametrize("method", METHODS)
each_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def made(method="auto", share=0.8, penalty=None, make=BASES["AdamW"], **options):
    model = net()
    term = attach(L1(1e-4) if penalty is None else penalty, model)
    opt = ProxOptimizer(make(model.parameters()), term)
    return model, opt, term, TargetSparsity(term, share, **{"steps": STEPS, "method": method, **options})


def train(model: nn.Module, opt, steps=range(STEPS)) -> None:
    for k in steps:
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(k))
        opt.zero_grad()
        (model(x) - x[:, :3]).square().mean().backward()
        opt.step()


def least(share: float, number: int) -> int:
    return math.ceil(Fraction(str(share)) * number)


@pytest.mark.parametrize("scope", ["global", "parameter"])
@pytest.mark.parametrize("share", [0.01, 0.9, 1.0])
@pytest.mark.parametrize("kind", PENALTIES)
@each_method
def test_the_count_of_zeros_is_exact_from_the_freeze_on(method, kind, share, scope):
    model, opt, term, target = made(method, share, PENALTIES[kind], scope=scope)
    numbers = {"rows": (8, 3), "columns": (6, 8)}.get(kind, (48, 24))
    wanted = least(share, sum(numbers)) if scope == "global" else sum(least(share, n) for n in numbers)
    train(model, opt, range(target.freezes))
    for k in range(target.freezes, STEPS + 3):
        found = sparsity(term)
        assert (found.zeros if found.groups is None else found.zero_groups) == wanted
        train(model, opt, range(k, k + 1))
    assert target.phase == "frozen"
    assert all(torch.equal(m, p != 0) for m, p in zip(target.mask.values(), term.parameters.values(), strict=True))
    assert target.history[-1].measured == wanted / sum(numbers)
    assert len(target.history) == STEPS


@pytest.mark.parametrize(
    ("share", "number", "wanted"), [(0.55, 100, 55), (0.9, 10, 9), (0.29, 100, 29), (0.07, 100, 7)]
)
def test_the_decimal_digits_of_a_share_count(share, number, wanted):
    p = matrix(0, (number,))
    opt = ProxOptimizer(SGD([p], lr=0.1), term := attach(L1(0.0), {"p": p}))
    TargetSparsity(term, share, steps=5)
    for k in range(5):
        give_gradients([p], k)
        opt.step()
    assert sparsity(term).zeros == wanted


def largest(sizes: list[Tensor], k: int) -> list[Tensor]:
    flat = torch.cat([s.flatten() for s in sizes])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(k).indices] = True
    return [m.view_as(s) for m, s in zip(mask.split([s.numel() for s in sizes]), sizes, strict=True)]


def shares(share: float) -> list[float]:
    """Of zeros after each step: 0 up to a tenth, then Zhu and Gupta's cubic up to six tenths."""
    begin, end = STEPS // 10, 6 * STEPS // 10
    part = [min(max((k + 1 - begin) / (end - begin), 0.0), 1.0) for k in range(STEPS)]
    return [share * (1.0 - (1.0 - x) ** 3) for x in part]


@pytest.mark.parametrize(
    ("by", "shrinkage"),
    [(None, 0.0), (None, 0.5), (rows, 0.0), (columns, 0.0)],
    ids=["entries", "shrunk entries", "rows", "columns"],
)
@each_base
def test_projection_is_the_loop_that_steps_a_dense_copy(make, by, shrinkage):
    """z moves by what the base does at w, w keeps the units of z with the largest sum of z^2 / t, the others fade.

    Up to the ramp's end z is soft-thresholded too, by a share of the median size of the gradients of the step before.
    """
    penalty = L1(0.1) if by is None else Group(L1(0.1), by=by)
    model, opt, _, target = made("projection", 0.8, penalty, make, shrinkage=shrinkage)
    plain = copy.deepcopy(model)
    base = make(plain.parameters())
    w = [plain[0].weight, plain[2].weight]
    z, mask = values(w), [torch.ones_like(p, dtype=torch.bool) for p in w]
    dim = {None: None, rows: 1, columns: 0}[by]
    number = sum(p.numel() if dim is None else p.shape[1 - dim] for p in w)
    alpha = 0.0
    for k, share in enumerate(shares(0.8)):
        train(model, opt, range(k, k + 1))
        before = values(w)
        train(plain, base, range(k, k + 1))
        steps = [effective_step(base)[p] for p in w]
        if k < 8 * STEPS // 10:
            z = [old + p.detach() - was for old, p, was in zip(z, w, before, strict=True)]
            sizes = [x.square() / t for x, t in zip(z, steps, strict=True)]
            sizes = sizes if dim is None else [s.sum(dim) for s in sizes]
            mask = largest(sizes, number - math.ceil(round(share * number, 9)))
            mask = mask if dim is None else [m.unsqueeze(dim) for m in mask]
            z = [torch.where(m, x, x * (1 - 10 / STEPS)) for x, m in zip(z, mask, strict=True)]
        if shrinkage and k < 6 * STEPS // 10:
            z = [x.sign() * (x.abs() - alpha * t).clamp(min=1e-38) for x, t in zip(z, steps, strict=True)]
            gradients = torch.cat([p.grad.abs().flatten() for p in w])
            alpha = shrinkage * sorted(g for g in gradients.tolist() if g)[int((gradients > 0).sum()) // 2]
            assert target.last_alpha == pytest.approx(alpha if k + 1 < 6 * STEPS // 10 else 0.0, rel=1e-5)
        with torch.no_grad():
            for p, x, m in zip(w, z if k < 8 * STEPS // 10 else w, mask, strict=True):
                p.copy_(x * m)
                if k >= 8 * STEPS // 10:  # masked training, without momentum of zeros
                    for name in ("exp_avg", "momentum_buffer"):
                        if name in base.state.get(p, {}):
                            base.state[p][name].mul_(m)
        for found, wanted in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
            assert torch.equal(found == 0, wanted == 0)
    assert bool((model[0].weight == 0).any())


@each_base
def test_shrinkage_prunes_nothing_and_leaves_the_count(make):
    """However strong it is: what it would make zero is left the smallest number of its sign."""
    model, opt, term, target = made("projection", 0.8, make=make, shrinkage=1e6)
    for k in range(STEPS):
        train(model, opt, range(k, k + 1))
        assert sparsity(term).zeros == least(target.wanted(k + 1), 72)
    assert 0.0 < max(r.alpha for r in target.history[:11]) < math.inf
    assert not any(r.alpha for r in target.history[11:])


def test_shrinkage_is_of_finite_gradients_and_lasts_where_there_are_none():
    model, opt, _, target = made("projection", shrinkage=1.0)
    train(model, opt, range(3))
    alpha = target.last_alpha
    assert alpha > 0.0
    for gradient in (torch.nan, 0.0):
        for p in (model[0].weight, model[2].weight):
            p.grad.fill_(gradient)
        opt.step()
        assert target.last_alpha == alpha


def test_magnitude_is_gradual_pruning_of_the_smallest_weights_for_good():
    model, opt, _, target = made("magnitude", 0.8, every=2)
    plain = copy.deepcopy(model)
    base = BASES["AdamW"](plain.parameters())
    w = [plain[0].weight, plain[2].weight]
    mask = [torch.ones_like(p, dtype=torch.bool) for p in w]
    begin, end, freeze = 2, 12, 16
    for k, share in enumerate(shares(0.8)):
        train(model, opt, range(k, k + 1))
        train(plain, base, range(k, k + 1))
        due = (k - begin) % 2 == 0 or k + 1 in (end, freeze)
        if begin <= k < freeze and due:
            sizes = [torch.where(m, p.abs(), -1.0) for m, p in zip(mask, w, strict=True)]
            mask = largest(sizes, 72 - math.ceil(round(share * 72, 9)))
        with torch.no_grad():
            for p, m in zip(w, mask, strict=True):
                p.mul_(m)
                base.state[p]["exp_avg"].mul_(m)
        assert same(weights_of(model), weights_of(plain))
    assert target.method == "magnitude"


def test_before_the_ramp_and_after_the_freeze_nothing_is_shrunk():
    model, opt, _, _ = made("feedback", 0.5, L1(100.0))
    plain = copy.deepcopy(model)
    train(model, opt, range(2))
    train(plain, BASES["AdamW"](plain.parameters()), range(2))
    assert same(weights_of(model), weights_of(plain))
    train(model, opt, range(2, 16))
    plain = copy.deepcopy(model)
    base = BASES["AdamW"](plain.parameters())
    base.load_state_dict({k: v for k, v in copy.deepcopy(opt.state_dict()).items() if k != "torchreg"})
    masks = [p != 0 for p in (model[0].weight, model[2].weight)]
    for k in range(16, STEPS):
        train(model, opt, range(k, k + 1))
        train(plain, base, range(k, k + 1))
        with torch.no_grad():
            for p, m in zip((plain[0].weight, plain[2].weight), masks, strict=True):
                p.mul_(m)
                base.state[p]["exp_avg"].mul_(m)
                assert not bool(opt.state[model[0].weight]["exp_avg"][model[0].weight == 0].any())
    assert same(weights_of(model), weights_of(plain))


@pytest.mark.parametrize(
    ("make", "kind", "hook"),
    [("AdamW", "columns", False), ("SGD", "L1", True), ("plain SGD", "L1", False)],
)
@each_method
def test_a_run_goes_on_to_the_bit_after_a_load_at_any_step(method, make, kind, hook):
    def fresh():
        model = net()
        term = attach(PENALTIES[kind], model)
        base = BASES[make](model.parameters())
        opt = base if hook else ProxOptimizer(base, term)
        if hook:
            attach_to(base, term)
        options = {"every": 3} if method == "feedback" else {}
        options |= {"shrinkage": 0.5} if method == "projection" and kind == "L1" else {}
        return model, opt, TargetSparsity(term, 0.8, steps=STEPS, method=method, **options)

    whole, opt, target = fresh()
    states = {}
    for k in range(STEPS):
        states[k] = through_disk({"model": whole.state_dict(), "opt": opt.state_dict()})
        train(whole, opt, range(k, k + 1))
    for at in (0, 1, 7, 15, 16, 17):
        model, opt, again = fresh()
        model.load_state_dict(states[at]["model"])
        opt.load_state_dict(states[at]["opt"])
        assert again.count == at
        train(model, opt, range(at, STEPS))
        assert same(weights_of(whole), weights_of(model)), at
        assert again.history == target.history


@each_method
def test_a_copy_or_a_pickle_goes_on_to_the_bit(method):
    model, opt, _, _ = made(method)
    train(model, opt, range(9))
    pair = copy.deepcopy((model, opt)), pickle.loads(pickle.dumps((model, opt)))
    train(model, opt, range(9, STEPS))
    for other, its in pair:
        train(other, its, range(9, STEPS))
        assert same(weights_of(model), weights_of(other))
        assert its.terms[0].target.phase == "frozen"
        assert its.terms[0].target.history == opt.terms[0].target.history


def test_a_checkpoint_of_another_target_is_refused_and_nothing_changes():
    model, opt, _, _ = made("projection", 0.8)
    train(model, opt, range(7))
    saved = through_disk(opt.state_dict())
    linear = {"schedule": schedules.linear}
    others = ({"share": 0.9}, {"steps": 30}, {"method": "magnitude"}, {"end": 0.7}, {"scope": "parameter"}, linear)
    for options in (*others, {"begin": 0.2}, {"freeze": 0.9}, {"every": 2}):
        other, its, _, target = made(**{"method": "projection", "share": 0.8, **options})
        train(other, its, range(3))
        before = through_disk(its.state_dict())
        with pytest.raises(ValueError, match="another target"):
            its.load_state_dict(saved)
        assert target.count == 3
        assert str(before) == str(through_disk(its.state_dict()))
        train(other, its, range(3, STEPS))
    scheduled = ProxOptimizer(BASES["AdamW"](other.parameters()), term := attach(L1(1e-4), other))
    PenaltyScheduler(term, schedules.constant(0.1))
    with pytest.raises(ValueError, match="TargetSparsity"):
        scheduled.load_state_dict(saved)
    term.scheduler = None
    with pytest.warns(UserWarning, match="7 steps into a target"):
        scheduled.load_state_dict(saved)
    _, its, _, target = made("projection", 0.8)
    before = through_disk(scheduled.state_dict())
    with pytest.warns(UserWarning, match="TargetSparsity stays at step 0"):
        its.load_state_dict(before)


@each_method
def test_a_load_that_fails_puts_a_target_back(method):
    model, opt, _, target = made(method)
    train(model, opt, range(9))
    saved = through_disk(opt.state_dict())
    train(model, opt, range(9, 14))
    kept = target.kept_of(72), int(target.kept_of(72, known=False))
    before = str(through_disk(opt.state_dict()))
    opt.register_load_state_dict_post_hook(lambda opt: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        opt.load_state_dict(saved)
    assert (target.count, target.kept_of(72), int(target.kept_of(72, known=False))) == (14, *kept)
    assert str(through_disk(opt.state_dict())) == before


def test_what_was_never_stepped_counts_as_it_is_and_is_left():
    used, unused = matrix(0, (10, 10)), matrix(1, (5, 4))
    opt = ProxOptimizer(AdamW([used, unused], lr=0.01), term := attach(L1(0.0), {"a": used, "b": unused}))
    TargetSparsity(term, 0.75, steps=STEPS)
    before = values([unused])
    for k in range(STEPS):
        give_gradients([used], k)
        opt.step()
    assert same(before, [unused])
    assert opt.state.get(unused, {}) == {}
    assert int((used == 0).sum()) == 90


def test_what_gets_a_gradient_now_and_then_is_selected_from_all_the_time():
    often, seldom = matrix(0, (10, 10)), matrix(1, (10, 10))
    opt = ProxOptimizer(AdamW([often, seldom], lr=0.01), term := attach(L1(0.0), {"a": often, "b": seldom}))
    TargetSparsity(term, 0.9, steps=STEPS)
    for k in range(STEPS):
        give_gradients([often, seldom], k)
        if k % 5:
            seldom.grad = None
        opt.step()
        assert k < 12 or sparsity(term).zeros == 180
    assert 0 < int((seldom != 0).sum()) < 20


def test_entries_without_a_gradient_go_first():
    p = Parameter(torch.full((10, 10), 5.0))
    with torch.no_grad():
        p[:, :5] = 0.1
    opt = ProxOptimizer(AdamW([p], lr=1e-3), term := attach(L1(0.0), {"p": p}))
    TargetSparsity(term, 0.5, steps=STEPS)
    for k in range(STEPS):
        give_gradients([p], k)
        p.grad[:, 5:] = 0.0  # large, but dead
        opt.step()
    assert torch.equal(p == 0, torch.arange(10).expand(10, 10) >= 5)


def test_a_weight_that_is_nan_stays_to_be_seen():
    model, opt, _, _ = made("projection")
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    for k in range(STEPS):
        give_gradients(list(model.parameters()), k)
        opt.step()
    assert bool(model[0].weight[0, 0].isnan())
    assert not bool(model[2].weight.isnan().any())


def test_a_rate_of_zero_moves_no_support():
    """In a group whose lr is 0 no entry may change, so it counts as it is; in none, nothing is selected."""
    a, b = matrix(0, (10, 10)), matrix(1, (10, 10))
    opt = ProxOptimizer(AdamW([{"params": [a], "lr": 0.01}, {"params": [b], "lr": 0.01}]), attach(L1(0.0), [a, b]))
    target = TargetSparsity(opt.terms[0], 0.5, steps=40)
    for k in range(16):
        give_gradients([a, b], k)
        opt.step()
    opt.param_groups[1]["lr"] = 0.0
    before = values([b])
    for k in range(16, 22):
        give_gradients([a, b], k)
        opt.step()
        assert same(before, [b])
    assert sparsity(opt.terms[0]).zeros == least(target.wanted(target.count), 200)
    opt.param_groups[0]["lr"] = 0.0
    before = values([a, b])
    for p in (a, b):
        p.grad = torch.zeros_like(p)
    count = target.count
    opt.step()  # as torch.distributed.checkpoint makes it
    assert same(before, [a, b])
    assert target.count == count


def test_groups_of_labels_that_no_entry_bears_are_no_groups():
    p = matrix(0, (6, 5))
    index = torch.tensor([0, 2, 2, 5, 9, 9])
    opt = ProxOptimizer(AdamW([p], lr=0.01), term := attach(Group(L1(1.0), by=labels(index)), {"p": p}))
    TargetSparsity(term, 0.5, steps=STEPS)
    for k in range(STEPS):
        give_gradients([p], k)
        opt.step()
    found = sparsity(term)
    assert (found.zero_groups, found.groups) == (2, 4)


@each_method
def test_zeros_scalars_empty_tensors_and_ties(method):
    named = {
        "zero": Parameter(torch.zeros(4, 4)),
        "one": Parameter(torch.ones(4, 4)),
        "number": Parameter(torch.ones(())),
    }
    named["empty"] = Parameter(torch.zeros(0, 3))
    opt = ProxOptimizer(SGD(named.values(), lr=0.1), term := attach(L1(0.0), named))
    target = TargetSparsity(term, 0.6, steps=STEPS, method=method)
    for _ in range(STEPS):
        for p in named.values():
            p.grad = torch.zeros_like(p)
        opt.step()
    # gradients of zeros move nothing; 33 entries, of which 20 are to be zero: the 16 zeros first
    assert sum(int((~mask).sum()) for mask in target.mask.values()) == 20
    assert method == "feedback" or not bool(target.mask["zero"].any())
    assert sparsity(term).zeros == 20  # without gradients there is nothing that "feedback" may shrink


def test_tied_weights_are_counted_once_and_terms_of_a_net_have_their_own_targets():
    model = net()
    model[2].weight = Parameter(torch.randn(3, 8))
    first, second = attach(L1(0.0), {"a": model[0].weight}), attach(Group(L1(1.0), by=columns), {"b": model[2].weight})
    opt = ProxOptimizer(AdamW(model.parameters(), lr=0.01), first, second)
    one, two = TargetSparsity(first, 0.9, steps=STEPS), TargetSparsity(second, 0.5, steps=STEPS)
    assert (one.method, two.method) == ("projection", "feedback")
    train(model, opt)
    assert sparsity(first).zeros == least(0.9, 48)
    assert sparsity(second).zero_groups == 4


def test_an_average_takes_the_zeros():
    model, opt, term, _ = made()
    average = torch.optim.swa_utils.AveragedModel(model)
    for k in range(STEPS):
        train(model, opt, range(k, k + 1))
        average.update_parameters(model)
    copy_zeros(term, average)
    assert sparsity(term).zeros == int((average.module[0].weight == 0).sum() + (average.module[2].weight == 0).sum())


@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine, schedules.cubic])
def test_the_share_follows_the_schedule(schedule):
    model, opt, term, target = made("projection", 0.9, schedule=schedule)
    ramp = schedule(0.0, 0.9, 10, begin=2)
    for k in range(STEPS):
        train(model, opt, range(k, k + 1))
        assert sparsity(term).zeros == least(min(ramp(k + 1), 0.9), 72)
        assert target.history[-1].wanted == ramp(k + 1)


def test_every_so_many_steps_the_support_is_selected_and_kept_between():
    model, opt, term, target = made("projection", 0.9, every=4)
    seen = []
    for k in range(STEPS):
        train(model, opt, range(k, k + 1))
        seen.append(sparsity(term).zeros)
        assert all(torch.equal(m, p != 0) for m, p in zip(target.mask.values(), term.parameters.values(), strict=True))
    assert seen[2] == seen[3] == seen[5] < seen[6] == seen[9] < seen[10]
    assert seen[11:] == [65] * 9


def refused(error, words: str, term=None, share=0.5, **options) -> None:
    model = net()
    owned = attach(L1(0.1), model) if term is None else term(model)
    opt = ProxOptimizer(AdamW(model.parameters()), owned) if owned is not None and options.pop("own", True) else None
    before = weights_of(model), None if owned is None else str(owned)
    with pytest.raises(error, match=words):
        TargetSparsity(owned, share, **{"steps": 100, **options})
    assert same(before[0], weights_of(model))
    if owned is not None:
        assert (owned.control, owned.scheduler, str(owned)) == (None, None, before[1])
    del opt


def with_frozen(model):
    model[2].weight.requires_grad_(False)
    return attach(L1(0.1), {"a": model[0].weight, "b": model[2].weight})


BAD = {
    "nothing": (ValueError, "above 0 and at most 1, got 0.0", {"share": 0.0}),
    "more than all": (ValueError, "got 1.5", {"share": 1.5}),
    "per cent": (ValueError, "0.9 for 90 %", {"share": 90}),
    "NaN": (ValueError, "got nan", {"share": math.nan}),
    "a word": (ValueError, "got 'half'", {"share": "half"}),
    "half a step": (TypeError, "steps as an int, got 10.5", {"steps": 10.5}),
    "no step": (ValueError, "no optimizer step", {"steps": 0}),
    "a short training": (ValueError, "steps=2 has no optimizer step", {"steps": 2, "begin": 0.5, "end": 0.6}),
    "steps for shares": (ValueError, "end as a share of steps", {"end": 60}),
    "an end before the begin": (ValueError, "begin < end <= freeze", {"begin": 0.5, "end": 0.4}),
    "a freeze on the ramp": (ValueError, "begin < end <= freeze", {"end": 0.6, "freeze": 0.5}),
    "no such method": (ValueError, "method as one of", {"method": "pruning"}),
    "no such scope": (ValueError, "scope as one of", {"scope": "layer"}),
    "never": (ValueError, "every as an int from 1", {"every": 0}),
    "longer than the ramp": (ValueError, "ramp's 50 steps", {"every": 51}),
    "shrinkage below 0": (ValueError, "shrinkage as a number >= 0, got -0.1", {"shrinkage": -0.1}),
    "shrinkage of infinity": (ValueError, "shrinkage as a number >= 0, got inf", {"shrinkage": math.inf}),
    "shrinkage by feedback": (ValueError, "method='projection'", {"method": "feedback", "shrinkage": 0.1}),
    "shrinkage of rows": (
        ValueError,
        "entries with one alpha",
        {"term": lambda m: attach(Group(L1(0.1), by=rows), m), "method": "projection", "shrinkage": 0.1},
    ),
    "no zeros": (ValueError, "weight_decay", {"term": lambda m: attach(L2(0.1), m)}),
    "a frozen one": (ValueError, "'b'.* frozen", {"term": with_frozen}),
    "rows of the gradient": (ValueError, "lazy", {"term": lambda m: attach(L1(0.1), m, lazy=True)}),
    "no owner": (ValueError, "ProxOptimizer", {"own": False}),
    "several strengths": (
        ValueError,
        "several",
        {"term": lambda m: attach(lambda n, p: L1(float(n[0]) + 1), m), "method": "feedback"},
    ),
}


DEMANDS = [NonNegative(L1(0.1)), Box(-1.0, 1.0), NM(1, 2), Weighted(L1(0.1), math.inf), MaxNorm(1.0, by=rows)]


@pytest.mark.parametrize("penalty", DEMANDS, ids=repr)
def test_a_penalty_that_demands_more_than_zeros_is_refused(penalty):
    refused(ValueError, "would not hold for", term=lambda model: attach(penalty, model))
    model = net()
    opt = ProxOptimizer(AdamW(model.parameters()), attach(penalty, model))
    with pytest.raises(ValueError, match=r"freeze_zeros trains .* would not hold"):
        freeze_zeros(opt.terms[0])
    assert opt.terms[0].control is None


@pytest.mark.parametrize(
    "penalty", [TopK(0.5), Group(TopK(2), by=rows), L1(0.1) + L2(0.1), L0(0.1), SCAD(0.1, 3.0)], ids=repr
)
def test_whatever_else_makes_zeros_may_carry_a_target(penalty):
    model, opt, term, target = made(share=0.7, penalty=penalty)
    assert target.method == "projection"
    train(model, opt)
    found = sparsity(term)
    assert (found.zeros if found.groups is None else found.zero_groups) == (51 if found.groups is None else 8)


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused_and_nothing_changes(bad):
    error, words, options = BAD[bad]
    refused(error, words, **options)


def test_what_else_moves_a_term_is_refused():
    _, _, term, target = made()
    with pytest.raises(ValueError, match="moved by TargetSparsity"):
        TargetSparsity(term, 0.5, steps=10)
    with pytest.raises(ValueError, match=r"TargetSparsity.* moves this term already"):
        PenaltyScheduler(term, schedules.constant(0.1))
    with pytest.raises(ValueError, match="settles them by itself"):
        freeze_zeros(term)
    assert term.scheduler is target
    thaw(term)
    ramp = PenaltyScheduler(term, schedules.constant(0.1))
    with pytest.raises(ValueError, match="moved by PenaltyScheduler"):
        TargetSparsity(term, 0.5, steps=10)
    assert term.scheduler is ramp
    with pytest.raises(TypeError, match="moves a term, got Linear"):
        TargetSparsity(nn.Linear(2, 2), 0.5, steps=10)
    empty = ProxOptimizer(SGD([p := Parameter(torch.zeros(0, 3))], lr=0.1), attach(L1(0.1), {"p": p}))
    with pytest.raises(ValueError, match="no entries"):
        TargetSparsity(empty.terms[0], 0.5, steps=10)


def test_an_optimizer_that_takes_the_term_over_goes_on_or_has_a_target_of_its_own():
    """As where a trainer makes its optimizers anew for each run."""
    model, opt, term, first = made("projection", 0.8)
    train(model, opt, range(5))
    again = ProxOptimizer(BASES["AdamW"](model.parameters()), term)
    train(model, again, range(5, 7))
    assert first.count == 7
    second = TargetSparsity(term, 0.5, steps=STEPS)
    assert (term.target, second.count) == (second, 0)
    train(model, again)
    assert sparsity(term).zeros == 36
    with pytest.raises(ValueError, match="moved by TargetSparsity"):
        TargetSparsity(term, 0.5, steps=STEPS)


def test_a_parameter_that_is_frozen_on_the_ramp_is_refused_and_not_after_it():
    model, opt, _, _ = made()
    train(model, opt, range(9))
    model[2].weight.requires_grad_(False)
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"'2.weight'.*frozen while TargetSparsity"):
        train(model, opt, range(9, 10))
    assert same(before, weights_of(model))
    model[2].weight.requires_grad_(True)
    train(model, opt, range(9, 17))
    model[2].weight.requires_grad_(False)
    train(model, opt, range(17, STEPS))


@each_method
def test_the_mask_tells_the_weights_that_are_not_zero_after_every_step(method):
    model, opt, term, target = made(method)
    for k in range(STEPS):
        train(model, opt, range(k, k + 1))
        assert all(torch.equal(kept, term.parameters[name] != 0) for name, kept in target.mask.items())


def test_a_strength_that_somebody_sets_acts_until_the_next_prediction():
    model, opt, term, target = made("feedback")
    train(model, opt, range(8))
    term.alpha = 1e-6
    train(model, opt, range(8, 10))
    assert term.penalties["0.weight"].alpha is term.alpha
    assert float(term.alpha) == target.last_alpha != 1e-6


@pytest.mark.parametrize("penalty", [L1(1e-4), Group(L1(1e-4), by=rows)], ids=["entries", "rows"])
@each_method
def test_thaw_gives_the_strength_back(method, penalty):
    model, opt, term, _ = made(method, penalty=penalty)
    train(model, opt, range(8))
    thaw(term)
    assert (term.alpha, term.scheduler, term.target) == (1e-4, None, None)


def test_groups_of_several_strengths_are_projected():
    model = net()
    term = attach(lambda name, p: Group(L1(1.0 + float(name[0])), by=rows), model)
    opt = ProxOptimizer(AdamW(model.parameters(), lr=0.01), term)
    target = TargetSparsity(term, 0.5, steps=STEPS)
    assert target.method == "projection"
    train(model, opt)
    assert sparsity(term).zero_groups == least(0.5, sparsity(term).groups)


def test_where_no_rate_moves_anything_the_smallest_go():
    w = Parameter(torch.linspace(1.0, 2.0, 20)[torch.randperm(20, generator=torch.Generator().manual_seed(0))])
    opt = ProxOptimizer(SGD([w], lr=0.0, momentum=0.9), attach(L1(0.0), {"w": w}))
    TargetSparsity(opt.terms[0], 0.5, steps=STEPS, begin=0.0)
    for k in range(STEPS):
        give_gradients([w], k)
        opt.step()
    assert torch.equal(w != 0, w >= 1.5)


def test_a_parameter_that_is_gone_is_told_and_a_new_one_is_weighed():
    first, second = matrix(0, (10, 10)), matrix(1, (10, 10))
    opt = ProxOptimizer(AdamW([first], lr=0.01), L1(0.0))
    target = TargetSparsity(opt.terms[0], 0.5, steps=STEPS)
    opt.add_param_group({"params": [second]})
    for k in range(STEPS):
        give_gradients([first, second], k)
        opt.step()
    assert target.phase == "frozen"
    assert sum(int((p == 0).sum()) for p in (first, second)) == 100


def test_thaw_ends_a_target_and_the_penalty_acts_again():
    model, opt, term, target = made("projection", 0.8, L1(0.0))
    train(model, opt)
    assert target.phase == "frozen"
    thaw(term)
    assert (term.target, term.control) == (None, None)
    assert not {"dense", "support"} & opt.state[model[0].weight].keys()
    train(model, opt, range(STEPS, STEPS + 2))
    assert sparsity(term).zeros == 0


@pytest.mark.parametrize("make", [*BASES.values(), lambda p: RMSprop(p, lr=0.01, momentum=0.5)])
@each_method
def test_a_step_that_raises_leaves_the_zeros(method, make):
    model, opt, term, target = made(method, 0.8, make=make)
    for at in (1, 6, 12, 15, 17) if method != "feedback" else (17,):  # a plain proximal step undoes nothing
        train(model, opt, range(target.count, at))
        zeros, count = [p == 0 for p in term.parameters.values()], target.count
        boom = opt.base.register_step_post_hook(lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(model, opt, range(at, at + 1))
        boom.remove()
        assert all(torch.equal(z, p == 0) for z, p in zip(zeros, term.parameters.values(), strict=True))
        assert target.count == count
    train(model, opt, range(target.count, STEPS))
    assert sparsity(term).zeros == least(0.8, 72)


def test_weights_of_zero_are_never_reached_by_feedback_and_the_trim_makes_the_count_exact():
    p = matrix(0, (10, 10))
    free = torch.ones(10, 10).tril()
    opt = ProxOptimizer(AdamW([p], lr=0.01), term := attach(Weighted(L1(1.0), free.double()), {"p": p}))
    target = TargetSparsity(term, 0.8, steps=STEPS, method="feedback")
    for k in range(STEPS):
        give_gradients([p], k)
        opt.step()
    assert sparsity(term).zeros == 80
    assert max(record.alpha for record in target.history) < 2.0**20


@pytest.mark.parametrize("seed", range(3))
def test_feedback_does_not_shrink_a_net_to_nothing_that_is_right_on_all_of_its_data(seed):
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = (x / 16).float()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    opt = ProxOptimizer(AdamW(model.parameters(), lr=3e-3), term := attach(L1(1e-4), model))
    TargetSparsity(term, 0.9, steps=600, method="feedback")
    for batch in torch.randint(len(x), (600, 64)):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        opt.step()
    assert sparsity(term).zeros == least(0.9, sparsity(term).total)
    assert (model(x).argmax(1) == y).double().mean() > 0.9
