"""Penalties around a penalty: non-negative, or measured from a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut, is_cut, whole
from torchreg.functional.reductions import narrowed, widened
from torchreg.functional.shrinkage import Scalar, moves
from torchreg.penalties.base import Form, Grain, Penalty, ProxForm
from torchreg.penalties.weighted import check_fit
from torchreg.penalties.wrapped import Wrapped


@dataclass(frozen=True, eq=False, repr=False)
class NonNegative(Wrapped):
    """A penalty with the constraint ``w >= 0``: negative entries go to zero.

    ``R(w) = penalty(w)`` where all ``w_i >= 0``, else inf;
    ``prox(w, step) = penalty.prox(max(w, 0), step)``, at step 0 the identity.

    Args:
        penalty: one that depends on ``|w|`` alone: any but Towards and NonNegative.

    Raises:
        TypeError: if ``penalty`` does not.

    Example:
        >>> import torch
        >>> from torchreg import L1, NonNegative
        >>> NonNegative(L1(0.5)).prox(torch.tensor([2.0, -3.0, 0.4]), 1.0)
        tensor([1.5000, 0.0000, 0.0000])
    """

    penalty: Penalty

    def __post_init__(self) -> None:
        if not (isinstance(self.penalty, Penalty) and self.penalty.even):
            raise TypeError(
                f"NonNegative takes a penalty that depends on |w| alone, got {self.penalty!r}; "
                "put it inside: Towards(...) cannot be constrained in closed form."
            )

    @property
    def radial(self) -> bool:
        return self.penalty.radial

    @property
    def sublinear(self) -> bool:
        return self.penalty.sublinear

    @property
    def grain(self) -> Grain:
        return self.penalty.grain

    def part(self, cut: Cut) -> Penalty | None:
        inner = self.penalty.part(cut)
        return self if inner is self.penalty else None if inner is None else self.replaced(penalty=inner)

    def value(self, w: Tensor) -> Tensor:
        return self.penalty.value(w) + torch.where((w < 0).any(), math.inf, 0.0)

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        x = widened(w)
        projected = self.penalty.prox(x.clamp(min=0.0), step)
        return narrowed(torch.where(moves(step) & torch.ones_like(x, dtype=torch.bool), projected, x), w)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        return self.penalty.alpha_max(grad.clamp(max=0.0), step)

    def form(self, w: Tensor) -> Form:
        form = self.penalty.form(w)
        return ProxForm(self) if isinstance(form, ProxForm) else replace(form, lower=0.0)

    def check(self, w: Tensor) -> None:
        self.penalty.check(w)


@dataclass(frozen=True, eq=False, repr=False)
class Towards(Wrapped):
    """A penalty on the distance to a reference, as in fine-tuning: ``R(w) = penalty(w - reference)``.

    Under a proximal step with L1, weights that the new data does not need return exactly to the
    reference. ``Towards(L1(a), start)`` is L1-SP, ``Towards(L2(a), start)`` is L2-SP.

    Args:
        penalty: any penalty.
        reference: the tensor to return to, of w's shape; it is copied.

    Raises:
        ValueError: at attach, if the shapes differ.

    Source:
        Li, Grandvalet and Davoine, ICML 2018 (L2-SP).

    Example:
        >>> import torch
        >>> from torchreg import L1, Towards
        >>> Towards(L1(0.5), torch.tensor([1.0, 1.0])).prox(torch.tensor([1.2, 3.0]), 1.0)
        tensor([1.0000, 2.5000])
    """

    penalty: Penalty
    reference: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Penalty) or isinstance(self.penalty, (NonNegative, Towards)):
            raise TypeError(
                f"Towards takes a penalty without a constraint or a reference of its own, got {self.penalty!r}; "
                "use Towards(L1(0.1), reference), say."
            )
        if not isinstance(self.reference, Tensor):
            given = type(self.reference).__name__
            raise TypeError(f"Towards needs a tensor as reference, got {given}; use parameter.detach(), say.")
        if not bool(widened(self.reference.detach()).isfinite().all()):
            raise ValueError("Towards needs a finite reference, got one with NaN or inf; check the pretrained weights.")
        object.__setattr__(self, "reference", self.reference.detach().clone())

    def part(self, cut: Cut) -> Penalty | None:
        inner = self.penalty.part(cut)
        return None if inner is None else self.replaced(penalty=inner, reference=cut.part(self.reference))

    def _reference_for(self, w: Tensor) -> Tensor:
        """The reference, gathered where it is cut and ``w`` is not."""
        return self.reference if is_cut(w) else whole(self.reference)

    def value(self, w: Tensor) -> Tensor:
        return self.penalty.value(widened(w) - self._reference_for(w))

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        x, reference = widened(w), widened(self._reference_for(w))
        distance = x - reference
        left = self.penalty.prox(distance, step)
        # w - (what is taken off) keeps every bit of w at step 0, as reference + left would not
        taken = torch.where(left == distance, torch.zeros_like(x), distance - left)  # nothing of an infinite weight
        return narrowed(torch.where(left == 0, reference, x - taken), w)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        return self.penalty.alpha_max(grad, step)

    def conjugate(self, z: Tensor) -> Tensor:
        return self.penalty.conjugate(z) + (widened(z) * self.reference).sum()

    def check(self, w: Tensor) -> None:
        if self.reference.shape != w.shape:
            raise ValueError(
                f"Towards' reference of shape {tuple(self.reference.shape)} does not fit a tensor of shape "
                f"{tuple(w.shape)}; take it from the same parameter, for instance parameter.detach().clone()."
            )
        check_fit("Towards' reference", self.reference, w)
        self.penalty.check(w)
