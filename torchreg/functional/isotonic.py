"""Non-increasing regression by pooling adjacent violators, in passes over tensors and without a loop over entries.

1. On the CPU: pool every run of rising blocks at once, and keep one entry for each block; few passes settle most data.
2. What is then left, and everything on a device, in vmap and in a compiled step: merge solved halves, 2, 4, 8, ...
   entries long, on the CPU those alone that rise where they meet. Two non-increasing halves pool an end of the left
   and a beginning of the right; each entry tells by the sign of an increasing function, from prefix sums, whether it is
   one of these. ``log2(n)`` passes, whatever the data.

Source: Barlow et al., Statistical Inference under Order Restrictions, 1972, sec. 1.2 (pooling in any order gives the
one solution); Best and Chakravarti, Math. Program. 47, 1990.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchreg.functional.reductions import asks_freely, wide

_RUNS = 40  # passes of step 1, which end before in any data that has been met
_FEW = 64  # blocks for each that rises, from where on step 2 goes on


def non_increasing(sums: Tensor, weights: Tensor) -> Tensor:
    """``argmin_v sum_i weights_i (v_i - sums_i / weights_i)^2`` with ``v_1 >= v_2 >= ...``.

    The means of the blocks that it pools; gradients are those of the means.

    Args:
        sums: of shape (n,).
        weights: of shape (n,), > 0.
    """
    with torch.no_grad():
        values = _pooled(wide(sums), wide(weights))
    if not torch.is_grad_enabled():
        return values
    blocks = torch.nn.functional.pad((values[1:] != values[:-1]).long().cumsum(0), (1, 0))
    zero = torch.zeros_like(values)
    above, below = zero.index_add(0, blocks, wide(sums)), zero.index_add(0, blocks, wide(weights))
    return above[blocks] / below[blocks]


def _pooled(sums: Tensor, weights: Tensor) -> Tensor:
    if sums.numel() < 2:
        return sums / weights
    if not asks_freely(sums):
        return _merged_halves(sums / weights, weights)
    blocks, values, rising = None, sums / weights, 1  # blocks: the one of each entry
    for _ in range(_RUNS):
        values = sums / weights
        kept = values[1:] <= values[:-1]
        rising = kept.numel() - int(kept.sum())
        if not rising or rising * _FEW < kept.numel():  # halves are quicker than a pass over all for each
            break
        run = torch.zeros_like(values, dtype=torch.long)
        torch.cumsum(kept.long(), 0, out=run[1:])
        sums, weights = (x.new_zeros(int(run[-1]) + 1).index_add_(0, run, x) for x in (sums, weights))
        blocks = run if blocks is None else run.index_select(0, blocks)
    values = _merged_halves(sums / weights, weights) if rising else values
    return values if blocks is None else values.index_select(0, blocks)


def _merged_halves(values: Tensor, weights: Tensor) -> Tensor:
    count = values.numel()
    levels = (count - 1).bit_length()
    room = (1 << levels) - count
    values = torch.cat([values, values.min().expand(room)])  # of weight 0, and below none
    weights = torch.cat([weights, weights.new_zeros(room)])
    for level in range(levels):
        pairs = values.view(-1, 2, 1 << level)
        weight = weights.view_as(pairs)
        if asks_freely(values):
            rising = (pairs[:, 0, -1] < pairs[:, 1, 0]).nonzero().reshape(-1)
            pairs[rising] = _merged(*pairs[rising].unbind(1), *weight[rising].unbind(1))
        else:
            values = _merged(*pairs.unbind(1), *weight.unbind(1)).flatten()
    return values[:count]


def _merged(left: Tensor, right: Tensor, left_weights: Tensor, right_weights: Tensor) -> Tensor:
    """Each row's left and right half, both non-increasing, as one non-increasing row."""
    # sums over left[j:] and over right[:i], for j, i = 0 ... m
    lw, ls = _prefix(left_weights.flip(-1)).flip(-1), _prefix((left_weights * left).flip(-1)).flip(-1)
    rw, rs = _prefix(right_weights), _prefix(right_weights * right)
    above = _rank(-right, -left, False)  # how many on the right are above each of the left
    rise = left * lw[..., 1:] - ls[..., 1:] - (rs.gather(-1, above) - left * rw.gather(-1, above))
    from_left = (rise < 0).to(left.dtype)
    least = _rank(-left, -right, True)  # where on the left those below each of the right begin
    rise = right * lw.gather(-1, least) - ls.gather(-1, least) - (rs[..., :-1] - right * rw[..., :-1])
    from_right = (rise > 0).to(left.dtype)
    taken = (from_left * left_weights).sum(-1, keepdim=True) + (from_right * right_weights).sum(-1, keepdim=True)
    pulled = from_left * left_weights * left, from_right * right_weights * right
    level = sum(x.sum(-1, keepdim=True) for x in pulled) / taken
    broken = (left[..., -1:] < right[..., :1]) & (taken > 0)
    pooled_left, pooled_right = broken & (left <= level), broken & (right >= level)
    return torch.stack([torch.where(pooled_left, level, left), torch.where(pooled_right, level, right)], 1)


def _prefix(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x.cumsum(-1), (1, 0))


class _Rank(torch.autograd.Function):
    """`torch.searchsorted` of rows, which has no rule for vmap of its own."""

    generate_vmap_rule = False

    @staticmethod
    def forward(ascending: Tensor, values: Tensor, right: bool) -> Tensor:
        return torch.searchsorted(ascending.contiguous(), values.contiguous(), right=right)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, ascending: Tensor, values: Tensor, right: bool) -> Any:
        a, v = (
            x.movedim(d, 0) if d is not None else x.expand(info.batch_size, *x.shape)
            for x, d in zip((ascending, values), in_dims[:2], strict=True)
        )
        return _rank(a, v, right), 0


_rank: Any = _Rank.apply
