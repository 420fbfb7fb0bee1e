"""Conjugates: ``R(u) + R*(v) >= <u, v>`` for all, with equality for ``v`` in the slope of R at u."""

import math

import pytest
import torch
from helpers import F64, FINITE_STEPS, each_step, every, loop, normal

from torchreg import L1, L2, MCP, Group, NoConjugate, NonNegative, Weighted, rows

INSIDE = 1.0 - 1e-8  # at a step of 1e-6 the rounding of (w - u) / t is 1e-9


@every(conjugate=True)
@each_step(*FINITE_STEPS)
def test_prox_and_conjugate_meet_in_fenchels_equality(case, step):
    """``u = prox(w, t)`` and ``v = (w - u) / t``: Moreau's identity, stated without the prox of R*."""
    penalty, w, t = case.make(), normal(case.shape), step(case.shape)
    u = penalty.prox(w, t)
    v = (w - u) / t * INSIDE
    conjugate = penalty.conjugate(v)
    assert conjugate.isfinite()
    gap = penalty.value(u) + conjugate - (u * v).sum()
    scale = 1.0 + float((u * v).abs().sum() + conjugate.abs())
    assert abs(float(gap)) <= 1e-7 * scale  # INSIDE moves v by 1e-8 of itself


@every(conjugate=True)
@loop("size", [0.1, 0.5, 3.0])
def test_no_pair_falls_below_fenchels_inequality(case, size):
    penalty = case.make()
    for seed in range(20):
        u, v = normal(case.shape, seed), normal(case.shape, seed + 100, scale=size)
        u = penalty.prox(u, 0.01) if seed % 2 else u
        bound = penalty.value(u) + penalty.conjugate(v)
        assert not bound.isnan()
        assert float(bound - (u * v).sum()) >= -1e-12 * (1.0 + size)


@every(conjugate=True)
def test_conjugate_at_zero_is_zero_and_supports_vmap(case):
    penalty = case.make()
    assert float(penalty.conjugate(torch.zeros(case.shape, dtype=F64))) == 0.0
    vs = torch.stack([normal(case.shape, s, scale=0.3) for s in range(4)])
    assert torch.allclose(torch.vmap(penalty.conjugate)(vs), torch.stack([penalty.conjugate(v) for v in vs]))


@every(conjugate=True, constraint=False)
def test_conjugate_of_alpha_zero_is_finite_at_zero_alone(case):
    penalty = case.make().with_alpha(0.0)
    assert float(penalty.conjugate(torch.zeros(case.shape, dtype=F64))) == 0.0
    v = torch.ones(case.shape, dtype=F64)
    assert float(penalty.conjugate(v)) == math.inf or "reference" in vars(penalty)


@every(convex=False)
def test_a_penalty_without_conjugate_says_so(case):
    with pytest.raises(NoConjugate, match="residual"):
        case.make().conjugate(torch.zeros(case.shape, dtype=F64))


def test_known_conjugates():
    v = torch.tensor([0.3, -0.4], dtype=F64)
    assert float(L1(0.4).conjugate(v)) == 0.0
    assert float(L1(0.39).conjugate(v)) == math.inf
    assert float(L2(0.5).conjugate(v)) == pytest.approx(0.125, rel=1e-15)  # |v|^2 / (4 alpha)
    assert float(Group(L1(0.5), rows, weights=1.0).conjugate(v[None])) == 0.0
    assert float(Group(L1(0.49), rows, weights=1.0).conjugate(v[None])) == math.inf
    assert float(NonNegative(L1(0.35)).conjugate(v)) == 0.0  # a negative slope costs nothing
    assert float(Weighted(L1(1.0), torch.tensor([math.inf, 0.4])).conjugate(1e3 * v * torch.tensor([1, 0]))) == 0.0
    with pytest.raises(NoConjugate):
        MCP(0.1).conjugate(v)
