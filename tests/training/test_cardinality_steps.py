"""Bounds on the number of non-zeros under an optimizer: exact after every step, ranked by the metric of that step."""

from __future__ import annotations

import copy

import pytest
import torch
from optimizer_catalog import RECIPES
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, SparseAdam

from torchreg import (
    L2,
    NM,
    Group,
    ProxOptimizer,
    TopK,
    Towards,
    attach,
    columns,
    effective_step,
    penalty_metrics,
    rows,
    sparsity,
    violation,
    weights,
)

F64 = torch.float64
each_kind = pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.id)


def net(dtype=F64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).to(dtype)


def batch(step: int, dtype=F64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(32, 12, generator=draw, dtype=F64).to(dtype)
    return x, torch.stack([x[:, :4].sum(1)] * 8, 1)


def train(model, opt, steps=6, *, dtype=F64, after=lambda: None) -> None:
    for k in range(steps):
        x, y = batch(k, dtype)
        opt.zero_grad()
        (model(x) - y).square().mean().backward()
        opt.step()
        after()


def kept(w: Tensor, score: Tensor, k: int) -> Tensor:
    """By sorting: the k entries of the largest score."""
    order = sorted(range(w.numel()), key=lambda i: -float(score.flatten()[i]))[:k]
    mask = torch.zeros(w.numel(), dtype=torch.bool)
    mask[order] = True
    return torch.where(mask.reshape(w.shape), w, 0.0)


@each_kind
def test_every_step_is_the_bases_and_then_the_k_largest_of_w2_over_t(recipe):
    """The plain loop: the same optimizer, `effective_step`, a sort."""
    model, plain = net(), net()
    opt = ProxOptimizer(recipe.make(list(model.parameters())), attach(TopK(0.1), model))
    base = recipe.make(list(plain.parameters()))
    for k in range(6):
        train(model, opt, 1)
        x, y = batch(0)
        base.zero_grad()
        (plain(x) - y).square().mean().backward()
        base.step()
        steps = effective_step(base)
        for w in weights(plain).values():
            w.data = kept(w.data, w.data**2 / steps[w], w.numel() // 10)
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.data, theirs.data, rtol=1e-9, atol=1e-12)
            assert torch.equal(ours == 0, theirs == 0), k


@pytest.mark.filterwarnings("ignore:.*half:UserWarning")
@pytest.mark.parametrize("foreach", [True, False, None])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_the_count_is_exact_after_every_step(foreach, dtype):
    model = net(dtype)
    term = attach(TopK(0.1), model)
    opt = ProxOptimizer(AdamW(model.parameters(), lr=0.01), term, foreach=foreach)

    def exact() -> None:
        assert [c.total - c.zeros for c in sparsity(term).parameters] == [19, 12]  # of 192 and 128

    train(model, opt, dtype=dtype, after=exact)
    assert float(term()) == 0.0
    assert "alpha" not in penalty_metrics(term)
    assert "TopK(keep=0.1)" in str(term)


def test_zeros_return_where_the_optimizer_moves_them():
    """Iterative hard thresholding finds the four inputs that matter, from a start that has others."""
    torch.manual_seed(0)
    model = nn.Linear(12, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.cat([torch.zeros(4), torch.ones(8)])[None])
    opt = ProxOptimizer(SGD(model.parameters(), lr=0.1), attach(TopK(4), model))
    for k in range(200):
        x, _ = batch(k)
        opt.zero_grad()
        (model(x)[:, 0] - x[:, :4].sum(1)).square().mean().backward()
        opt.step()
    assert model.weight.nonzero()[:, 1].tolist() == [0, 1, 2, 3]
    assert violation(opt.terms[0]) < 1e-6


@pytest.mark.parametrize(
    ("bound", "dead"),
    [(TopK(8 * 16), "entries"), (Group(TopK(8), by=columns), "columns"), (TopK(8 * 16) + L2(1e-6), "entries")],
    ids=repr,
)
@pytest.mark.parametrize("recipe", [r for r in RECIPES if not r.id.startswith(("SGD", "Adadelta"))], ids=lambda r: r.id)
def test_inputs_that_are_always_zero_go_first(recipe, bound, dead):
    """Their weights have no metric, and cost the loss nothing."""
    model = net()
    opt = ProxOptimizer(recipe.make(list(model.parameters())), attach(bound, {"w": model[0].weight}))
    for k in range(4):
        x, y = batch(k)
        opt.zero_grad()
        (model(x * (torch.arange(12) >= 4)) - y).square().mean().backward()
        opt.step()
    if recipe.id != "Adam decay":  # whose weight decay is a gradient
        assert (model[0].weight[:, :4] == 0).all()
        assert (model[0].weight[:, 4:] != 0).all()


def test_groups_of_the_largest_sum_of_w2_over_t_stay():
    model = net()
    term = attach(Group(TopK(3), by=rows), {"w": model[0].weight})
    opt = ProxOptimizer(AdamW(model.parameters(), lr=0.01), term)
    before: list[Tensor] = []
    opt.base.register_step_post_hook(lambda *_: before.append(model[0].weight.detach().clone()))
    train(model, opt, 4)
    step = effective_step(opt.base)[model[0].weight]
    score = (before[-1] ** 2 / step).sum(1)
    alive = (model[0].weight != 0).any(1)
    assert set(score.topk(3).indices.tolist()) == set(alive.nonzero().flatten().tolist())
    assert sparsity(term).zero_groups == 13


def test_two_of_four_in_every_layer_of_a_net():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(288, 4))
    opt = ProxOptimizer(AdamW(model.parameters(), lr=0.01), attach(NM(2, 4), model))
    for _ in range(3):
        opt.zero_grad()
        model(torch.randn(2, 4, 8, 8)).square().mean().backward()
        opt.step()
    for w in weights(model).values():
        assert ((w.movedim(1, -1).reshape(-1, 4) != 0).sum(1) == 2).all()


def test_a_large_weight_in_pieces_keeps_its_blocks():
    w = nn.Parameter(torch.randn(700, 900))
    small = nn.Parameter(w.detach().clone())
    for p, chunked in ((w, False), (small, True)):
        opt = ProxOptimizer(AdamW([p], lr=0.01), attach(NM(1, 3), [p]), foreach=chunked)
        p.grad = torch.linspace(-1.0, 1.0, p.numel()).reshape(p.shape)
        opt.step()
        assert ((p.reshape(-1, 3) != 0).sum(1) == 1).all()
    assert torch.equal(w == 0, small == 0)


def test_groups_of_a_large_weight_are_counted_over_all_of_it():
    for foreach in (True, False):
        w = nn.Parameter(torch.randn(700, 900))
        opt = ProxOptimizer(AdamW([w], lr=0.01), attach(Group(TopK(10), by=rows), [w]), foreach=foreach)
        w.grad = torch.linspace(-1.0, 1.0, w.numel()).reshape(w.shape)
        opt.step()
        assert int((w != 0).any(1).sum()) == 10


def test_few_entries_that_differ_from_a_start():
    model = net()
    start = {name: w.detach().clone() for name, w in weights(model).items()}
    term = attach(lambda name, w: Towards(TopK(5), w), weights(model))
    train(model, ProxOptimizer(AdamW(model.parameters(), lr=0.01), term))
    assert all(int((w != start[name]).sum()) == 5 for name, w in weights(model).items())


@pytest.mark.parametrize("base", [SGD, Adam])
def test_rows_that_no_batch_touches_stay_and_take_their_places(base):
    table = nn.Embedding(6, 4)
    table.weight.data = torch.arange(1.0, 25.0).reshape(6, 4)
    opt = ProxOptimizer(base(table.parameters(), lr=0.1), attach(TopK(10), {"w": table.weight}, lazy=True))
    table(torch.tensor([0, 5])).sum().backward()
    opt.step()
    assert torch.equal(table.weight[1:5], torch.arange(5.0, 21.0).reshape(4, 4))
    assert (table.weight[[0, 5]] == 0).all()  # all ten places and more are taken


def test_blocks_of_rows_that_a_sparse_gradient_touches():
    table = nn.Embedding(6, 4, sparse=True)
    start = table.weight.detach().clone()
    opt = ProxOptimizer(SparseAdam(table.parameters(), lr=0.1), attach(NM(1, 4), {"w": table.weight}, lazy=True))
    table(torch.tensor([0, 5, 5])).sum().backward()
    opt.step()
    assert torch.equal(table.weight[1:5], start[1:5])
    assert ((table.weight[[0, 5]] != 0).sum(1) == 1).all()


@pytest.mark.parametrize("bound", [TopK(0.1), NM(2, 4), Group(TopK(3), by=rows)], ids=repr)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_a_compiled_step_is_the_same(bound):
    pair = [net(torch.float32), net(torch.float32)]
    for model, compiled in zip(pair, (False, True), strict=True):
        opt = ProxOptimizer(AdamW(model.parameters(), lr=torch.tensor(0.01)), attach(bound, model))
        step = torch.compile(opt.step, backend="aot_eager") if compiled else opt.step
        for k in range(3):
            opt.zero_grad()
            x, y = batch(k, torch.float32)
            (model(x) - y).square().mean().backward()
            step()
    for ours, theirs in zip(*(m.parameters() for m in pair), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert torch.equal(ours == 0, theirs == 0)


def test_training_goes_on_from_a_checkpoint_bit_for_bit():
    model = net()
    opt = ProxOptimizer(AdamW(model.parameters(), lr=0.01), attach(TopK(0.1), model))
    train(model, opt)
    state = copy.deepcopy(opt.state_dict())
    other = net()
    resumed = ProxOptimizer(AdamW(other.parameters(), lr=0.01), attach(TopK(0.1), other))
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(state)
    train(model, opt)
    train(other, resumed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match="constraint"):
        opt.terms[0].alpha = 0.1
