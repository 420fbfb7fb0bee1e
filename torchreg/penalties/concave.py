"""Penalties whose slope falls as a weight grows, so that large weights are not biased: L0, MCP, SCAD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from torchreg.penalties.separable import Separable, largest
from torchreg.penalties.strength import strength
from torchreg.shrinkage import Scalar, firm, hard, mcp_value, scad, scad_value, scaled
from torchreg.sums import widened


@dataclass(frozen=True, eq=False, repr=False)
class L0(Separable):
    """The number of non-zero weights, whose prox is the hard threshold.

    ``R(w) = alpha * #{i: w_i != 0}``; ``prox(w, step) = w where |w| > sqrt(2 alpha step), else 0``.

    Its gradient is 0 wherever it has one, so in a loss it does nothing: use it in `ProxOptimizer`.

    Args:
        alpha: price of one non-zero weight, finite and >= 0; a number or a 0-d tensor.

    Raises:
        ValueError: if ``alpha`` is negative, NaN or infinite.

    Source:
        Blumensath and Davies, J. Fourier Anal. Appl. 14, 2008 (iterative hard thresholding).

    Example:
        >>> import torch
        >>> from torchreg import L0
        >>> L0(0.5).prox(torch.tensor([2.0, -0.3, 1.0]), 1.0)
        tensor([2., 0., 0.])
    """

    alpha: Scalar

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("L0", self.alpha))

    def phi(self, x: Tensor) -> Tensor:
        counted = torch.where(x == 0, torch.zeros_like(x), torch.ones_like(x))
        return self.alpha * torch.where(x.isnan(), x, counted)

    def shrink(self, x: Tensor, step: Scalar) -> Tensor:
        twice = scaled(2.0 * self.alpha, step)
        return hard(x, torch.sqrt(twice) if isinstance(twice, Tensor) else math.sqrt(twice))

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        if step is None:
            raise ValueError(
                "L0.alpha_max needs the step, since its slope at 0 is infinite, got step=None; pass "
                "step=learning rate, or 1 / Lipschitz constant in a fit."
            )
        return Separable.alpha_max(self, grad, step)


@dataclass(frozen=True, eq=False, repr=False)
class MCP(Separable):
    """The minimax concave penalty: L1 near zero, constant for large weights, so without their bias.

    ``phi(w) = alpha |w| - w^2 / (2 gamma)`` for ``|w| <= gamma alpha``, else ``gamma alpha^2 / 2``.

    From ``step = gamma`` on the prox is a hard threshold at ``alpha sqrt(gamma step)``, which is
    the true minimiser; adaptive optimizers reach such steps where the gradient's variance is small.

    Args:
        alpha: slope at zero, finite and >= 0; a number or a 0-d tensor.
        gamma: concavity, > 0; the larger, the closer to L1. ``phi`` is 1/gamma weakly convex.

    Raises:
        ValueError: if ``alpha`` or ``gamma`` is out of range.

    Source:
        Zhang, Annals of Statistics 38, 2010.

    Example:
        >>> import torch
        >>> from torchreg import MCP
        >>> MCP(0.5, gamma=3.0).prox(torch.tensor([2.0, -0.3, 1.0]), 1.0)
        tensor([2.0000, 0.0000, 0.7500])
    """

    alpha: Scalar
    gamma: float = 3.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("MCP", self.alpha))
        object.__setattr__(self, "gamma", _concavity("MCP", self.gamma, 0.0))

    def phi(self, x: Tensor) -> Tensor:
        return mcp_value(x, self.alpha, self.gamma)

    def shrink(self, x: Tensor, step: Scalar) -> Tensor:
        return firm(x, self.alpha, self.gamma, step)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        return largest(widened(grad).abs()) if step is None else Separable.alpha_max(self, grad, step)


@dataclass(frozen=True, eq=False, repr=False)
class SCAD(Separable):
    """The smoothly clipped absolute deviation: L1 near zero, then quadratic, then constant.

    ``phi'(w) = alpha`` up to ``alpha``, ``(gamma alpha - |w|) / (gamma - 1)`` up to
    ``gamma alpha``, then 0.

    From ``step = gamma - 1`` on the prox jumps: it is the better of two candidates.

    Args:
        alpha: slope at zero, finite and >= 0; a number or a 0-d tensor.
        gamma: concavity, > 2; the larger, the closer to L1.

    Raises:
        ValueError: if ``alpha`` or ``gamma`` is out of range.

    Source:
        Fan and Li, JASA 96, 2001.

    Example:
        >>> import torch
        >>> from torchreg import SCAD
        >>> SCAD(0.5).prox(torch.tensor([2.0, -0.3, 1.0]), 1.0)
        tensor([2.0000, 0.0000, 0.5000])
    """

    alpha: Scalar
    gamma: float = 3.7

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("SCAD", self.alpha))
        object.__setattr__(self, "gamma", _concavity("SCAD", self.gamma, 2.0))

    def phi(self, x: Tensor) -> Tensor:
        return scad_value(x, self.alpha, self.gamma)

    def shrink(self, x: Tensor, step: Scalar) -> Tensor:
        return scad(x, self.alpha, self.gamma, step)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        return largest(widened(grad).abs()) if step is None else Separable.alpha_max(self, grad, step)


def _concavity(owner: str, gamma: float, least: float) -> float:
    if not (isinstance(gamma, Real) and math.isfinite(gamma) and gamma > least):
        raise ValueError(f"{owner} needs gamma > {least:g}, got {gamma!r}; use L1 if you want no concavity.")
    return float(gamma)
