"""Terms: a penalty bound to parameters, its value, its strength and its table."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from optimizer_catalog import matrix
from torch import nn
from torch.optim import SGD

from torchreg import L1, L2, MCP, Group, NoExactProx, ProxOptimizer, Towards, Weighted, attach, matching, rows, weights


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()


def test_targets_of_every_kind_bind_the_same_parameter():
    model = nn.Linear(3, 4)
    for target in (model, weights(model), {"w": model.weight}, [model.weight], iter([model.weight]), model.weight):
        term = attach(L1(0.5), target)
        assert list(term.parameters.values()) == [model.weight]
        torch.testing.assert_close(term(), 0.5 * model.weight.abs().sum())


@pytest.mark.parametrize(
    "penalty",
    [L1(0.3), L2(0.3), MCP(0.3), Group(L1(0.3), by=rows), L1(torch.tensor(0.3))],
    ids=["L1", "L2", "MCP", "Group", "0-d"],
)
def test_a_terms_value_is_the_penalty_of_the_model_and_so_is_its_gradient(penalty):
    model = net()
    term = attach(penalty, model)
    torch.testing.assert_close(term(), penalty(model))
    found = torch.autograd.grad(term(), list(term.parameters.values()))
    torch.testing.assert_close(found, torch.autograd.grad(penalty(model), list(weights(model).values())))


def test_another_strength_for_each_layer_and_for_biases_is_three_lines():
    model = net()
    first, last, bias = model[0].weight, model[2].weight, model[2].bias
    opt = ProxOptimizer(
        SGD(model.parameters(), lr=1.0),
        attach(L1(0.1), matching(model, "0.weight")),
        attach(L2(0.2), matching(model, "2.weight")),
        attach(L1(0.3), matching(model, "2.bias")),
    )
    start = [p.detach().clone() for p in (first, last, bias)]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    soft = [w.sign() * (w.abs() - a).clamp(min=0.0) for w, a in ((start[0], 0.1), (start[2], 0.3))]
    torch.testing.assert_close([first.detach(), bias.detach()], soft)
    torch.testing.assert_close(last.detach(), start[1] / 1.4)


def test_a_function_gives_each_parameter_its_own_penalty():
    model = net()
    term = attach(lambda name, p: Towards(L2(0.1 * p.shape[0]), p.detach()), model)
    assert {name: penalty.alpha for name, penalty in term.penalties.items()} == {"0.weight": 0.4, "2.weight": 0.2}
    assert float(term().detach()) == 0.0
    with torch.no_grad():
        for p in term.parameters.values():
            p.add_(1.0)
    assert float(term().detach()) == pytest.approx(0.4 * 12 + 0.2 * 8)


def test_alpha_is_read_and_assigned_in_loss_and_in_step():
    model = net()
    term = attach(lambda name, p: Weighted(L1(0.5), torch.ones_like(p)), model)
    once = float(term().detach())
    assert term.alpha == 0.5
    penalty = term.penalties["0.weight"]
    term.alpha = 1.5
    assert float(term().detach()) == pytest.approx(3.0 * once)
    assert penalty.alpha == 0.5  # penalties are frozen: the term took new ones
    opt = ProxOptimizer(SGD(model.parameters(), lr=1.0), term)
    term.alpha = 100.0
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    assert float(term()) == 0.0


def test_a_tensor_alpha_is_kept_and_can_be_learnt():
    alpha = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    model = net()
    term = attach(L1(alpha), model)
    assert term.alpha is alpha
    term().backward()
    torch.testing.assert_close(alpha.grad, sum(p.detach().abs().sum() for p in weights(model).values()))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_bad_alpha_is_refused_and_the_old_one_stays(bad):
    term = attach(L1(0.5), net())
    with pytest.raises(ValueError, match="finite alpha >= 0"):
        term.alpha = bad
    assert term.alpha == 0.5


def test_several_alphas_are_an_error_that_lists_them():
    term = attach(lambda name, p: L1(0.1 * p.shape[0]), net())
    for ask in (lambda: term.alpha, lambda: setattr(term, "alpha", 1.0)):
        with pytest.raises(ValueError, match=r"\[0\.2, 0\.4\].*one term per strength"):
            ask()
    assert [penalty.alpha for penalty in term.penalties.values()] == [0.4, 0.2]


def test_an_owned_term_is_detached_and_so_cannot_be_counted_twice():
    model = net()
    term = attach(L1(0.5), model)
    assert term().requires_grad
    opt = ProxOptimizer(SGD(model.parameters(), lr=0.1), term)
    assert term.owner is opt
    assert not term().requires_grad
    torch.testing.assert_close(term(), L1(0.5)(model).detach())
    loss = model(torch.ones(2, 3, dtype=torch.float64)).sum()
    (alone,) = torch.autograd.grad(loss, model[2].weight, retain_graph=True)
    (joint,) = torch.autograd.grad(loss + term(), model[2].weight)
    assert torch.equal(alone, joint)


def test_the_table_names_each_parameter_its_shape_penalty_and_alpha():
    term = attach(lambda name, p: L1(0.25) if name == "0.weight" else MCP(0.5, gamma=2.0), net())
    head, *lines = repr(term).splitlines()
    assert head.split() == ["name", "shape", "penalty", "alpha"]
    assert len(lines) == 2
    for line, cells in zip(
        lines, (("0.weight", "(4, 3)", "L1", "0.25"), ("2.weight", "(2, 4)", "MCP", "gamma=2", "0.5")), strict=True
    ):
        assert all(cell in line for cell in cells)
        assert line.index(cells[1]) == head.index("shape")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "DataParallel"])
def test_names_are_the_models_own_whatever_wraps_it(wrap):
    model = net()
    wrapped = wrap(model)
    assert list(attach(L1(0.1), wrapped).parameters) == ["0.weight", "2.weight"]
    assert attach(L1(0.1), matching(wrapped, "0.weight")).parameters["0.weight"] is model[0].weight


def test_a_model_on_the_meta_device_can_be_attached_and_printed():
    with torch.device("meta"):
        model = nn.Linear(3, 4)
    term = attach(Group(L1(0.1), by=rows), model)
    assert "(4, 3)" in repr(term)
    assert term().is_meta


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copied_term_belongs_to_no_optimizer_and_to_the_copied_model(clone):
    model = net()
    term = attach(L1(0.5), model)
    opt = ProxOptimizer(SGD(model.parameters(), lr=0.1), term)
    twin_model, twin = clone((model, term))
    assert twin.owner is None
    assert term.owner is opt
    assert list(twin.parameters.values()) == list(weights(twin_model).values())


def test_a_sum_without_an_exact_prox_is_refused_with_the_way_out():
    with pytest.raises(NoExactProx, match="loss"):
        L1(0.1) + MCP(0.1)


def test_parameters_under_equal_penalties_are_one_part_and_step_alike():
    params = {str(k): matrix(k) for k in range(5)}
    assert len(attach(lambda name, p: L1(0.1), params).parts) == 1
    assert len(attach(lambda name, p: L1(0.1 * int(name)), params).parts) == 5
