"""The proximal map of a sorted L1 norm, ``sum_i levels_i |u|_(i)`` with ``levels_1 >= levels_2 >= ... >= 0``.

With one step for all, the order of the result is that of ``|x|``: subtract the levels in that order, pool what then
rises, cut off at 0. In a metric the order is not known beforehand. It is found from the top down:

1. All entries are one block, cut at the value 0.
2. A block is cut at the value c that it would have as one: above it lie the k entries that are best there, those of
   the largest ``y = (|x| - c) / step``, for the k that maximises ``sum (y - levels)``.
3. Blocks are cut until none changes: about ``log2(n)`` times, as each cut is at a mean.
4. In the order found the result is a regression as with one step.

Source: Bogdan, van den Berg, Sabatti, Su and Candes, Ann. Appl. Stat. 9, 2015, algorithm 3; the cuts are the
decomposition of Fujishige, Submodular Functions and Optimization, 2005, sec. 8.2, for a function of the count alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.functional.isotonic import non_increasing
from torchreg.functional.reductions import asks_freely, wide
from torchreg.functional.shrinkage import Scalar, moves, scaled

_CUTS = 24  # more than 2 log2(n), for values spread over all magnitudes
_ASIDE = 8.0  # roundings from a block's value where it is cut, above and below in turn: an entry of step 0 is at it
_STILL = 1e-13  # of a block's levels: a cut that gains less is one of rounding


def sorted_l1_prox(x: Tensor, step: Scalar, levels: Tensor) -> Tensor:
    """``argmin_u sum_i levels_i |u|_(i) + sum_i (u_i - x_i)^2 / (2 step_i)``; a tensor with a NaN or an infinity stays.

    Args:
        x: any tensor, in at least float32.
        step: a number or a tensor that broadcasts with x, >= 0; inf allowed.
        levels: float64 of shape (x.numel(),), not rising, >= 0.
    """
    if not x.numel():
        return x
    broken = ~x.detach().isfinite().all()
    flat = torch.where(broken, torch.zeros_like(x), x).reshape(-1)
    if isinstance(step, Tensor) and step.numel() > 1:
        sizes = _in_a_metric(wide(flat.abs()), wide(step).broadcast_to(x.shape).reshape(-1), levels)
    else:
        step = step.reshape(()) if isinstance(step, Tensor) else step
        sizes = _with_one_step(flat.abs(), scaled(levels, step))
    result = (sizes.to(x.dtype) * flat.sign()).reshape(x.shape)
    return torch.where(moves(step) & ~broken, result, x)


def _with_one_step(sizes: Tensor, taken: Scalar) -> Tensor:
    falling, order = sizes.sort(descending=True)
    falling = wide(falling)
    pull = torch.as_tensor(taken, dtype=falling.dtype).clamp(max=torch.finfo(falling.dtype).max ** 0.25)
    values = non_increasing(falling - pull, torch.ones_like(falling)).clamp(min=0.0)
    return torch.zeros_like(falling).scatter(0, order, values)


def _in_a_metric(sizes: Tensor, step: Tensor, levels: Tensor) -> Tensor:
    far = torch.finfo(step.dtype).max ** 0.1  # stands for no step and an endless one
    metric = 1.0 / step.clamp(min=1.0 / far, max=far)
    with torch.no_grad():
        order = _order(sizes, metric, levels)
    metric = metric[order]
    values = non_increasing(metric * sizes[order] - levels, metric).clamp(min=0.0)
    return torch.zeros_like(sizes).scatter(0, order, values)


def _order(sizes: Tensor, metric: Tensor, levels: Tensor) -> Tensor:
    """The entries in the order of the result, the largest first."""
    count, aside = sizes.numel(), _ASIDE * torch.finfo(sizes.dtype).eps
    most = torch.where(levels[0] > 0, 2.0 * levels[0], 1.0)  # a y beyond is above or below in any case: no digits lost
    order = active = torch.arange(count, device=sizes.device)
    block = idle = torch.zeros_like(order)  # idle: how many cuts in a row have left an entry's block as it was
    value = torch.zeros_like(sizes)
    for cuts in range(2 * count.bit_length() + _CUTS):
        entries, allowed = order[active], levels[active]
        y = (metric[entries] * (sizes[entries] - value)).clamp(min=-most, max=most)
        best = _best_first(y, block)
        entries = entries[best]
        order = order.scatter(0, active, entries)
        upper = _upper(y[best] - allowed, allowed, block)
        idle = torch.where(_is_cut(block, upper), 0, idle + min(cuts, 1))  # the first cut is at 0, and no mean
        block = _numbered(2 * block + (~upper).long())
        if asks_freely(y):
            left = (idle < 2).nonzero().reshape(-1)
            if not left.numel():
                break
            active, entries, allowed, block, idle = (x[left] for x in (active, entries, allowed, block, idle))
            block = _numbered(block)
        value = _common_value(sizes[entries], metric[entries], allowed, block)
        value = value * (1.0 - aside if cuts % 2 else 1.0 + aside)
    return order


def _numbered(block: Tensor) -> Tensor:
    """Blocks numbered 0, 1, ... in their order."""
    return torch.nn.functional.pad((block[1:] != block[:-1]).long().cumsum(0), (1, 0))


def _best_first(y: Tensor, block: Tensor) -> Tensor:
    """Each block's entries, those of the largest y first."""
    falling = y.argsort(descending=True)
    return falling[block[falling].argsort(stable=True)]


def _upper(gain: Tensor, levels: Tensor, block: Tensor) -> Tensor:
    """Which entries of each block lie above its value: up to the largest sum of gains, if that is positive."""
    zero, places = torch.zeros_like(gain), torch.arange(gain.numel(), device=gain.device)
    total = zero.index_add(0, block, gain)
    together = gain.cumsum(0) - (total.cumsum(0) - total)[block]
    top = zero.scatter_reduce(0, block, together, "amax")  # 0 where none is above
    scale = zero.index_add(0, block, levels + gain.abs())
    at = torch.where(together >= top[block], places, places.numel())
    first = torch.full_like(places, places.numel()).scatter_reduce(0, block, at, "amin")
    return (top > _STILL * scale)[block] & (places <= first[block])


def _is_cut(block: Tensor, upper: Tensor) -> Tensor:
    """Whether an entry's block has entries on both sides."""
    zero = torch.zeros_like(block)
    above, size = zero.index_add(0, block, upper.long()), zero.index_add(0, block, torch.ones_like(block))
    return ((above > 0) & (above < size))[block]


def _common_value(sizes: Tensor, metric: Tensor, levels: Tensor, block: Tensor) -> Tensor:
    zero = torch.zeros_like(sizes)
    pulled = zero.index_add(0, block, metric * sizes - levels)
    return (pulled / zero.index_add(0, block, metric))[block].clamp(min=0.0)
