"""Proximal maps of ``sum_g phi_g(||w_g||)`` when every entry has its own step.

With the steps ``t_i`` of one group, every stationary point is ``x_i = z_i / (1 + t_i mu)`` for one
multiplier ``mu = phi'(r) / r``, ``r = ||x||``. For the norm itself ``r`` solves a secular equation;
for any other ``phi`` the objective is searched along ``mu``. Both run a fixed number of iterations
over all groups at once, so neither waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchreg.functional.torch_private import of_all_mapped
from torchreg.groups import Groups, root

_SECULAR_STEPS = 10  # enough for a metric of condition 1e10: relative error 1e-14
_STILL = 1e-8  # of a radius: Newton's next step would move it by the square of that
_FINE, _COARSE = 49, 16  # trial multipliers per group
_CORE = 7.0  # natural logarithms of mu t beyond which x is nearly 0 or nearly z
_TAIL = 35.0  # further ones, down to where x equals z in float64
_HALVINGS = 60  # of a grid cell: exact in float64


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.device.type != "mps" else x


def norm_prox(z: Tensor, step: Tensor, level: Tensor, by: Groups, *, until_still: bool = False) -> Tensor:
    """``argmin_x sum_g level_g ||x_g|| + sum_i (x_i - z_i)^2 / (2 step_i)``.

    ``x_i = r z_i / (r + level t_i)`` with ``sum z_i^2 / (r + level t_i)^2 = 1``, solved by
    Newton's method on ``1 / sqrt(sum) - 1``, which is monotone from the start used here
    (More and Sorensen, SIAM J. Sci. Stat. Comput. 4, 1983, sec. 3, for the trust region's
    secular equation). The last Newton step is differentiable, so gradients are implicit ones.

    Args:
        z: any tensor.
        step: broadcasts with z, >= 0; inf allowed.
        level: (groups,), >= 0, finite.
        by: the groups.
        until_still: stop as soon as no group moves, which the host has to ask: for the CPU, where that is free.
    """
    dtype, z, step, level = z.dtype, _wide(z), _wide(step).broadcast_to(z.shape), _wide(level)
    pull = _product(by.expand(level, z), step)
    with torch.no_grad():
        radius, active, broken = _start(z, step, level, by)
        for _ in range(_SECULAR_STEPS):
            change = _newton(radius, z, pull, by)  # NaN where a group is empty: not active
            radius = radius + change
            if until_still and not bool(of_all_mapped((change.abs() > _STILL * radius) & active).any()):
                break
    radius = torch.where(active, radius, torch.ones_like(radius))
    if torch.is_grad_enabled():
        kept = by.expand(active.to(z.dtype), z) > 0
        solid = torch.where(kept, z, torch.ones_like(z))  # keeps NaN out of the gradient of dead groups
        radius = torch.where(active, radius + _newton(radius, solid, pull, by), radius)
    alive = torch.where(active, radius, torch.zeros_like(radius))
    # by arithmetic, not by where, which takes ten times as long on CPU; a group with a NaN or an infinity stays
    factor = by.expand(alive, z) / (by.expand(radius, z) + pull) + by.expand(broken.to(z.dtype), z)
    return (z * factor + 0.0).to(dtype)


def _product(level: Tensor, step: Tensor) -> Tensor:
    """``level * step`` where nothing times an endless step is nothing."""
    return torch.nan_to_num(level * step, nan=0.0, posinf=torch.inf)


def _poisoned(z: Tensor, by: Groups) -> Tensor:
    """Entries of groups that hold a NaN: their norm is unknown, so they stay as they are."""
    return by.expand(by.sum(z.isnan().to(z.dtype)), z) > 0


def _start(z: Tensor, step: Tensor, level: Tensor, by: Groups) -> tuple[Tensor, Tensor, Tensor]:
    """A radius from which Newton is monotone, which groups do not vanish, and which hold a NaN or an infinity."""
    norm = root(by.sum(z * z))
    ratio = torch.nan_to_num(z / step, nan=0.0, posinf=torch.inf, neginf=-torch.inf)  # 0 / 0 and NaN
    dual = root(by.sum(ratio * ratio))
    fixed = root(by.sum((z * (step == 0).to(z.dtype)).square()))
    broken = ~norm.isfinite()
    active = (dual > level) & ~broken
    least, most = by.extreme(step, largest=False), by.extreme(step, largest=True)
    inner = torch.nan_to_num(least * (dual - level), nan=0.0, posinf=0.0)
    start = torch.stack([inner, norm - _product(level, most), fixed, 0.0 * level]).amax(0)
    return torch.where(active & (start > 0), start, torch.where(active, norm * 1e-12, 1.0)), active, broken


def _newton(radius: Tensor, z: Tensor, pull: Tensor, by: Groups) -> Tensor:
    """The Newton step on ``1 / sqrt(g) - 1``, where ``g(r) = sum z^2 / (r + pull)^2``."""
    below = by.expand(radius, z) + pull
    ratio = z / below
    ratio = ratio * ratio  # torch's square() takes several times as long on CPU
    g = by.sum(ratio)
    return (g.sqrt() - 1.0) * g / by.sum(ratio / below)


def radial_prox(z: Tensor, step: Tensor, phi: Callable[[Tensor], Tensor], by: Groups) -> Tensor:
    """``argmin_x sum_g phi(||x_g||) + sum_i (x_i - z_i)^2 / (2 step_i)`` for any radial ``phi``.

    The best of ``x = 0``, ``x = z`` and the best stationary point between them, found on a grid of
    multipliers and refined by bisection on the derivative along ``mu``.

    Args:
        z: any tensor.
        step: broadcasts with z, >= 0.
        phi: elementwise on norms of shape (groups,), not falling.
        by: the groups.
    """
    dtype, z, step = z.dtype, _wide(z), _wide(step).broadcast_to(z.shape)
    step = step.clamp(max=torch.finfo(z.dtype).max ** 0.25)  # an endless step, without overflow
    moving = step > 0
    safe = torch.where(moving, step, torch.ones_like(step))
    with torch.no_grad():
        mu = _best_multiplier(z, step, phi, by)
    mu = _implicit(mu, z, step, phi, by)
    inner = z / (1.0 + step * by.expand(mu, z))
    nothing = torch.where(moving, torch.zeros_like(z), z)
    choices = [nothing, z, inner]
    costs = [phi(by.norms(x)) + by.sum(torch.where(moving, (x - z) ** 2 / (2.0 * safe), 0.0)) for x in choices]
    best = torch.stack(costs).argmin(0).to(z.dtype)
    pick = by.expand(best, z)
    x = torch.where(pick == 0, nothing, torch.where(pick == 1, z, inner)) + 0.0
    return torch.where(_poisoned(z, by), z, x).to(dtype)


def _slope(mu: Tensor, z: Tensor, step: Tensor, phi: Callable[[Tensor], Tensor], by: Groups) -> Tensor:
    """Derivative of the objective along the radius: ``phi'(r) - mu r``."""
    r = by.norms(z / (1.0 + step * by.expand(mu, z)))
    rise = torch.func.grad(lambda norms: phi(norms).sum())(r)
    return rise - mu * r


def _best_multiplier(z: Tensor, step: Tensor, phi: Callable[[Tensor], Tensor], by: Groups) -> Tensor:
    """The multiplier of the best stationary point: the best of a grid, refined by bisection."""
    grid = _grid(step, by)

    def cost(log_mu: Tensor) -> Tensor:
        mu = by.expand(torch.exp(log_mu), z)
        x = z / (1.0 + step * mu)
        return phi(by.norms(x)) + by.sum(0.5 * step * (mu * x) ** 2)

    best, least = torch.zeros_like(grid[0]), torch.full_like(grid[0], torch.inf)
    for k in range(1, len(grid) - 1):
        trial = cost(grid[k])
        best, least = torch.where(trial < least, float(k), best), torch.minimum(trial, least)
    place = best.long().clamp(min=1)[None]
    near, far = grid.gather(0, place - 1)[0], grid.gather(0, place + 1)[0]
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        rising = _slope(torch.exp(middle), z, step, phi, by) > 0
        near, far = torch.where(rising, middle, near), torch.where(rising, far, middle)
    return torch.exp((near + far) / 2)


def _grid(step: Tensor, by: Groups) -> Tensor:
    """Logarithms of trial multipliers, (grid, groups): coarse where x is still z, then fine."""
    tiny = torch.finfo(step.dtype).tiny ** 0.25
    largest, smallest = (by.extreme(step, largest=end).clamp(min=tiny) for end in (True, False))
    turn, end = -torch.log(largest) - _CORE, -torch.log(smallest) + _CORE
    coarse = torch.arange(_COARSE, dtype=step.dtype, device=step.device)[:, None] / _COARSE
    fine = torch.arange(_FINE, dtype=step.dtype, device=step.device)[:, None] / (_FINE - 1)
    return torch.cat([turn - _TAIL * (1.0 - coarse), turn + (end - turn) * fine])


def _implicit(mu: Tensor, z: Tensor, step: Tensor, phi: Callable[[Tensor], Tensor], by: Groups) -> Tensor:
    """One Newton step at the solution, which carries the gradient of the implicit function."""
    with torch.no_grad():
        bend = torch.func.grad(lambda m: _slope(m, z, step, phi, by).sum())(mu)
        safe = torch.where(bend == 0, torch.ones_like(bend), bend)
    move = _slope(mu, z, step, phi, by) / safe
    small = (bend != 0) & (move.detach().abs() < 1e-6 * mu)
    return mu - torch.where(small, move, torch.zeros_like(move))
