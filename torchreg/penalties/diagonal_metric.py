"""Proximal maps of ``sum_g phi_g(||w_g||)`` when every entry has its own step.

With the steps ``t_i`` of one group, every stationary point is ``x_i = z_i / (1 + t_i mu)`` for one
multiplier ``mu = phi'(r) / r``, ``r = ||x||``. For the norm itself ``r`` solves a secular equation;
for any other ``phi`` the objective is searched along ``mu``, at many trial multipliers at once. Both run a fixed
number of iterations over all groups at once, so neither waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchreg.functional.blocking import ENTRIES
from torchreg.functional.concave_shrinkage import mcp_slope, scad_slope
from torchreg.functional.groups import Groups
from torchreg.functional.reductions import asks_freely
from torchreg.functional.torch_private import of_all_mapped
from torchreg.penalties.concave import MCP, SCAD
from torchreg.penalties.norm_in_float32 import norm_prox_in_float32
from torchreg.penalties.separable import Separable

_SECULAR_STEPS = 10  # enough for a metric of condition 1e10: relative error 1e-14
_STILL = 1e-8  # of a radius: Newton's next step would move it by the square of that
_FINE, _COARSE = 49, 16  # trial multipliers per group
_CORE = 7.0  # natural logarithms of mu t beyond which x is nearly 0 or nearly z
_TAIL = 35.0  # further ones, down to where x equals z in float64
_HALVINGS = 30  # of a grid cell, after which Newton's step is exact in float64
_MOST_AT_ONCE = 5  # halvings in one round, by 31 trial multipliers
_DEVICE_ENTRIES = 1 << 22  # of temporaries on a device, where a launch costs as much as a million entries


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
    if until_still and z.dtype is step.dtype is torch.float32 and asks_freely(z) and not torch.is_grad_enabled():
        quick = norm_prox_in_float32(z, step.broadcast_to(z.shape), level.to(z.dtype), by)
        if quick is not None:
            return quick
    dtype, z, step, level = z.dtype, _wide(z), _wide(step).broadcast_to(z.shape), _wide(level)
    pull = _product(by.expand(level, z), step)
    with torch.no_grad():
        radius, active, broken = _start(z, step, level, by)
        for _ in range(_SECULAR_STEPS):
            before, radius = radius, _newton(radius, z, pull, by)  # NaN where a group is empty: not active
            if until_still and not bool(of_all_mapped(((radius - before).abs() > _STILL * radius) & active).any()):
                break
    radius = torch.where(active, radius, torch.ones_like(radius))
    if torch.is_grad_enabled():
        kept = by.expand(active.to(z.dtype), z) > 0
        solid = torch.where(kept, z, torch.ones_like(z))  # keeps NaN out of the gradient of dead groups
        radius = torch.where(active, _newton(radius, solid, pull, by), radius)
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
    norm = by.sum(z * z).sqrt()
    ratio = torch.nan_to_num(z / step, nan=0.0, posinf=torch.inf, neginf=-torch.inf)  # 0 / 0 and NaN
    dual = by.sum(ratio * ratio).sqrt()
    fixed = by.sum((z * (step == 0).to(z.dtype)).square()).sqrt()
    finite = norm.isfinite()
    active = (dual > level) & finite
    least, most = by.extreme(step, largest=False), by.extreme(step, largest=True)
    inner = torch.nan_to_num(least * (dual - level), nan=0.0, posinf=0.0)
    start = torch.stack([inner, norm - _product(level, most), fixed, 0.0 * level]).amax(0)
    return torch.where(active & (start > 0), start, torch.where(active, norm * 1e-12, 1.0)), active, ~finite


def _newton(radius: Tensor, z: Tensor, pull: Tensor, by: Groups) -> Tensor:
    """The radius after a Newton step on ``1 / sqrt(g) - 1``, where ``g(r) = sum z^2 / (r + pull)^2``."""
    below = by.expand(radius, z) + pull
    ratio = z / below
    ratio = ratio * ratio  # torch's square() takes several times as long on CPU
    g = by.sum(ratio)
    return torch.addcdiv(radius, g**1.5 - g, by.sum(ratio / below))


def radial_prox(z: Tensor, step: Tensor, penalty: Separable, by: Groups) -> Tensor:
    """``argmin_x sum_g phi(||x_g||) + sum_i (x_i - z_i)^2 / (2 step_i)`` for any radial ``phi``.

    The best of ``x = 0``, ``x = z`` and the best stationary point between them, found on a grid of
    multipliers and refined by bisection on the derivative along ``mu``.

    Args:
        z: any tensor.
        step: broadcasts with z, >= 0.
        penalty: of norms of shape (groups,), not falling.
        by: the groups.
    """
    dtype, z, step = z.dtype, _wide(z), _wide(step).broadcast_to(z.shape)
    step = step.clamp(max=torch.finfo(z.dtype).max ** 0.25)  # an endless step, without overflow
    moving = step > 0
    safe = torch.where(moving, step, torch.ones_like(step))
    phi, rise = penalty.phi, _rise(penalty)
    with torch.no_grad():
        mu = _best_multiplier(z, step, phi, rise, by)
    mu = _implicit(mu, z, step, rise, by)
    inner = z / (1.0 + step * by.expand(mu, z))
    nothing = torch.where(moving, torch.zeros_like(z), z)
    choices = [nothing, z, inner]
    costs = [phi(by.norms(x)) + by.sum(torch.where(moving, (x - z) ** 2 / (2.0 * safe), 0.0)) for x in choices]
    best = torch.stack(costs).argmin(0).to(z.dtype)
    pick = by.expand(best, z)
    x = torch.where(pick == 0, nothing, torch.where(pick == 1, z, inner)) + 0.0
    return torch.where(_poisoned(z, by), z, x).to(dtype)


def _rise(penalty: Separable) -> Callable[[Tensor], Tensor]:
    """The derivative of the penalty of a norm, in closed form where it is known."""
    if type(penalty) is MCP:
        return lambda norms: mcp_slope(norms, penalty.alpha, penalty.gamma)
    if type(penalty) is SCAD:
        return lambda norms: scad_slope(norms, penalty.alpha, penalty.gamma)
    return lambda norms: torch.func.grad(lambda r: penalty.phi(r).sum())(norms)


def _slope(mu: Tensor, z: Tensor, step: Tensor, rise: Callable[[Tensor], Tensor], by: Groups) -> Tensor:
    """Derivative of the objective along the radius: ``phi'(r) - mu r``."""
    r = by.norms(z / (1.0 + step * by.expand(mu, z)))
    return rise(r) - mu * r


def _best_multiplier(
    z: Tensor, step: Tensor, phi: Callable[[Tensor], Tensor], rise: Callable[[Tensor], Tensor], by: Groups
) -> Tensor:
    """The multiplier of the best stationary point: the best of a grid, refined by bisection."""
    grid = _grid(step, by)
    room = max(1, (ENTRIES if z.device.type == "cpu" else _DEVICE_ENTRIES) // max(1, z.numel()))

    def cost(log_mu: Tensor) -> Tensor:
        mu = by.expand(torch.exp(log_mu), z)
        x = z / (1.0 + step * mu)
        return phi(by.norms(x)) + by.sum(0.5 * step * (mu * x) ** 2)

    def rising(log_mu: Tensor) -> Tensor:
        mu = torch.exp(log_mu)
        x = z / (1.0 + step * by.expand(mu, z))
        r = by.sum(x * x).sqrt()
        return (rise(r) > mu * r).to(z.dtype)

    costs = torch.nan_to_num(_at_each(cost, grid[1:-1], room), nan=torch.inf)
    place = costs.argmin(0)[None]
    near, far = grid.gather(0, place)[0], grid.gather(0, place + 2)[0]
    halvings = max(1, min(_MOST_AT_ONCE, int(math.log2(room))))
    cells = 1 << halvings
    ahead = torch.arange(1, cells, dtype=z.dtype, device=z.device)[:, None]
    for _ in range(-(-_HALVINGS // halvings)):  # keep the cell before the first point that does not rise
        cell = (far - near) / cells
        passed = _at_each(rising, near + ahead * cell, room).cumprod(0).sum(0)
        near = near + passed * cell
        far = near + cell
    return torch.exp((near + far) / 2)


def _at_each(function: Callable[[Tensor], Tensor], trials: Tensor, room: int) -> Tensor:
    """A function at each of many trials, (trials, groups), so many at once as there is room for."""
    return torch.vmap(function, chunk_size=None if torch.compiler.is_compiling() else room)(trials)


def _grid(step: Tensor, by: Groups) -> Tensor:
    """Logarithms of trial multipliers, (grid, groups): coarse where x is still z, then fine."""
    tiny = torch.finfo(step.dtype).tiny ** 0.25
    largest, smallest = (by.extreme(step, largest=end).clamp(min=tiny) for end in (True, False))
    turn, end = -torch.log(largest) - _CORE, -torch.log(smallest) + _CORE
    coarse = torch.arange(_COARSE, dtype=step.dtype, device=step.device)[:, None] / _COARSE
    fine = torch.arange(_FINE, dtype=step.dtype, device=step.device)[:, None] / (_FINE - 1)
    return torch.cat([turn - _TAIL * (1.0 - coarse), turn + (end - turn) * fine])


def _implicit(mu: Tensor, z: Tensor, step: Tensor, rise: Callable[[Tensor], Tensor], by: Groups) -> Tensor:
    """One Newton step at the solution, which carries the gradient of the implicit function."""
    with torch.no_grad():
        bend = torch.func.grad(lambda m: _slope(m, z, step, rise, by).sum())(mu)
        safe = torch.where(bend == 0, torch.ones_like(bend), bend)
    move = _slope(mu, z, step, rise, by) / safe
    small = (bend != 0) & (move.detach().abs() < 1e-6 * mu)
    return mu - torch.where(small, move, torch.zeros_like(move))
