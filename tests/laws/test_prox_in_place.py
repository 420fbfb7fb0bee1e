"""`prox_` equals `prox`: one tensor, lists (the foreach paths), views, pieces of large tensors."""

import math

import pytest
import torch
from helpers import F64, QUICK, bits, each_step, every, loop, negative_zeros, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from torchreg import L0, L1, L1L2, L2, MCP, SCAD, Group, columns, rows, whole
from torchreg.functional.blocking import ENTRIES

DTYPES = [F64, torch.float32, torch.bfloat16, torch.float16]


def agrees(inplace, pure, w):
    """Equal but for the rounding of w's dtype: `prox_` may work in it, `prox` widens."""
    eps = torch.finfo(w.dtype).eps
    scale = float(w.abs().max()) if w.numel() else 0.0
    assert inplace.dtype == pure.dtype
    assert float((inplace.double() - pure.double()).abs().max() if w.numel() else 0.0) <= 2 * eps * scale
    assert negative_zeros(inplace) == 0


@every()
@each_step("zero", "one", "past gamma", "endless", "0-d tensor", "adaptive", "zero, huge, endless")
@loop("dtype", [torch.float32, torch.float16])
def test_prox_in_place_equals_prox(case, step, dtype):
    penalty, w, t = case.make(), normal(case.shape).to(dtype), step(case.shape)
    t = t.to(torch.promote_types(dtype, torch.float32)) if isinstance(t, torch.Tensor) else t
    pure, inplace = penalty.prox(w, t), w.clone()
    penalty.prox_([inplace], [t])
    agrees(inplace, pure, w)
    if dtype in (F64, torch.float32):
        assert torch.equal(inplace == 0, pure == 0)


@every()
@loop("steps", ["numbers", "0-d", "entries", "mixed"])
@loop("dtype", [torch.float32, torch.bfloat16])
def test_prox_in_place_of_a_list_equals_a_loop_and_writes_no_step(case, steps, dtype):
    penalty = case.make()
    tensors = [normal(case.shape, seed).to(dtype) for seed in range(4)]
    numbers = [0.0, 0.3, 6.0, math.inf]
    wide = torch.promote_types(dtype, torch.float32)
    as_tensor = [torch.tensor(t, dtype=wide) for t in numbers]
    spread = [case.step(torch.full(case.shape, t, dtype=wide)) for t in numbers]
    given_steps = {"numbers": numbers, "0-d": as_tensor, "entries": spread, "mixed": [0.0, *as_tensor[1:3], spread[3]]}
    chosen = given_steps[steps]
    copies = [t.clone() if isinstance(t, torch.Tensor) else t for t in chosen]
    pure = [penalty.prox(w, t) for w, t in zip(tensors, chosen, strict=True)]
    inplace = [w.clone() for w in tensors]
    penalty.prox_(inplace, chosen)
    for x, p, w in zip(inplace, pure, tensors, strict=True):
        agrees(x, p, w)
    for t, copy in zip(chosen, copies, strict=True):
        assert torch.equal(torch.as_tensor(t), torch.as_tensor(copy))


@every()
def test_prox_in_place_acts_on_parameters_without_autograd(case):
    p = torch.nn.Parameter(normal(case.shape))
    pure = case.make().prox(p.detach(), 0.7)
    case.make().prox_([p], [0.7])
    assert p.is_leaf
    assert p.requires_grad
    assert p.grad is None
    assert torch.allclose(p.detach(), pure, rtol=1e-14, atol=1e-15)


@every()
def test_prox_in_place_of_a_view_writes_the_view_alone(case):
    room = torch.full((*case.shape[:-1], 2 * case.shape[-1]), 7.0, dtype=F64)
    view = room[..., ::2]
    view.copy_(normal(case.shape))
    pure = case.make().prox(view.clone(), 0.7)
    case.make().prox_([view], [0.7])
    assert torch.allclose(view, pure, rtol=1e-14, atol=1e-15)
    assert bool((room[..., 1::2] == 7.0).all())


LARGE = [L1(0.4), L2(0.4), L1L2(0.6, 0.4), L0(0.3), MCP(0.4, 2.5), SCAD(0.4), L1(0.4) + L2(0.1)]
LARGE += [Group(L1(0.01), by) for by in (rows, columns, whole)] + [Group(L1(0.01), by=rows) + L1(0.1)]


@pytest.mark.parametrize("penalty", LARGE, ids=repr)
@pytest.mark.parametrize(("step", "count"), [("number", 1), ("number", 2), ("0-d", 1), ("entries", 1)])
def test_pieces_of_a_large_tensor_equal_the_whole(penalty, count, step):
    shape = (269, 1013)  # prime, so that no piece ends on a row or on a vector's width
    assert shape[0] * shape[1] > ENTRIES
    w = normal(shape).float()
    t = {"number": 0.7, "0-d": torch.tensor(0.7), "entries": torch.rand(shape, generator=torch.Generator()) + 0.2}[step]
    pure, inplace = penalty.prox(w, t), [w.clone() for _ in range(count)]
    penalty.prox_(inplace, [t] * count)
    for x in inplace:
        assert torch.allclose(x, pure, rtol=2e-6, atol=1e-6)  # norms of 3e5 entries added in another order
        assert negative_zeros(x) == 0
        assert float(((x == 0) != (pure == 0)).double().mean()) < 1e-5  # the jump of L0 and MCP may round


@settings(QUICK, max_examples=60)
@given(
    length=st.one_of(st.integers(0, 200), st.sampled_from([32767, 65536, 65599, ENTRIES + 1, 2 * ENTRIES + 37])),
    threshold=st.sampled_from([0.0, 1e-30, 0.3, 1e30, math.inf]),
    dtype=st.sampled_from(DTYPES),
    stride=st.sampled_from([1, 3]),
    count=st.integers(1, 3),
    penalty=st.sampled_from([L1(1.0), L1L2(1.0, 0.5), L2(1.0)]),
)
def test_no_length_dtype_or_stride_yields_negative_zero(length, threshold, dtype, stride, count, penalty):
    w = normal((length * stride,), scale=0.3)
    w[::5], w[1::7], w[2::11] = 0.0, -0.0, -6e-8
    tensors = [w.to(dtype)[::stride].clone(memory_format=torch.preserve_format) for _ in range(count)]
    before = bits(tensors[0]).clone()
    pure = penalty.prox(tensors[0], threshold)
    penalty.prox_(tensors, [threshold] * count)
    assert negative_zeros(pure) == 0
    for x in tensors:  # at step 0 `prox_` need not touch a tensor, and -0.0 stays what it was
        assert negative_zeros(x) == 0 or (threshold == 0.0 and torch.equal(bits(x), before))
        assert x.isfinite().all()


@every()
@loop("count", [1, 3])
@loop("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_where_it_is_in_place(case, count, dtype):
    w = normal(case.shape).to(dtype)
    w.view(-1)[1] = math.nan
    tensors = [w.clone() for _ in range(count)]
    case.make().prox_(tensors, [0.7] * count)
    for x in tensors:
        assert torch.equal(x.isnan(), w.isnan())
        assert torch.equal(x == 0, case.make().prox(w, 0.7) == 0)


@every()
@pytest.mark.parametrize(("size", "dtype"), [(1e25, torch.float32), (1e200, F64)])
@loop("in_place", [True, False])
def test_squares_that_overflow_leave_no_nan(case, size, dtype, in_place):
    w = (size * normal(case.shape).abs()).to(dtype)
    penalty = case.make()
    if in_place:
        penalty.prox_([w], [0.5])
    assert (w if in_place else penalty.prox(w, 0.5)).isfinite().all()
