"""What no input may do to a proximal map: NaN, -0.0, another dtype or shape, a write."""

import math

import pytest
import torch
from catalog import CATALOG
from helpers import F64, QUICK, bits, each_step, every, loop, negative_zeros, normal
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = [F64, torch.float32, torch.bfloat16, torch.float16]
INF = math.inf
ENTRY = st.one_of(
    st.sampled_from([0.0, -0.0, 6e-8, -6e-8, 1e-45, -1e-38, 0.4, -0.4, 1e3, -6e4]),
    st.floats(-100.0, 100.0, width=32),
)
STEP = st.sampled_from([0.0, 1e-30, 1e-6, 0.05, 1.0, 2.5, 6.0, 1e6, 1e30, INF])
ALPHA = st.sampled_from([None, 0.0, 1e-30, 1e-3, 10.0, 1e30])


@st.composite
def problems(draw):
    """(entries, step, alpha, dtype): at most 15 entries, a step for all or for each."""
    entries = draw(st.lists(ENTRY, min_size=15, max_size=15))
    step = draw(st.one_of(STEP, st.lists(STEP, min_size=15, max_size=15)))
    return entries, step, draw(ALPHA), draw(st.sampled_from(DTYPES))


def _fitted(case, problem):
    """The problem on this case's shape: (penalty, w, step)."""
    entries, step, alpha, dtype = problem
    count = math.prod(case.shape)
    w = torch.tensor((entries * 2)[:count], dtype=F64).to(dtype).reshape(case.shape)
    if isinstance(step, list):
        step = torch.tensor((step * 2)[:count], dtype=torch.promote_types(dtype, torch.float32)).reshape(case.shape)
        step = case.step(step)
    penalty = case.make()
    return penalty if alpha is None or case.constraint else penalty.with_alpha(alpha), w, step


@every()
@settings(QUICK, max_examples=20)
@given(problem=problems())
def test_finite_input_gives_finite_output_of_same_kind_without_negative_zero(case, problem):
    penalty, w, step = _fitted(case, problem)
    before = bits(w).clone()
    p = penalty.prox(w, step)
    assert (p.dtype, p.shape) == (w.dtype, w.shape)
    assert p.isfinite().all()
    assert negative_zeros(p) == 0
    assert torch.equal(bits(w), before)


@every()
@settings(QUICK, max_examples=10)
@given(problem=problems(), where=st.lists(st.booleans(), min_size=24, max_size=24))
def test_nan_stays_exactly_where_it_is(case, problem, where):
    penalty, w, step = _fitted(case, problem)
    broken = torch.tensor(where[: w.numel()]).reshape(w.shape)
    p = penalty.prox(torch.where(broken, math.nan, w), step)
    assert torch.equal(p.isnan(), broken)
    if case.entry:
        assert torch.equal(p[~broken], penalty.prox(w, step)[~broken])
    assert negative_zeros(p) == 0


@every(coupled=False)
def test_a_nan_reaches_no_other_group(case):
    penalty, w = case.make(), normal(case.shape)
    groups = getattr(penalty, "by", None) if case.constraint else penalty.groups
    if groups is None or groups.count(w) == 1:
        assert case.entry or "whole" in case.id or not case.smooth
        return
    broken, mark = w.clone(), torch.zeros_like(w)
    broken[0, 0], mark[0, 0] = math.nan, 1.0
    touched = groups.expand(groups.sum(mark), w).broadcast_to(w.shape) > 0
    for step in (1.0, torch.linspace(0.1, 2.0, w.numel(), dtype=F64).reshape(w.shape)):
        assert torch.equal(penalty.prox(broken, step)[~touched], penalty.prox(w, step)[~touched])


@every()
def test_value_of_a_nan_is_nan(case):
    w = normal(case.shape).abs()
    w.view(-1)[2] = math.nan
    assert case.make().value(w).isnan()


@every()
@loop("dtype", DTYPES[1:])
@each_step("one", "endless", "adaptive")
def test_low_precision_agrees_with_float64_of_the_same_input(case, dtype, step):
    """One rounding of the result, and of the step; inputs stay off the jumps of L0, MCP and SCAD."""
    penalty, w, t = case.make(), normal(case.shape).to(dtype), step(case.shape)
    t = t.float() if isinstance(t, torch.Tensor) else t
    exact = penalty.prox(w.double(), t.double() if isinstance(t, torch.Tensor) else t)
    p = penalty.prox(w, t)
    assert p.dtype == dtype
    eps = max(torch.finfo(dtype).eps, 8 * torch.finfo(torch.float32).eps)
    assert float((p.double() - exact).abs().max()) <= eps * max(1.0, float(w.abs().max()))


@every()
@loop("dtype", DTYPES[1:])
def test_value_is_at_least_float32_and_agrees_with_float64(case, dtype):
    penalty, w = case.make(), normal(case.shape).abs().to(dtype)
    w = penalty.prox(w, 0.5)  # so that forced entries are zero
    value = penalty.value(w)
    assert value.shape == ()
    assert value.dtype in (torch.promote_types(dtype, torch.float32), F64)
    reference = penalty.value(w.double())
    bounded = case.constraint or "Ball" in case.id or "MaxNorm" in case.id  # what is rounded may lie just outside
    rounded = case.id.startswith("Towards") and dtype in (torch.bfloat16, torch.float16)
    if not (rounded or bounded):  # a forced entry rounds to its reference, which half precision cannot hold
        assert torch.allclose(value.double(), reference, rtol=1e-5, atol=1e-7)


@every()
def test_towards_and_all_others_stay_finite_in_half(case):
    for dtype in (torch.bfloat16, torch.float16):
        w = normal(case.shape, scale=100.0).abs().to(dtype)
        assert case.make().prox(w, 0.5).isfinite().all()


@every()
def test_a_transposed_or_strided_tensor_is_like_its_copy(case):
    penalty, w = case.make(), normal(case.shape)
    room = torch.zeros(*case.shape[:-1], 2 * case.shape[-1], dtype=F64)
    room[..., ::2] = w
    strided = room[..., ::2]
    assert not strided.is_contiguous()
    step = case.step(torch.linspace(0.3, 2.0, w.numel(), dtype=F64).reshape(case.shape))
    assert torch.equal(penalty.prox(strided, step), penalty.prox(w, step))
    assert torch.allclose(penalty.prox(strided, 0.7), penalty.prox(w, 0.7), rtol=1e-15, atol=0)  # order of sums
    assert torch.allclose(penalty.value(strided), penalty.value(w), rtol=1e-15, atol=0, equal_nan=True)


FREE_SHAPE = [c for c in CATALOG if "sha256" not in str(c.make().spec())]  # those that hold no tensor


@every(*FREE_SHAPE)
@loop("lead", [0, 2])
def test_a_tensor_without_entries(case, lead):
    penalty = case.make()
    shape = (lead, *[0] * (len(case.shape) - 1)) if len(case.shape) > 1 else (0,)
    w = torch.zeros(shape, dtype=torch.float32)
    for step in (0.0, 1.0, torch.ones(shape)):
        assert penalty.prox(w, step).shape == shape
    assert float(penalty.value(w)) == 0.0
    penalty.prox_([w], [1.0])


@every()
@loop("dtype", [torch.complex64, torch.int64, torch.bool])
def test_what_is_not_real_floating_point_is_refused(case, dtype):
    w = torch.ones(case.shape).to(dtype)
    for act in (lambda p: p.value(w), lambda p: p.prox(w, 1.0), lambda p: p.check(w)):
        with pytest.raises(TypeError, match="real floating-point"):
            act(case.make())
