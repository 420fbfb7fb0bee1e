"""What ProxOptimizer and attach refuse: the error says what was given and what to do, and nothing has changed."""

from __future__ import annotations

import gc
import re

import pytest
import torch
from optimizer_catalog import give_gradients, matrix, same, values
from torch import nn
from torch.nn import Parameter
from torch.optim import LBFGS, SGD, Adam, SparseAdam

from torchreg import (
    L1,
    L2,
    Group,
    ProxOptimizer,
    Towards,
    Weighted,
    attach,
    columns,
    filters,
    labels,
    matching,
    of_type,
    rows,
    weights,
)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def refused(kind: type[Exception], *parts: str):
    """The error's type, and phrases that its message must hold, in any order."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{re.escape(part)})" for part in parts))


BASES = {
    "LBFGS": (lambda p: LBFGS(p), ("LBFGS", "Adam", "penalty(model)")),
    "SparseAdam": (lambda p: SparseAdam(p), ("SparseAdam", "Adam", "penalty(model)")),
    "nested": (lambda p: ProxOptimizer(SGD(p, lr=0.1), L1(0.1)), ("ProxOptimizer", "one ProxOptimizer")),
    "maximize": (lambda p: Adam(p, maximize=True), ("maximize=True", "minimise the negative")),
    "maximize in a group": (
        lambda p: SGD([{"params": p[:1]}, {"params": p[1:], "maximize": True}], lr=0.1),
        ("maximize=True", "minimise the negative"),
    ),
    "differentiable": (lambda p: Adam(p, differentiable=True), ("differentiable=True", "differentiable=False")),
}


@pytest.mark.parametrize(("make", "said"), BASES.values(), ids=BASES)
def test_a_base_without_a_diagonal_metric_for_dense_weights_is_refused(make, said):
    model = net()
    base, term = make(list(model.parameters())), attach(L1(0.1), model)
    for metric in ("auto", "decoupled"):
        with refused(ValueError, *said):
            ProxOptimizer(base, term, metric=metric)
    assert term.owner is None
    assert term().requires_grad


@pytest.mark.parametrize(("base", "given"), [(None, "NoneType"), (Adam, "type"), (net(), "Sequential")], ids=str)
def test_the_base_must_be_an_optimizer(base, given):
    with refused(TypeError, "torch.optim.Optimizer", given):
        ProxOptimizer(base, L1(0.1))


def test_terms_must_be_there_and_be_terms():
    model = net()
    base = SGD(model.parameters(), lr=0.1)
    with refused(ValueError, "none", "attach(L1(0.1), model)"):
        ProxOptimizer(base)
    with refused(TypeError, "float", "attach"):
        ProxOptimizer(base, 0.1)
    with refused(TypeError, "Sequential"):
        ProxOptimizer(base, attach(L1(0.1), model), model)
    with refused(ValueError, "two or more dimensions", "attach(penalty, {name: parameter})"):
        ProxOptimizer(SGD([matrix(1, (3,))], lr=0.1), L1(0.1))


def test_a_parameter_that_the_base_lacks_is_refused_by_name_and_shape():
    model = net()
    term, fine = attach(L1(0.1), {"1.weight": model[1].weight}), attach(L1(0.1), {"0.weight": model[0].weight})
    with refused(ValueError, "'1.weight'", "(2, 4)", "attach to fewer"):
        ProxOptimizer(SGD(model[0].parameters(), lr=0.1), fine, term)
    assert term.owner is None
    assert fine.owner is None


def test_a_parameter_penalised_twice_is_refused():
    model = net()
    base = SGD(model.parameters(), lr=0.1)
    once, again = attach(L1(0.1), model), attach(L2(0.1), {"mine": model[1].weight})
    for terms in ((once, again), (L1(0.1), again), (once, L2(0.1)), (once, once)):
        with refused(ValueError, "twice", "Group(L1(a), by=rows) + L1(b)"):
            ProxOptimizer(base, *terms)
        assert once.owner is None
        assert again.owner is None
    ProxOptimizer(base, once)  # both still usable


def test_a_term_without_an_optimizer_has_a_gradient_again():
    model = net()
    base, term = SGD(model.parameters(), lr=0.1), attach(L1(0.1), model)
    opt = ProxOptimizer(base, term)
    assert not term().requires_grad
    del opt
    gc.collect()
    assert term.owner is None
    assert term().requires_grad
    again = ProxOptimizer(base, term)
    assert term.owner is again


def test_a_refused_optimizer_takes_no_term_from_the_first():
    model = net()
    owned, foreign = attach(L1(0.1), {"0": model[0].weight}), attach(L1(0.1), {"1": matrix(1)})
    opt = ProxOptimizer(SGD(model.parameters(), lr=0.1), owned)
    with refused(ValueError, "'1'", "none of the base"):
        ProxOptimizer(SGD(model.parameters(), lr=0.1), owned, foreign)
    assert owned.owner is opt
    assert foreign.owner is None


MISFITS = {
    "rows of a scalar": (lambda: Group(L1(0.1), by=rows), (), ("rows", "by=whole")),
    "columns of a vector": (lambda: Group(L1(0.1), by=columns), (3,), ("columns", "(3,)", "2 dimension")),
    "filters of a matrix": (lambda: Group(L1(0.1), by=filters), (4, 3), ("filters", "(4, 3)", "3 dimension")),
    "labels": (lambda: Group(L1(0.1), by=labels(torch.arange(5))), (4, 3), ("(5,)", "(4, 3)", "(4,)")),
    "group weights": (lambda: Group(L1(0.1), by=rows, weights=torch.ones(5)), (4, 3), ("(5,)", "(4, 3)", "4 groups")),
    "weights": (lambda: Weighted(L1(0.1), torch.ones(3, 4)), (4, 3), ("(3, 4)", "(4, 3)")),
    "reference": (lambda: Towards(L2(0.1), torch.ones(3, 4)), (4, 3), ("(3, 4)", "(4, 3)")),
}


@pytest.mark.parametrize(("make", "shape", "said"), MISFITS.values(), ids=MISFITS)
def test_a_penalty_that_does_not_fit_names_the_parameter_and_both_shapes(make, shape, said):
    with refused(ValueError, "'encoder.weight'", str(shape), *said):
        attach(make(), {"encoder.weight": matrix(1, shape)})


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_parameters_that_are_no_real_numbers_are_refused(dtype):
    p = Parameter(torch.ones(2, 2).to(dtype), requires_grad=False)
    with refused(TypeError, "'w'", "(2, 2)", str(dtype)):
        attach(L1(0.1), {"w": p})


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf")])
def test_a_tensor_alpha_is_checked_when_attached(alpha):
    with refused(ValueError, "'w'", "finite alpha >= 0", f"got {alpha}"):
        attach(L1(torch.tensor(alpha)), {"w": matrix(1)})


def test_attach_refuses_what_it_cannot_bind():
    w = matrix(1)
    with refused(TypeError, "penalty", "0.1"):
        attach(0.1, {"w": w})
    with refused(TypeError, "'w'", "Penalty", "None"):
        attach(lambda name, p: None, {"w": w})
    with refused(TypeError, "str", "'w'", "dict name -> parameter"):
        attach(L1(0.1), {"w": "weight"})
    with refused(TypeError, "'w'", "computed", "penalty(tensor)"):
        attach(L1(0.1), {"w": 2.0 * w})
    with refused(ValueError, "'a'", "'b'", "once"):
        attach(L1(0.1), {"a": w, "b": w})
    for nothing in ({}, [], iter(())):
        with refused(ValueError, "no parameters", "weights(model)"):
            attach(L1(0.1), nothing)
    with refused(ValueError, "LayerNorm", "matching(model, pattern)"):
        attach(L1(0.1), nn.LayerNorm(3))


def embedding(*, sparse: bool) -> tuple[nn.Module, ProxOptimizer]:
    table = nn.Embedding(5, 3, sparse=sparse)
    return table, ProxOptimizer(SGD([table.weight, matrix(1, dtype=torch.float32)], lr=0.1), L1(0.1))


def test_a_sparse_gradient_is_refused_before_anything_changes():
    table, opt = embedding(sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    dense = opt.param_groups[0]["params"][1]
    dense.grad = torch.ones_like(dense)
    before = values([table.weight, dense])
    with refused(RuntimeError, "sparse gradient", "(5, 3)", "sparse=False"):
        opt.step()
    assert same(before, [table.weight, dense])


def test_a_sparse_gradient_from_a_closure_is_refused_before_the_prox():
    table, opt = embedding(sparse=True)
    start = table.weight.detach().clone()

    def closure():
        opt.zero_grad()
        loss = table(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    with refused(RuntimeError, "sparse gradient", "sparse=False"):
        opt.step(closure)
    assert torch.equal(table.weight[[0, 3, 4]], start[[0, 3, 4]])  # the base steps touched rows only, the prox all


@pytest.mark.parametrize(
    "select", [lambda m: of_type(m, nn.Embedding, nn.EmbeddingBag), lambda m: matching(m, "0.*")], ids=["type", "name"]
)
@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag], ids=lambda c: c.__name__)
def test_sparse_modules_are_refused_when_attached(make, select):
    attach(L1(0.1), matching(nn.Sequential(make(5, 3)), "0.*"))
    with refused(ValueError, "0.weight", "sparse=True", "sparse=False"):
        attach(L1(0.1), select(nn.Sequential(make(5, 3, sparse=True))))


ADDITIONS = {
    "maximize": ({"maximize": True}, matrix(5), "maximize"),
    "does not fit": ({}, matrix(5, (7, 3)), "(7, 3)"),
}


@pytest.mark.parametrize(("extra", "p", "said"), ADDITIONS.values(), ids=ADDITIONS)
def test_a_group_that_is_refused_is_not_added(extra, p, said):
    first = matrix(1)
    opt = ProxOptimizer(SGD([first], lr=0.1), Weighted(L1(0.1), torch.ones(4, 3)))
    with refused(ValueError, said):
        opt.add_param_group({"params": [p], **extra})
    with pytest.raises(ValueError, match="appear"):
        opt.add_param_group({"params": [first]})
    assert len(opt.param_groups) == 1
    assert list(opt.terms[0].parameters.values()) == [first]
    give_gradients([first], 0)
    opt.step()


def test_the_bare_penalty_says_what_it_takes():
    table = nn.Embedding(5, 3)
    opt = ProxOptimizer(SGD([table.weight, matrix(1, (4,), torch.float32)], lr=0.1), L1(0.1))
    assert "group 0, parameter 0" in repr(opt)
    assert "(5, 3)" in repr(opt)
    assert "parameter 1" not in repr(opt)
    assert list(weights(nn.Sequential(table, nn.Linear(3, 1)))) == ["1.weight"]  # which attach would have spared
