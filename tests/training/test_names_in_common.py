"""Parts of a model with layers of the same names: nothing that is told, counted or restored by name mixes them up."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim import Adam

from torchreg import L1, MCP, ProxOptimizer, attach, matching, penalty_metrics, sparsity, weights


def parts(seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict({"encoder": nn.Linear(3, 4), "decoder": nn.Linear(4, 3)})


def optimizer(model, alphas, penalty=L1, names=("encoder", "decoder")) -> ProxOptimizer:
    groups = [{"params": list(model[name].named_parameters())} for name in names]
    return ProxOptimizer(
        Adam(groups, lr=0.1), *[attach(penalty(a), model[name]) for name, a in zip(names, alphas, strict=True)]
    )


def step(model, opt, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw)
    opt.step()


def load(opt, state) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.load_state_dict(copy.deepcopy(state), strict=False)
    return " ".join(str(w.message) for w in caught)


def alphas(opt) -> list[float]:
    return [term.alpha for term in opt.terms]


def test_two_parameters_of_one_name_do_not_join():
    model = parts()
    sides = [weights(model["encoder"]), weights(model["decoder"])]
    for one, other in (sides, sides[::-1], (dict(sides[0]), sides[1]), (sides[0], dict(sides[1]))):
        with pytest.raises(ValueError, match=r"'weight' is on both sides of \|.*\((4, 3|3, 4)\) and.*attach one term"):
            one | other
    with pytest.raises(ValueError, match="one would be lost"):
        sides[0] |= sides[1]
    for found in (matching(model, "*"), weights(model)):
        both = found | weights(model) | {"mine": nn.Parameter(torch.ones(2))}
        assert set(both) == {*found, *weights(model), "mine"}
        with pytest.raises(ValueError, match=r"encoder\.weight"):
            both | {"encoder.weight": nn.Parameter(torch.ones(2))}


def test_strengths_and_states_of_the_same_names_come_back_to_their_own_parts():
    models = [parts(k) for k in range(3)]
    donor, strict, loose = (optimizer(m, a) for m, a in zip(models, [(0.01, 0.5), (0.3, 0.3), (0.3, 0.3)], strict=True))
    for k in range(3):
        step(models[0], donor, k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strict.load_state_dict(copy.deepcopy(donor.state_dict()))
    load(loose, donor.state_dict())
    assert alphas(loose) == alphas(strict) == [0.01, 0.5]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    for model, opt in zip(models, (donor, strict, loose), strict=True):
        step(model, opt, 9)
    for model in models[1:]:
        for p, q in zip(models[0].parameters(), model.parameters(), strict=True):
            assert torch.equal(p, q)


def test_of_which_part_a_strength_or_state_was_is_not_guessed():
    first, model = parts(), parts(1)
    donor = optimizer(first, (0.01,), names=("encoder",))
    step(first, donor, 0)
    opt = optimizer(model, (0.3, 0.4))
    said = load(opt, donor.state_dict())
    assert alphas(opt) == [0.3, 0.4]
    assert not opt.state
    assert "different numbers of parameters called ['weight', 'weight'], which keep theirs" in said
    assert "no state for ['weight', 'bias', 'weight', 'bias']" in said


def test_the_kind_of_penalty_tells_parts_apart():
    first, second = parts(), parts(1)

    def mixed(model, order, alphas):
        kinds = {"encoder": L1, "decoder": MCP}
        terms = [attach(kinds[name](a), model[name]) for name, a in zip(order, alphas, strict=True)]
        return ProxOptimizer(Adam(model.parameters()), *terms)

    donor = mixed(first, ("encoder", "decoder"), (0.01, 0.5))
    opt = mixed(second, ("decoder", "encoder"), (0.3, 0.3))
    load(opt, donor.state_dict())
    assert alphas(opt) == [0.5, 0.01]


def test_zeros_are_counted_for_each_part():
    model = parts()
    with torch.no_grad():
        model["encoder"].weight[0] = 0.0
    terms = [attach(L1(0.1), model[name]) for name in model]
    counted = sparsity(*terms)
    assert counted.metrics()["layers"] == {"weight (0)": 0.25, "weight (1)": 0.0}
    assert counted.zeros == 3
    assert sparsity(terms[0]).metrics()["layers"] == {"weight": 0.25}
    assert penalty_metrics(*terms)["sparsity"] == 3 / 24


@pytest.mark.filterwarnings("ignore:A step was skipped")
@pytest.mark.parametrize("bad", [0, 1])
def test_nan_in_either_of_two_gradients_of_one_name_skips_the_step(bad):
    model = parts()
    opt = optimizer(model, (0.1, 0.2))
    opt.skip_nonfinite = True
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    [model["encoder"], model["decoder"]][bad].weight.grad[0, 0] = float("nan")
    opt.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert opt.skipped.parameters == {f"weight (group {bad}, parameter 0)": 1}
