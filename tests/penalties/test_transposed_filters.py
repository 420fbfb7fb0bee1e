"""Groups by `filters` are output channels, of transposed convolutions too, whose weights have them in dimension 1."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from torchreg import (
    L1,
    L2,
    MCP,
    Group,
    NonNegative,
    PenaltyScheduler,
    ProxOptimizer,
    Towards,
    attach,
    columns,
    filters,
    matching,
    schedules,
    sparsity,
    violation,
    weights,
)

LAYERS = {
    "conv": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "1d": lambda: nn.ConvTranspose1d(4, 6, 3),
    "2d": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
    "3d": lambda: nn.ConvTranspose3d(4, 6, 2),
    "2d, two blocks": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "2d, a block each": lambda: nn.ConvTranspose2d(4, 8, 3, groups=4),
    "1d, one channel": lambda: nn.ConvTranspose1d(4, 1, 3),
}
each = pytest.mark.parametrize("kind", LAYERS)


def made(kind):
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    spatial = {"Conv2d": 2, "ConvTranspose1d": 1, "ConvTranspose2d": 2, "ConvTranspose3d": 3}[type(layer).__name__]
    return layer, torch.randn(2, 4, *[5] * spatial)


def channels(layer, x):
    """Which weights feed each output channel, told by gradients: the oracle for groups."""
    out = layer(x)
    return [torch.autograd.grad(out[:, k].sum(), layer.weight, retain_graph=True)[0] != 0 for k in range(out.shape[1])]


@each
def test_the_value_is_that_of_the_weights_of_each_output_channel(kind):
    layer, x = made(kind)
    groups = channels(layer, x)
    assert sum(mask.int() for mask in groups).eq(1).all()  # a partition
    w = layer.weight.detach()
    expected = 0.3 * sum(w[mask].norm() * int(mask.sum()) ** 0.5 for mask in groups)
    penalty = Group(L1(0.3), by=filters)
    for value in (attach(penalty, layer)(), penalty(layer), penalty(weights(layer)), penalty([layer])):
        torch.testing.assert_close(value.detach(), expected)


@each
def test_a_zero_group_silences_its_output_channel_and_no_other(kind):
    layer, x = made(kind)
    groups = channels(layer, x)
    with torch.no_grad():
        for k, mask in enumerate(groups):
            layer.weight[mask] *= 0.01 if k % 2 == 0 else 1.0  # these are to go
    term = attach(Group(L1(0.02), by=filters), layer)
    optimizer = ProxOptimizer(torch.optim.SGD(layer.parameters(), lr=1.0), term)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    out = layer(x) - layer.bias.reshape(-1, *[1] * (x.dim() - 2))
    silent = [not out[:, k].any() for k in range(out.shape[1])]
    assert silent == [k % 2 == 0 for k in range(out.shape[1])]
    found = sparsity(term)
    assert (found.zero_groups, found.groups) == (sum(silent), out.shape[1])


def test_training_under_adam_leaves_whole_channels_of_both_kinds_of_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.Tanh(), nn.Flatten())
    model.append(nn.Linear(6 * 36, 1))
    x = torch.randn(64, 1, 6, 6)
    y = x.sum((1, 2, 3), keepdim=False)[:, None] / 6
    term = attach(
        Group(L1(3e-3), by=filters),
        matching(model, "[02].weight"),
    )
    optimizer = ProxOptimizer(torch.optim.Adam(model.parameters(), lr=1e-2), term)
    for _ in range(200):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    out = model[2](model[1](model[0](x))) - model[2].bias[:, None, None]
    silent = sum(not out[:, k].any() for k in range(6))
    counted = {line.name: (line.zero_groups, line.groups) for line in sparsity(term).parameters}
    assert counted["2.weight"] == (silent, 6)
    assert 0 < silent < 6
    assert float(violation(term)) >= 0.0


WRAPPED = {
    "sum": lambda by: Group(L1(0.2), by) + L1(0.1),
    "sum of three": lambda by: L1(0.1) + Group(L1(0.2), by, weights=1.0) + L2(0.3),
    "non-negative": lambda by: NonNegative(Group(MCP(0.2), by)),
    "towards": lambda by: Towards(Group(L1(0.2), by), torch.full((4, 6, 3, 3), 0.01)),
    "weights": lambda by: Group(L1(0.2), by, weights=torch.arange(6.0)),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_inside_other_penalties_they_are_the_same_groups(kind):
    layer, _ = made("2d")
    bound = attach(WRAPPED[kind](filters), layer).penalties["weight"]
    by_columns = WRAPPED[kind](columns)  # with one block output channels are dimension 1
    w = layer.weight.detach()
    torch.testing.assert_close(bound.value(w), by_columns.value(w))
    torch.testing.assert_close(bound.prox(w, 0.5), by_columns.prox(w, 0.5))
    assert bound.alpha == by_columns.alpha


def test_other_groups_other_tensors_and_strengths_stay():
    model = nn.Sequential(nn.ConvTranspose1d(4, 6, 3), nn.ConvTranspose1d(6, 4, 3), nn.Conv1d(4, 2, 3))
    plain = L1(0.1)
    assert all(p is plain for p in attach(plain, model).penalties.values())
    assert len(attach(plain, model).parts) == 1
    by_columns = Group(plain, columns)
    assert attach(by_columns, model).penalties["0.weight"] is by_columns
    alpha = torch.tensor(0.1)
    term = attach(Group(L1(alpha), by=filters), model)
    assert [list(part.parameters) for part in term.parts] == [["0.weight", "1.weight"], ["2.weight"]]
    assert term.alpha is alpha  # shared, so that a schedule of tensors turns one
    assert "filters" in repr(term)
    optimizer = ProxOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), term)
    ramp = PenaltyScheduler(term, schedules.linear(0.0, 0.2, steps=2))
    model(torch.randn(2, 4, 5)).sum().backward()
    optimizer.step()
    assert {float(p.alpha) for p in term.penalties.values()} == {float(torch.tensor(ramp.last_alpha))}
    for copied in (pickle.loads(pickle.dumps(term)), copy.deepcopy(term)):
        assert copied.penalties == term.penalties


def test_of_a_bare_tensor_filters_are_dimension_0():
    w = torch.randn(4, 6, 3)
    assert sparsity(attach(Group(L1(0.1), by=filters), {"w": w})).groups == 4


def test_lengths_under_weight_norm_are_groups_by_what_they_scale():
    for dim, channels in ((0, 4), (1, 6)):
        layer = weight_norm(nn.ConvTranspose2d(4, 6, 3), dim=dim)
        term = attach(Group(L1(0.5), by=filters, weights=1.0), layer)
        (lengths,) = term.parameters.values()
        assert lengths.numel() == channels
        torch.testing.assert_close(term(), 0.5 * lengths.abs().sum())
        assert sparsity(term).groups == channels
