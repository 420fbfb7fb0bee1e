"""Exactly k entries: the largest of several tensors together, without waiting for a device.

Numbers are compared as integers of the same order, in which NaN comes last. So the k-th largest is one of them,
exactly, also where it is found by bisection: over processes that each hold a part, and over devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut
from torchreg.functional.reductions import widened
from torchreg.functional.shrinkage import Scalar, filled


def metric_size(w: Tensor, step: Scalar) -> Tensor:
    """``|w_i| / sqrt(step_i)``, the size of an entry in the metric of its step, whose order is that of ``w^2 / step``.

    Half its square is what zeroing the entry costs in a proximal step. It is infinite where the step is 0, where no
    entry may change, and as the root of ``w^2 / step`` it neither overflows nor underflows before w does.

    Example:
        >>> import torch
        >>> metric_size(torch.tensor([1.0, -1.0, 0.0, 2.0]), torch.tensor([1.0, 4.0, 0.0, 0.0]))
        tensor([1.0000, 0.5000, 0.0000,    inf])
    """
    size = widened(w).abs()
    return torch.where((size == 0) | size.isinf(), size, size * filled(step, size).rsqrt())


def decimal_ratio(share: float) -> tuple[int, int]:
    """A share as the ratio of whole numbers that its decimal digits say: 0.29 as 29 / 100, which in binary is less."""
    return Fraction(repr(float(share))).as_integer_ratio()


def keep_largest(scores: Sequence[Tensor], k: int | Tensor, cuts: Sequence[Cut | None] = ()) -> list[Tensor]:
    """The k largest entries of all tensors together, as a mask for each.

    Of equal entries those come first whose tensor comes first, and in one tensor those that come first when it is
    flattened; of a tensor that is cut, those on the first processes, which is the same where rows are cut. An infinity
    is the largest number. NaN comes after all numbers: it is taken only where there are fewer than k of them.

    Args:
        scores: real floating tensors of any shapes and dtypes, on any devices; of a tensor that is cut over processes
            the part that lies here.
        k: how many to keep, >= 0; as many as there are entries, or more, keeps all. A number, or a 0-d integer tensor
            that the host need not know.
        cuts: for each tensor how it is cut, None for a plain one; empty if all are plain. All processes must call.

    Returns:
        Boolean masks of the shapes of ``scores``, with k True in all, those of all processes counted.

    Raises:
        ValueError: if ``k`` is negative.

    Example:
        >>> import torch
        >>> keep_largest([torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])], 3)
        [tensor([True, True]), tensor([False,  True, False])]
    """
    if not isinstance(k, Tensor) and k < 0:
        raise ValueError(f"keep_largest needs k >= 0, got {k}.")
    if not scores or (not isinstance(k, Tensor) and k == 0):
        return [torch.zeros_like(s, dtype=torch.bool) for s in scores]
    whole = not any(cuts)
    if whole and not isinstance(k, Tensor) and k >= sum(s.numel() for s in scores):
        return [torch.ones_like(s, dtype=torch.bool) for s in scores]
    keys = _comparable(scores)
    counting = _Counting(list(cuts) if cuts else [None] * len(keys), keys[0].device)
    one = whole and not isinstance(k, Tensor) and keys[0].device.type in ("cpu", "cuda")
    if one and len({key.device for key in keys}) == 1:
        level = _kth_largest(torch.cat([key.reshape(-1) for key in keys]), int(k))
    else:
        level = _bisected(counting.enough(keys, k), keys[0])
    levels = [level.to(key.device) for key in keys]
    above = [key > at for key, at in zip(keys, levels, strict=True)]
    equal = [key == at for key, at in zip(keys, levels, strict=True)]
    missing = k - counting.total(above)
    before = counting.before(equal)
    return [a | (e & _is_among_first(e, missing - b)) for a, e, b in zip(above, equal, before, strict=True)]


def median_of_moved(sizes: Sequence[Tensor], cuts: Sequence[Cut | None] = ()) -> Tensor:
    """The median of all entries that are not 0, the upper one of two; NaN where all are 0.

    Args:
        sizes: tensors >= 0 of any shapes and floating dtypes, on any devices; parts of those that are cut.
        cuts: as of `keep_largest`. All processes must call.

    Returns:
        A 0-d tensor on the first one's device, for which nobody waits.

    Example:
        >>> import torch
        >>> median_of_moved([torch.tensor([0.0, 5.0, 0.0]), torch.tensor([1.0, 3.0, 2.0])])
        tensor(3.)
    """
    keys = _comparable(sizes)
    counting = _Counting(list(cuts) if cuts else [None] * len(keys), keys[0].device)
    half = (counting.total([key > 0 for key in keys]) + 1) // 2
    level = _bisected(counting.enough(keys, half), keys[0])
    return level.view(torch.float64 if level.dtype is torch.int64 else torch.float32)


def _comparable(scores: Sequence[Tensor]) -> list[Tensor]:
    """Integers in the order of the numbers: -0.0 as 0.0, NaN the least of all."""
    double = any(s.dtype is torch.float64 for s in scores)
    dtype, bits = (torch.float64, torch.int64) if double else (torch.float32, torch.int32)
    limits, keys = torch.iinfo(bits), []
    for score in scores:
        x = score.detach().to(dtype)
        pattern = x.contiguous().view(bits)
        signed = torch.where(pattern < 0, -(pattern & limits.max), pattern)
        keys.append(torch.where(x.isnan(), limits.min, signed))
    return keys


def _kth_largest(flat: Tensor, k: int) -> Tensor:
    """The k-th largest, ``1 <= k < n``, by the selection that is quick where the tensor lies."""
    return flat.kthvalue(flat.numel() - k + 1).values if flat.device.type == "cpu" else _end_of_top(flat, k)


def _end_of_top(flat: Tensor, k: int) -> Tensor:
    if 2 * k <= flat.numel():
        return flat.topk(k, sorted=False).values.amin()
    return flat.topk(flat.numel() - k + 1, largest=False, sorted=False).values.amax()


def _bisected(enough: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The largest integer for which ``enough`` is true, the least of all if it is true of none, bit by bit."""
    limits = torch.iinfo(like.dtype)
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    level = torch.where(enough(zero), zero, limits.min)
    for bit in reversed(range(limits.bits - 1)):
        trial = level + (1 << bit)
        level = torch.where(enough(trial), trial, level)
    return level


def _is_among_first(mask: Tensor, count: Tensor) -> Tensor:
    """Which entries have at most ``count`` True entries up to and with themselves."""
    exact = torch.int32 if mask.numel() < 1 << 31 else torch.int64
    return mask.reshape(-1).cumsum(0, dtype=exact).reshape(mask.shape) <= count.to(mask.device)


class _Counting:
    """Counts of True entries over several tensors, of which some are cut; one exchange for those cut alike."""

    def __init__(self, cuts: list[Cut | None], device: torch.device) -> None:
        self.device = device
        alike: dict[object, list[int]] = {}
        for place, cut in enumerate(cuts):
            key = None if cut is None else (cut.like.device_mesh, tuple(cut.like.placements))
            alike.setdefault(key, []).append(place)
        self.groups = [(cuts[places[0]], places) for places in alike.values()]

    def _here(self, masks: list[Tensor], places: list[int]) -> Tensor:
        return torch.stack([masks[k].sum().to(self.device) for k in places])

    def total(self, masks: list[Tensor]) -> Tensor:
        """How many entries are True in all."""
        counts = [(cut, self._here(masks, places).sum()) for cut, places in self.groups]
        found = [n if cut is None else cut.sum(n) for cut, n in counts]
        return sum(found[1:], found[0])

    def enough(self, keys: list[Tensor], k: int | Tensor) -> Callable[[Tensor], Tensor]:
        """A function of a level: whether k keys or more are at least that large."""
        return lambda level: self.total([key >= level.to(key.device) for key in keys]) >= k

    def before(self, masks: list[Tensor]) -> list[Tensor]:
        """How many are True in the tensors before each one, and in its parts on the processes before."""
        parts, totals = [torch.zeros(())] * len(masks), [torch.zeros(())] * len(masks)
        for cut, places in self.groups:
            counts = self._here(masks, places)
            earlier, whole = (torch.zeros_like(counts), counts) if cut is None else cut.before(counts)
            for j, k in enumerate(places):
                parts[k], totals[k] = earlier[j], whole[j]
        sums = torch.stack(totals).cumsum(0)
        return [part + end - own for part, end, own in zip(parts, sums.unbind(), totals, strict=True)]
