"""The value: its size, its gradient at the kinks, its accuracy over many entries, its targets."""

import pytest
import torch
from helpers import F64, every, loop, normal
from torch import nn

from torchreg import L1, L1L2, L2, MCP, SCAD, Group, columns, rows, weights, whole
from torchreg.functional.blocking import LONG


@every()
def test_value_is_a_nonnegative_scalar_with_a_graph(case):
    w = case.make().prox(normal(case.shape), 0.5).requires_grad_()
    value = case.make().value(w)
    assert value.shape == ()
    assert value.requires_grad
    assert value.detach() >= 0


@every()
def test_gradient_at_the_centre_is_zero_and_never_nan(case):
    """The centre is where L1 has its kink and a group's norm its 0 / 0; Pinball's middle slope is its own."""
    gradient = torch.func.grad(case.make().value)(case.centre)
    assert gradient.isfinite().all()
    if case.id != "own Penalty":
        assert torch.equal(gradient, torch.zeros(case.shape, dtype=F64))


@every()
@loop("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_is_finite_where_some_entries_or_groups_are_zero(case, dtype):
    w = normal(case.shape).abs().to(dtype)
    w[1:3] = 0.0
    w.view(-1)[0] = 0.0
    w.requires_grad_()
    case.make().value(w).backward()
    assert w.grad.dtype == dtype
    assert w.grad.isfinite().all()


@every()
def test_the_gradient_of_a_second_penalty_adds_up(case):
    """Calling on many tensors is the sum of the values, and so is its gradient."""
    penalty, tensors = case.make(), [normal(case.shape, s).abs().requires_grad_() for s in range(3)]
    total = penalty(tensors)
    assert torch.equal(total, penalty(dict(enumerate(tensors))))
    assert torch.allclose(total, sum(penalty.value(t) for t in tensors), rtol=1e-15, atol=0, equal_nan=True)
    total.backward()
    for t in tensors:
        assert torch.equal(t.grad, torch.func.grad(penalty.value)(t.detach()))


def test_a_module_is_penalised_on_its_weights():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    expected = sum(w.abs().sum() for w in weights(model).values())
    assert torch.allclose(L1(1.0)(model), expected)  # float32: the order of a sum


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True])
def test_a_hundred_million_entries_are_right_to_1e_6(grad):
    """math.md C14: torch's norms return less than half of this."""
    w = torch.full((10_000, 10_000), 0.1).requires_grad_(grad)
    entry = float(torch.tensor(0.1))
    assert float(L1(1.0).value(w).detach()) == pytest.approx(1e8 * entry, rel=1e-6)
    assert float(L2(1.0).value(w).detach()) == pytest.approx(1e8 * entry**2, rel=1e-6)
    if not grad:
        assert float(L1L2(1.0, 0.5).value(w)) == pytest.approx(1e8 * (entry / 2 + entry**2 / 4), rel=1e-6)
        assert float(Group(L1(1.0), whole, weights=1.0).value(w)) == pytest.approx(1e4 * entry, rel=1e-6)


@pytest.mark.parametrize(
    "penalty",
    [
        L1(1.0),
        L2(1.0),
        L1L2(1.0),
        MCP(0.1),
        SCAD(0.1),
        Group(L1(1.0), by=rows),
        Group(L1(1.0), by=columns),
        Group(L1(1.0), by=whole),
    ],
    ids=repr,
)
@pytest.mark.parametrize("size", [LONG + 1024, LONG + 4094])  # with and without rows of 1024
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_of_a_large_tensor_add_up_to_the_float64_sum(penalty, size, dtype):
    w = torch.randn(size // 2, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = float(penalty.value(w.double()))
    assert float(penalty.value(w)) == pytest.approx(exact, rel=1e-6)
    assert float(penalty.value(w.requires_grad_()).detach()) == pytest.approx(exact, rel=1e-6)


def test_half_precision_sums_do_not_overflow():
    w = torch.full((70_000,), 100.0, dtype=torch.float16)  # the sum is 7e6, float16 ends at 65504
    assert float(L1(1.0).value(w)) == pytest.approx(7e6, rel=1e-6)
    assert float(L2(1.0).value(w)) == pytest.approx(7e8, rel=1e-6)
    assert float(Group(L1(1.0), whole, weights=1.0).value(w)) == pytest.approx(7e8**0.5, rel=1e-6)
