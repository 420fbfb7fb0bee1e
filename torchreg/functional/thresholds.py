"""The nearest point of a simplex or an L1 ball, and the level c at which ``sum max(a - c b, 0)`` is a given total.

One sort, whatever the data: in the order of the ratios a / b, falling, the entries above the level are a beginning of
each group; how long it is follows from sums along that order. The level is then read off the entries above it, so that
gradients are exact.

Source: Held, Wolfe and Crowder, Math. Program. 6, 1974 (the simplex); Duchi, Shalev-Shwartz, Singer and Chandra, ICML
2008 (the L1 ball); with weights b: Kiwiel, Math. Program. 112, 2008. Condat, Math. Program. 158, 2016, compares them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchreg.functional.groups import Groups
from torchreg.functional.reductions import wide
from torchreg.functional.shrinkage import Scalar


def nearest_of_sum(x: Tensor, step: Scalar, radius: Scalar, by: Groups, *, within: bool) -> Tensor:
    """``argmin_u sum_i (u_i - x_i)^2 / (2 step_i)`` with ``u >= 0``, ``sum_g u = radius``; ``within`` it at most that.

    Entries of step 0 stay, and the others take what they leave of the radius.

    Args:
        x: any tensor, finite.
        step: a number or a tensor that broadcasts with x, > 0 but for entries that stay; inf allowed.
        radius: > 0.
        by: the groups.
        within: x is >= 0, and groups of a lesser sum stay as they are.
    """
    x = wide(x) if by.count(x) > 1 or isinstance(step, Tensor) else x
    nothing = torch.zeros_like(x)
    total = by.sum(wide(nothing)) + radius
    if isinstance(step, Tensor) and step.numel() > 1:
        moving = wide(step).broadcast_to(x.shape)
        moving = moving.clamp(max=torch.finfo(moving.dtype).max ** 0.25)  # an endless step, without overflow
        level = level_of(x, moving, total, by)
        fixed = moving == 0
        taken = torch.where(fixed, 0.0, by.expand(level, x) * torch.where(fixed, 1.0, moving))
    else:
        if not within:  # a simplex does not see a shift, and numbers far beyond the radius keep their digits
            x = wide(x) - by.expand(by.extreme(wide(x), largest=True), x).detach()
        level = level_of(x, None, total, by)
        fixed, taken = torch.zeros_like(x, dtype=torch.bool), by.expand(level, x)
    taken = taken.clamp(min=0.0) if within else taken
    u = torch.where(fixed, x, (wide(x) - taken).clamp(min=0.0))
    return torch.where(fixed, x, u * by.expand(_mending(u, fixed, total, by, within=within), u))


@torch.no_grad()
def _mending(u: Tensor, fixed: Tensor, total: Tensor, by: Groups, *, within: bool) -> Tensor:
    """A factor near 1 for each group: what differences of numbers far beyond the radius have rounded."""
    room = total - by.sum(torch.where(fixed, u, torch.zeros_like(u)))
    found = by.sum(torch.where(fixed, torch.zeros_like(u), u))
    off = (found > room) if within else (found != room)
    return torch.where(off & (found > 0) & (room > 0), room / torch.where(found > 0, found, 1.0), 1.0)


def level_of(a: Tensor, b: Tensor | None, total: Tensor, by: Groups) -> Tensor:
    """The level of each group, shape (groups,): ``sum_g max(a_i - c_g b_i, 0) = total_g``.

    Where all of ``a`` comes to less than the total the level is negative, as if a could be; where every ``b`` is 0 it
    is infinite.

    Args:
        a: any shape, finite.
        b: of a's shape, >= 0 and finite, where 0 an entry is above every level; None for ones.
        total: (groups,), >= 0.
        by: the groups.
    """
    if b is None and by.count(a) == 1:
        return _level_of_all(a, total, by)
    with torch.no_grad():
        ratio = a if b is None else torch.where(b > 0, a / torch.where(b > 0, b, torch.ones_like(b)), math.inf)
        largest = ratio >= by.expand(by.extreme(ratio, largest=True), ratio)  # above, whatever rounding says
        above = _beginning(ratio, a, b, total, by) | largest
    a = wide(a)
    return _line(a, torch.ones_like(a) if b is None else wide(b), above, total, by)


def _level_of_all(a: Tensor, total: Tensor, by: Groups) -> Tensor:
    """The level of one group without weights, at hardly more than the price of sorting it."""
    with torch.no_grad():
        falling = wide(a.reshape(-1).sort(descending=True).values)
        counts = torch.arange(1, falling.numel() + 1, dtype=falling.dtype, device=a.device)
        sums = falling.cumsum(0)
        last = ((sums - falling * counts) < total).sum().clamp(min=1).reshape(1) - 1
        level = (sums.gather(0, last) - total) / (last + 1)
    if not torch.is_grad_enabled():
        return level
    a = wide(a)
    above = (a > level) | (a >= falling[0])
    return _line(a, torch.ones_like(a), above, total, by)


def _beginning(ratio: Tensor, a: Tensor, b: Tensor | None, total: Tensor, by: Groups) -> Tensor:
    """The entries at which, in falling order, less than the total has come together."""
    order, group = _order(ratio, by)
    if group is not None:
        total = total[group]
    flat = (x.reshape(-1)[order] for x in (a, torch.ones_like(a) if b is None else b))
    size = by.sizes(a)
    longest = a.numel() if isinstance(size, Tensor) else int(size)
    sums, weights = (_running_sum(wide(x), group, longest) for x in flat)
    falling = ratio.reshape(-1)[order]
    above = (sums - falling * weights < total) | falling.isinf()
    return torch.zeros_like(above).scatter(0, order, above).reshape(a.shape)


def _order(ratio: Tensor, by: Groups) -> tuple[Tensor, Tensor | None]:
    """The entries group by group, falling; and the group of each, None where there is one."""
    order = ratio.reshape(-1).argsort(descending=True)
    if (groups := by.count(ratio)) == 1:
        return order, None
    each = torch.arange(groups, device=ratio.device)
    group = by.expand(each, ratio).broadcast_to(ratio.shape).reshape(-1)[order]
    group, again = group.sort(stable=True)
    return order[again], group


def _running_sum(x: Tensor, group: Tensor | None, longest: int) -> Tensor:
    """Sums from the beginning of each group on, to which no other group adds its rounding: in doubling strides."""
    if group is None:
        return x.cumsum(0)
    stride = 1
    while stride < longest:
        joined = (group[stride:] == group[:-stride]).to(x.dtype)
        x = x + torch.nn.functional.pad(joined * x[:-stride], (stride, 0))
        stride *= 2
    return x


def _line(a: Tensor, b: Tensor, above: Tensor, total: Tensor, by: Groups) -> Tensor:
    """Where the entries above the level come to the total."""
    nothing = torch.zeros_like(a)
    slope = by.sum(torch.where(above, b, nothing))
    rest = by.sum(torch.where(above, a, nothing)) - total
    return torch.where(slope > 0, rest / torch.where(slope > 0, slope, torch.ones_like(slope)), math.inf)
