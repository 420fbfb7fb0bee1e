"""Norms that look at the order of sizes: the largest of each group, and the sorted L1 norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from torchreg.functional.groups import Groups, whole
from torchreg.functional.reductions import narrowed, wide, wide_dtype, widened
from torchreg.functional.shrinkage import Scalar, moves, scaled
from torchreg.functional.sorted_l1 import sorted_l1_prox
from torchreg.functional.thresholds import level_of
from torchreg.penalties.alpha import strength
from torchreg.penalties.base import Grain, Penalty
from torchreg.penalties.weighted import check_device


@dataclass(frozen=True, eq=False, repr=False)
class LInf(Penalty):
    """The largest absolute value of each group: the l1,inf norm by rows, the max norm of the whole tensor.

    ``R(w) = alpha * sum_g max_i |w_gi|``; ``prox(w, step)`` cuts the largest entries of a group down to one common
    size, by ``alpha * step`` altogether, and sets the group to zero where it holds no more than that. With a step per
    entry (an adaptive optimizer's) it solves the exact problem in that metric.

    It selects groups, and within a group it levels the largest entries: a shared support for many tasks. Beside
    ``Group(L1(alpha), by)`` it does not shrink the small entries of a group that stays.

    Args:
        alpha: strength, finite and >= 0; a number or a 0-d tensor.
        by: the groups: ``rows``, ``columns``, ``filters``, ``whole`` or ``labels(index)``.

    Raises:
        TypeError: if ``by`` is no grouper.
        ValueError: if ``alpha`` is negative, NaN or infinite; at attach, if the groups do not fit.

    Source:
        Turlach, Venables and Wright, Technometrics 47, 2005; Quattoni, Carreras, Collins and Darrell, ICML 2009. The
        prox is what the projection on an L1 ball leaves (Moreau): Duchi and Singer, JMLR 10, 2009, sec. 5.3.

    Example:
        >>> import torch
        >>> from torchreg import LInf, rows
        >>> LInf(1.0, by=rows).prox(torch.tensor([[3.0, -2.5, 0.5], [0.5, 0.25, 0.0]]), 1.0)
        tensor([[ 2.2500, -2.2500,  0.5000],
                [ 0.0000,  0.0000,  0.0000]])
    """

    alpha: Scalar
    by: Groups = whole

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("LInf", self.alpha))
        if not isinstance(self.by, Groups):
            raise TypeError(f"LInf needs by=rows, columns, filters, whole or labels(index), got {self.by!r}.")

    @property
    def convex(self) -> bool:
        return True

    @property
    def even(self) -> bool:
        return True

    @property
    def groups(self) -> Groups | None:
        return self.by

    @property
    def grain(self) -> Grain:
        return "row" if self.by.by_row else "tensor"

    def value(self, w: Tensor) -> Tensor:
        x = widened(w).abs()
        return self.alpha * (self.by.extreme(x, largest=True).sum() if w.numel() else x.sum())

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        x = widened(w)
        if not w.numel():
            return w.clone()
        broken = self.by.expand(self.by.sum((~x.isfinite()).to(x.dtype)), x) > 0  # a group with a NaN stays
        sizes = torch.where(broken, torch.zeros_like(x), x.abs())
        moving = moves(step) & ~broken
        cut = self.by.expand(self._cut(sizes, step, moving), x)
        return narrowed(torch.where((sizes > cut) & moving, cut * x.sign(), x), w)

    def _cut(self, sizes: Tensor, step: Scalar, moving: Tensor) -> Tensor:
        """The size that each group is cut down to."""
        total = torch.zeros(self.by.count(sizes), dtype=wide(sizes).dtype, device=sizes.device)
        if not isinstance(step, Tensor) or step.numel() == 1:
            pull = scaled(self.alpha, step.reshape(()) if isinstance(step, Tensor) else step)
            return level_of(sizes, None, total + pull, self.by).clamp(min=0.0).to(sizes.dtype)
        metric = 1.0 / wide(torch.where(moving, step, 1.0)).clamp(max=torch.finfo(total.dtype).max ** 0.25)
        metric = torch.where(moving, metric, torch.zeros_like(metric)).broadcast_to(sizes.shape)
        level = level_of(wide(sizes) * metric, metric, total + self.alpha, self.by).clamp(min=0.0)
        still = self.by.extreme(torch.where(moving, torch.zeros_like(sizes), sizes), largest=True)
        return torch.maximum(level, still.to(level.dtype)).to(sizes.dtype)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        del step
        sums = self.by.sum(wide(widened(grad).abs())).to(wide_dtype(grad))
        return sums.max() if sums.numel() else sums.sum()

    def conjugate(self, z: Tensor) -> Tensor:
        sums = self.by.sum(wide(widened(z).abs()))
        return torch.where((sums > self.alpha).any(), math.inf, 0.0).to(wide_dtype(z))

    def check(self, w: Tensor) -> None:
        Penalty.check(self, w)
        self.by.check(w)


@dataclass(frozen=True, eq=False, repr=False)
class SLOPE(Penalty):
    """The sorted L1 norm, whose largest weights cost most: it selects with a bounded false discovery rate.

    ``R(w) = alpha * sum_i c_i |w|_(i)`` with ``|w|_(1) >= |w|_(2) >= ...`` and ``c_1 >= c_2 >= ... >= 0``. Its prox
    subtracts ``alpha * step * c_i`` in the order of sizes, pools what then rises, and cuts off at 0: besides exact
    zeros it makes clusters of exactly equal sizes. With ``c = 1`` it is L1; with a single 1 it is LInf; with c
    falling evenly it is OSCAR.

    With a step per entry (an adaptive optimizer's) it solves the exact problem in that metric, whose order has to be
    found first: about 2 log2(n) sorts instead of one.

    Args:
        alpha: strength, finite and >= 0; a number or a 0-d tensor.
        weights: c, of shape (w.numel(),), not rising, >= 0; None for the Benjamini-Hochberg sequence
            ``c_i = Phi^-1(1 - q i / (2 n))``, Phi the normal distribution function.
        q: the false discovery rate that the sequence is made for, between 0 and 1; used without weights only.

    Raises:
        TypeError: if ``weights`` is no floating tensor.
        ValueError: if an argument is out of range; at attach, if the weights do not fit.

    Source:
        Bogdan, van den Berg, Sabatti, Su and Candes, Ann. Appl. Stat. 9, 2015; OSCAR: Bondell and Reich, Biometrics
        64, 2008.

    Example:
        >>> import torch
        >>> from torchreg import SLOPE
        >>> SLOPE(1.0, torch.tensor([2.0, 1.0, 0.5])).prox(torch.tensor([-3.0, 2.5, 0.25]), 1.0)
        tensor([-1.2500,  1.2500,  0.0000])
    """

    alpha: Scalar
    weights: Tensor | None = None
    q: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("SLOPE", self.alpha))
        if isinstance(self.q, bool) or not (isinstance(self.q, Real) and 0.0 < self.q < 1.0):
            raise ValueError(f"SLOPE needs q between 0 and 1, a false discovery rate, got {self.q!r}; use q=0.1, say.")
        object.__setattr__(self, "q", float(self.q))
        if self.weights is not None:
            object.__setattr__(self, "weights", _checked(self.weights))

    @property
    def convex(self) -> bool:
        return True

    @property
    def even(self) -> bool:
        return True

    def _sequence(self, w: Tensor) -> Tensor:
        """The weights c for a tensor, in float64 where its device has it."""
        if self.weights is not None:
            return wide(self.weights)
        return _benjamini_hochberg(w.numel(), self.q, w.device)

    def value(self, w: Tensor) -> Tensor:
        sizes = widened(w).abs().reshape(-1).sort(descending=True).values
        return self.alpha * (self._sequence(w) * wide(sizes)).sum().to(wide_dtype(w))

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        return narrowed(sorted_l1_prox(widened(w), step, self.alpha * self._sequence(w)), w)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        del step
        if not grad.numel():
            return widened(grad).sum()
        sums, allowed = self._sums(grad)
        return torch.where(sums > 0, sums / allowed, torch.zeros_like(sums)).max().to(wide_dtype(grad))

    def conjugate(self, z: Tensor) -> Tensor:
        sums, allowed = self._sums(z)
        return torch.where((sums > self.alpha * allowed).any(), math.inf, 0.0).to(wide_dtype(z))

    def _sums(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the k largest entries, and what alpha = 1 allows them, for each k."""
        sizes = widened(z).abs().reshape(-1).sort(descending=True).values
        return wide(sizes).cumsum(0), self._sequence(z).cumsum(0)

    def check(self, w: Tensor) -> None:
        Penalty.check(self, w)
        if self.weights is None:
            return
        if self.weights.numel() != w.numel():
            raise ValueError(
                f"SLOPE's weights of shape {tuple(self.weights.shape)} do not fit the {w.numel()} entries of a tensor "
                f"of shape {tuple(w.shape)}; give one weight per entry, the largest first, or none."
            )
        check_device("SLOPE's weights", self.weights, w)


def _benjamini_hochberg(count: int, q: float, device: torch.device) -> Tensor:
    dtype = torch.float32 if device.type == "mps" else torch.float64
    ranks = torch.arange(1, count + 1, dtype=dtype, device=device)
    return -torch.special.ndtri(ranks * (q / (2.0 * max(count, 1))))


def _checked(weights: Tensor) -> Tensor:
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        given = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"SLOPE needs weights as a floating tensor, got {given}; use torch.tensor([2.0, 1.0]), say.")
    if weights.dim() != 1:
        raise ValueError(f"SLOPE needs weights of shape (w.numel(),), got {tuple(weights.shape)}; flatten them.")
    falling = bool((weights[1:] <= weights[:-1]).all()) and bool((weights >= 0).all() & weights.isfinite().all())
    if not falling:
        raise ValueError("SLOPE needs finite weights >= 0 that do not rise; sort them: weights.sort(descending=True).")
    return weights.detach().clone()
