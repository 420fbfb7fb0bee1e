"""Saving, loading, copying and reading an optimizer changes nothing that it should not."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from catalog import CATALOG
from optimizer_catalog import Lion, every_recipe, give_gradients, same, values
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, Optimizer, RAdam, RMSprop, lr_scheduler

from torchreg import L0, L1, MCP, Group, NonNegative, Penalty, ProxOptimizer, Term, Weighted, attach, matching, rows


class Net(nn.Module):
    """Two penalised matrices, an unpenalised bias and a frozen parameter.

    In float32: torch loads NAdam's float32 ``mu_product`` in the parameter's dtype, so a bare float64 NAdam does not
    resume to the bit either.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        for name, shape in (("first", (6, 4)), ("second", (3, 6)), ("bias", (3,))):
            self.register_parameter(name, Parameter(torch.randn(shape, generator=draw)))
        self.frozen = Parameter(torch.ones(2, 2), requires_grad=False)


def terms(net: Net, alpha: float | Tensor = 0.3) -> list[Term]:
    return [attach(L1(alpha), matching(net, "first")), attach(Group(MCP(0.2), by=rows), matching(net, "second"))]


def wrapped(make, net: Net, alpha: float | Tensor = 0.3) -> ProxOptimizer:
    return ProxOptimizer(make(list(net.parameters())), *terms(net, alpha))


def train(net: Net, opt: Optimizer, steps: range) -> None:
    for k in steps:
        give_gradients(list(net.parameters()), k)
        opt.step()


def through_disk(state: object) -> object:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weights_of(net: nn.Module) -> list[Tensor]:
    return values(list(net.parameters()))


def flat(state: object) -> list[object]:
    """The leaves of a nested state dict with their keys, for comparison."""
    if isinstance(state, dict):
        return [(k, x) for k in state for x in flat(state[k])]
    if isinstance(state, (list, tuple)):
        return [x for item in state for x in flat(item)]
    return [state]


def equal_states(a: object, b: object) -> bool:
    def plain(x):
        return (plain(x[0]), plain(x[1])) if isinstance(x, tuple) else x.tolist() if isinstance(x, Tensor) else x

    return [plain(x) for x in flat(a)] == [plain(x) for x in flat(b)]


@every_recipe
def test_a_resumed_run_is_bit_equal_to_the_uninterrupted_one(recipe):
    net, resumed = Net(), Net(seed=1)
    opt = wrapped(recipe.make, net)
    train(net, opt, range(6))
    saved = through_disk({"net": net.state_dict(), "opt": opt.state_dict()})
    train(net, opt, range(6, 12))
    other = wrapped(recipe.make, resumed)
    resumed.load_state_dict(saved["net"])
    other.load_state_dict(saved["opt"])
    train(resumed, other, range(6, 12))
    assert same(weights_of(net), weights_of(resumed))
    assert equal_states(opt.state_dict(), other.state_dict())


@every_recipe
def test_bare_and_wrapped_checkpoints_load_each_other(recipe):
    nets = [Net() for _ in range(4)]
    opt, bare = wrapped(recipe.make, nets[0], alpha=0.0), recipe.make(list(nets[1].parameters()))
    opt.terms[1].alpha = 0.0
    train(nets[0], opt, range(4))
    train(nets[1], bare, range(4))
    assert set(opt.state_dict()) - set(bare.state_dict()) == {"torchreg"}
    assert equal_states({k: v for k, v in opt.state_dict().items() if k != "torchreg"}, bare.state_dict())
    crossed, plain = wrapped(recipe.make, nets[2], alpha=0.0), recipe.make(list(nets[3].parameters()))
    crossed.terms[1].alpha = 0.0
    for net, mine, theirs in ((nets[2], crossed, bare), (nets[3], plain, opt)):
        net.load_state_dict(nets[0].state_dict())
        mine.load_state_dict(through_disk(theirs.state_dict()))
        train(net, mine, range(4, 8))
    train(nets[0], opt, range(4, 8))
    assert all(same(weights_of(nets[0]), weights_of(net)) for net in nets[2:])
    assert crossed.terms[0].alpha == 0.0  # a bare checkpoint has no strengths to restore


@pytest.mark.parametrize("alpha", [0.7, torch.tensor(0.7)], ids=["number", "tensor"])
def test_alpha_is_restored_with_a_warning_where_it_differs(alpha):
    net, fresh = Net(), Net()
    opt = wrapped(Adam, net)
    opt.terms[0].alpha = alpha
    saved = through_disk(opt.state_dict())
    other = wrapped(Adam, fresh)
    with pytest.warns(UserWarning, match=r"alpha = 0\.7.*first.*0\.3"):
        other.load_state_dict(saved)
    assert float(other.terms[0].alpha) == pytest.approx(0.7)
    other.load_state_dict(saved)  # no warning where nothing changes
    train(net, opt, range(3))
    train(fresh, other, range(3))
    assert same(weights_of(net), weights_of(fresh))


def test_every_strength_is_restored_even_where_warnings_are_errors():
    net, other = Net(), Net()
    saved = wrapped(Adam, net, alpha=0.1)
    saved.terms[1].alpha = 0.9
    opt = wrapped(Adam, other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="alpha"):
            opt.load_state_dict(saved.state_dict())
    assert [term.alpha for term in opt.terms] == [0.1, 0.9]


@pytest.mark.parametrize("change", ["names", "fewer", "groups"])
def test_a_checkpoint_of_other_terms_is_refused_with_nothing_changed(change):
    net, donor = Net(), Net(seed=1)
    opt = wrapped(Adam, net)
    train(net, opt, range(2))
    if change == "names":
        other = ProxOptimizer(Adam(list(donor.parameters())), *terms(donor)[::-1])
    elif change == "fewer":
        other = ProxOptimizer(Adam(list(donor.parameters())), terms(donor, 0.9)[0])
    else:
        other = wrapped(lambda p: Adam([{"params": p[:1]}, {"params": p[1:]}]), donor, 0.9)
    train(donor, other, range(3))
    before, state, alphas = weights_of(net), copy.deepcopy(opt.state_dict()), [t.alpha for t in opt.terms]
    with pytest.raises(ValueError, match="group" if change == "groups" else "checkpoint penalises other parameters"):
        opt.load_state_dict(other.state_dict())
    assert same(before, weights_of(net))
    assert equal_states(state, opt.state_dict())
    assert alphas == [t.alpha for t in opt.terms]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("scheduled", [False, True], ids=["alone", "scheduled"])
@every_recipe
def test_a_copy_of_model_and_optimizer_trains_as_the_original_and_apart_from_it(recipe, scheduled, clone):
    net = Net()
    opt = wrapped(recipe.make, net)
    schedule = lr_scheduler.StepLR(opt, 2) if scheduled else None
    train(net, opt, range(4))
    twin_net, twin, twin_terms = clone((net, opt, opt.terms))
    assert twin_terms[0].owner is twin
    assert all(p is q for p, q in zip(twin_net.parameters(), twin.param_groups[0]["params"], strict=True))
    if schedule is not None:
        lr_scheduler.StepLR(twin, 2).load_state_dict(schedule.state_dict())
    before = weights_of(twin_net)
    train(net, opt, range(4, 8))
    assert same(before, weights_of(twin_net))
    train(twin_net, twin, range(4, 8))
    assert same(weights_of(net), weights_of(twin_net))


def test_the_copy_of_an_optimizer_alone_leaves_the_original_alone():
    net = Net()
    opt = wrapped(Adam, net)
    twin = copy.deepcopy(opt)
    before = weights_of(net)
    give_gradients(twin.param_groups[0]["params"], 0)
    twin.step()
    assert same(before, weights_of(net))
    assert twin.state is twin.base.state
    assert twin.param_groups is twin.base.param_groups
    assert twin.terms[0].owner is twin
    assert opt.terms[0].owner is opt


HARSH = {
    "L1": lambda: L1(0.5),
    "L0": lambda: L0(5.0),
    "MCP": lambda: MCP(0.5),
    "NonNegative": lambda: NonNegative(L1(0.5)),
    "infinite weights": lambda: Weighted(
        L1(0.5), torch.tensor([0.0, float("inf"), 1.0, float("inf")], dtype=torch.float64)
    ),
    "Group": lambda: Group(L1(0.5), by=rows),
    "infinite group": lambda: Group(L1(0.5), by=rows, weights=float("inf")),
}


@pytest.mark.parametrize("stepped", [False, True], ids=["fresh", "stepped"])
@every_recipe
def test_reading_and_setting_the_state_by_dcp_changes_no_weight(recipe, stepped):
    for make in HARSH.values():
        net = nn.Linear(4, 6, dtype=torch.float64)
        opt = ProxOptimizer(recipe.make(list(net.parameters())), attach(make(), net))
        if stepped:
            train(net, opt, range(3))
            net.weight.data.normal_()  # so that nothing is a fixed point of the prox
            opt.zero_grad()
        before = weights_of(net)
        state = dcp.get_optimizer_state_dict(net, opt)
        model_state, both = dcp.get_state_dict(net, opt)
        assert equal_states(both, state)
        dcp.set_optimizer_state_dict(net, opt, state)
        dcp.set_state_dict(net, opt, model_state_dict=model_state, optim_state_dict=both)
        assert same(before, weights_of(net))


@every_recipe
def test_a_run_resumed_by_dcp_is_bit_equal(recipe):
    net, resumed = Net(), Net(seed=1)
    opt, other = wrapped(recipe.make, net), wrapped(recipe.make, resumed)
    train(net, opt, range(4))
    state = copy.deepcopy(dcp.get_state_dict(net, opt))
    train(net, opt, range(4, 8))
    dcp.set_state_dict(resumed, other, model_state_dict=state[0], optim_state_dict=state[1])
    train(resumed, other, range(4, 8))
    assert same(weights_of(net), weights_of(resumed))


def tensor_lr(kind: type[Optimizer]):
    return lambda p, lr: kind(p, lr=torch.tensor(lr), foreach=False)


BASES = {kind.__name__: kind for kind in (SGD, Adam, AdamW, RAdam, RMSprop, Adagrad, Adamax)}
BASES |= {f"{name}, tensor lr": tensor_lr(kind) for name, kind in BASES.items()}
BASES["Lion, decoupled"] = Lion


@pytest.mark.parametrize("gradient", [0.0, 1.0], ids=["zero gradient", "gradient"])
@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_a_step_with_lr_zero_changes_no_weight_under_any_penalty(make, gradient):
    metric = "decoupled" if make is Lion else "auto"
    for case in CATALOG:
        p = Parameter(torch.linspace(-2.0, 2.0, math.prod(case.shape), dtype=torch.float64).reshape(case.shape))
        penalty: Penalty = case.make()
        opt = ProxOptimizer(make([p], lr=0.0), attach(penalty, {"w": p}), metric=metric)
        before = p.detach().clone()
        for _ in range(2):
            p.grad = torch.full_like(p, gradient)
            opt.step()
        assert torch.equal(p, before), case.id
