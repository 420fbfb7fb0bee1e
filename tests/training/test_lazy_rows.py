"""Lazy terms: a proximal step shrinks the rows that the gradient touches, and no other bit."""

from __future__ import annotations

import copy

import pytest
import torch
from optimizer_catalog import RECIPES, every_recipe, give_gradients, matrix
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, Adam, AdamW, SparseAdam

from torchreg import (
    L0,
    L1,
    L1L2,
    MCP,
    Group,
    NonNegative,
    ProxOptimizer,
    Towards,
    Weighted,
    attach,
    attach_to,
    columns,
    effective_step,
    rows,
    violation,
)

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of torch's own Adagrad
KINDS = {
    "L1": lambda w: L1(0.3),
    "L1L2": lambda w: L1L2(0.3),
    "MCP": lambda w: MCP(0.3),
    "L0": lambda w: L0(0.3),
    "rows": lambda w: Group(L1(0.3), by=rows),
    "columns": lambda w: Group(L1(0.1), by=columns),
    "weighted": lambda w: Weighted(L1(0.3), torch.rand(w.shape, generator=torch.Generator().manual_seed(1), dtype=F64)),
    "towards": lambda w: Towards(L1(0.3), torch.zeros_like(w)),
    "nonnegative": lambda w: NonNegative(L1(0.3)),
    "sparse group": lambda w: Group(L1(0.1), by=rows) + L1(0.1),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("foreach", [None, True, False])
@every_kind
@pytest.mark.parametrize(
    "recipe",
    [r for r in RECIPES if r.id in ("SGD momentum", "Adam", "Adagrad", "RMSprop centered")],
    ids=lambda r: r.id,
)
def test_with_every_row_touched_it_is_the_plain_step_and_else_untouched_rows_keep_every_bit(recipe, kind, foreach):
    plain, lazy = ([matrix(1, (6, 3)), matrix(2, (4, 3))] for _ in range(2))
    opts = []
    for ps, flag in ((plain, False), (lazy, True)):
        terms = [attach(KINDS[kind](p.detach()), {str(k): p}, lazy=flag) for k, p in enumerate(ps)]
        opts.append(ProxOptimizer(recipe.make(ps), *terms, foreach=foreach))
    for k in range(3):
        for ps, opt in zip((plain, lazy), opts, strict=True):
            give_gradients(ps, k)
            opt.step()
    for p, q in zip(plain, lazy, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        assert torch.equal(p == 0, q == 0)
    fresh = matrix(7, (6, 3))
    before = fresh.detach().clone()
    opt = ProxOptimizer(recipe.make([fresh]), attach(KINDS[kind](before), {"w": fresh}, lazy=True), foreach=foreach)
    for k in range(3):
        give_gradients([fresh], k)
        fresh.grad[[0, 2, 5]] = 0.0
        opt.step()
    assert torch.equal(fresh.detach()[[0, 2, 5]], before[[0, 2, 5]])
    assert not bool((fresh.detach()[[1, 3, 4]] == before[[1, 3, 4]]).any())


@pytest.mark.parametrize("kind", ["L1", "rows", "MCP"])
def test_a_large_table_in_pieces_is_the_same_as_whole(kind):
    tables = [Parameter(torch.randn(3000, 100, generator=torch.Generator().manual_seed(0))) for _ in range(2)]
    opts = [
        ProxOptimizer(Adam([p], lr=0.1), attach(KINDS[kind](p), {"w": p}, lazy=True), foreach=foreach)
        for p, foreach in zip(tables, (False, True), strict=True)
    ]
    seen = torch.arange(3000) % 7 == 0
    before = tables[0].detach().clone()
    for p, opt in zip(tables, opts, strict=True):
        p.grad = torch.where(seen[:, None], torch.ones(100), torch.zeros(100))
        opt.step()
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-6, atol=1e-7)
    assert torch.equal(tables[0].detach()[~seen], before[~seen])


SPARSE = {
    "SGD": lambda ps: SGD(ps, lr=0.1),
    "SGD momentum": lambda ps: SGD(ps, lr=0.1, momentum=0.9),
    "Adagrad": lambda ps: Adagrad(ps, lr=0.1),
    "SparseAdam": lambda ps: SparseAdam(ps, lr=0.1),
}


def tables() -> tuple[nn.Embedding, nn.Embedding]:
    torch.manual_seed(0)
    dense = nn.Embedding(8, 3, dtype=F64)
    sparse = nn.Embedding(8, 3, sparse=True, dtype=F64)
    sparse.load_state_dict(dense.state_dict())
    return dense, sparse


@every_kind
@pytest.mark.parametrize("make", [k for k in SPARSE if k != "SparseAdam"])
def test_sparse_gradients_are_stepped_like_dense_ones(make, kind):
    found = []
    for table in tables():
        term = attach(KINDS[kind](table.weight.detach()), {"w": table.weight}, lazy=True)
        opt = ProxOptimizer(SPARSE[make]([table.weight]), term)
        for batch in ([1, 2, 2], [5], [1, 7]):
            opt.zero_grad()
            table(torch.tensor(batch)).square().sum().backward()
            opt.step()
        found.append(table.weight.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)
    assert torch.equal(found[0] == 0, found[1] == 0)


@pytest.mark.parametrize("make", SPARSE)
@pytest.mark.parametrize("hook", [False, True], ids=["wrapped", "attached"])
def test_rows_that_were_never_seen_keep_every_bit(make, hook):
    table = tables()[1]
    table.weight.data.mul_(0.1)
    before = table.weight.detach().clone()
    term = attach(L1(0.05), {"w": table.weight}, lazy=True)
    base = SPARSE[make]([table.weight])
    opt = base if hook else ProxOptimizer(base, term)
    attachment = attach_to(base, term) if hook else None
    for _ in range(50):
        opt.zero_grad()
        (table(torch.tensor([1, 2])) - 0.01).square().sum().backward()
        opt.step()
    assert attachment is None or attachment.terms == [term]
    untouched = [0, 3, 4, 5, 6, 7]
    assert torch.equal(table.weight.detach()[untouched], before[untouched])
    assert bool((table.weight.detach()[[1, 2]] == 0).all())  # |gradient| at 0 is 0.02 < 0.05


@pytest.mark.parametrize("make", SPARSE)
def test_rows_seen_in_turn_reach_the_minimiser(make):
    """Each row alone is ``(w - target)^2 / 2 + 0.5 |w|`` whenever it is seen: the soft threshold of its target."""
    table = nn.Embedding(6, 2, sparse=True, dtype=F64)
    target = torch.tensor([[2.0, -0.4], [0.3, 1.0], [-3.0, 0.0], [0.6, -0.7], [5.0, 4.0], [0.1, -0.1]], dtype=F64)
    base = SPARSE[make]([table.weight])
    opt = ProxOptimizer(base, attach(L1(0.5), {"w": table.weight}, lazy=True))
    top = 1.0 if make == "Adagrad" else 0.3
    for k in range(3000):
        base.param_groups[0]["lr"] = top * (1 - k / 3000)
        seen = torch.tensor([k % 6]) if "momentum" not in make else torch.arange(6)
        opt.zero_grad()
        (0.5 * (table(seen) - target[seen]).square().sum()).backward()
        opt.step()
    wanted = target.sign() * (target.abs() - 0.5).clamp(min=0.0)
    torch.testing.assert_close(table.weight.detach(), wanted, rtol=0.0, atol=2e-3)
    assert torch.equal(table.weight.detach() == 0, wanted == 0)
    opt.zero_grad()
    (0.5 * (table(torch.arange(6)) - target).square().sum()).backward()
    assert violation(*opt.terms) < 2e-3


def test_sparse_adam_s_step_is_what_its_steady_update_divides_by():
    table = tables()[1]
    base = SparseAdam([table.weight], lr=0.1)
    for _ in range(300):
        before = table.weight.detach().clone()
        table.zero_grad()
        (table(torch.tensor([1])) * torch.tensor([3.0, -0.5, 1e-3], dtype=F64)).sum().backward()
        base.step()
    gradient = table.weight.grad.to_dense()[1]
    moved = table.weight.detach()[1] - before[1]
    torch.testing.assert_close(moved, -effective_step(base)[table.weight][1] * gradient, rtol=1e-9, atol=0.0)


def test_what_is_not_lazy_is_refused_and_the_word_is_named():
    table = tables()[1]
    with pytest.raises(ValueError, match=r"SparseAdam.*lazy=True"):
        ProxOptimizer(SparseAdam([table.weight]), attach(L1(0.1), {"w": table.weight}))
    opt = ProxOptimizer(SGD([table.weight], lr=0.1), attach(L1(0.1), {"w": table.weight}))
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="lazy=True"):
        opt.step()
    with pytest.raises(ValueError, match="lazy=True"):
        ProxOptimizer(SparseAdam([table.weight]), L1(0.1))


def test_lazy_survives_a_copy_and_works_beside_other_terms():
    table, head = tables()[0], nn.Linear(3, 2, dtype=F64)
    term = attach(L1(0.1), {"w": table.weight}, lazy=True)
    opt = ProxOptimizer(AdamW([table.weight, *head.parameters()], weight_decay=0.0), term, attach(L1(0.1), head))
    assert all(part.lazy for part in copy.deepcopy(opt).terms[0].parts)
    before = table.weight.detach().clone(), head.weight.detach().clone()
    table.weight.grad, head.weight.grad = torch.zeros_like(table.weight), torch.zeros_like(head.weight)
    opt.step()
    assert torch.equal(table.weight.detach(), before[0])
    assert not torch.equal(head.weight.detach(), before[1])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_it_compiles():
    found = []
    for compiled in (False, True):
        p = matrix(3, (5, 3))
        opt = ProxOptimizer(Adam([p], lr=torch.tensor(0.1)), attach(L1(torch.tensor(0.1)), {"w": p}, lazy=True))
        torch._dynamo.reset()
        step = torch.compile(opt.step, backend="eager") if compiled else opt.step
        for k in range(2):
            give_gradients([p], k)
            p.grad[1] = 0.0
            step()
        found.append(p.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=0.0)


@every_recipe
def test_never_touched_rows_keep_every_bit_under_every_dense_optimizer(recipe):
    if "decay" in recipe.id:
        pytest.skip("decay moves every row")
    p = matrix(4, (5, 2))
    before = p.detach().clone()
    opt = ProxOptimizer(recipe.make([p]), attach(Group(L1(0.3), by=rows), {"w": p}, lazy=True))
    for k in range(4):
        give_gradients([p], k)
        p.grad[3:] = 0.0
        opt.step()
    assert torch.equal(p.detach()[3:], before[3:])
