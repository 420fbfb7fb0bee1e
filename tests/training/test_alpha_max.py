"""`alpha_max`: at it the prox is zero, just below it is not."""

import math
from contextlib import nullcontext

import pytest
import torch
from catalog import CATALOG
from helpers import F64, every, loop, normal

from torchreg import L0, L1, L1L2, L2, MCP, SCAD, Group, NonNegative, Penalty, Sum, Towards, Weighted, rows

STEP = 2.0**-10  # small, so that MCP and SCAD have the slope of L1
AT, BELOW = 1.0 + 1e-9, 1.0 - 1e-6  # bisection and norms of groups are exact to rounding only


def _left(case, penalty, grad, step, alpha):
    """How many penalised entries the prox leaves away from the centre."""
    p = penalty.with_alpha(alpha).prox(case.centre - step * grad, step)
    free = torch.zeros(case.shape, dtype=torch.bool)
    if case.spares:  # what even a huge strength moves not at all is not penalised
        huge = penalty.with_alpha(1e9).prox(case.centre - step * grad, step)
        free = (huge != case.centre) & (huge == case.centre - step * grad)
    return int(((p != case.centre) & ~free).sum())


@every(constraint=False)
@loop("seed", [0, 1])
@loop("with_step", [True, False])
def test_alpha_max_is_tight(case, seed, with_step):
    penalty, grad = case.make(), normal(case.shape, seed)
    if not with_step and not case.slope:
        with (
            pytest.raises(ValueError, match="step")
            if any(name in case.id for name in ("L0", "LHalf", "LTwoThirds"))
            else nullcontext()
        ):
            assert float(penalty.alpha_max(grad)) == math.inf
        return
    alpha = penalty.alpha_max(grad, STEP if with_step else None)
    assert alpha.shape == ()
    assert not alpha.isnan()
    if math.isinf(alpha):
        assert _left(case, penalty, grad, STEP, 1e9) > 0
        return
    step = STEP if with_step else 2.0**-20
    assert _left(case, penalty, grad, step, alpha * AT) == 0
    assert _left(case, penalty, grad, step, alpha * BELOW) > 0


@every(slope=True, spares=False)
def test_a_closed_form_equals_the_bisection_of_the_base_class(case):
    penalty, grad = case.make(), normal(case.shape)
    if case.centre.any():
        penalty = penalty.penalty  # the base class asks for zero, Towards for its reference
    assert torch.allclose(penalty.alpha_max(grad), Penalty.alpha_max(penalty, grad), rtol=1e-9, atol=0.0)
    assert torch.allclose(penalty.alpha_max(grad, STEP), Penalty.alpha_max(penalty, grad, STEP), rtol=1e-9, atol=0.0)


@every(constraint=False)
def test_alpha_max_is_homogeneous_in_the_gradient_and_zero_at_zero(case):
    penalty, grad = case.make(), normal(case.shape)
    step = None if case.slope else STEP
    assert float(penalty.alpha_max(0.0 * grad, step)) == 0.0
    if case.slope and not isinstance(penalty, Sum):  # the step of the bisection is small enough for MCP
        assert torch.allclose(penalty.alpha_max(3.0 * grad), 3.0 * penalty.alpha_max(grad), rtol=1e-5)


@every(*[c for c in CATALOG if c.slope and "own" not in c.id])  # OwnLogSum as written here cancels in float32
@loop("dtype", [torch.float32, torch.bfloat16])
def test_alpha_max_in_low_precision(case, dtype):
    grad = normal(case.shape).to(dtype)
    alpha = case.make().alpha_max(grad)
    assert alpha.dtype in (torch.float32, F64)
    assert torch.allclose(alpha.double(), case.make().alpha_max(grad.double()), rtol=1e-5, atol=0.0)


def test_known_alpha_max():
    grad = torch.tensor([3.0, -4.0], dtype=F64)
    assert float(L1(1.0).alpha_max(grad)) == 4.0
    assert float(L1L2(1.0, 0.5).alpha_max(grad)) == 8.0
    assert float(L1L2(1.0, 0.0).alpha_max(grad)) == math.inf
    assert float(L2(1.0).alpha_max(grad)) == math.inf
    assert float(MCP(1.0).alpha_max(grad)) == float(SCAD(1.0).alpha_max(grad)) == 4.0
    assert float(Group(L1(1.0), rows, weights=1.0).alpha_max(grad[None])) == pytest.approx(5.0, rel=1e-15)
    assert float(NonNegative(L1(1.0)).alpha_max(grad)) == 4.0  # only a falling direction can leave zero
    assert float(NonNegative(L1(1.0)).alpha_max(-grad)) == 3.0
    assert float(Weighted(L1(1.0), torch.tensor([1.0, 2.0], dtype=F64)).alpha_max(grad)) == pytest.approx(3.0, rel=1e-9)
    assert float(Towards(L1(1.0), grad).alpha_max(grad)) == 4.0
    assert float(L0(1.0).alpha_max(grad, 0.5)) == pytest.approx(0.5 * 16 / 2, rel=1e-9)  # |t g| = sqrt(2 alpha t)
