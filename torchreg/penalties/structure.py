"""What a solver may know of a penalty: exact data where it is of L1 or group type, else its prox.

Solvers dispatch on these forms, never on the class of a penalty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchreg.functional.groups import Groups
from torchreg.functional.shrinkage import Scalar, soft


@dataclass(frozen=True)
class L1Form:
    """``sum_i l1_i |w_i| + l2_i / 2 w_i^2``, subject to ``w_i >= lower``.

    ``l1`` and ``l2`` are numbers or tensors that broadcast with w; an infinite ``l1_i`` forces
    ``w_i = 0``, ``lower`` is ``-inf`` or 0.
    """

    l1: Scalar
    l2: Scalar = 0.0
    lower: float = -math.inf

    def conjugate(self, z: Tensor) -> Tensor:
        """The convex conjugate at ``z``, a 0-d tensor, inf outside its domain."""
        z = z.clamp(min=0.0) if self.lower == 0.0 else z
        return ridge_conjugate(soft(z, self.l1), self.l2).sum()

    def plus_ridge(self, ridge: Scalar) -> L1Form:
        """This form with ``ridge * w^2`` added."""
        return replace(self, l2=self.l2 + 2.0 * ridge)

    def times(self, factor: Scalar) -> L1Form:
        """Multiplied by ``factor >= 0``."""
        return replace(self, l1=factor * self.l1, l2=factor * self.l2)


@dataclass(frozen=True)
class GroupForm:
    """``sum_g l1_g ||w_g|| + sum_i inner_i |w_i| + l2_i / 2 w_i^2``, subject to ``w_i >= lower``.

    ``l1`` has one entry per group of ``by``; ``inner`` and ``l2`` broadcast with w (``l2`` may
    differ between groups only).
    """

    by: Groups
    l1: Tensor
    l2: Scalar = 0.0
    inner: Scalar = 0.0
    lower: float = -math.inf

    def conjugate(self, z: Tensor) -> Tensor:
        """The convex conjugate at ``z``, a 0-d tensor, inf outside its domain."""
        z = z.clamp(min=0.0) if self.lower == 0.0 else z
        norms = self.by.norms(soft(z, self.inner)).to(z.dtype)
        l2 = self.l2
        if isinstance(l2, Tensor) and l2.dim():
            l2 = self.by.extreme(l2.broadcast_to(z.shape), largest=True)
        return ridge_conjugate((norms - self.l1).clamp(min=0.0), l2).sum()

    def plus_ridge(self, ridge: Scalar) -> GroupForm:
        """This form with ``ridge * w^2`` added."""
        return replace(self, l2=self.l2 + 2.0 * ridge)

    def times(self, factor: Scalar) -> GroupForm:
        """Multiplied by ``factor >= 0``."""
        return replace(self, l1=factor * self.l1, l2=factor * self.l2, inner=factor * self.inner)


def ridge_conjugate(z: Tensor, l2: Scalar) -> Tensor:
    """Per entry the conjugate of ``l2 / 2 w^2``: ``z^2 / (2 l2)``, where l2 = 0 that of nothing."""
    l2 = torch.as_tensor(l2, dtype=z.dtype, device=z.device).broadcast_to(z.shape)
    curved = l2 > 0
    flat = torch.where(z == 0, 0.0, math.inf).to(z.dtype)
    return torch.where(curved, z.square() / (2.0 * torch.where(curved, l2, torch.ones_like(l2))), flat)
