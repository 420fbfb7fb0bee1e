"""The exact proximal map of total variation along rows, in parallel over all entries.

    min_u  sum_i q_i (u_i - x_i)^2 / 2 + level sum_i |u_i - u_(i-1)|

Whether ``u_i > c`` is a cut of least cost on a chain of two labels, for each c by itself, and the messages of its
dynamic programme are maps ``v -> clip(v + b, low, high)``, which are closed under composition. So
1. all entries of a row are one segment, of which one value is asked for;
2. each segment takes a threshold c: the weighted mean that it would have as one piece, each third time the middle of
   the bracket of its values;
3. one parallel prefix over the maps, from both ends, tells for each entry whether ``u_i > c``;
4. where neighbours differ in that, the sign of their jump is known, and the segment is cut: its ends pay ``level``;
5. a segment that its own mean does not cut, as a tie to rounding, or thresholds on both sides of it, is a piece of the
   solution; when all are, the signs are exact;
6. the values are the pieces' means, which carry the gradients.
Middles halve every bracket, so that a fixed number of rounds ends at rounding, for any input; on the CPU, where asking
is free, it stops as soon as nothing was cut: after some ten rounds for noise, twenty for a random walk.

Source: thresholds as cuts: Hochbaum, J. ACM 48, 2001; Chambolle and Darbon, IJCV 84, 2009; means as thresholds: the
divide and conquer of Kumar and Bach, arXiv 1503.01563; the chain's messages: Johnson, JCGS 22, 2013.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PATTERN = 3  # of so many thresholds one is the middle of the bracket
_SPARE = 6  # rounds of the pattern beyond the digits of a number
_ULPS = 4.0  # beside the mean, where rounding of the mean itself decides
_ROUNDINGS = 16.0  # of the sum of what a segment's messages add up: below it a cut is a tie

Maps = tuple[Tensor, Tensor, Tensor]  # v -> clip(v + b, low, high) for each entry of the last dimension


def denoised(x: Tensor, weight: Tensor, level: Tensor) -> Tensor:
    """The minimiser, of x's shape (rows, entries); its gradients in all three are those of the pieces' means.

    Args:
        x: finite.
        weight: ``q``, of x's shape, > 0.
        level: a 0-d tensor >= 0.
    """
    with torch.no_grad():
        signs = jump_signs(x.detach(), weight.detach(), level.detach().expand(x.shape[0], 1)).to(x.dtype)
        signs = torch.where(_means(x, weight, level, signs).diff(dim=-1) * signs > 0, signs, 0.0)  # ties of rounding
    return _means(x, weight, level, signs)


def _means(x: Tensor, weight: Tensor, level: Tensor, signs: Tensor) -> Tensor:
    ends = torch.nn.functional.pad(signs, (1, 1))
    label = _labels(ends != 0)
    pull = weight * x + level * (ends[..., 1:] - ends[..., :-1])
    return _within(pull, label) / _within(weight, label)


@torch.library.custom_op("torchreg::jump_signs", mutates_args=())
def jump_signs(x: Tensor, weight: Tensor, level: Tensor) -> Tensor:
    """The signs of the jumps of the minimiser between neighbours, int8 of shape (rows, entries - 1).

    An operator of its own, which a compiler takes as it is.
    """
    signs = x.new_zeros(x.shape[0], x.shape[1] + 1)
    ends = torch.zeros_like(signs, dtype=torch.bool)
    ends[:, :1] = ends[:, -1:] = True
    cuts, label = ends, _labels(ends)
    low, high = (f(-1, keepdim=True).expand_as(x) for f in (x.amin, x.amax))
    eps = torch.finfo(x.dtype).eps
    for k in range(_PATTERN * (_SPARE - round(math.log2(eps)))):
        by_mean = k % _PATTERN < _PATTERN - 1
        edge = level * (signs[:, :-1] - signs[:, 1:])
        room = _ULPS * eps * torch.maximum(low.abs(), high.abs())
        c = _mean_inside(weight * x - edge, weight, label, low, high, room) if by_mean else (low + high) / 2.0
        push = weight * (c - x)
        free = torch.where(cuts, torch.zeros_like(level), level)
        left = _messages(push + edge, free[:, :-1])
        right = _messages((push + edge).flip(-1), free[:, 1:].flip(-1)).flip(-1)
        excess = left + right - (push + edge)
        tie = _ROUNDINGS * eps * _within(torch.minimum(push.abs(), 2.0 * level) + edge.abs(), label)
        new = _jumps(excess < 0, left, right, level + tie) * ~cuts[:, 1:-1]
        signs[:, 1:-1] += new
        cuts = ends | (signs != 0)
        settled = (excess.abs() <= tie) | (high - low <= 2.0 * room)
        if by_mean and _may_wait(x) and not bool(new.any()) and bool(settled.all()):
            break
        label = _labels(cuts)
        share = _within((excess < 0).to(x.dtype), label) / _within(torch.ones_like(x), label)
        low, high = torch.where(share == 1.0, c, low), torch.where(share == 0.0, c, high)
    return signs[:, 1:-1].to(torch.int8)


def _jumps(above: Tensor, left: Tensor, right: Tensor, level: Tensor) -> Tensor:
    """Signs of the jumps at ``c``: between labels, where one side would pay more than a jump costs."""
    rises = (torch.maximum(left[:, :-1], -right[:, 1:]) > level[:, 1:]) & ~above[:, :-1] & above[:, 1:]
    falls = (torch.maximum(-left[:, :-1], right[:, 1:]) > level[:, 1:]) & above[:, :-1] & ~above[:, 1:]
    return rises.to(left.dtype) - falls.to(left.dtype)


@jump_signs.register_fake
def _(x: Tensor, weight: Tensor, level: Tensor) -> Tensor:
    del weight, level
    return x.new_empty(x.shape[0], x.shape[1] - 1, dtype=torch.int8)


@jump_signs.register_vmap
def _batched(info: object, in_dims: tuple[int | None, ...], *given: Tensor) -> tuple[Tensor, int]:
    size: int = info.batch_size  # type: ignore[attr-defined]
    batched = [
        t.movedim(d, 0) if d is not None else t.expand(size, *t.shape) for t, d in zip(given, in_dims, strict=True)
    ]
    signs = jump_signs(*(t.reshape(-1, t.shape[-1]) for t in batched))
    return signs.reshape(size, -1, signs.shape[-1]), 0


def _may_wait(x: Tensor) -> bool:
    """Whether asking for a number keeps nobody waiting."""
    return x.device.type == "cpu"


def _labels(cuts: Tensor) -> Tensor:
    """The number of each entry's segment, counted through all rows; ``cuts`` are those before and after entries."""
    first = cuts[..., :-1].clone()
    first[..., 0] = True
    return first.reshape(-1).cumsum(0).reshape(first.shape) - 1


def _within(x: Tensor, label: Tensor) -> Tensor:
    """The sum over its segment, at each entry."""
    at = label.reshape(-1)
    return torch.zeros_like(x).reshape(-1).index_add(0, at, x.reshape(-1))[at].reshape(x.shape)


def _mean_inside(pull: Tensor, weight: Tensor, label: Tensor, low: Tensor, high: Tensor, room: Tensor) -> Tensor:
    """The segments' means within their brackets: a little inside where a threshold there has been tried."""
    mean = _within(pull, label) / _within(weight, label)
    return torch.where(
        mean <= low, torch.minimum(low + room, high), torch.where(mean >= high, torch.maximum(high - room, low), mean)
    )


def _messages(slope: Tensor, level: Tensor) -> Tensor:
    """``m_i = slope_i + clip(m_(i-1), -level_i, level_i)`` for all i; ``level`` is 0 before a first entry."""
    return _prefix((slope, slope - level, slope + level))[1]


def _prefix(maps: Maps) -> Maps:
    """Each map after all that stand before it: pairs, their prefix, and what lies between, log2(n) levels deep."""
    n = maps[0].shape[-1]
    if n < 2:
        return maps
    pairs = _prefix(_after(tuple(x[..., : n - n % 2 : 2] for x in maps), tuple(x[..., 1::2] for x in maps)))
    between = _after(tuple(x[..., : (n - 1) // 2] for x in pairs), tuple(x[..., 2::2] for x in maps))
    whole = tuple(torch.empty_like(x) for x in maps)
    for x, single, odd, even in zip(whole, maps, pairs, between, strict=True):
        x[..., 0], x[..., 1::2], x[..., 2::2] = single[..., 0], odd, even
    return whole  # type: ignore[return-value]


def _after(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> Maps:
    """The second map of the first."""
    (b, low, high), (shift, least, most) = first, second
    bounded = [torch.minimum(torch.maximum(x + shift, least), most) for x in (low, high)]
    return b + shift, bounded[0], bounded[1]
