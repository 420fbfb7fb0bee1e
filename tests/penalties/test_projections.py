"""Projections and ordered norms against loops, root finders and each other; constraints have no strength."""

import math

import numpy as np
import pytest
import torch
from helpers import F64, QUICK, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor, nn

from torchreg import (
    L1,
    L2,
    SLOPE,
    Box,
    Group,
    L1Ball,
    L2Ball,
    LInf,
    MaxNorm,
    NonNegative,
    Penalty,
    PenaltyScheduler,
    ProxOptimizer,
    Simplex,
    Sum,
    Towards,
    UnitNorm,
    Weighted,
    ablate,
    attach,
    columns,
    labels,
    penalty_metrics,
    rows,
    schedules,
    whole,
)

LABELS = labels(torch.tensor([[0, 1, 2, 2], [1, 1, 0, 4], [2, 0, 1, 0]]))  # group 3 is empty
BY = {"whole": whole, "rows": rows, "columns": columns, "labels": LABELS}
each_by = pytest.mark.parametrize("by", BY.values(), ids=BY)
BOUNDS: list[Penalty] = [
    Box(-0.5, 0.25),
    Simplex(2.0),
    Simplex(by=rows),
    L1Ball(0.7),
    L1Ball(0.7, by=columns),
    L2Ball(0.9),
    MaxNorm(0.6),
    UnitNorm(),
    UnitNorm(by=LABELS),
]
each_bound = pytest.mark.parametrize("penalty", BOUNDS, ids=repr)


def steps(shape: tuple[int, ...], seed: int, decades: float = 2.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 10.0 ** (decades * (torch.rand(shape, generator=draw, dtype=F64) - 0.5))


def split(by, *tensors: Tensor) -> list[tuple[np.ndarray, ...]]:
    """The entries of each group that has any."""
    like = tensors[0]
    index = by.expand(torch.arange(by.count(like)), like).broadcast_to(like.shape)
    return [tuple(x[index == g].numpy() for x in tensors) for g in index.unique()]


def level(x: np.ndarray, s: np.ndarray, low: float, high: float) -> float:
    return brentq(lambda c: np.maximum(x - c * s, 0).sum() - 1.1, low, high, xtol=1e-300, rtol=1e-15)


def multiplier(x: np.ndarray, s: np.ndarray, high: float) -> float:
    return brentq(lambda m: np.linalg.norm(x / (1 + m * s)) - 1.1, 0.0, high, xtol=1e-300, rtol=1e-15)


@each_by
@pytest.mark.parametrize("decades", [0.0, 2.0, 8.0])
def test_balls_and_simplices_have_the_multiplier_that_a_root_finder_finds(by, decades):
    for seed in range(10):
        w, t = normal((3, 4), seed), steps((3, 4), seed, decades)
        found = {
            "l1": L1Ball(1.1, by=by).prox(w, t),
            "simplex": Simplex(1.1, by=by).prox(w, t),
            "norm": MaxNorm(1.1, by=by).prox(w, t),
        }
        for x, s, l1, simplex, norm in split(by, w, t, *found.values()):
            far = 1e3 * np.abs(x).max() / s.min()
            c = level(x, s, -far, far)
            assert np.allclose(simplex, np.maximum(x - c * s, 0), rtol=1e-9, atol=1e-12)
            if np.abs(x).sum() <= 1.1:
                assert np.array_equal(l1, x)
            else:
                c = level(np.abs(x), s, 0.0, far)
                assert np.allclose(l1, np.sign(x) * np.maximum(np.abs(x) - c * s, 0), rtol=1e-9, atol=1e-12)
            if np.linalg.norm(x) <= 1.1:
                assert np.array_equal(norm, x)
            else:
                mu = multiplier(x, s, far)
                assert np.allclose(norm, x / (1 + mu * s), rtol=1e-9, atol=1e-12)


def test_a_point_of_the_unit_circle_is_the_nearest_of_all_angles():
    angles = torch.linspace(0.0, 2.0 * math.pi, 200_001, dtype=F64)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    starts = [(0.3, 0.2), (3.0, -4.0), (0.0, 0.5), (0.5, 0.0), (0.0, -0.01), (-0.2, 0.0), (0.0, 0.0), (0.0, 1.0)]
    for start in starts:
        for step in ((1.0, 1.0), (1.0, 4.0), (4.0, 1.0), (0.01, 9.0)):
            w, t = torch.tensor([start], dtype=F64), torch.tensor([step], dtype=F64)
            u = UnitNorm().prox(w, t)
            assert float(u.norm()) == pytest.approx(1.0, rel=1e-14)
            costs = ((circle - w) ** 2 / t).sum(1)
            assert float(((u - w) ** 2 / t).sum()) <= float(costs.min()) + 1e-9  # the grid is 3e-5 wide


@each_by
def test_what_the_largest_size_leaves_is_the_projection_on_an_l1_ball(by):
    """Moreau: prox of t * LInf at w is ``w - t P(w / t)``, P the projection in the inverse metric."""
    for seed in range(10):
        w, t = normal((3, 4), seed), steps((3, 4), seed)
        for step in (0.7, t):
            rest = step * L1Ball(0.9, by=by).prox(w / step, 1.0 / step)
            assert torch.allclose(LInf(0.9, by=by).prox(w, step), w - rest, rtol=1e-11, atol=1e-12)


def pooled(y: np.ndarray) -> np.ndarray:
    stack: list[tuple[float, int]] = []
    for value in y:
        stack.append((float(value), 1))
        while len(stack) > 1 and stack[-1][0] * stack[-2][1] > stack[-2][0] * stack[-1][1]:
            (s, n), (r, m) = stack.pop(), stack.pop()
            stack.append((s + r, n + m))
    return np.concatenate([np.full(n, s / n) for s, n in stack])


@pytest.mark.parametrize("size", [1, 2, 7, 100, 3000])
def test_a_sorted_norm_is_that_of_a_stack(size):
    """Bogdan et al., algorithm 4, entry by entry."""
    for seed in range(4):
        w = normal((size,), seed)
        weights = normal((size,), seed + 50).abs().sort(descending=True).values
        order = np.argsort(-w.abs().numpy(), kind="stable")
        wanted = np.zeros(size)
        wanted[order] = np.maximum(pooled(w.abs().numpy()[order] - 0.3 * weights.numpy()), 0.0)
        found = SLOPE(0.6, weights).prox(w, 0.5)
        assert np.allclose(found.numpy(), np.sign(w.numpy()) * wanted, rtol=1e-12, atol=1e-14)
        assert np.array_equal(found.numpy() == 0, wanted == 0)


@pytest.mark.parametrize("step", [0.7, steps((4, 5), 3), steps((4, 5), 4, 10.0)], ids=["one", "metric", "wild metric"])
def test_sorted_norms_of_one_weight_for_all_and_of_a_single_one(step):
    w, ones = normal((4, 5)), torch.ones(20, dtype=F64)
    first = torch.zeros(20, dtype=F64)
    first[0] = 1.0
    for alpha in (0.1, 1.0, 5.0):
        # 1e-9: LInf and SLOPE reach the same point by other sums, over steps ten decades apart
        assert torch.allclose(SLOPE(alpha, ones).prox(w, step), L1(alpha).prox(w, step), rtol=1e-9, atol=1e-12)
        assert torch.allclose(SLOPE(alpha, first).prox(w, step), LInf(alpha).prox(w, step), rtol=1e-9, atol=1e-12)
    assert torch.allclose(SLOPE(1.0, ones).value(w), L1(1.0).value(w), rtol=1e-15)
    assert torch.allclose(SLOPE(1.0, first).value(w), LInf(1.0).value(w), rtol=1e-15)


def test_the_default_weights_are_those_of_benjamini_and_hochberg():
    from scipy.stats import norm

    w = normal((50,))
    wanted = norm.isf(0.2 * np.arange(1, 51) / 100)
    sizes = np.sort(w.abs().numpy())[::-1]
    assert float(SLOPE(0.5, q=0.2).value(w)) == pytest.approx(0.5 * (wanted * sizes).sum(), rel=1e-12)


def test_balls_agree_with_what_torch_has():
    w = normal((5, 4))
    assert torch.equal(Box(-1.0, 0.5).prox(w, 0.1), w.clamp(-1.0, 0.5))
    assert torch.allclose(MaxNorm(1.0).prox(w, 0.1), w.renorm(2, 0, 1.0), rtol=1e-6)  # which divides by norm + 1e-7
    assert torch.allclose(MaxNorm(1.0, by=columns).prox(w, 0.1), w.renorm(2, 1, 1.0), rtol=1e-6)
    assert torch.allclose(UnitNorm().prox(w, 0.1), nn.functional.normalize(w), rtol=1e-14)
    assert torch.equal(L2Ball(1.5).prox(w, 0.1), MaxNorm(1.5, by=whole).prox(w, 0.1))


@each_bound
@settings(QUICK, max_examples=40)
@given(
    entries=st.lists(st.floats(-1e6, 1e6, width=32), min_size=12, max_size=12),
    wide=st.booleans(),
    dtype=st.sampled_from([F64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_what_is_projected_is_inside_and_stays(penalty, entries, wide, dtype):
    w = torch.tensor(entries, dtype=F64).to(dtype).reshape(3, 4).clamp(-6e4, 6e4)
    step = steps((3, 4), 1) if wide else 0.3
    p = penalty.prox(w, step)
    assert float(penalty.value(p)) == 0.0
    assert torch.equal(penalty.prox(p, step), p)


def test_weights_far_beyond_a_simplex_end_on_it():
    for size in (1e9, 1e20, 1e300):
        w = torch.tensor([[size, size, 0.5 * size, -size]], dtype=F64)
        assert Simplex().prox(w, 0.1).tolist() == [[0.5, 0.5, 0.0, 0.0]]


@each_bound
def test_outside_is_infinite_and_gradients_are_zero(penalty):
    far = torch.full((3, 4), -7.0, dtype=F64, requires_grad=True)
    value = penalty.value(far)
    assert float(value.detach()) == math.inf
    value.backward()
    assert torch.equal(far.grad, torch.zeros_like(far))
    assert penalty.value(torch.full((3, 4), math.nan)).isnan()
    for eps in (1e-6, 1e-9):  # float64 tells these from rounding, where the bound is reached
        p = penalty.prox(far.detach(), 1.0) * (1.0 + eps)
        assert float(penalty.value(p)) == math.inf


@each_bound
def test_fixed_entries_that_leave_nothing_send_the_others_as_near_as_they_can(penalty):
    w = torch.full((3, 4), 5.0, dtype=F64)
    step = torch.ones(3, 4, dtype=F64)
    step[:, :2] = 0.0
    p = penalty.prox(w, step)
    assert torch.equal(p[:, :2], w[:, :2])
    assert p.isfinite().all()
    assert float(p[:, 2:].abs().max()) <= 5.0
    assert torch.equal(penalty.prox(w, torch.zeros(3, 4)), w)


@each_bound
def test_a_constraint_has_no_strength_to_set_schedule_or_search(penalty, tmp_path):
    says = "is a constraint: it holds or not, and has no strength"
    w = nn.Parameter(penalty.prox(normal((3, 4)), 1.0))
    term = attach(penalty, {"w": w})
    opt = torch.optim.SGD([w], lr=0.1)
    assert "alpha" not in penalty_metrics(term)
    assert repr(penalty) in repr(term)
    for act in (
        lambda: penalty.with_alpha(0.5),
        lambda: penalty.alpha_max(w),
        lambda: term.alpha,
        lambda: setattr(term, "alpha", 0.1),
        lambda: PenaltyScheduler(term, schedules.linear(0.0, 1.0, 10), optimizer=opt),
        lambda: ablate(lambda penalty: {"loss": 0.0}, penalty, [0.1], out=tmp_path),
    ):
        with pytest.raises(ValueError, match=says):
            act()


def test_around_and_beside_others():
    assert str(Towards(L2Ball(1.0), torch.zeros(2))).startswith("Towards(penalty=L2Ball(radius=1)")
    with pytest.raises(ValueError, match="is a constraint"):
        NonNegative(L1Ball(1.0)).with_alpha(0.1)
    lead = L1(1.0) + L2Ball(2.0)
    assert lead.with_alpha(0.25).alpha == 0.25
    w = normal((3, 4))
    assert torch.equal(lead.with_alpha(0.25).prox(w, 2.0), L2Ball(2.0).prox(L1(0.25).prox(w, 2.0), 2.0))
    with pytest.raises(ValueError, match=r"Write \(L1\(alpha=1\) \+ L2Ball\(radius=2\)\).with_alpha\(0.1\)"):
        (L1(0.1) + L2Ball(2.0)).with_alpha(0.5)
    with pytest.raises(ValueError, match="has several strengths"):
        (L2Ball(2.0) + L2(0.1)).with_alpha(0.5)
    off = Sum((L1Ball(0.1),), alpha=0.0)
    assert torch.equal(off.prox(w, 1.0), w)
    assert float(off.value(w)) == 0.0
    for one, other in ((L1(0.1), L1Ball(1.0)), (Box(0.0, 1.0), L1(0.1)), (UnitNorm(), L1(0.1)), (LInf(0.1), L1(0.1))):
        with pytest.raises(TypeError, match="no exact proximal map"):
            one + other
    for outside in (NonNegative, lambda p: Weighted(p, 1.0), lambda p: Group(p, rows)):
        with pytest.raises(TypeError):
            outside(UnitNorm())


def test_a_checkpoint_tells_another_radius():
    def make(radius: float) -> ProxOptimizer:
        w = nn.Parameter(torch.ones(2, 2))
        opt = ProxOptimizer(torch.optim.SGD([w], lr=0.1), attach(MaxNorm(radius), {"w": w}))
        w.grad = torch.ones_like(w)
        opt.step()
        return opt

    saved = make(1.0).state_dict()
    make(1.0).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"MaxNorm\(radius=1.*MaxNorm\(radius=2"):
        make(2.0).load_state_dict(saved)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: L1Ball(0.0), ValueError, "finite radius > 0, got 0.0"),
        (lambda: L2Ball(-1.0), ValueError, "L2Ball needs a finite radius > 0"),
        (lambda: MaxNorm(math.inf), ValueError, "finite radius"),
        (lambda: Simplex(math.nan), ValueError, "finite radius"),
        (lambda: MaxNorm("1"), TypeError, "radius as a number, got str"),
        (lambda: MaxNorm(True), TypeError, "radius as a number, got bool"),
        (lambda: L1Ball(torch.ones(2)), ValueError, "0-d floating tensor"),
        (lambda: L1Ball(torch.tensor(1)), ValueError, "0-d floating tensor, got a torch.int64"),
        (lambda: MaxNorm(1.0, by="rows"), TypeError, "MaxNorm needs by=rows"),
        (lambda: UnitNorm(by=None), TypeError, "UnitNorm needs by=rows"),
        (lambda: LInf(0.1, by=0), TypeError, "LInf needs by=rows"),
        (lambda: LInf(-0.1), ValueError, "LInf needs a finite alpha"),
        (lambda: Box(1.0, 0.0), ValueError, "low <= high"),
        (lambda: Box(math.nan, 0.0), ValueError, "low <= high"),
        (lambda: Box(torch.tensor([0.0, 1.0]), 0.5), ValueError, "low <= high"),
        (lambda: Box(torch.tensor([0, 1]), 5.0), TypeError, "floating tensor as low"),
        (lambda: Box(0.0, "1"), TypeError, "high as a number"),
        (lambda: SLOPE(0.1, torch.tensor([1.0, 2.0])), ValueError, "do not rise"),
        (lambda: SLOPE(0.1, torch.tensor([1.0, -2.0])), ValueError, ">= 0"),
        (lambda: SLOPE(0.1, torch.tensor([math.inf, 1.0])), ValueError, "finite weights"),
        (lambda: SLOPE(0.1, torch.ones(2, 2)), ValueError, "of shape"),
        (lambda: SLOPE(0.1, [1.0, 0.5]), TypeError, "floating tensor, got list"),
        (lambda: SLOPE(0.1, q=1.0), ValueError, "q between 0 and 1"),
        (lambda: SLOPE(0.1, torch.ones(3)).check(torch.ones(2, 2)), ValueError, "do not fit the 4 entries"),
        (lambda: Box(torch.zeros(3), 1.0).check(torch.ones(2, 2)), ValueError, "Box's low"),
        (lambda: MaxNorm(1.0, by=columns).check(torch.ones(3)), ValueError, "columns"),
        (lambda: LInf(1.0, by=columns).check(torch.ones(3)), ValueError, "columns"),
    ],
)
def test_bad_arguments_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize("constraint", [MaxNorm(1.0), UnitNorm(), L2Ball(30.0), L1Ball(1000.0)], ids=repr)
def test_a_bound_holds_in_a_large_tensor_of_half_precision(constraint):
    w = torch.zeros(2048, 2048, dtype=torch.float16)
    w[:, 0] = 1.1
    assert constraint.value(w) == math.inf
    near = constraint.prox(w, 1.0)
    assert constraint.value(near) == 0.0
    assert float(near.double().norm(dim=1).max()) < 1.001


def test_small_entries_of_half_precision_that_rounding_carries_out_are_inside():
    near = L1Ball(0.004).prox(torch.ones(100_000, dtype=torch.float16), 1.0)
    assert L1Ball(0.004).value(near) == 0.0


@pytest.mark.parametrize("radius", [-1.0, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("kind", [L1Ball, L2Ball, MaxNorm, Simplex])
def test_a_tensor_radius_is_read_when_it_is_attached(kind, radius):
    with pytest.raises(ValueError, match=f"{kind.__name__} needs a finite radius > 0"):
        attach(kind(torch.tensor(radius)), nn.Linear(3, 2))


def test_conjugates_of_nothing_are_0():
    for constraint in (Simplex(), L1Ball(1.0), L2Ball(1.0), MaxNorm(1.0), Box(-1.0, 1.0)):
        assert constraint.conjugate(torch.zeros(0, 3)) == 0.0
