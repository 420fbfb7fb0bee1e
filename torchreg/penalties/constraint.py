"""What constraint penalties share: a value of 0 or infinity, a projection as prox, and no strength."""

from __future__ import annotations

import math
from abc import abstractmethod
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from torchreg.functional.groups import Groups
from torchreg.functional.reductions import narrowed, refuse_unreal, wide, wide_dtype, widened
from torchreg.functional.shrinkage import Scalar, moves
from torchreg.penalties.base import Grain, Penalty

_ROUNDINGS = 4.0  # of the dtype: half of one for each entry of a result, and those of the norm that is compared


class Rounding(NamedTuple):
    """What rounding entries to a dtype may do to a norm of theirs.

    Attributes:
        relative: in proportion to the norm.
        least: to each entry, near 0, where the dtype's numbers lie at equal distances.
    """

    relative: float
    least: float


class Constraint(Penalty):
    """A set that weights must lie in: 0 inside, infinite outside, projected on by ``prox``.

    It has no strength: its `alpha` is 1, as any number times it is itself, and cannot be set. Another bound is another
    object. Outside counts what is farther out than rounding to the tensor's dtype can carry a projected one.
    """

    alpha: Scalar = 1.0

    @property
    def several(self) -> tuple[Penalty, ...]:
        return (self,)

    @abstractmethod
    def outside(self, x: Tensor, rounding: Rounding) -> Tensor:
        """Whether ``x`` is outside, a 0-d boolean.

        Args:
            x: the tensor without NaN, in float64 where its device has it.
            rounding: what rounding to the tensor's dtype may have done.
        """

    def value(self, w: Tensor) -> Tensor:
        x = wide(widened(w.detach()))
        broken = x.isnan().any()
        out = self.outside(torch.nan_to_num(x, nan=0.0, posinf=math.inf, neginf=-math.inf), rounding_of(w))
        nothing = widened(w).reshape(-1)[:0].sum()  # 0, with a gradient of 0
        return nothing + torch.where(broken, math.nan, torch.where(out, math.inf, 0.0)).to(wide_dtype(w))

    def check(self, w: Tensor) -> None:
        refuse_unreal(w)


class GroupConstraint(Constraint):
    """A bound that each group of entries must keep."""

    by: Groups

    @property
    def grain(self) -> Grain:
        return "row" if self.by.by_row else "tensor"

    def _settle(self) -> None:
        """Check the fields; the constructor's."""
        name = type(self).__name__
        if not isinstance(self.by, Groups):
            raise TypeError(f"{name} needs by=rows, columns, filters, whole or labels(index), got {self.by!r}.")
        if hasattr(self, "radius"):
            object.__setattr__(self, "radius", bound(name, "radius", self.radius))

    @abstractmethod
    def nearest(self, x: Tensor, step: Scalar) -> Tensor:
        """The projection of a finite tensor, in the metric ``1 / step``; entries of step 0 stay."""

    @abstractmethod
    def breaks(self, x: Tensor, rounding: Rounding) -> Tensor:
        """Which groups are outside."""

    def outside(self, x: Tensor, rounding: Rounding) -> Tensor:
        if not x.numel():
            return torch.zeros((), dtype=torch.bool, device=x.device)
        return (self.breaks(x, rounding) & (self.by.sum(torch.ones_like(x)) > 0)).any()

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        x = widened(w)
        if not w.numel():
            return w.clone()
        step = step.reshape(()) if isinstance(step, Tensor) and step.numel() == 1 else step
        broken = self.by.expand(self.by.sum((~x.isfinite()).to(x.dtype)), x) > 0  # a group with a NaN stays
        x = torch.where(broken, torch.zeros_like(x), x)
        nearest = self.nearest(x, step).to(x.dtype)
        # a group that is inside but for rounding stays, so that its exact zeros do
        out = self.by.expand(self.breaks(wide(x.detach()), rounding_of(w)).to(x.dtype), x) > 0
        nearest = torch.where(out, nearest, nearest + (x - nearest).detach())
        return narrowed(torch.where(moves(step) & ~broken, nearest, w.to(x.dtype)), w)

    def check(self, w: Tensor) -> None:
        Constraint.check(self, w)
        self.by.check(w)
        radius = getattr(self, "radius", 1.0)
        if isinstance(radius, Tensor):
            bound(type(self).__name__, "radius", float(radius.detach()))


def rounding_of(w: Tensor) -> Rounding:
    """What rounding the entries of ``w`` to its dtype may have done."""
    info = torch.finfo(w.dtype)
    return Rounding(_ROUNDINGS * info.eps, info.tiny * info.eps)


def bound(owner: str, name: str, given: Scalar) -> Scalar:
    """A radius as a finite float > 0, or as the 0-d floating tensor that it is.

    Raises:
        TypeError: if it is neither.
        ValueError: if it is not finite and > 0, or not 0-d.
    """
    if isinstance(given, Tensor):
        if given.dim() or not given.is_floating_point():
            raise ValueError(
                f"{owner} needs {name} as a number or a 0-d floating tensor, got a {given.dtype} tensor of shape "
                f"{tuple(given.shape)}; attach a penalty of its own to each tensor that has another {name}."
            )
        return given
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(f"{owner} needs {name} as a number, got {type(given).__name__}; use {owner}({name}=1.0), say.")
    if not (math.isfinite(given) and given > 0.0):
        raise ValueError(f"{owner} needs a finite {name} > 0, got {float(given)}; attach no penalty for no bound.")
    return float(given)
