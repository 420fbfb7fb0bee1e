"""Total variation: against a dual active-set solver, its optimality conditions and a walk over all partitions."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import F64, QUICK, generator, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from torchreg import L1, L1L2, L2, NoExactProx, NonNegative, TotalVariation, Weighted
from torchreg.functional import total_variation


def dual_solver(w: np.ndarray, t: np.ndarray, alpha: float) -> np.ndarray:
    """``u = w - t D'y`` with y from scipy's bounded-variable least squares: ``min |sqrt(t) D'y - w / sqrt(t)|, |y| <=
    alpha``."""
    if len(w) == 1:
        return w
    slopes = np.diff(np.eye(len(w)), axis=0).T
    y = lsq_linear(np.sqrt(t)[:, None] * slopes, w / np.sqrt(t), (-alpha, alpha), method="bvls", tol=1e-15).x
    return w - t * (slopes @ y)


def by_partitions(w: np.ndarray, t: np.ndarray, alpha: float) -> np.ndarray:
    """The best of all partitions into pieces and of all signs of the jumps between them."""
    best, least = w, math.inf
    for cuts in itertools.product([0, -1, 1], repeat=len(w) - 1):
        label, sign = np.cumsum([0, *map(abs, cuts)]), [0, *[s for s in cuts if s], 0]
        u = np.empty_like(w)
        for g in range(label[-1] + 1):
            own = label == g
            u[own] = ((w / t)[own].sum() + alpha * (sign[g + 1] - sign[g])) / (1 / t)[own].sum()
        cost = alpha * np.abs(np.diff(u)).sum() + ((u - w) ** 2 / (2 * t)).sum()
        if cost < least:
            best, least = u, cost
    return best


def residual(w: torch.Tensor, t: torch.Tensor, alpha: float, u: torch.Tensor) -> float:
    """In units of alpha, how far u is from optimality: y = cumsum((w - u) / t) is within alpha, and at it at jumps."""
    y, jump = ((w - u) / t).cumsum(-1), u.diff(dim=-1)
    inside = (y.abs().amax() - alpha).clamp(min=0.0)
    at_jumps = torch.where(jump != 0, (y[..., :-1] + alpha * jump.sign()).abs(), 0.0).amax()
    return float(torch.stack([y[..., -1].abs().max(), inside, at_jumps]).max()) / alpha


@pytest.mark.parametrize("length", [1, 2, 3, 8, 30])
@pytest.mark.parametrize("alpha", [0.02, 0.5, 3.0, 100.0])
def test_one_row_equals_the_dual_active_set_solver(length, alpha):
    for seed in range(4):
        w, t = normal((length,), seed), torch.rand(length, generator=generator(seed), dtype=F64) + 0.05
        for step in (t, 0.7):
            per_entry = t if isinstance(step, torch.Tensor) else torch.full_like(w, step)
            oracle = torch.from_numpy(dual_solver(w.numpy(), per_entry.numpy(), alpha))
            assert torch.allclose(TotalVariation(alpha).prox(w, step), oracle, rtol=0, atol=1e-9)  # bvls's own


VALUES = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 1e-3, 100.0, 1 / 3])


@settings(QUICK, max_examples=30)
@given(
    w=st.lists(VALUES, min_size=2, max_size=6),
    steps=st.lists(st.sampled_from([1e-3, 0.5, 1.0, 4.0]), min_size=6, max_size=6),
    alpha=st.sampled_from([0.1, 0.5, 1.0, 2.5]),
)
def test_ties_and_far_values_equal_the_best_partition(w, steps, alpha):
    """Jumps that vanish at exactly this alpha, equal entries, steps of condition 4000."""
    t = steps[: len(w)]
    best = by_partitions(np.array(w), np.array(t), alpha)
    found = TotalVariation(alpha).prox(torch.tensor(w, dtype=F64), torch.tensor(t, dtype=F64))
    assert np.allclose(found.numpy(), best, rtol=0, atol=1e-11)  # float64 of numbers up to 100 over steps from 1e-3


@pytest.mark.parametrize("length", [1000, 100_001])
@pytest.mark.parametrize("walk", [False, True])
@pytest.mark.parametrize("alpha", [0.1, 3.0, 100.0])
def test_long_rows_satisfy_the_optimality_condition(length, walk, alpha):
    w = normal((2, length))
    w = w.cumsum(-1) if walk else w
    for t in (torch.ones_like(w), torch.rand(w.shape, generator=generator(1), dtype=F64) + 0.05):
        u = TotalVariation(alpha).prox(w, 1.0 if bool((t == 1).all()) else t)
        # rounding of sums of so many terms, which the condition itself adds up
        assert residual(w, t, alpha, u) < 1e-14 * length * float(w.abs().max()) / alpha + 1e-12


def test_pieces_of_a_long_row_are_exactly_constant():
    truth = torch.tensor([0.0, 2.0, -1.0, 3.0], dtype=F64).repeat_interleave(250)
    u = TotalVariation(20.0).prox(truth + 0.1 * normal((1000,)), 1.0)
    jumps = (u.diff() != 0).nonzero().flatten()
    assert jumps.tolist() == [249, 499, 749]  # and not one of 1e-16


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 1 / 3])
def test_neighbours_that_just_meet_are_equal_to_the_bit(alpha):
    """Thirds of integers, where many jumps vanish at exactly this alpha: none is left of the size of rounding."""
    draw = generator(0)
    for seed in range(10):
        w = torch.randint(-3, 4, (8, 20 + 15 * seed), generator=draw).double() / 3
        jumps = TotalVariation(alpha).prox(w, 1.0).diff(dim=-1).abs()
        assert float(jumps[jumps > 0].min()) > 1e-6  # means of at most 155 thirds differ by 1 / (3 * 155^2) at least


@pytest.mark.parametrize("shape", [(600,), (3, 40)])
@pytest.mark.parametrize("kind", ["noise", "walk", "powers of 2", "equal", "steps"])
def test_as_many_rounds_as_a_device_takes_find_the_same(shape, kind, monkeypatch):
    """A device does not wait to know that nothing is cut any more: it runs every round."""
    w = {
        "noise": normal(shape),
        "walk": normal(shape).cumsum(-1),
        "powers of 2": torch.exp2(torch.linspace(-500, 500, shape[-1], dtype=F64)).expand(shape),
        "equal": torch.full(shape, 1 / 3, dtype=F64),
        "steps": normal(shape).round(),
    }[kind]
    t = torch.rand(shape, generator=generator(2), dtype=F64) + 0.01
    t.view(-1)[::7] = 0.0
    stopped = [TotalVariation(0.7).prox(w, step) for step in (1.0, t)]
    monkeypatch.setattr(total_variation, "_may_wait", lambda x: False)
    for step, early in zip((1.0, t), stopped, strict=True):
        assert torch.allclose(TotalVariation(0.7).prox(w, step), early, rtol=1e-13, atol=1e-13)


def test_one_dimension_at_a_time_equals_a_loop_over_rows():
    w, t = normal((3, 5, 4)), torch.rand((3, 5, 4), generator=generator(3), dtype=F64) + 0.1
    for dim in (0, 1, 2, -1, -3):
        penalty = TotalVariation(0.5, dim=dim)
        got = penalty.prox(w, t).movedim(dim, -1).reshape(-1, w.shape[dim])
        rows = zip(*(x.movedim(dim, -1).reshape(-1, w.shape[dim]) for x in (w, t)), strict=True)
        alone = torch.stack([TotalVariation(0.5).prox(x, s) for x, s in rows])
        assert torch.allclose(got, alone, rtol=0, atol=1e-14)
        assert float(penalty.value(w)) == pytest.approx(0.5 * np.abs(np.diff(w.numpy(), axis=dim)).sum(), rel=1e-14)


@pytest.mark.parametrize("inner", [L1(0.3), L1L2(0.4, 0.5), NonNegative(L1(0.3))], ids=repr)
def test_the_fused_lasso_satisfies_its_optimality_condition(inner):
    """Where its own prox at ``u`` returns ``u`` after a step along the dual of the total variation."""
    w = normal((40,))
    u = (TotalVariation(0.5) + inner).prox(w, 1.0)
    assert 0 < int((u == 0).sum()) < 40
    between = TotalVariation(0.5).prox(w, 1.0)
    y = (w - between).cumsum(-1)[:-1]
    jump = u.diff()
    assert float(torch.where(jump != 0, (y + 0.5 * jump.sign()).abs(), 0.0).max()) < 1e-13
    assert torch.equal(inner.prox(between, 1.0), u)


def test_what_does_not_compose_with_it_is_refused():
    for other in (Weighted(L1(0.1), torch.ones(3)), TotalVariation(0.2)):
        with pytest.raises(NoExactProx, match=r"TotalVariation\(...\) \+ L1"):
            TotalVariation(0.1) + other
    assert (TotalVariation(0.1) + L2(0.1)).prox(normal((5,)), torch.rand(5, dtype=F64)).shape == (5,)


def test_its_largest_alpha_is_that_of_a_gradient_that_sums_to_zero():
    grad = normal((3, 7))
    assert float(TotalVariation(1.0).alpha_max(grad)) == math.inf
    balanced = grad - grad.mean(-1, keepdim=True)
    alpha = TotalVariation(1.0).alpha_max(balanced)
    assert float(alpha) == pytest.approx(float(balanced.cumsum(-1).abs().max()), rel=1e-15)
    for factor, flat in ((1.0 + 1e-9, True), (1.0 - 1e-6, False)):
        left = TotalVariation(factor * float(alpha)).prox(-balanced, 1.0)
        assert bool((left.diff(dim=-1).abs() < 1e-15).all()) is flat


@pytest.mark.parametrize(("dim", "shape"), [(1, (3,)), (-2, (3,)), (2, (3, 4)), (0, ())])
def test_a_dimension_that_is_not_there_is_named(dim, shape):
    with pytest.raises(ValueError, match=rf"dim={dim} .*shape"):
        TotalVariation(0.1, dim=dim).check(torch.ones(shape))


@pytest.mark.parametrize("dim", [True, 1.0, "0"])
def test_a_dimension_is_an_integer(dim):
    with pytest.raises(TypeError, match=f"got {type(dim).__name__}"):
        TotalVariation(0.1, dim=dim)


def test_a_row_with_a_nan_stays_and_the_others_do_not():
    w = normal((3, 6))
    w[1, 2] = math.nan
    u = TotalVariation(1.0).prox(w, 1.0)
    assert torch.equal(u[1].nan_to_num(9.0), w[1].nan_to_num(9.0))
    assert torch.equal(u[[0, 2]], TotalVariation(1.0).prox(w[[0, 2]], 1.0))


def test_it_compiles_whole():
    w = normal((4, 9))
    compiled = torch.compile(lambda x: TotalVariation(0.3).prox(x, 0.5), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(w), TotalVariation(0.3).prox(w, 0.5))
