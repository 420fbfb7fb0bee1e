"""Penalties meet where their parameters say so, in value and in prox."""

import math

import pytest
import torch
from helpers import F64, STEPS, each_step, normal

from torchreg import (
    L0,
    L1,
    L1L2,
    L2,
    MCP,
    SCAD,
    Group,
    NonNegative,
    Penalty,
    Sum,
    Towards,
    Weighted,
    columns,
    rows,
    whole,
)

ONES, SHAPE = torch.ones(9, dtype=F64), (9,)
INNER = [L1(0.4), L2(0.4), L1L2(0.6, 0.4), L0(0.3), MCP(0.4, 2.5), SCAD(0.4, 3.2)]
SAME = [
    ("L1L2 ratio 1 is L1", L1L2(0.4, 1.0), L1(0.4)),
    ("L1L2 ratio 0 is L2 of half", L1L2(0.4, 0.0), L2(0.2)),
    ("L1L2 is a sum", L1L2(0.6, 0.4), L1(0.24) + L2(0.18)),
    ("ridges add", L2(0.1) + L2(0.3), L2(0.4)),
    ("MCP to L1", MCP(0.4, 1e12), L1(0.4)),
    ("SCAD to L1", SCAD(0.4, 1e12), L1(0.4)),
    ("a sum's alpha multiplies", Sum((L1(0.2) + L2(0.1),), alpha=2.0), L1(0.4) + L2(0.2)),
    ("and is the strength of its term of 1", (L1(1.0) + L2(0.5)).with_alpha(0.2), L1(0.2) + L2(0.1)),
    ("or of all, as shares", (L1(0.7) + L2(0.3)).with_alpha(0.2), L1(0.14) + L2(0.06)),
    ("sums commute", L2(0.1) + L1(0.2), L1(0.2) + L2(0.1)),
    ("sums associate", L1(0.2) + (L2(0.1) + L2(0.2)), (L1(0.2) + L2(0.1)) + L2(0.2)),
    ("Towards zero", Towards(MCP(0.4, 2.5), 0.0 * ONES), MCP(0.4, 2.5)),
    *[(f"Weighted by ones, {p}", Weighted(p, ONES), p) for p in INNER],
    *[(f"Weighted by a number is alpha, {p}", Weighted(p, 2.0), p.with_alpha(2 * p.alpha)) for p in INNER],
    *[(f"groups of one entry, {p}", Group(p, by=rows, weights=1.0), p) for p in INNER],
    *[(f"and their root of size is one, {p}", Group(p, by=rows), p) for p in INNER],
]


@pytest.mark.parametrize(("one", "other"), [pytest.param(a, b, id=name) for name, a, b in SAME])
@each_step()
def test_limits(one: Penalty, other: Penalty, step):
    w, t = normal(SHAPE), step(SHAPE)
    if "1e12" in repr(one) or "1e+12" in repr(one):  # step < gamma: the limit is taken at a fixed step
        t = torch.as_tensor(t, dtype=F64).clamp(max=6.0)
    # 1e-9: multipliers of group MCP and SCAD are bisected; entries of alpha / gamma remain at gamma 1e12
    assert torch.allclose(one.prox(w, t), other.prox(w, t), rtol=1e-9, atol=1e-11)
    assert torch.allclose(one.value(w), other.value(w), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("inner", INNER, ids=repr)
@each_step()
def test_a_nonnegative_penalty_of_a_nonnegative_tensor_is_the_penalty(inner, step):
    w, t = normal(SHAPE).abs(), step(SHAPE)
    assert torch.equal(NonNegative(inner).prox(w, t), inner.prox(w, t))
    assert torch.equal(NonNegative(inner).value(w), inner.value(w))
    if not torch.as_tensor(t == 0).any():
        assert int((NonNegative(inner).prox(-w, t) != 0).sum()) == 0


@pytest.mark.parametrize("inner", INNER, ids=repr)
@each_step()
def test_one_row_is_the_whole_and_so_is_one_column(inner, step):
    w, t = normal((1, 9)), step((1, 9))
    whole_prox = Group(inner, by=whole).prox(w, t)
    assert torch.allclose(Group(inner, by=rows).prox(w, t), whole_prox, rtol=1e-12, atol=1e-14)
    turned = t.T if isinstance(t, torch.Tensor) and t.dim() else t
    assert torch.allclose(Group(inner, by=columns).prox(w.T, turned).T, whole_prox, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_weights_multiply_alpha_of_a_group(inner):
    w = normal((5, 3))
    doubled = Group(inner.with_alpha(2 * inner.alpha), by=rows, weights=1.0)
    for weights in (2.0, torch.full((5,), 2.0, dtype=F64)):
        weighted = Group(inner, by=rows, weights=weights)
        for step in (0.7, 6.0, STEPS["adaptive"]((5, 3))):
            assert torch.allclose(weighted.prox(w, step), doubled.prox(w, step), rtol=1e-9, atol=1e-12)
        assert torch.allclose(weighted.value(w), doubled.value(w), rtol=1e-14)


def test_l2_has_no_half_and_l1l2_has():
    w = torch.tensor([3.0], dtype=F64)
    assert float(L2(0.5).value(w)) == 4.5
    assert float(L1L2(0.5, 0.0).value(w)) == 2.25
    assert float(L2(0.5).prox(w, 1.0)) == 1.5


def test_infinite_weights_force_and_zero_weights_free():
    w = torch.tensor([3.0, 3.0], dtype=F64)
    penalty = Weighted(L1(1.0), torch.tensor([0.0, math.inf], dtype=F64))
    assert penalty.prox(w, 1e-12).tolist() == [3.0, 0.0]
    assert float(penalty.value(w)) == math.inf
    assert float(penalty.value(torch.tensor([3.0, 0.0], dtype=F64))) == 0.0
