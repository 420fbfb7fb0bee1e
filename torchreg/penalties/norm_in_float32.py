"""The prox of a norm in a metric in float32, on a CPU: passes over memory at half the price of float64, and few.

Newton's method rises to the radius from the better of two tangents (`torchreg.functional.secular`) until it hardly
moves; its last step takes a sum that is as precise as in float64. What float32 cannot tell is left to float64: a group
within 1e-5 of vanishing, sums that overflow, steps of 0 or infinity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.functional.groups import Groups
from torchreg.functional.secular import in_two

_ROUNDS = 10
_STILL = 1e-3  # of a radius: Newton's next step would move it by the square of that
_NEAR = 1e-5  # of the level, within which float64 decides whether a group vanishes
_SMALL = 1e-15  # levels below which squares may underflow


def norm_prox_in_float32(z: Tensor, step: Tensor, level: Tensor, by: Groups) -> Tensor | None:
    """`diagonal_metric.norm_prox` in float32; None where float64 is needed. The host looks at numbers of groups.

    Args:
        z: float32.
        step: of z's shape and dtype, > 0.
        level: (groups,), >= 0.
        by: the groups.
    """
    inverse = step.reciprocal()
    ratio = z * inverse
    ratio.mul_(ratio)
    duals = by.sum(ratio)
    steep = by.sum(ratio.mul_(inverse))
    norm, most = by.sum(torch.mul(z, z, out=ratio)).sqrt(), by.extreme(step, largest=True)
    dual = duals.sqrt()
    plain = (duals + steep + norm + most).isfinite() & ((level == 0) | (level > _SMALL))
    if not bool((plain & ~((dual - level).abs() <= _NEAR * level)).all()):
        return None
    active = dual > level
    first = torch.maximum((dual - level) * (duals / steep), norm - level * most).maximum(1e-12 * norm)
    radius = torch.where(active, first, 1.0)
    pull = step * by.expand(torch.where(active, level, 0.0), z)
    rooms = (inverse, ratio)
    for _ in range(_ROUNDS):
        before, radius = radius, torch.where(active, _newton(radius, z, pull, by, rooms), 1.0)
        if bool(((radius - before).abs() <= _STILL * before).all()):
            break
    radius = torch.where(active, _newton(radius, z, pull, by, rooms, precise=True), 1.0)
    alive = by.expand(torch.where(active, radius, 0.0), z)
    below = torch.add(pull, by.expand(radius, z), out=inverse)
    return torch.div(alive, below, out=below).mul_(z).add_(0.0)


def _newton(
    radius: Tensor, z: Tensor, pull: Tensor, by: Groups, rooms: tuple[Tensor, Tensor], *, precise: bool = False
) -> Tensor:
    """The radius after a step on ``1 / sqrt(g) - 1``, where ``g(r) = sum z^2 / (r + pull)^2``."""
    below = torch.add(pull, by.expand(radius, z), out=rooms[0])
    ratio = torch.div(z, below, out=rooms[1])
    ratio.mul_(ratio)
    high, rest = (by.sum(x).double() for x in in_two(ratio)) if precise else (by.sum(ratio), 0.0)
    g = high + rest
    slope = by.sum(ratio.div_(below))
    return torch.where(slope > 0, radius + ((g.sqrt() - 1.0) * g / slope), radius).to(z.dtype)
