"""Sparsity counts exact zeros, in every dtype and layout, and prints what it counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchreg import L1, Group, Sparsity, attach, columns, labels, matching, rows, sparsity

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_zeros_count_and_all_of_them(dtype):
    tiny = torch.finfo(dtype).smallest_normal
    w = torch.tensor([0.0, -0.0, tiny, -tiny, 1.0, float("nan"), float("inf"), 0.0], dtype=torch.float64).to(dtype)
    found = sparsity({"w": w})
    assert (found.zeros, found.total, found.fraction) == (3, 8, 0.375)
    assert found.parameters[0].zeros == 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_stay_exact_where_the_dtype_cannot_count(dtype):
    w = torch.ones(70_001, dtype=dtype)  # past what bf16 and fp16 hold exactly
    w[: 1 << 16] = 0.0
    found = sparsity({"w": w})
    assert (found.zeros, found.total) == (1 << 16, 70_001)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_group_is_zero_only_if_all_its_entries_are(dtype):
    p = nn.Parameter(torch.ones(4, 70_000, dtype=dtype))
    with torch.no_grad():
        p[0] = 0.0
        p[1] = -0.0
        p[2, 1:] = 0.0  # one entry of 70 000 is left
        p[:, 5] = 0.0
    by_rows = sparsity(attach(Group(L1(0.1), by=rows), {"p": p}))
    assert (by_rows.zero_groups, by_rows.groups) == (2, 4)
    by_columns = sparsity(attach(Group(L1(0.1), by=columns), {"p": p}))
    assert (by_columns.zero_groups, by_columns.groups) == (1, 70_000)
    halves = sparsity(attach(Group(L1(0.1), by=labels(torch.tensor([0, 0, 1, 1]))), {"p": p}))
    assert (halves.zero_groups, halves.groups) == (1, 2)


def test_a_label_that_no_entry_bears_is_no_zero_group():
    p = nn.Parameter(torch.tensor([0.0, 0.0, 1.0]))
    found = sparsity(attach(Group(L1(0.1), by=labels(torch.tensor([0, 0, 2]))), {"p": p}))
    assert (found.zero_groups, found.groups) == (1, 2)  # groups 0 and 2; nothing is in group 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_targets_add_up_and_keep_their_names():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[:2] = 0.0
        model[1].bias.zero_()
    grouped = attach(Group(L1(0.1), by=rows), matching(model, "0.weight"))
    found = sparsity(grouped, matching(model, "1.*"))
    assert [(p.name, p.zeros, p.total) for p in found.parameters] == [
        ("0.weight", 6, 12),
        ("1.weight", 0, 8),
        ("1.bias", 2, 2),
    ]
    assert (found.name, found.zeros, found.total) == ("total", 8, 22)
    assert (found.zero_groups, found.groups) == (2, 4)
    assert [p.zero_groups for p in found.parameters] == [2, None, None]
    assert [p.name for p in sparsity(model).parameters] == ["0.weight", "1.weight"]  # its weights, as everywhere
    assert sparsity(torch.compile(model)).parameters == sparsity(model).parameters


@pytest.mark.parametrize(
    "view", [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x.to(memory_format=torch.preserve_format)]
)
def test_views_count_their_own_entries(view):
    x = torch.arange(24.0).reshape(4, 6) % 3
    w = view(x)
    assert sparsity({"w": w}).zeros == sum(v == 0.0 for v in w.flatten().tolist())


def test_nothing_is_no_zeros():
    found = sparsity({"w": torch.empty(0, 3)})
    assert (found.zeros, found.total, found.fraction) == (0, 0, 0.0)
    assert sparsity() == Sparsity("total", 0, 0)


def test_the_table_shows_every_count():
    p = nn.Parameter(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    found = sparsity(attach(Group(L1(0.1), by=rows), {"layer": p}), {"free": torch.ones(4)})
    table = [line.split() for line in repr(found).splitlines()]
    assert table == [
        ["name", "zeros", "total", "fraction", "zero", "groups", "groups"],
        ["layer", "3", "4", "0.7500", "1", "2"],
        ["free", "0", "4", "0.0000", "-", "-"],
        ["total", "3", "8", "0.3750", "1", "2"],
    ]


def test_counting_changes_nothing_and_needs_no_gradient():
    p = nn.Parameter(torch.zeros(3))
    assert sparsity({"p": p}).zeros == 3
    assert p.grad is None
    assert p.requires_grad


@pytest.mark.parametrize("target", [L1(0.1), torch.zeros(3), 3], ids=["penalty", "tensor", "number"])
def test_other_targets_are_refused(target):
    with pytest.raises(TypeError, match="modules, terms and dicts"):
        sparsity(target)
