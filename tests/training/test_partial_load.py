"""``load_state_dict(..., strict=False)``: what two optimizers share, by name, and a warning of the rest."""

from __future__ import annotations

import warnings

import pytest
import torch
from optimizer_catalog import every_recipe, give_gradients, same, values
from test_checkpoints import equal_states, through_disk, weights_of
from torch import nn
from torch.optim import SGD, Adafactor, Adam

from torchreg import L1, MCP, Group, PenaltyScheduler, ProxOptimizer, Weighted, attach, matching, rows, schedules


def net(*names: str, seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict({name: nn.Linear(3, 3) for name in names})


def one_term_each(model: nn.Module, alphas: dict[str, float], make=Adam, penalty=L1) -> ProxOptimizer:
    terms = [attach(penalty(a), matching(model, f"{name}.weight")) for name, a in alphas.items()]
    return ProxOptimizer(make(model.named_parameters(), lr=0.1), *terms)


def train(model: nn.Module, opt: ProxOptimizer, steps: range) -> None:
    for k in steps:
        give_gradients(list(model.parameters()), k)
        opt.step()


def load(opt: ProxOptimizer, state, **kwargs) -> str:
    """What it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.load_state_dict(through_disk(state), **kwargs)
    return " ".join(str(w.message) for w in caught)


def alphas(opt: ProxOptimizer) -> list[float]:
    return [float(term.alpha) for term in opt.terms]


@pytest.mark.parametrize("named", [True, False])
@every_recipe
def test_of_the_same_terms_and_model_it_is_the_strict_one(recipe, named):
    def make(model):
        params = model.named_parameters() if named else model.parameters()
        return ProxOptimizer(recipe.make(list(params)), attach(L1(0.3), model))

    models = [net("a", "b", seed=k) for k in range(3)]
    donor, *others = (make(m) for m in models)
    train(models[0], donor, range(3))
    others[0].load_state_dict(through_disk(donor.state_dict()))
    assert load(others[1], donor.state_dict(), strict=False) == ""
    assert equal_states(others[0].state_dict(), others[1].state_dict())
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    for model, opt in zip(models, (donor, *others), strict=True):
        train(model, opt, range(3, 6))
        assert same(weights_of(models[0]), weights_of(model))


def test_strengths_go_to_the_same_names_whatever_the_order_of_terms():
    donor = one_term_each(net("a", "b", "c"), {"a": 0.1, "b": 0.2, "c": 0.3})
    opt = one_term_each(net("a", "b", "c"), {"c": 0.9, "a": 0.9})
    with pytest.raises(ValueError, match=r"only then \['b.weight'\].*strict=False"):
        opt.load_state_dict(donor.state_dict())
    assert alphas(opt) == [0.9, 0.9]
    said = load(opt, donor.state_dict(), strict=False)
    assert alphas(opt) == [0.3, 0.1]
    assert "alone penalises ['b.weight']" in said
    assert "alpha = 0.3 for c.weight (it was 0.9)" in said
    assert "does not penalise" not in said


def test_a_parameter_that_the_checkpoint_does_not_know_is_told():
    donor = one_term_each(net("a"), {"a": 0.1})
    model = net("a", "b")
    opt = ProxOptimizer(Adam(model.named_parameters()), attach(L1(0.5), model))
    said = load(opt, donor.state_dict(), strict=False)
    assert "does not penalise ['b.weight'], which have the strength of their term" in said
    assert alphas(opt) == [0.1]  # one term has one strength


def test_another_kind_of_penalty_keeps_its_strength_and_is_told():
    donor = one_term_each(net("a", "b"), {"a": 0.1, "b": 0.2})
    for other in (MCP, lambda a: Group(L1(a), by=rows), lambda a: Weighted(L1(a), torch.ones(3, 3))):
        opt = one_term_each(net("a", "b"), {"a": 0.5, "b": 0.6}, penalty=other)
        with pytest.raises(ValueError, match=r"a.weight.*by L1.*strict=False"):
            opt.load_state_dict(donor.state_dict())
        said = load(opt, donor.state_dict(), strict=False)
        assert alphas(opt) == [0.5, 0.6]
        assert "another penalty for ['a.weight', 'b.weight']" in said


def test_strengths_that_one_term_cannot_take_are_told():
    donor = one_term_each(net("a", "b"), {"a": 0.1, "b": 0.2})
    model = net("a", "b")
    opt = ProxOptimizer(Adam(model.named_parameters()), attach(L1(0.5), model))
    assert "several strengths to ['a.weight', 'b.weight']" in load(opt, donor.state_dict(), strict=False)
    assert alphas(opt) == [0.5]


def test_a_tensor_is_filled_and_a_schedule_goes_on():
    ramp = schedules.linear(0.0, 1.0, 10)
    models = net("a", "b"), net("a")
    donor = one_term_each(models[0], {"b": 0.4, "a": 0.0})
    PenaltyScheduler(donor.terms[1], ramp)
    train(models[0], donor, range(3))
    knob = torch.tensor(0.0)
    opt = one_term_each(models[1], {"a": knob})
    follower = PenaltyScheduler(opt.terms[0], ramp)
    said = load(opt, donor.state_dict(), strict=False)
    assert follower.count == 3
    assert float(knob) == pytest.approx(ramp(3))
    assert "alpha =" not in said  # the schedule's own


@pytest.mark.parametrize("make", [Adam, lambda p, lr: SGD(p, lr=lr, momentum=0.9)], ids=["Adam", "SGD"])
def test_the_state_of_another_model_goes_to_the_same_names(make):
    models = net("a", "b", "c"), net("c", "new", "a", seed=1)
    donor, opt = one_term_each(models[0], {"a": 0.1}, make), one_term_each(models[1], {"a": 0.1}, make)
    train(models[0], donor, range(3))
    donor.param_groups[0]["lr"] = 0.03
    said = load(opt, donor.state_dict(), strict=False)
    assert "no state for ['new.weight', 'new.bias'], which start anew" in said
    assert "alone has ['b.weight', 'b.bias']" in said
    assert opt.param_groups[0]["lr"] == 0.03
    assert opt.param_groups[0]["param_names"] == [n for n, _ in models[1].named_parameters()]
    for name in ("a", "c"):
        models[1][name].load_state_dict(models[0][name].state_dict())
    grads = {n: torch.randn(p.shape) for n, p in [*models[0].named_parameters(), *models[1].named_parameters()]}
    for model, o in zip(models, (donor, opt), strict=True):
        for n, p in model.named_parameters():
            p.grad = grads[n].clone()
        o.step()
    for name in ("a", "c"):
        assert same(values(list(models[0][name].parameters())), values(list(models[1][name].parameters())))


def test_each_group_takes_the_options_of_the_group_that_held_its_parameters():
    first, second = net("a", "b"), net("a", "b", "c", seed=1)

    def grouped(model, names, lrs):
        groups = [{"params": [(f"{n}.weight", model[n].weight)], "lr": lr} for n, lr in zip(names, lrs, strict=True)]
        return ProxOptimizer(SGD(groups), attach(L1(0.1), matching(model, "a.weight")))

    donor, opt = grouped(first, "ab", (0.1, 0.2)), grouped(second, "cba", (0.7, 0.8, 0.9))
    load(opt, donor.state_dict(), strict=False)
    assert [group["lr"] for group in opt.param_groups] == [0.7, 0.2, 0.1]


def test_a_state_of_another_shape_starts_anew_and_factored_states_fit():
    for make in (Adam, Adafactor):
        narrow, wide = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 2)}), net("a", "b")

        def wrap(model, make=make):
            return ProxOptimizer(
                make(model.named_parameters()), attach(L1(0.1), matching(model, "a.weight")), metric="decoupled"
            )

        donor, opt = wrap(narrow), wrap(wide)
        train(narrow, donor, range(2))
        assert "no state for ['b.weight', 'b.bias']" in load(opt, donor.state_dict(), strict=False)
        assert equal_states(donor.base.state[narrow["a"].weight], opt.base.state[wide["a"].weight])
        train(wide, opt, range(2))


def test_without_names_another_model_is_refused_with_nothing_changed():
    models = net("a"), net("a", "b")
    donor, opt = (
        ProxOptimizer(Adam(m.parameters()), attach(L1(a), m)) for m, a in zip(models, (0.1, 0.2), strict=True)
    )
    with pytest.raises(ValueError, match=r"hold \[2\] parameters, this optimizer's \[4\].*named_parameters"):
        opt.load_state_dict(donor.state_dict(), strict=False)
    assert alphas(opt) == [0.2]


def test_a_bare_checkpoint_keeps_the_strengths_of_the_optimizer():
    models = net("a"), net("a")
    bare, opt = Adam(models[0].named_parameters()), one_term_each(models[1], {"a": 0.2})
    assert load(opt, bare.state_dict()) == ""
    assert "does not penalise ['a.weight']" in load(opt, bare.state_dict(), strict=False)
    assert alphas(opt) == [0.2]


@pytest.mark.parametrize("strict", [True, False])
def test_a_strength_that_is_none_is_refused_with_nothing_changed(strict):
    models = net("a", "b"), net("a", "b")
    donor, opt = (one_term_each(m, {"a": a, "b": a}) for m, a in zip(models, (0.1, 0.2), strict=True))
    state = donor.state_dict()
    state["torchreg"]["parts"][1]["alpha"] = -1.0
    with pytest.raises(ValueError, match="alpha >= 0"):
        opt.load_state_dict(state, strict=strict)
    assert alphas(opt) == [0.2, 0.2]
