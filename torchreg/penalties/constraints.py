"""Constraints on entries and their sum: a box, a simplex, an L1 ball."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut
from torchreg.functional.groups import Groups, whole
from torchreg.functional.reductions import narrowed, widened
from torchreg.functional.shrinkage import Scalar, filled, moves
from torchreg.functional.thresholds import nearest_of_sum
from torchreg.penalties.base import Grain, Penalty
from torchreg.penalties.constraint import Constraint, GroupConstraint, Rounding
from torchreg.penalties.weighted import check_fit


@dataclass(frozen=True, eq=False, repr=False)
class Box(Constraint):
    """Every weight between two bounds: ``low <= w <= high``; clipping weights is its proximal step.

    ``prox(w, step) = min(max(w, low), high)``, at step 0 the identity. Each entry is clipped alone, so the
    projection is the same in every metric: Adam's steps do not change it.

    Args:
        low: a number or a tensor that broadcasts with w; -inf for no bound.
        high: as low, >= low; inf for no bound.

    Raises:
        TypeError: if a bound is no number and no floating tensor.
        ValueError: if a bound is NaN, or ``low > high``.

    Example:
        >>> import torch
        >>> from torchreg import Box
        >>> Box(-1.0, 1.0).prox(torch.tensor([2.0, -0.3, -5.0]), 0.1)
        tensor([ 1.0000, -0.3000, -1.0000])
    """

    low: Tensor | float
    high: Tensor | float

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", _end("low", self.low))
        object.__setattr__(self, "high", _end("high", self.high))
        device = next((end.device for end in (self.low, self.high) if isinstance(end, Tensor)), None)
        ends = (self.low, self.high)
        low, high = (end if isinstance(end, Tensor) else torch.as_tensor(end, device=device) for end in ends)
        if low.device == high.device and not bool((low <= high).all()):  # false for a NaN too
            raise ValueError(
                f"Box needs low <= high, without NaN, got {self!r}; exchange them, or use inf for no bound."
            )

    @property
    def convex(self) -> bool:
        return True

    @property
    def grain(self) -> Grain:
        return "entry"

    def part(self, cut: Cut) -> Penalty | None:
        ends = {name: end for name, end in vars(self).items() if isinstance(end, Tensor) and end.dim()}
        return self.replaced(**{name: cut.part(end) for name, end in ends.items()}) if ends else self

    def outside(self, x: Tensor, rounding: Rounding) -> Tensor:
        low, high = (filled(end, x) for end in (self.low, self.high))
        low, high = (
            low - torch.where(low.isinf(), 0.0, rounding.relative * low.abs() + rounding.least),
            high + torch.where(high.isinf(), 0.0, rounding.relative * high.abs() + rounding.least),
        )
        return ((x < low) | (x > high)).any()

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        x = widened(w)
        clipped = torch.clamp(x, min=filled(self.low, x), max=filled(self.high, x))
        return narrowed(torch.where(moves(step) & ~x.isnan(), clipped, x), w)

    def conjugate(self, z: Tensor) -> Tensor:
        x = widened(z)
        ends = (torch.where(x == 0, 0.0, x * filled(end, x)) for end in (self.low, self.high))
        return torch.maximum(*ends).sum()

    def check(self, w: Tensor) -> None:
        Constraint.check(self, w)
        for name in ("low", "high"):
            check_fit(f"Box's {name}", getattr(self, name), w)


def _end(name: str, given: Tensor | float) -> Tensor | float:
    if isinstance(given, Tensor):
        if not given.is_floating_point():
            raise TypeError(f"Box needs a floating tensor as {name}, got {given.dtype}; use {name}.float().")
        return given.detach().clone()
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(
            f"Box needs {name} as a number or a floating tensor, got {type(given).__name__}; Box(-1.0, 1.0)."
        )
    return float(given)


@dataclass(frozen=True, eq=False, repr=False)
class Simplex(GroupConstraint):
    """Weights that are >= 0 and sum to a radius: mixtures, portfolios, attention that is learned as such.

    ``prox(w, step)_i = max(w_i - c step_i, 0)`` with the number c for which the sum is the radius. With one
    step this is the Euclidean projection; with a step per entry (an adaptive optimizer's) the exact one in that
    metric. Small entries go to exactly zero.

    Args:
        radius: what each group sums to, > 0.
        by: the groups, each with a simplex of its own; by default the whole tensor is one.

    Raises:
        TypeError: if ``radius`` is no number or ``by`` no grouper.
        ValueError: if ``radius`` is not finite and > 0.

    Source:
        Condat, Math. Program. 158, 2016; in a metric: Kiwiel, Math. Program. 112, 2008.

    Example:
        >>> import torch
        >>> from torchreg import Simplex
        >>> Simplex().prox(torch.tensor([0.75, 0.5, -2.0]), 0.1)
        tensor([0.6250, 0.3750, 0.0000])
    """

    radius: Scalar = 1.0
    by: Groups = whole

    def __post_init__(self) -> None:
        self._settle()

    @property
    def convex(self) -> bool:
        return True

    def nearest(self, x: Tensor, step: Scalar) -> Tensor:
        return nearest_of_sum(x, step, self.radius, self.by, within=False)

    def breaks(self, x: Tensor, rounding: Rounding) -> Tensor:
        low = self.by.extreme(x, largest=False) < 0
        least = rounding.least * self.by.sum(torch.ones_like(x))
        return low | ((self.by.sum(x) - self.radius).abs() > rounding.relative * self.radius + least)

    def conjugate(self, z: Tensor) -> Tensor:
        return self.radius * self.by.extreme(widened(z), largest=True).sum() if z.numel() else widened(z).sum()


@dataclass(frozen=True, eq=False, repr=False)
class L1Ball(GroupConstraint):
    """Weights whose absolute values sum to at most a radius: the lasso in its constrained form.

    ``prox(w, step)_i = sign(w_i) max(|w_i| - c step_i, 0)`` with the least c >= 0 for which the sum is at most
    the radius: a soft threshold that adapts itself, so that small weights are exactly zero. With a step per entry
    (an adaptive optimizer's) it is the exact projection in that metric.

    Args:
        radius: the largest L1 norm of each group, > 0.
        by: the groups, each with a ball of its own; by default the whole tensor is one.

    Raises:
        TypeError: if ``radius`` is no number or ``by`` no grouper.
        ValueError: if ``radius`` is not finite and > 0.

    Source:
        Duchi, Shalev-Shwartz, Singer and Chandra, ICML 2008; Condat, Math. Program. 158, 2016; in a metric:
        Kiwiel, Math. Program. 112, 2008.

    Example:
        >>> import torch
        >>> from torchreg import L1Ball
        >>> L1Ball(2.0).prox(torch.tensor([2.0, -1.0, 0.25]), 0.1)
        tensor([ 1.5000, -0.5000,  0.0000])
    """

    radius: Scalar
    by: Groups = whole

    def __post_init__(self) -> None:
        self._settle()

    @property
    def convex(self) -> bool:
        return True

    @property
    def even(self) -> bool:
        return True

    def nearest(self, x: Tensor, step: Scalar) -> Tensor:
        return nearest_of_sum(x.abs(), step, self.radius, self.by, within=True) * x.sign()

    def breaks(self, x: Tensor, rounding: Rounding) -> Tensor:
        least = rounding.least * self.by.sum(torch.ones_like(x))
        return self.by.sum(x.abs()) > self.radius * (1.0 + rounding.relative) + least

    def conjugate(self, z: Tensor) -> Tensor:
        return self.radius * self.by.extreme(widened(z).abs(), largest=True).sum() if z.numel() else widened(z).sum()
