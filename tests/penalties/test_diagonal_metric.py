"""Groups in an ill-conditioned metric: exact to the optimality condition and to a brute-force root."""

import numpy as np
import pytest
import torch
from helpers import F64, generator, normal, objective
from scipy.optimize import brentq, minimize

from torchreg import L1, L1L2, MCP, SCAD, Group, columns, labels, rows
from torchreg.penalties import diagonal_metric as secular

SHAPE = (40, 12)


def metric(condition: float, seed: int = 0) -> torch.Tensor:
    """Steps spread over the condition, log-uniformly, both ends taken in every row."""
    exponent = torch.rand(SHAPE, generator=generator(seed), dtype=F64)
    exponent[:, 0], exponent[:, 1] = 0.0, 1.0
    return condition ** (exponent - 0.5)


def secular_root(z: np.ndarray, step: np.ndarray, level: float) -> np.ndarray:
    """The group lasso's prox by scipy's root finder on ``sum z^2 / (r + level t)^2 = 1``."""
    if np.linalg.norm(z / step) <= level:
        return np.zeros_like(z)
    f = lambda log_r: np.log(np.sum((z / (np.exp(log_r) + level * step)) ** 2))  # noqa: E731
    r = np.exp(brentq(f, -80.0, np.log(np.linalg.norm(z)) + 1.0, xtol=1e-15, rtol=1e-15))
    return z * r / (r + level * step)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6, 1e8, 1e10])
@pytest.mark.parametrize("alpha", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_group_lasso_equals_a_root_finder(condition, alpha, scale):
    z, step = scale * normal(SHAPE), metric(condition)
    ours = Group(L1(alpha), by=rows, weights=1.0).prox(z, step)
    exact = np.stack([secular_root(a, t, alpha) for a, t in zip(z.numpy(), step.numpy(), strict=True)])
    assert ((ours.numpy() == 0) == (exact == 0)).all()
    off = np.linalg.norm(ours.numpy() - exact, axis=1) / np.maximum(np.linalg.norm(exact, axis=1), 1e-300)
    assert off.max() < 1e-10  # brentq's own root is good to about 1e-12 where the metric spreads over 1e10


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e10])
def test_group_lasso_satisfies_its_optimality_condition(condition):
    """``(z - x) / t`` is ``level x / |x|`` where x is not zero, and no longer than level where it is."""
    for seed in range(5):
        step = metric(condition, seed)
        z = normal(SHAPE, seed) * torch.logspace(-3, 12, len(step), dtype=F64)[:, None] * step.amin()
        x = Group(L1(1.0), by=rows, weights=1.0).prox(z, step)
        slope, norm = (z - x) / step, x.norm(dim=1, keepdim=True)
        zero = norm[:, 0] == 0
        assert zero.any()
        assert not zero.all()
        assert float(slope[zero].norm(dim=1).max()) <= 1.0 + 1e-12
        residual = (step * (slope - x / norm))[~zero]  # weighted by the step: (z - x) / t cancels at tiny steps
        assert float((residual.abs() / (z[~zero].abs() + step[~zero])).max()) < 1e-12


def test_zero_decision_is_sharp():
    """A group is zero exactly while ``|z / t| <= level``: the group's mean step would decide otherwise."""
    step = metric(1e8)
    z = normal(SHAPE)
    edge = (z / step).norm(dim=1, keepdim=True)
    for factor, zero in ((1.0 - 1e-9, True), (1.0 + 1e-9, False)):
        x = Group(L1(1.0), by=rows, weights=1.0).prox(z / edge * factor, step)
        assert bool(((x == 0).all(dim=1) == zero).all())


@pytest.mark.parametrize("penalty", [L1L2(1.0, 0.6), MCP(0.8, 2.5), SCAD(0.8, 3.2)], ids=repr)
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_other_norms_beat_a_general_minimiser(penalty, condition):
    """scipy's BFGS from several starts finds nothing lower than the prox."""
    group = Group(penalty, by=rows, weights=1.0)
    for seed in range(3):
        z, step = normal((1, 4), seed), metric(condition, seed)[:1, :4]
        x = group.prox(z, step)
        ours = float(objective(group, z, step, x[None]))

        def cost(flat, z=z, step=step):
            u = torch.tensor(flat, dtype=F64).reshape(1, 4).requires_grad_()
            total = group.value(u) + ((u - z) ** 2 / (2.0 * step)).sum()
            (slope,) = torch.autograd.grad(total, u)
            return float(total.detach()), slope.numpy().ravel()

        starts = [z, x + 1e-3, 0.3 * z, z / (1.0 + step)]
        best = min(minimize(cost, s.numpy().ravel(), jac=True, method="L-BFGS-B").fun for s in starts)
        assert ours <= best + 1e-9 * (1.0 + abs(best))  # what L-BFGS-B itself leaves


def test_metric_prox_in_float32_is_as_good_as_its_input():
    z, step = normal(SHAPE).float(), metric(1e6).float()
    penalty = Group(L1(0.5), by=rows)
    exact = penalty.prox(z.double(), step.double())
    assert torch.allclose(penalty.prox(z, step).double(), exact, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("by", [rows, columns, labels(torch.arange(40) % 7)], ids=repr)
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e6, 1e10])
def test_in_place_float32_gives_what_float64_gives_on_the_same_numbers(condition, by):
    """But for two roundings of the weights, and zero at the same places."""
    z, step = normal(SHAPE).float(), metric(condition).float()
    for alpha in (0.0, 1e-6, 1e-3, 0.1, 1.0, 5.0, 100.0, 1e4):
        penalty, found = Group(L1(alpha), by=by), z.clone()
        penalty.prox_([found], [step])
        exact = penalty.prox(z.double(), step.double())
        assert torch.equal(found == 0, exact == 0)
        ulp = torch.nextafter(z.abs(), z.abs() + 1.0) - z.abs()
        assert ((found - exact).abs() <= 2.0 * ulp).all()


def test_in_place_float32_decides_as_float64_where_a_group_is_about_to_vanish():
    step, z = metric(1e4).float(), normal(SHAPE).float()
    level = (z.double() / step.double()).norm(dim=1)
    for factor in (1.0 - 1e-8, 1.0 + 1e-8):  # less than a rounding of float32 away
        penalty, found = Group(L1(1.0), by=rows, weights=level * factor), z.clone()
        penalty.prox_([found], [step])
        assert bool((found == 0).all()) == (factor > 1.0)


@pytest.mark.parametrize("odd", ["a step of 0", "an endless step", "NaN", "inf", "tiny", "huge"])
def test_in_place_float32_leaves_odd_numbers_to_float64(odd):
    z, step = normal(SHAPE).float(), metric(1e2).float()
    row = {"NaN": torch.nan, "inf": torch.inf}.get(odd)
    z[3, 2] = z[3, 2] if row is None else row
    step[3, 2] = {"a step of 0": 0.0, "an endless step": torch.inf}.get(odd, float(step[3, 2]))
    scale = {"tiny": 1e-25, "huge": 1e25}.get(odd, 1.0)
    penalty, found = Group(L1(0.5 * scale), by=rows), z * scale
    exact = penalty.prox(found.double(), step.double())
    penalty.prox_([found], [step])
    torch.testing.assert_close(found.double() / scale, exact / scale, rtol=1e-6, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("inner", [MCP(0.4, 2.5), SCAD(0.4, 3.2)], ids=repr)
@pytest.mark.parametrize("lr", [1e-2, 1e-4, 1e-6, 1e-8])
def test_the_small_steps_of_an_optimizer_shrink_by_step_times_slope(inner, lr):
    """As ``t -> 0``, ``(z - x) / t`` tends to the gradient: thousands of tiny steps must add up."""
    group, z = Group(inner, by=rows, weights=1.0), 0.1 * normal(SHAPE)
    step = lr * (0.5 + torch.rand(SHAPE, generator=generator(1), dtype=F64))
    slope = torch.func.grad(group.value)(z)
    moved = (z - group.prox(z, step)) / step
    # second order in the step; and (z - x) / t loses eps / lr
    assert float((moved - slope).abs().max()) <= 20.0 * lr + 1e-15 / lr


def test_maps_and_gradients_of_the_prox_may_be_nested():
    draws = torch.Generator().manual_seed(0)
    w, steps = (torch.randn(3, 4, 5, 6, generator=draws, dtype=torch.float64) for _ in range(2))

    def total(w, steps):
        return torch.vmap(Group(L1(0.5), by=rows).prox)(w, steps).square().sum()

    found = torch.vmap(torch.func.grad(total))(w, steps.exp())
    for each, own, step in zip(found, w, steps.exp(), strict=True):
        for k in range(len(own)):
            leaf = own[k].clone().requires_grad_()
            Group(L1(0.5), by=rows).prox(leaf, step[k]).square().sum().backward()
            torch.testing.assert_close(each[k], leaf.grad, rtol=1e-12, atol=1e-12)


def test_newtons_method_stops_under_vmap_once_all_problems_are_solved(monkeypatch):
    calls = []
    newton = secular._newton
    monkeypatch.setattr(secular, "_newton", lambda *given: calls.append(1) or newton(*given))
    draws = torch.Generator().manual_seed(0)
    w, steps = (torch.randn(4, 5, 6, generator=draws, dtype=torch.float64) for _ in range(2))
    alphas = torch.tensor([0.0, 0.1, 0.5, 3.0], dtype=torch.float64)

    def prox(w, step, alpha):
        return Group(L1(alpha), by=rows).prox(w, step)

    found = torch.vmap(prox)(w, steps.exp(), alphas)
    assert len(calls) < secular._SECULAR_STEPS
    expected = torch.stack([prox(*given) for given in zip(w, steps.exp(), alphas, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
