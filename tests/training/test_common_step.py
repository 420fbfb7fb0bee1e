"""Penalties of a whole matrix under optimizers with a step per entry: the minimiser is an independent solver's."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from helpers import F64, generator, normal
from optimizer_catalog import RECIPES, Recipe, give_gradients, values
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import lsq_linear
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW

from torchreg import L1, L2, NoExactProx, Nuclear, ProxOptimizer, Rank, TotalVariation, attach, attach_to, violation

SAMPLES, ROWS, COLUMNS = 200, 8, 6
ALPHA, FUSED = 0.4, (0.3, 0.05)


@cache
def problem(decades: float) -> tuple[Tensor, Tensor]:
    """The Gram matrix and moments of ``|X W - Y|^2 / (2 n)``, W of rank 2."""
    scales = torch.logspace(-decades, decades, ROWS, dtype=F64)
    X = normal((SAMPLES, ROWS), 1, scale=1.0) * scales
    Y = X @ normal((ROWS, 2), 2) @ normal((2, COLUMNS), 3) + 0.5 * normal((SAMPLES, COLUMNS), 4)
    return X.T @ X / SAMPLES, X.T @ Y / SAMPLES


def loss(w: Tensor, decades: float) -> float:
    gram, moment = problem(decades)
    return float((w * (gram @ w / 2 - moment)).sum())


@cache
def nuclear_oracle(decades: float) -> Tensor:
    """FISTA with restarts, in numpy."""
    gram, moment = (x.numpy() for x in problem(decades))
    step = 1.0 / np.linalg.eigvalsh(gram)[-1]
    w = v = np.zeros((ROWS, COLUMNS))
    t = 1.0
    for _ in range(20_000):
        u, s, vt = np.linalg.svd(v - step * (gram @ v - moment), full_matrices=False)
        new = (u * np.maximum(s - step * ALPHA, 0.0)) @ vt
        if ((v - new) * (new - w)).sum() > 0:
            v, t = w, 1.0
            continue
        t, before = (1 + np.sqrt(1 + 4 * t * t)) / 2, t
        w, v = new, new + (before - 1) / t * (new - w)
    return torch.from_numpy(w)


@cache
def fused_oracle(tv: float, l1: float) -> Tensor:
    """Each column by its dual, ``min |L^-1 (m - D'y)|`` with y in the unit box, by scipy's bounded least squares."""
    gram, moment = (x.numpy() for x in problem(0.3))
    lower = cholesky(gram, lower=True)
    kinks = np.vstack([tv * np.diff(np.eye(ROWS), axis=0), *([l1 * np.eye(ROWS)] if l1 else [])])
    found = []
    for m in moment.T:
        y = lsq_linear(
            solve_triangular(lower, kinks.T, lower=True),
            solve_triangular(lower, m, lower=True),
            (-1, 1),
            method="bvls",
            tol=1e-15,
        ).x
        found.append(np.linalg.solve(gram, m - kinks.T @ y))
    return torch.from_numpy(np.stack(found, axis=1))


def train(make, penalty, steps: int, decades: float, metric="auto") -> tuple[Tensor, ProxOptimizer]:
    gram, moment = problem(decades)
    w = Parameter(torch.zeros(ROWS, COLUMNS, dtype=F64))
    opt = ProxOptimizer(make([w]), attach(penalty, {"w": w}), metric=metric)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for _ in range(steps):
        w.grad = gram @ w.detach() - moment
        opt.step()
        schedule.step()
    return w.detach(), opt


def nuclear_gap(w: Tensor, decades: float) -> float:
    cost = lambda x: loss(x, decades) + ALPHA * np.linalg.norm(x.numpy(), "nuc")  # noqa: E731
    return cost(w) - cost(nuclear_oracle(decades))


KINDS = ("SGD momentum", "Adam", "AdamW", "NAdam", "RMSprop", "Adagrad")
PLAIN = [r for r in RECIPES if r.id in KINDS]


@pytest.mark.parametrize("recipe", PLAIN, ids=lambda r: r.id)
def test_every_optimizer_reaches_the_nuclear_norms_minimiser_with_its_rank(recipe: Recipe):
    w, opt = train(recipe.make, Nuclear(ALPHA), 1000, 0.3)
    assert -1e-12 < nuclear_gap(w, 0.3) < 1e-8
    assert np.linalg.matrix_rank(w.numpy(), tol=1e-9) == np.linalg.matrix_rank(nuclear_oracle(0.3).numpy()) == 2
    assert violation(*opt.terms) < 1e-3  # of a first-order condition, where the gap is of second order


def test_the_proximal_map_of_what_the_base_has_made_is_another_problem():
    """Adam's own z, thresholded by any one step, is not the minimiser: why the base's step is made anew."""

    def mean(group, state, p):
        return float((group["lr"] / ((state["exp_avg_sq"] / (1 - 0.999 ** state["step"])).sqrt() + 1e-8)).mean())

    w, _ = train(lambda p: Adam(p, lr=0.1), Nuclear(ALPHA), 600, 0.3, metric=mean)
    assert nuclear_gap(w, 0.3) > 1e-3


@pytest.mark.parametrize(("tv", "l1"), [(0.3, 0.0), (0.3, 0.05)], ids=["total variation", "fused lasso"])
@pytest.mark.parametrize("make", [lambda p: AdamW(p, lr=0.2, weight_decay=0.0), lambda p: SGD(p, lr=0.3)])
def test_neighbours_fuse_as_in_the_dual_solvers_minimiser(tv, l1, make):
    """Total variation in the metric itself, the fused lasso with the common step."""
    penalty = TotalVariation(tv, dim=0) + L1(l1) if l1 else TotalVariation(tv, dim=0)
    w, _ = train(make, penalty, 400, 0.3)
    oracle = fused_oracle(tv, l1)
    cost = lambda x: loss(x, 0.3) + float(tv * x.diff(dim=0).abs().sum() + l1 * x.abs().sum())  # noqa: E731
    assert -1e-11 < cost(w) - cost(oracle) < 1e-8
    fused = oracle.diff(dim=0).abs() < 1e-8  # bvls leaves 1e-12
    assert fused.any()
    assert torch.equal(w.diff(dim=0) == 0, fused)
    assert torch.equal(w == 0, oracle.abs() < 1e-8)


@pytest.mark.parametrize("make", [lambda p: Adam(p, lr=0.05), lambda p: SGD(p, lr=0.5)], ids=["Adam", "SGD"])
def test_a_rank_is_kept_and_the_nearest_matrix_found(make):
    """``|W - B|^2 / 2`` subject to rank 2: numpy's truncated decomposition of B."""
    target = normal((ROWS, 2), 1) @ normal((2, COLUMNS), 2) + 0.1 * normal((ROWS, COLUMNS))
    w = Parameter(normal((ROWS, COLUMNS), 9))
    opt = ProxOptimizer(make([w]), attach(Rank(2), {"w": w}))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 600)
    for _ in range(600):
        w.grad = w.detach() - target
        opt.step()
        schedule.step()
        assert float(opt.terms[0]()) == 0.0
    u, s, vt = np.linalg.svd(target.numpy(), full_matrices=False)
    best = (u[:, :2] * s[:2]) @ vt[:2]
    assert np.linalg.norm(w.detach().numpy() - target.numpy()) ** 2 - np.linalg.norm(best - target.numpy()) ** 2 < 1e-8


def test_entries_without_a_gradient_do_not_slow_the_others():
    """Rows of dead inputs have no metric: the others move as if they were not there."""
    alone, beside = Parameter(normal((5, 4))), Parameter(torch.cat([normal((5, 4)), torch.zeros(3, 4, dtype=F64)]))
    for w in (alone, beside):
        opt = ProxOptimizer(Adam([w], lr=0.1), attach(Nuclear(0.3), {"w": w}))
        for k in range(20):
            w.grad = torch.zeros_like(w)
            w.grad[:5] = 1e-4 * normal((5, 4), k)  # far below 1: a step of lr would weigh heavily in the mean
            opt.step()
    assert torch.allclose(beside[:5], alone, rtol=1e-12, atol=1e-12)
    assert not beside[5:].any()


def stepped(wrap, steps: int = 6, dtype: torch.dtype = torch.float32, compiled: bool = False) -> list[Tensor]:
    params = [Parameter(normal((5, 4), k).to(dtype)) for k in range(2)]
    opt = wrap(params)
    step = torch.compile(opt.step, backend="eager") if compiled else opt.step
    for k in range(steps):
        give_gradients(params, k)
        step()
    return values(params)


EACH = [Nuclear(0.1), Nuclear(0.1) + L2(0.1), Rank(2), TotalVariation(0.1) + L1(0.05), TotalVariation(0.1)]


@pytest.mark.parametrize("penalty", EACH, ids=repr)
def test_hooks_closures_and_foreach_step_alike(penalty):
    class Hooked(Adam):
        pass

    def hooked(params):
        base = Adam(params, lr=0.1)
        attach_to(base, attach(penalty, params))
        return base

    plain = stepped(lambda p: ProxOptimizer(Adam(p, lr=0.1), attach(penalty, p)))
    for wrap in (
        hooked,
        lambda p: ProxOptimizer(Adam(p, lr=0.1, foreach=True), attach(penalty, p), foreach=True),
        lambda p: ProxOptimizer(Adam(p, lr=0.1, foreach=False), attach(penalty, p), foreach=False),
    ):
        for a, b in zip(plain, stepped(wrap), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("penalty", EACH, ids=repr)
def test_a_compiled_step_is_the_eager_one(penalty):
    torch._dynamo.reset()
    make = lambda p: ProxOptimizer(Adam(p, lr=torch.tensor(0.1)), attach(penalty, p))  # noqa: E731
    for a, b in zip(stepped(make), stepped(make, compiled=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # a compiled Adam counts in float32


def test_masters_of_half_precision_step_as_float32():
    def half(p):
        return ProxOptimizer(Adam(p, lr=0.05), attach(Nuclear(0.1), p), masters=True)

    halves = stepped(half, dtype=torch.bfloat16)
    assert all(w.dtype == torch.bfloat16 and w.isfinite().all() for w in halves)


def test_a_closure_moves_nothing_before_the_copy():
    w, other = (Parameter(normal((5, 4))) for _ in range(2))
    opts = [ProxOptimizer(Adam([p], lr=0.1), attach(Nuclear(0.2), {"w": p})) for p in (w, other)]

    def closure():
        w.grad = w.detach() - 1.0
        return 0.0

    for _ in range(5):
        opts[0].step(closure)
        other.grad = other.detach() - 1.0
        opts[1].step()
    assert torch.equal(w, other)


def test_a_skipped_step_of_a_fused_base_moves_nothing():
    w = Parameter(normal((5, 4)).float())
    opt = ProxOptimizer(Adam([w], lr=0.1, fused=True), attach(Nuclear(0.2), {"w": w}))
    give_gradients([w], 0)
    opt.step()
    before = w.detach().clone()
    opt.grad_scale, opt.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    give_gradients([w], 1)
    opt.step()
    assert torch.equal(w, before)


def test_the_proximal_half_alone_needs_the_weights_from_before():
    w = Parameter(normal((5, 4)))
    opt = ProxOptimizer(Adam([w], lr=0.1), attach(Nuclear(0.2), {"w": w}))
    w.grad = torch.ones_like(w)
    opt.base.step()
    with pytest.raises(RuntimeError, match=r"weights from before.*opt\.step\(\)"):
        opt.prox()
    sgd = ProxOptimizer(SGD([w], lr=0.1), attach(Nuclear(0.2), {"w": w}))
    sgd.base.step()
    sgd.prox()  # one step for all entries needs none


def test_copies_are_kept_for_the_time_of_a_step_alone():
    w, big = Parameter(normal((5, 4))), Parameter(torch.zeros(2, 3, dtype=F64))
    opt = ProxOptimizer(Adam([w, big], lr=0.1), attach(Nuclear(0.2), {"w": w}), attach(L1(0.2), {"big": big}))
    give_gradients([w, big], 0)
    opt.step()
    assert opt._before == []
    assert set(opt.state[w]) == {"step", "exp_avg", "exp_avg_sq"}


def test_a_lazy_term_is_refused():
    with pytest.raises(NoExactProx, match="lazy"):
        attach(Nuclear(0.1), nn.Embedding(5, 4).weight, lazy=True)


def test_the_metric_of_an_endless_or_zero_step_is_none():
    from torchreg.training.common_step import common

    assert float(common(torch.tensor([[0.1, 0.1], [0.1, 0.1]]))) == pytest.approx(0.1, rel=1e-6)
    assert float(common(torch.tensor([0.5, -9.0, 0.5]))) == pytest.approx(0.5, rel=1e-6)  # -9: has met no gradient
    assert float(common(torch.tensor([-0.1, -0.1]))) == pytest.approx(0.1, rel=1e-6)
    assert float(common(torch.zeros(3))) == 0.0
    spread = 10.0 ** torch.rand(100, generator=generator(0), dtype=F64)
    assert float(common(spread)) == pytest.approx(float((spread**-2).mean() ** -0.5), rel=1e-12)
