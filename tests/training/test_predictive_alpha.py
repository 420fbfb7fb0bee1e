"""The strength that will make so many units zero: against sorting each unit's own strength, and against the future."""

from __future__ import annotations

import pytest
import torch
from optimizer_catalog import give_gradients, matrix
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, NAdam

from torchreg import L1, MCP, Group, ProxOptimizer, Weighted, attach, columns, effective_step, rows, sparsity
from torchreg.training.control import sites_of
from torchreg.training.predictive_alpha import mean_gradient, predictive_alpha

HORIZON = 7
BASES = {
    "Adam": (lambda p: Adam(p, lr=0.01), lambda s, k: s["exp_avg"] / (1 - 0.9**k)),
    "NAdam": (lambda p: NAdam(p, lr=0.01), lambda s, k: s["exp_avg"] / (1 - 0.9**k)),
    "SGD": (lambda p: SGD(p, lr=0.02, momentum=0.9), lambda s, k: 0.1 * s["momentum_buffer"]),
    "dampened": (lambda p: SGD(p, lr=0.02, momentum=0.9, dampening=0.5), lambda s, k: 0.2 * s["momentum_buffer"]),
}
each_base = pytest.mark.parametrize(("make", "mean"), BASES.values(), ids=BASES)


def stepped(make, penalty, steps: int = 5):
    """Two matrices after some steps, in one of which some entries, rows and columns are zero."""
    params = [matrix(1, (6, 5)), matrix(2, (4, 5))]
    opt = ProxOptimizer(make(params), term := attach(penalty, params))
    for k in range(steps):
        give_gradients(params, k)
        opt.base.step()
    with torch.no_grad():
        params[0][:3] = 0.0
        params[0][:, 1] = 0.0
        params[1][0, 0] = 0.0
        params[1][:, 4] = 0.0
    return params, opt, term


def own(penalty, w: Tensor, t: Tensor, m: Tensor) -> Tensor:
    """Each unit's own strength, from which on it is zero in HORIZON steps: of a zero its mean gradient."""
    start = torch.where(w == 0, m, w / (HORIZON * t))
    if isinstance(penalty, Weighted):
        return (start.abs() / penalty.factor).flatten()
    if not isinstance(penalty, Group):
        return start.abs().flatten()
    dim = 1 if penalty.by is rows else 0
    alive = (w != 0).any(dim, keepdim=True)
    start = torch.where(alive, w / (HORIZON * t), m)
    return start.norm(dim=dim) / w.shape[dim] ** 0.5


def weighted() -> Weighted:
    return Weighted(L1(1.0), torch.linspace(0.5, 2.0, 5).double())


PENALTIES = {"L1": L1(1.0), "rows": Group(L1(1.0), by=rows), "columns": Group(L1(1.0), by=columns)}


@pytest.mark.parametrize("kind", PENALTIES)
@each_base
def test_it_is_the_quantile_of_each_units_own_strength_up_to_that_of_mean_gradients(make, mean, kind):
    penalty = PENALTIES[kind]
    params, opt, term = stepped(make, penalty)
    steps = effective_step(opt.base)
    levels, bounds = [], []
    for p in params:
        t = steps[p] if isinstance(steps[p], Tensor) else torch.full_like(p, steps[p])
        levels.append(own(penalty, p.detach(), t, mean(opt.base.state[p], 5)))
        bounds.append(own(penalty, torch.zeros_like(p), t, mean(opt.base.state[p], 5)))
    flat = torch.minimum(torch.cat(levels).sort().values, torch.cat(bounds).sort().values)
    for wanted in (1, 2, len(flat) // 2, len(flat) - 1, len(flat)):
        with torch.no_grad():
            found = predictive_alpha(sites_of(term), lambda n, k=wanted: k, HORIZON)
        torch.testing.assert_close(found, flat[wanted - 1], rtol=1e-6, atol=1e-12)
    with torch.no_grad():
        assert float(predictive_alpha(sites_of(term), lambda n: 0, HORIZON)) == 0.0


def test_without_momentum_the_mean_gradient_is_the_last_one():
    params, _opt, term = stepped(lambda p: SGD(p, lr=0.1), L1(1.0))
    for site, p in zip(sites_of(term), params, strict=True):
        assert torch.equal(mean_gradient(site), p.grad)


@pytest.mark.parametrize("penalty", [L1(1.0), MCP(1.0, 50.0), Group(L1(1.0), by=rows)], ids=repr)
def test_what_is_told_to_be_zero_is_zero_after_so_many_steps(penalty):
    """With a gradient that stays, and weights that do not move but by the penalty."""
    p = matrix(3, (12, 6))
    opt = ProxOptimizer(SGD([p], lr=0.01), term := attach(penalty, {"p": p}))
    p.grad = torch.zeros_like(p)
    opt.base.step()
    opt.state[p]["momentum_buffer"] = torch.full_like(p, 1e3)  # a mean gradient that bounds nothing; not read by SGD
    units = 12 if isinstance(penalty, Group) else 72
    with torch.no_grad():
        alpha = predictive_alpha(sites_of(term), lambda n: units // 3, HORIZON)
    term.alpha = float(alpha) * (1.0 + 1e-6)
    for _ in range(HORIZON):
        opt.step()
    found = sparsity(term)
    count = found.zeros if found.groups is None else found.zero_groups
    assert count == units // 3 if not isinstance(penalty, MCP) else units // 3 - 2 <= count <= units // 3


def test_where_some_cannot_be_zero_it_is_the_least_that_reaches_the_most():
    p = matrix(3, (5, 4))
    factors = torch.ones(5, 4, dtype=torch.float64)
    factors[:2] = 0.0
    opt = ProxOptimizer(AdamW([p], lr=0.01), term := attach(Weighted(L1(1.0), factors), {"p": p}))
    give_gradients([p], 0)
    opt.base.step()
    with torch.no_grad():
        most = predictive_alpha(sites_of(term), lambda n: n, HORIZON)
    level = p.detach().abs() / (HORIZON * effective_step(opt.base)[p])
    bound = opt.state[p]["exp_avg"].abs() / 0.1
    torch.testing.assert_close(most, torch.minimum(level[2:].max(), bound[2:].max()), rtol=1e-6, atol=0.0)
