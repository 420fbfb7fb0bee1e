"""PenaltyScheduler: before optimizer step k the strength is schedule(k), however the steps are made."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from optimizer_catalog import give_gradients, matrix, same, values
from test_checkpoints import Net, through_disk, weights_of
from torch import nn
from torch._dynamo.utils import counters
from torch.distributed.checkpoint import state_dict as dcp
from torch.optim import SGD, Adam, AdamW, lr_scheduler

from torchreg import L1, L1L2, Group, PenaltyScheduler, ProxOptimizer, Sum, Weighted, attach, matching, rows, schedules

RAMP = schedules.linear(0.0, 0.5, 10)
KINDS = {
    "number": lambda: 0.0,
    "tensor": lambda: torch.tensor(0.0, dtype=torch.float64),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def scheduled(make=Adam, kind: str = "number", schedule=RAMP, **kwargs):
    net = nn.Linear(3, 4, dtype=torch.float64)
    term = attach(L1(KINDS[kind]()), net)
    opt = ProxOptimizer(make(net.parameters(), lr=0.1), term, **kwargs)
    return net, opt, term, PenaltyScheduler(term, schedule)


def make_step(net, opt, seed: int = 0) -> None:
    give_gradients(list(net.parameters()), seed)
    opt.step()


@each_kind
def test_a_scheduled_run_is_the_run_whose_alpha_is_assigned_by_hand(kind):
    torch.manual_seed(0)
    net, opt, term, scheduler = scheduled(kind=kind)
    other = copy.deepcopy(net)
    plain_term = attach(L1(0.0), other)
    plain = ProxOptimizer(Adam(other.parameters(), lr=0.1), plain_term)
    held = term.alpha
    for k in range(14):
        assert scheduler.count == k
        assert float(term.alpha) == scheduler.last_alpha == RAMP(k)
        plain_term.alpha = RAMP(k)
        make_step(net, opt, k)
        make_step(other, plain, k)
    assert same(weights_of(net), weights_of(other))
    assert bool((net.weight == 0).any())
    assert (term.alpha is held) == (kind == "tensor")


PENALTIES = {
    "L1L2": lambda a, w: L1L2(a, 0.5),
    "Weighted": lambda a, w: Weighted(L1(a), torch.ones_like(w)),
    "Group": lambda a, w: Group(L1(a), by=rows),
    "Sum": lambda a, w: Sum((L1(1.0), Group(L1(1.0), by=rows)), alpha=a),
}


@pytest.mark.parametrize("make", PENALTIES.values(), ids=PENALTIES)
@each_kind
def test_the_outer_knob_is_turned_whatever_the_penalty(kind, make):
    p = matrix(1)
    term = attach(make(KINDS[kind](), p.detach()), {"w": p})
    opt = ProxOptimizer(SGD([p], lr=1.0), term)
    PenaltyScheduler(term, schedules.table({0: 0.0, 1: 1e3}))
    p.grad = torch.zeros_like(p)
    before = values([p])
    opt.step()
    assert same(before, [p])
    opt.step()
    assert bool((p == 0).all())


def test_accumulated_batches_do_not_count_wherever_step_is_called():
    net, opt, _, scheduler = scheduled()
    x = torch.ones(2, 3, dtype=torch.float64)
    for batch in range(1, 13):
        net(x).sum().backward()
        if batch % 4 == 0:
            opt.step()
            opt.zero_grad()
        scheduler.step()
        scheduler.step()  # as often as one likes
        assert scheduler.count == batch // 4


def test_a_step_with_a_closure_counts_once():
    net, opt, _, scheduler = scheduled()

    def closure():
        give_gradients(list(net.parameters()), 0)
        return 0.0

    for k in range(1, 4):
        opt.step(closure)
        assert scheduler.count == k


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_the_dummy_step_of_a_distributed_checkpoint_does_not_count(lr):
    for make in (SGD, Adam):
        net = nn.Linear(3, 4)
        term = attach(L1(0.1), net)
        opt = ProxOptimizer(make(net.parameters(), lr=lr), term)
        scheduler = PenaltyScheduler(term, RAMP)
        dcp.get_optimizer_state_dict(net, opt)
        assert (scheduler.count, term.alpha) == (0, 0.0)
        make_step(net, opt)
        opt.zero_grad()
        dcp.get_state_dict(net, opt)  # SGD has no state still, so another dummy step
        assert scheduler.count == 1


def test_a_step_at_learning_rate_zero_of_a_warm_up_counts():
    net, opt, _, scheduler = scheduled()
    rates = lr_scheduler.LambdaLR(opt, lambda k: min(1.0, k / 4))
    assert opt.param_groups[0]["lr"] == 0.0
    for k in range(3):
        make_step(net, opt, k)
        rates.step()
        scheduler.step()
        assert scheduler.count == rates.last_epoch == k + 1


def test_beside_learning_rate_schedulers_in_either_order():
    for first in (True, False):
        torch.manual_seed(0)
        net = nn.Linear(3, 4)
        term = attach(L1(0.1), net)
        opt = ProxOptimizer(SGD(net.parameters(), lr=0.1), term)
        if first:
            scheduler = PenaltyScheduler(term, RAMP)
        rates = lr_scheduler.CosineAnnealingLR(opt, 10)
        if not first:
            scheduler = PenaltyScheduler(term, RAMP)
        for k in range(10):
            make_step(net, opt, k)
            rates.step()
            scheduler.step()
        assert scheduler.count == 10
        assert opt.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-15)


def test_a_term_in_the_loss_follows_the_steps_of_the_given_optimizer():
    net = nn.Linear(3, 4)
    term, opt = attach(L1(0.1), net), Adam(net.parameters(), lr=0.1)
    scheduler = PenaltyScheduler(term, RAMP, optimizer=opt)
    for k in range(3):
        assert float(term().detach()) == pytest.approx(RAMP(k) * float(net.weight.detach().abs().sum()), rel=1e-6)
        opt.zero_grad()
        (net(torch.ones(1, 3)).sum() + term()).backward()
        opt.step()
    net, term, opt, scheduler = pickle.loads(pickle.dumps((net, term, opt, scheduler)))
    make_step(net, opt)
    assert scheduler.count == 4  # torch's own hooks are lost by pickling, the scheduler renews its own
    assert float(term.alpha) == RAMP(4)


def test_an_optimizer_that_takes_the_term_later_is_the_one_whose_steps_count():
    net = nn.Linear(3, 4)
    term, base = attach(L1(0.1), net), SGD(net.parameters(), lr=0.1)
    scheduler = PenaltyScheduler(term, RAMP, optimizer=base)
    opt = ProxOptimizer(base, term)
    make_step(net, opt)
    assert scheduler.count == 1


def test_a_new_scheduler_takes_the_place_of_the_old():
    net, opt, term, old = scheduled()
    make_step(net, opt)
    new = PenaltyScheduler(term, schedules.constant(0.25))
    make_step(net, opt)
    assert (old.count, new.count, term.alpha) == (1, 1, 0.25)
    loose, plain = attach(L1(0.1), net), SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        scheduler = PenaltyScheduler(loose, RAMP, optimizer=plain)
    make_step(net, plain)
    assert scheduler.count == 1


CLONES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)
@pytest.mark.parametrize("together", [True, False], ids=["with the scheduler", "optimizer alone"])
@each_kind
def test_a_copy_goes_on_along_the_schedule_and_apart_from_the_original(kind, together, clone):
    net, opt, _, scheduler = scheduled(kind=kind)
    for k in range(4):
        make_step(net, opt, k)
    twin_net, twin, *rest = clone((net, opt, scheduler) if together else (net, opt))
    twin_scheduler = twin.terms[0].scheduler
    assert not rest or rest[0] is twin_scheduler
    for k in range(4, 8):
        make_step(net, opt, k)
    assert (twin_scheduler.count, float(twin.terms[0].alpha)) == (4, RAMP(4))
    for k in range(4, 8):
        make_step(twin_net, twin, k)
    assert same(weights_of(net), weights_of(twin_net))
    assert (scheduler.count, twin_scheduler.count) == (8, 8)


@each_kind
def test_a_resumed_run_goes_on_along_the_schedule_without_being_told(kind):
    def start(seed: int):
        net = Net(seed)
        term = attach(L1(torch.tensor(0.0) if kind == "tensor" else 0.0), matching(net, "first"))
        opt = ProxOptimizer(Adam(list(net.parameters()), lr=0.1), term)
        return net, opt, PenaltyScheduler(term, RAMP)

    (net, opt, scheduler), (resumed, other, follower) = start(0), start(1)
    for k in range(5):
        make_step(net, opt, k)
    saved = through_disk({"net": net.state_dict(), "opt": opt.state_dict()})
    for k in range(5, 9):
        make_step(net, opt, k)
    resumed.load_state_dict(saved["net"])
    other.load_state_dict(saved["opt"])  # any warning is an error: all is as it was
    assert (follower.count, follower.last_alpha) == (5, RAMP(5))
    for k in range(5, 9):
        make_step(resumed, other, k)
    assert same(weights_of(net), weights_of(resumed))
    assert follower.state_dict() == scheduler.state_dict()


def test_its_own_state_goes_through_disk_and_restores_count_and_strength():
    net, opt, _, scheduler = scheduled()
    for k in range(3):
        make_step(net, opt, k)
    state = through_disk(scheduler.state_dict())
    assert state == {"count": 3, "alpha": RAMP(3)}
    _, _, term, other = scheduled()
    other.load_state_dict(state)
    assert (other.count, other.last_alpha, term.alpha) == (3, RAMP(3), RAMP(3))
    with pytest.warns(UserWarning, match=r"alpha = 0\.15 after 3 steps.*constant\(alpha=0\.4\).*alpha = 0\.4 there"):
        scheduled(schedule=schedules.constant(0.4))[3].load_state_dict(state)


def loaded(state, schedule):
    """Load into a fresh optimizer, scheduled or not: alpha after it, and what the warning says."""
    net = nn.Linear(3, 4, dtype=torch.float64)
    term = attach(L1(0.7), net)
    opt = ProxOptimizer(Adam(net.parameters(), lr=0.1), term)
    if schedule is not None:
        PenaltyScheduler(term, schedule)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.load_state_dict(state)
    return term.alpha, " ".join(str(w.message) for w in caught)


def test_a_checkpoint_and_a_schedule_that_do_not_fit_say_so():
    net, opt, term, _ = scheduled()
    for k in range(4):
        make_step(net, opt, k)
    along = through_disk(opt.state_dict())
    assert loaded(along, RAMP) == (RAMP(4), "")
    alpha, said = loaded(along, None)
    assert alpha == RAMP(4)
    assert "alpha = 0.2 for weight (it was 0.7)" in said
    assert "4 steps into a schedule" in said
    alpha, said = loaded(along, schedules.constant(0.4))
    assert alpha == 0.4
    assert "alpha = 0.2 after 4 steps" in said
    term.scheduler = None
    alpha, said = loaded(opt.state_dict(), RAMP)
    assert alpha == 0.0
    assert "stays at step 0, alpha = 0" in said


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("penalty", [L1, lambda a: Group(L1(a), by=rows)], ids=["L1", "rows"])
@pytest.mark.parametrize("make", [SGD, AdamW])
def test_a_compiled_step_is_compiled_once_and_follows_the_schedule(make, penalty):
    torch._dynamo.reset()
    torch.manual_seed(0)
    nets = [nn.Linear(3, 4) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    terms = [attach(penalty(torch.tensor(0.0)), net) for net in nets]
    opts = [ProxOptimizer(make(net.parameters(), lr=0.1), term) for net, term in zip(nets, terms, strict=True)]
    scheduler, _ = followers = [PenaltyScheduler(term, schedules.linear(0.0, 2.0, 10)) for term in terms]
    compiled = torch.compile(opts[0].step, backend="eager")
    for k in range(12):
        if k == 2:  # the first call creates the optimizer's state, the second finds it
            counters.clear()
        for net, step in zip(nets, (compiled, opts[1].step), strict=True):
            give_gradients(list(net.parameters()), k)
            step()
        scheduler.step()
        scheduler.step()
        assert [f.count for f in followers] == [k + 1, k + 1]
        # a compiled AdamW counts in float32, where 1 - 0.999 keeps four digits
        torch.testing.assert_close(nets[0].weight, nets[1].weight, rtol=1e-3, atol=1e-5)
    assert not counters["stats"].get("unique_graphs"), counters["stats"]
    assert bool((nets[0].weight == 0).any())


def test_a_captured_step_is_counted_by_step_at_each_replay(monkeypatch):
    net, opt, term, scheduler = scheduled(kind="tensor")
    make_step(net, opt)  # a warm-up step, made by Python
    monkeypatch.setattr("torchreg.training.step_count.is_capturing", lambda: True)
    alpha = float(term.alpha)
    make_step(net, opt)
    assert (scheduler.count, float(term.alpha)) == (1, alpha)  # a fill here would become part of the graph
    for replay in range(3):
        scheduler.step()
        assert scheduler.count == 2 + replay
    monkeypatch.undo()
    make_step(net, opt)
    scheduler.step()
    assert scheduler.count == 5


BAD = {
    "no term": (lambda net: (L1(0.1), RAMP), TypeError, "moves a term, got L1"),
    "no function": (lambda net: (attach(L1(0.1), net), 0.1), TypeError, r"function int -> float, got 0\.1"),
    "a class": (lambda net: (attach(L1(0.1), net), schedules.linear), TypeError, "function int -> float"),
    "no optimizer": (lambda net: (attach(L1(0.1), net), RAMP), ValueError, "none owns this term"),
}


@pytest.mark.parametrize(("given", "error", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_refused(given, error, says):
    with pytest.raises(error, match=says):
        PenaltyScheduler(*given(nn.Linear(3, 4)))


def test_a_term_with_several_strengths_and_another_optimizer_are_refused():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    term = attach(lambda name, p: L1(0.1 if name == "0.weight" else 0.2), net)
    opt = ProxOptimizer(SGD(net.parameters(), lr=0.1), term)
    with pytest.raises(ValueError, match="several alphas"):
        PenaltyScheduler(term, RAMP)
    _, owner, owned, _ = scheduled()
    assert owned.owner is owner
    with pytest.raises(ValueError, match="owned by a ProxOptimizer"):
        PenaltyScheduler(owned, RAMP, optimizer=opt)
    with pytest.raises(ValueError, match="alpha >= 0"):
        PenaltyScheduler(owned, lambda k: -1.0)


def test_it_prints_where_it_stands():
    *_, scheduler = scheduled()
    assert repr(scheduler) == f"PenaltyScheduler({RAMP!r}, count=0, last_alpha=0)"
