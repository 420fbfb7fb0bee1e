"""A term passes from optimizer to optimizer, comes and goes, and no parameter takes two proximal steps at once."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings

import pytest
import torch
from optimizer_catalog import every_recipe, give_gradients, matrix, same, values
from test_checkpoints import equal_states
from torch import nn
from torch.optim import SGD, Adam

from torchreg import L1, L2, Group, PenaltyScheduler, ProxOptimizer, attach, attach_to, rows, schedules

ALPHA = 0.4


def three() -> list[nn.Parameter]:
    return [matrix(1), matrix(2, (5, 3)), matrix(3, (3,))]


def step(opt, params: list[nn.Parameter], seed: int) -> None:
    give_gradients(params, seed)
    opt.step()


def wrapped(base, *terms):
    return ProxOptimizer(base, *terms)


def hooked(base, *terms):
    attach_to(base, *terms)
    return base


made = pytest.mark.parametrize("make", [wrapped, hooked])


@made
def test_a_loop_over_learning_rates_trains_as_with_a_new_term_each_time(make):
    params, others = three(), three()
    term, kept = attach(L1(ALPHA), params), []
    for k, lr in enumerate((0.5, 0.25, 0.125)):
        opts = (
            make(SGD(params, lr=lr, momentum=0.5), term),
            make(SGD(others, lr=lr, momentum=0.5), attach(L1(ALPHA), others)),
        )
        kept.append(opts)  # alive, but none of them steps again
        for i in range(4):
            for opt, ps in zip(opts, (params, others), strict=True):
                step(opt, ps, 10 * k + i)
        assert not term().requires_grad
    assert same(params, others)
    assert any(bool((p == 0).any()) for p in params)


@made
def test_two_that_both_step_are_refused_by_name_before_anything_moves(make):
    params = three()
    term = attach(L1(ALPHA), {"first": params[0], "last": params[1]})
    old = make(SGD(params, lr=0.5), term)
    step(old, params, 0)
    new = make(Adam(params, lr=0.5), term)
    step(new, params, 1)
    before = values(params)
    give_gradients(params, 2)
    for closure in ([], [lambda: 0.0]):
        with pytest.raises(RuntimeError, match=r"'first', 'last'.* this SGD, and a Adam .*add_term"):
            old.step(*closure)
    assert same(before, params)
    step(new, params, 3)  # which goes on
    if make is wrapped:
        old.add_term(term)  # and may be told that it is over
        step(old, params, 4)
        with pytest.raises(RuntimeError, match="this Adam, and a SGD"):
            step(new, params, 5)


@made
def test_an_optimizer_that_was_made_and_never_steps_takes_nothing(make):
    params = three()
    term = attach(L1(ALPHA), params)
    opt = make(SGD(params, lr=0.5), term)
    step(opt, params, 0)
    template = make(SGD(params, lr=0.1), term)
    step(opt, params, 1)
    with pytest.raises(RuntimeError, match="two optimizers"):
        step(template, params, 2)
    del opt
    gc.collect()
    step(template, params, 3)


@made
def test_an_optimizer_of_other_tensors_that_never_steps_leaves_the_first_its_own(make):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    term = attach(L1(ALPHA), model)
    old = make(SGD(model.parameters(), lr=0.5), term)
    params = list(model.parameters())
    step(old, params, 0)
    model[1] = nn.Linear(4, 2).double()
    template = make(SGD(model.parameters(), lr=0.5), term)
    assert term.parameters["1.weight"] is model[1].weight
    old.param_groups[0]["params"].reverse()
    give_gradients(params, 1)
    wanted = [p.detach() - 0.5 * p.grad for p in params]
    old.step()
    wanted = [w.sign() * (w.abs() - 0.5 * ALPHA).clamp(min=0.0) if w.dim() == 2 else w for w in wanted]
    assert same(wanted, params)
    assert term.parameters["1.weight"] is params[2]
    del template


def test_the_same_cell_run_twice_and_a_shallow_copy_go_on_as_one():
    params, lone = three(), three()
    base, term = SGD(params, lr=0.5, momentum=0.5), attach(L1(ALPHA), params)
    first, other = ProxOptimizer(base, term), ProxOptimizer(SGD(lone, lr=0.5, momentum=0.5), attach(L1(ALPHA), lone))
    again = ProxOptimizer(base, term)
    for k, opt in enumerate((first, again, copy.copy(first), first)):
        step(opt, params, k)
        step(other, lone, k)
    assert same(params, lone)


def test_a_shallow_copy_of_a_term_leaves_it_with_its_optimizer():
    params = three()
    opt = ProxOptimizer(SGD(params, lr=0.5), term := attach(L1(ALPHA), params))
    twin = copy.copy(term)
    opt.param_groups[0]["params"] = new = three()
    assert term.parts[0].parameters["0"] is new[0]
    assert twin.owner is None


@made
def test_a_schedule_follows_the_term(make):
    params = three()
    term = attach(L1(0.0), params)
    old = make(SGD(params, lr=0.5), term)
    ramp = PenaltyScheduler(term, schedules.linear(0.0, 1.0, steps=10))
    for k in range(3):
        step(old, params, k)
    new = make(SGD(params, lr=0.25), term)
    for k in range(4):
        step(new, params, k)
    assert (ramp.count, term.alpha) == (7, 0.7)
    fresh = PenaltyScheduler(term, schedules.linear(0.0, 1.0, steps=10))
    step(new, params, 9)
    assert (ramp.count, fresh.count) == (7, 1)


# attach_to twice, and beside a ProxOptimizer


def test_a_second_proximal_step_of_a_parameter_is_refused_by_name():
    params = three()
    base = SGD(params, lr=0.5)
    attachment = attach_to(base, attach(L1(ALPHA), {"mine": params[0]}))
    again = attach(L1(ALPHA), {"again": params[0], "other": params[1]})
    for make in (attach_to, ProxOptimizer):
        for terms in ((again,), (L1(ALPHA),), (attachment.terms[0],)):
            with pytest.raises(ValueError, match=r"has a proximal step already, by attach_to .*'mine'.* remove\(\)"):
                make(base, *terms)
    assert again.owner is None
    assert attachment.terms[0].owner is attachment
    attachment.remove()
    ProxOptimizer(base, again)


def test_a_hook_that_comes_under_a_proximal_optimizer_is_told_at_the_step():
    params = three()
    base = SGD(params, lr=0.5)
    opt = ProxOptimizer(base, attach(L1(ALPHA), {"mine": params[0]}))
    attachment = attach_to(base, attach(L1(ALPHA), {"again": params[0]}))  # to step base alone is allowed
    before = values(params)
    give_gradients(params, 0)
    with pytest.raises(ValueError, match=r"'mine' has a proximal step already.*'again'"):
        opt.step()
    assert same(before, params)
    attachment.remove()
    opt.step()


LAYOUTS = {
    "two hooks": lambda base, a, b: (attach_to(base, a), attach_to(base, b), base)[2],
    "hook and wrapper": lambda base, a, b: (attach_to(base, a), ProxOptimizer(base, b))[1],
    "one hook": lambda base, a, b: (attach_to(base, a, b), base)[1],
    "one wrapper": lambda base, a, b: ProxOptimizer(base, a, b),
    "added": lambda base, a, b: (opt := ProxOptimizer(base, a), opt.add_term(b))[0],
}


def laid(layout: str, alphas=(ALPHA, 0.2)):
    params = three()
    terms = attach(L1(alphas[0]), {"a": params[0]}), attach(Group(L1(alphas[1]), by=rows), {"b": params[1]})
    return params, terms, LAYOUTS[layout](Adam(params, lr=0.1), *terms)


@pytest.mark.parametrize("saved", LAYOUTS)
@pytest.mark.parametrize("loaded", LAYOUTS)
def test_terms_over_different_parameters_are_all_stepped_saved_and_restored(saved, loaded):
    params, _, opt = laid(saved)
    wanted, _, one = laid("one wrapper")
    for k in range(3):
        step(opt, params, k)
        step(one, wanted, k)
    assert same(params, wanted)
    assert equal_states(opt.state_dict(), one.state_dict())
    fresh, terms, other = laid(loaded, alphas=(1.0, 2.0))
    with torch.no_grad():
        for p, q in zip(fresh, params, strict=True):
            p.copy_(q)
    with pytest.warns(UserWarning, match=r"alpha = 0.4 for a .*alpha = 0.2 for b"):
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert [term.alpha for term in terms] == [ALPHA, 0.2]
    for k in range(3, 6):
        step(other, fresh, k)
        step(one, wanted, k)
    assert same(fresh, wanted)


def test_of_two_hooks_one_can_be_taken_off():
    params, lone = three(), three()
    base, other = Adam(params, lr=0.1), Adam(lone, lr=0.1)
    off, stays = (
        attach_to(base, attach(L1(ALPHA), {"a": params[0]})),
        attach_to(base, attach(L2(0.1), {"b": params[1]})),
    )
    off.remove()
    attach_to(other, attach(L2(0.1), {"b": lone[1]}))
    for k in range(3):
        step(base, params, k)
        step(other, lone, k)
    assert same(params, lone)
    assert equal_states(base.state_dict(), other.state_dict())
    with pytest.warns(UserWarning, match="no proximal step"):
        copy.deepcopy(base)
    stays.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy.deepcopy(base)


# add_term and remove_term


@pytest.mark.parametrize("masters", [False, True])
@every_recipe
def test_a_term_that_comes_and_goes_steps_while_it_is_there(recipe, masters):
    runs = []
    for added in (True, False):
        params = three()
        opt = ProxOptimizer(recipe.make(params), attach(L1(ALPHA), {"a": params[0]}), masters=masters)
        second = attach(Group(L1(ALPHA), by=rows), {"b": params[1]})
        for k in range(9):
            if k == 3:
                if added:
                    assert opt.add_term(second) is second
                else:  # by hand: a new wrapper around the same base
                    opt = ProxOptimizer(opt.base, opt.terms[0], second, masters=masters)
            if k == 6:
                if added:
                    opt.remove_term(second)
                else:
                    opt = ProxOptimizer(opt.base, opt.terms[0], masters=masters)
            step(opt, params, k)
        if added:
            assert second.owner is None
            assert second().requires_grad
        runs.append((params, opt.state_dict()))
    assert same(runs[0][0], runs[1][0])
    assert equal_states(runs[0][1], runs[1][1])


def test_what_cannot_be_added_or_removed_changes_nothing():
    params = three()
    opt = ProxOptimizer(SGD(params, lr=0.5), term := attach(L1(ALPHA), {"a": params[0]}))
    foreign, twice = attach(L1(ALPHA), {"x": matrix(8)}), attach(L1(ALPHA), {"y": params[0]})
    for given, kind, told in (
        (foreign, ValueError, "'x' .* none of the base"),
        (twice, ValueError, "'y' is penalised twice"),
        (L1(ALPHA), ValueError, "twice"),
        (0.1, TypeError, "got float"),
    ):
        with pytest.raises(kind, match=told):
            opt.add_term(given)
    with pytest.raises(ValueError, match="one of opt"):
        opt.remove_term(foreign)
    assert opt.terms == [term]
    assert foreign.owner is None
    assert twice.owner is None
    step(opt, params, 0)


def test_a_layer_that_goes_takes_its_term_along_and_another_comes():
    """A checkpoint then has the terms that there are; a pickled optimizer is copied with them."""
    first, second, third = (nn.Linear(3, 4).double() for _ in range(3))
    opt = ProxOptimizer(SGD(first.parameters(), lr=0.5), attach(L1(ALPHA), first))
    opt.add_param_group({"params": list(second.parameters())})
    gone = opt.add_term(attach(L1(ALPHA), {"second": second.weight}))
    ramp = PenaltyScheduler(gone, schedules.linear(0.0, 1.0, steps=4))
    everything = [*first.parameters(), *second.parameters(), *third.parameters()]
    step(opt, everything, 0)
    del opt.param_groups[1]
    with pytest.raises(ValueError, match="'second'"):
        opt.step()
    opt.remove_term(gone)
    step(opt, everything, 1)
    assert ramp.count == 1
    opt.add_param_group({"params": list(third.parameters())})
    opt.add_term(attach(L1(2.0), {"third": third.weight}))
    step(opt, everything, 2)
    assert [part["names"] for part in opt.state_dict()["torchreg"]["parts"]] == [["weight"], ["third"]]
    twin = pickle.loads(pickle.dumps(opt))
    assert [list(term.parameters) for term in twin.terms] == [["weight"], ["third"]]
    opt.remove_term(opt.terms[0])
    opt.remove_term(opt.terms[0])  # none is left: the base's step alone
    before = values(first.parameters())
    step(opt, everything, 3)
    assert same([w - 0.5 * p.grad for w, p in zip(before, first.parameters(), strict=True)], list(first.parameters()))
    opt.add_term(L1(100.0))
    step(opt, everything, 4)
    assert bool((first.weight == 0).all())
    assert bool((third.weight == 0).all())
