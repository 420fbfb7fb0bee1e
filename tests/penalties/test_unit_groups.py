"""Attention heads and blocks are the groups that `labels` makes of indices counted by hand."""

import pickle

import pytest
import torch
from torch import nn

from torchreg import L1, Group, ProxOptimizer, attach, blocks, heads, labels, matching, sparsity
from torchreg.linear import fit_path

SHAPES = {
    "heads": (heads(3), (6, 4), lambda i, j: i // 2),
    "heads of a bias": (heads(3), (6,), lambda i: i // 2),
    "heads of a fused weight": (heads(2, fused=3), (12, 4), lambda i, j: i % 4 // 2),
    "heads of a fused bias": (heads(2, fused=3), (12,), lambda i: i % 4 // 2),
    "heads in columns": (heads(2, dim=1), (3, 6), lambda i, j: j // 3),
    "heads of a fused transposed weight": (heads(2, fused=3, dim=1), (5, 12), lambda i, j: j % 4 // 2),
    "blocks": (blocks(2), (6, 4), lambda i, j: i // 2),
    "blocks of entries": (blocks(4), (8,), lambda i: i // 4),
    "blocks of filters": (blocks(2), (4, 3, 2), lambda i, j, k: i // 2),
    "tiles": (blocks(2, 3), (4, 6), lambda i, j: i // 2 * 2 + j // 3),
    "tiles of one entry": (blocks(1, 1), (2, 3), lambda i, j: i * 3 + j),
    "tiles of filters": (blocks(2, 1), (4, 3, 2), lambda i, j, k: i // 2 * 3 + j),
}
each = pytest.mark.parametrize(("by", "shape", "number"), SHAPES.values(), ids=SHAPES)


def counted(shape, number):
    return labels(number(*torch.meshgrid(*map(torch.arange, shape), indexing="ij")).expand(shape))


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_they_are_the_labels_counted_by_hand(by, shape, number, dtype):
    torch.manual_seed(0)
    w, oracle = torch.randn(shape).to(dtype), counted(shape, number)
    by.check(w)
    assert by.count(w) == oracle.count(w)
    assert torch.equal(torch.as_tensor(by.sizes(w)).expand(by.count(w)).double(), oracle.sizes(w).double())
    torch.testing.assert_close(by.sum(w.double()), oracle.sum(w.double()))
    for largest in (True, False):
        assert torch.equal(by.extreme(w, largest=largest), oracle.extreme(w, largest=largest))
    v = torch.randn(by.count(w))
    assert torch.equal(by.expand(v, w).expand(w.shape), oracle.expand(v, w))
    torch.testing.assert_close(Group(L1(0.3), by).prox(w, 0.7), Group(L1(0.3), oracle).prox(w, 0.7))
    step = torch.rand(shape) + 0.1
    torch.testing.assert_close(Group(L1(0.3), by).prox(w.float(), step), Group(L1(0.3), oracle).prox(w.float(), step))


@each
def test_a_batch_of_problems_and_strided_tensors(by, shape, number):
    w = torch.randn(5, *shape)
    penalty = Group(L1(0.3), by)
    batched = torch.vmap(lambda x: penalty.prox(x, 0.7))(w)
    torch.testing.assert_close(batched, torch.stack([penalty.prox(x, 0.7) for x in w]))
    strided = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    assert torch.equal(penalty.prox(strided, 0.7), penalty.prox(strided.contiguous(), 0.7))


@each
def test_specs_tell_them_apart_and_they_survive_pickling(by, shape, number):
    penalty = Group(L1(0.3), by)
    others = [Group(L1(0.3), other) for other, *_ in SHAPES.values() if other != by]
    assert all(penalty != other and penalty.spec() != other.spec() for other in others)
    assert eval(repr(by)) == by == pickle.loads(pickle.dumps(by))
    assert hash(eval(repr(by))) == hash(by)


def test_heads_of_a_fused_projection_vanish_with_all_their_rows_under_adam():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 4)
    term = attach(Group(L1(3e-3), by=heads(4, fused=3), weights=1.0), matching(attention, "in_proj_weight"))
    optimizer = ProxOptimizer(torch.optim.Adam(attention.parameters(), lr=0.05), term)
    x = torch.randn(5, 3, 8)
    for _ in range(200):
        optimizer.zero_grad()
        attention(x, x, x)[0].square().mean().backward()
        optimizer.step()
    w = attention.in_proj_weight.detach().view(3, 4, 2, 8)
    gone = (w == 0).all(0).all(-1).all(-1)
    assert gone.any()
    assert sparsity(term).zero_groups == int(gone.sum())
    assert sparsity(term).groups == 4


def test_fits_by_blocks_are_fits_by_labels():
    torch.manual_seed(0)
    X, y = torch.randn(60, 12, dtype=torch.float64), torch.randn(60, dtype=torch.float64)
    one = fit_path(X, y, Group(L1(1.0), by=blocks(3)), alphas=8, tol=1e-10)
    other = fit_path(X, y, Group(L1(1.0), by=labels(torch.arange(12) // 3)), alphas=8, tol=1e-10)
    torch.testing.assert_close(one.alphas, other.alphas)
    torch.testing.assert_close(one.coefs, other.coefs, rtol=0, atol=1e-8)


def test_a_compiled_prox_is_the_plain_one():
    for by, shape, _ in (SHAPES["heads of a fused weight"], SHAPES["tiles"]):
        penalty, w, step = Group(L1(0.3), by), torch.randn(shape), torch.rand(shape) + 0.1
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, t, p=penalty: p.prox(x, t), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(w, step), penalty.prox(w, step))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: heads(0), "n >= 1.*got 0"),
        (lambda: heads(2.0), "n >= 1, a whole number, got 2.0"),
        (lambda: heads(True), "got True"),
        (lambda: heads(2, fused=0), "fused >= 1"),
        (lambda: heads(2, dim=2), "dim=0.*dim=1.*got 2"),
        (lambda: blocks(-1), "rows >= 1"),
        (lambda: blocks(2, 0), "columns >= 1"),
        (lambda: blocks("2"), "got '2'"),
        (lambda: attach(Group(L1(0.1), by=heads(3)), nn.Linear(4, 8)), r"heads\(3\).*\(8, 4\).*8 rows.*3 heads"),
        (lambda: attach(Group(L1(0.1), by=heads(2, fused=3)), nn.Linear(4, 8)), "3 projections of 2 heads"),
        (lambda: attach(Group(L1(0.1), by=heads(3, dim=1)), nn.Linear(4, 8)), "4 columns"),
        (lambda: attach(Group(L1(0.1), by=blocks(3)), nn.Linear(4, 8)), r"blocks\(3\).*\(8, 4\)"),
        (lambda: attach(Group(L1(0.1), by=blocks(2, 3)), nn.Linear(4, 8)), r"blocks\(2, 3\).*\(8, 4\)"),
        (lambda: attach(Group(L1(0.1), by=blocks(2, 2)), {"b": nn.Parameter(torch.ones(4))}), r"2 dimension.*\(4,\)"),
        (lambda: Group(L1(0.1), by=heads), r"heads\(n\), blocks\(k\)"),
    ],
)
def test_numbers_that_do_not_fit_say_what_does(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()


def test_empty_tensors_stay_as_they_are():
    for by, shape in ((heads(2), (0, 3)), (heads(2), (4, 0)), (blocks(2), (0,)), (blocks(2, 3), (4, 0))):
        w = torch.ones(shape)
        assert Group(L1(0.1), by).prox(w, 1.0).shape == shape
        assert Group(L1(0.1), by).value(w) == 0
