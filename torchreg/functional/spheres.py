"""Each group's nearest point of a ball or a sphere about 0, in a metric too.

With the steps ``t_i`` of a group the point is ``u_i = x_i / (1 + mu t_i)`` with the ``mu`` for which its norm is the
radius. In ``s = t / max t`` and ``d = 1 + mu max t`` it is ``x_i / ((1 - s_i) + d s_i)``, which loses no digits
near the pole ``d = 0`` that points inside a sphere are pushed out from. ``1 / ||u||`` is concave in d, so Newton's
method is monotone from below (More and Sorensen, SIAM J. Sci. Stat. Comput. 4, 1983, sec. 3, whose hard case is a
group that is 0 wherever its step is largest: there the first such entry takes what is missing).
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.functional.groups import Groups, root
from torchreg.functional.reductions import asks_freely, wide
from torchreg.functional.shrinkage import Scalar

_STEPS = 20  # of Newton: relative error 1e-14 at a condition of 1e12, 1e-12 at that of an endless step
_STILL = 1e-8  # of a multiplier: Newton's next step would move it by the square of that


def nearest_of_norm(x: Tensor, step: Scalar, radius: Scalar, by: Groups, *, within: bool) -> Tensor:
    """``argmin_u sum_i (u_i - x_i)^2 / (2 step_i)`` with ``||u_g|| = radius``, or at most that ``within`` it.

    Entries of step 0 stay, and the others take what they leave of the radius.

    Args:
        x: any tensor, finite.
        step: a number or a tensor that broadcasts with x, > 0 but for entries that stay; inf allowed.
        radius: > 0.
        by: the groups.
        within: leave groups that lie inside as they are.
    """
    z = wide(x)
    one_step = True
    moving = torch.ones_like(z, dtype=torch.bool)
    share, room = torch.ones_like(z), by.sum(torch.zeros_like(z)) + radius
    if isinstance(step, Tensor) and step.numel() > 1:
        one_step, step = False, wide(step).broadcast_to(z.shape)
        moving = step > 0
        share, room = _shares(step, by), _room(z, moving, radius, by)
        z = torch.where(moving, z, torch.zeros_like(z))
    norm = root(by.sum(z * z))
    solved = (room > 0) & ((norm > room) if within else (norm > 0))
    d = _multiplier(z, share, norm, room, by, steps=0 if one_step else _STEPS)
    below = by.expand(torch.where(solved, d, torch.ones_like(d)), z) * share + (1.0 - share)
    u = z / torch.where(below > 0, below, torch.ones_like(below)) * by.expand((room > 0).to(z.dtype), z)
    if not within:
        u = u + _missing(u, share, room, by)
    return torch.where(moving, u, x)


def _shares(step: Tensor, by: Groups) -> Tensor:
    """Each step over the largest of its group."""
    step = step.clamp(max=torch.finfo(step.dtype).max ** 0.25)  # an endless step, without overflow
    largest = by.expand(by.extreme(step, largest=True), step)
    return step / torch.where(largest > 0, largest, torch.ones_like(largest))


def _room(z: Tensor, moving: Tensor, radius: Scalar, by: Groups) -> Tensor:
    """What the entries that stay leave of the radius."""
    kept = torch.where(moving, torch.zeros_like(z), z)
    return root((radius * radius - by.sum(kept * kept)).clamp(min=0.0))


def _multiplier(z: Tensor, share: Tensor, norm: Tensor, room: Tensor, by: Groups, *, steps: int) -> Tensor:
    """The ``d`` of each group, 0 in the hard case."""
    room = torch.where(room > 0, room, torch.ones_like(room))
    foremost = root(by.sum(torch.where(share == 1.0, z * z, torch.zeros_like(z))))
    start = torch.where(norm >= room, norm, foremost) / room
    if not steps:
        return start
    small = by.extreme(torch.where(share > 0, share, torch.ones_like(share)), largest=False)
    ratio = z / torch.where(share > 0, share, torch.ones_like(share))
    start = torch.where(
        norm > room, torch.maximum(start, root(by.sum(ratio * ratio)) / room + 1.0 - 1.0 / small), start
    )
    with torch.no_grad():
        d = start
        for _ in range(steps):
            change = _newton(d, z, share, room, by)
            d = d + change
            if asks_freely(z) and not bool((change.abs() > _STILL * d).any()):
                break
    return d + _newton(d, z, share, room, by) if torch.is_grad_enabled() else d


def _newton(d: Tensor, z: Tensor, share: Tensor, room: Tensor, by: Groups) -> Tensor:
    """The Newton step on ``1 / ||u||``, and none where it would lead below 0: in the hard case."""
    below = by.expand(d, z) * share + (1.0 - share)
    below = torch.where(below > 0, below, torch.ones_like(below))
    ratio = z / below
    ratio = ratio * ratio
    square = by.sum(ratio)
    fall = by.sum(ratio * share / below)
    safe = (fall > 0) & (square > 0)
    square, fall = (torch.where(safe, x, torch.ones_like(x)) for x in (square, fall))
    change = (square.sqrt() / room - 1.0) * square / fall
    return torch.where(safe, torch.maximum(change, -d), torch.zeros_like(d))


def _missing(u: Tensor, share: Tensor, room: Tensor, by: Groups) -> Tensor:
    """What the first of the entries of the largest step takes in the hard case."""
    lack = root((room * room - by.sum(u * u)).clamp(min=0.0))
    places = torch.arange(u.numel(), device=u.device, dtype=u.dtype).reshape(u.shape)
    places = torch.where(share == 1.0, places, torch.inf)
    first = (places == by.expand(by.extreme(places, largest=False), u)) & (share == 1.0)
    empty = by.sum(torch.where(share == 1.0, u.abs(), torch.zeros_like(u))) == 0
    return torch.where(first, by.expand(torch.where(empty, lack, torch.zeros_like(lack)), u), torch.zeros_like(u))
