"""Groups over several tensors: their entries, value and proximal step, and what compact makes of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from torchreg import (
    L1,
    L2,
    MCP,
    Group,
    PenaltyScheduler,
    ProxOptimizer,
    compact,
    coupled,
    penalty_metrics,
    rows,
    schedules,
)
from torchreg.training.compaction.modules import copied

F64 = torch.float64


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(6)
        self.inner, self.outer = nn.Linear(6, 7), nn.Linear(7, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = functional.relu(self.norm(self.stem(x)))
        return self.head(x + self.outer(torch.tanh(self.inner(x))))


class Heads(nn.Module):
    def __init__(self, d=12, heads=3):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        b, t = x.shape[:2]
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        return x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))


def made(kind=Residual, dtype=F64, seed=0):
    torch.manual_seed(seed)
    model = kind().to(dtype)
    given = torch.randn(4, 5 if kind is Residual else 7, *([] if kind is Residual else [12]), dtype=dtype)
    return model, given, coupled(model, given)


@pytest.mark.parametrize(
    ("frozen", "left"),
    [("inner.weight", {"stem", "outer"}), ("outer.weight", {"inner"}), ("stem.bias", {"stem", "inner"}),
     ("norm.weight", {"stem", "inner"}), ("head.weight", {"stem", "inner"})],
)  # fmt: skip
def test_units_that_frozen_weights_make_have_no_group(frozen, left):
    model, x, _ = made()
    model.eval().get_parameter(frozen).requires_grad_(False)
    groups = coupled(model, x)
    assert {name.split(".")[0] for name in groups.index if name.endswith(".weight")} >= left
    assert groups.count == sum({"stem": 6, "inner": 7}.get(name, 0) for name in left)
    term = groups.attach(L1(0.0))
    with torch.no_grad():  # what the groups hold is zero, and all of it can go
        for name, p in term.parameters.items():
            own = groups.index[name]
            p.masked_fill_(own < groups.count, 0.0)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, compact(model, x)[0]))
    assert before - after >= groups.count


def members(groups, k):
    return {name: (index == k).nonzero().tolist() for name, index in groups.index.items() if bool((index == k).any())}


def test_a_residual_unit_is_all_that_adds_to_it_with_the_columns_of_the_head():
    _, _, groups = made()
    assert groups.count == 6 + 7
    for i in range(6):
        k = int(groups.index["stem.weight"][i, 0])
        assert members(groups, k) == {
            "stem.weight": [[i, j] for j in range(5)],
            "stem.bias": [[i]],
            "norm.weight": [[i]],
            "norm.bias": [[i]],
            "outer.weight": [[i, j] for j in range(7)],
            "outer.bias": [[i]],
            "head.weight": [[j, i] for j in range(3)],
        }
    k = int(groups.index["inner.weight"][2, 0])
    assert members(groups, k) == {"inner.weight": [[2, j] for j in range(6)], "inner.bias": [[2]]}
    assert "head.bias" not in groups.index
    assert groups.sizes.tolist() == [5 + 1 + 2 + 7 + 1 + 3] * 6 + [6 + 1] * 7


def test_a_head_is_its_queries_keys_and_values_and_the_columns_that_read_it():
    _, _, groups = made(Heads)
    assert groups.count == 3
    index = groups.index["qkv.weight"][:, 0]
    assert index.tolist() == [h for _ in range(3) for h in range(3) for _ in range(4)]
    assert groups.index["out.weight"][0].tolist() == [h for h in range(3) for _ in range(4)]


def vectors(model, groups):
    """Each group's entries by a plain loop, and its factor."""
    named = dict(model.named_parameters())
    return [
        (torch.cat([named[n].detach()[index == k] for n, index in groups.index.items()]), float(groups.sizes[k]) ** 0.5)
        for k in range(groups.count)
    ]


@pytest.mark.parametrize("penalty", [L1(0.3), MCP(0.3, gamma=4.0), L1(0.2) + L2(0.1)], ids=str)
def test_value_and_norms_are_those_of_a_loop(penalty):
    model, _, groups = made()
    if not hasattr(penalty, "phi"):
        with pytest.raises(TypeError, match="separable"):
            groups.attach(penalty)
        return
    term = groups.attach(penalty)
    loops = vectors(model, groups)
    torch.testing.assert_close(groups.norms(), torch.stack([v.norm() for v, _ in loops]), rtol=1e-12, atol=0)
    wanted = sum(penalty.with_alpha(0.3 * factor).value(v.norm().reshape(1)) for v, factor in loops)
    torch.testing.assert_close(term(), wanted, rtol=1e-12, atol=0)
    term().backward()
    assert model.head.bias.grad is None
    assert float(model.stem.weight.grad.abs().sum()) > 0
    assert penalty_metrics(term)["penalty"] == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_is_the_exact_proximal_step_of_all_tensors_together(base):
    model, given, groups = made()
    alpha, lr = 0.6, 0.05
    optimizer = ProxOptimizer(base(model.parameters(), lr), groups.attach(L1(alpha)))
    twin = copied(model)
    plain = base(twin.parameters(), lr)
    for net in (model, twin):
        (100 * net(given).square().sum()).backward()
    optimizer.step()
    plain.step()
    if base is torch.optim.SGD:
        steps = {n: torch.full_like(p, lr) for n, p in twin.named_parameters()}
    else:  # lr / (sqrt(v / (1 - b2)) + eps) / (1 - b1) after one step
        steps = {n: lr / (p.grad.abs() + 1e-8) for n, p in twin.named_parameters()}
    zeros = 0
    for k, (u, factor) in enumerate(vectors(model, groups)):
        w = vectors(twin, groups)[k][0]
        t = torch.cat([steps[n][index == k] for n, index in groups.index.items()])
        if bool((u == 0).all()):
            zeros += 1
            assert float((w / t).norm()) <= alpha * factor * (1 + 1e-9) or base is torch.optim.Adam
        else:  # optimality: (w - u) / t is the gradient of alpha sqrt(size) ||u||
            torch.testing.assert_close((w - u) / t, alpha * factor * u / u.norm(), rtol=1e-5, atol=1e-6)
    assert torch.equal(model.head.bias, twin.head.bias)  # in no group
    assert 0 <= zeros <= groups.count


def test_units_that_vanish_are_those_that_compact_removes():
    model, _, groups = made(dtype=torch.float32)
    given = torch.randn(64, 5)
    target = given[:, :1].sin() + 0.1 * given[:, 1:2]
    optimizer = ProxOptimizer(torch.optim.SGD(model.parameters(), 0.05), groups.attach(L1(0.02)))
    for _ in range(400):
        optimizer.zero_grad()
        functional.mse_loss(model(given), target.expand(-1, 3)).backward()
        optimizer.step()
    alive = groups.norms() > 0
    units, hidden = alive[groups.index["stem.bias"]], alive[groups.index["inner.bias"]]
    assert 0 < int(units.sum()) < 6
    model.eval()
    smaller, report = compact(model, given[:2])
    assert smaller.stem.out_features == smaller.head.in_features == int(units.sum())
    assert smaller.inner.out_features == max(int(hidden.sum()), 1)
    assert report.exact_in_training
    with torch.no_grad():
        torch.testing.assert_close(smaller(given), model(given), rtol=0, atol=1e-5)


def test_what_was_not_stepped_counts_and_stays():
    model, given, groups = made()
    optimizer = ProxOptimizer(torch.optim.SGD(model.parameters(), 0.1), groups.attach(L1(100.0)))
    model(given).sum().backward()
    model.outer.weight.grad = model.outer.bias.grad = None
    was = model.outer.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.outer.weight, was)
    assert float(groups.norms().detach()[groups.index["stem.bias"]].min()) > 0


def test_a_step_with_what_was_not_stepped_is_optimal_where_that_stays():
    model, given, groups = made()
    optimizer = ProxOptimizer(torch.optim.SGD(model.parameters(), 0.1), groups.attach(L1(0.5)))
    model(given).sum().backward()
    model.outer.weight.grad = model.outer.bias.grad = None
    twin = {n: p.detach() - 0.1 * (0.0 if p.grad is None else p.grad) for n, p in model.named_parameters()}
    optimizer.step()
    for k in groups.index["stem.bias"].tolist():
        u = vectors(model, groups)[k][0]
        level = 0.5 * float(groups.sizes[k]) ** 0.5
        for name in ("stem.weight", "stem.bias", "norm.weight", "norm.bias", "head.weight"):
            at = groups.index[name] == k
            own = model.get_parameter(name).detach()[at]
            torch.testing.assert_close((twin[name][at] - own) / 0.1, level * own / u.norm(), rtol=1e-6, atol=1e-9)


def test_strength_schedules_and_checkpoints():
    model, given, groups = made()
    term = groups.attach(L1(0.1))
    optimizer = ProxOptimizer(torch.optim.Adam(model.parameters(), 0.01), term)
    PenaltyScheduler(term, schedules.linear(0.0, 0.4, steps=4))
    twin = None
    for step in range(5):
        optimizer.zero_grad()
        model(given).square().sum().backward()
        optimizer.step()
        if step == 2:
            state = copy.deepcopy(optimizer.state_dict())
            twin = copied(model)
    assert float(term.alpha) == pytest.approx(0.4)
    again = coupled(twin, given).attach(L1(0.1))
    resumed = ProxOptimizer(torch.optim.Adam(twin.parameters(), 0.01), again)
    PenaltyScheduler(again, schedules.linear(0.0, 0.4, steps=4))
    resumed.load_state_dict(state)
    for _ in range(2):
        resumed.zero_grad()
        twin(given).square().sum().backward()
        resumed.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_input():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        coupled("net", torch.ones(1))
    with pytest.raises(ValueError, match="No unit"):
        coupled(nn.Linear(3, 2), torch.ones(1, 3))
    with pytest.raises(ValueError, match="cannot follow"):
        coupled(nn.Linear(3, 2), torch.ones(1, 4))
    _, _, groups = made()
    with pytest.raises(TypeError, match="separable"):
        groups.attach(Group(L1(1.0), by=rows))
