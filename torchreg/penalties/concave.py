"""Penalties whose slope falls as a weight grows, so that large weights are not biased."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from torchreg.functional.concave_shrinkage import firm, half, log_sum, mcp_value, scad, scad_value, two_thirds
from torchreg.functional.reductions import widened
from torchreg.functional.shrinkage import Scalar, hard, scaled
from torchreg.penalties.alpha import strength
from torchreg.penalties.separable import Separable, largest


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
        _need_step("L0", step)
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


@dataclass(frozen=True, eq=False, repr=False)
class LHalf(Separable):
    """The sum of square roots of weights: between L1 and L0, with a closed-form prox.

    ``R(w) = alpha * sum_i sqrt(|w_i|)``. Its prox is 0 up to ``|w| = 3/2 (alpha step)^(2/3)`` and jumps there to two
    thirds of the weight.

    Its slope at 0 is infinite, so in a loss, where the gradient at 0 counts as 0, it pushes small weights hard and
    gives no zeros: use it in `ProxOptimizer`.

    Args:
        alpha: strength, finite and >= 0; a number or a 0-d tensor.

    Raises:
        ValueError: if ``alpha`` is negative, NaN or infinite.

    Source:
        Xu, Chang, Xu and Zhang, IEEE Trans. Neural Networks and Learning Systems 23, 2012 (half thresholding).

    Example:
        >>> import torch
        >>> from torchreg import LHalf
        >>> LHalf(0.5).prox(torch.tensor([2.0, -0.3, 0.9]), 1.0)
        tensor([1.8144, 0.0000, 0.0000])
    """

    alpha: Scalar

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("LHalf", self.alpha))

    def phi(self, x: Tensor) -> Tensor:
        return self.alpha * _power(x, 0.5)

    def shrink(self, x: Tensor, step: Scalar) -> Tensor:
        return half(x, scaled(self.alpha, step))

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        _need_step("LHalf", step)
        return Separable.alpha_max(self, grad, step)


@dataclass(frozen=True, eq=False, repr=False)
class LTwoThirds(Separable):
    """The sum of ``|w|^(2/3)``: between L1 and `LHalf`, with a closed-form prox.

    ``R(w) = alpha * sum_i |w_i|^(2/3)``. Its prox is 0 up to ``|w| = 2 (2/3 alpha step)^(3/4)`` and jumps there to
    half the weight. As of `LHalf`, its slope at 0 is infinite: use it in `ProxOptimizer`.

    Args:
        alpha: strength, finite and >= 0; a number or a 0-d tensor.

    Raises:
        ValueError: if ``alpha`` is negative, NaN or infinite.

    Source:
        Cao, Sun and Xu, Journal of Visual Communication and Image Representation 24, 2013.

    Example:
        >>> import torch
        >>> from torchreg import LTwoThirds
        >>> LTwoThirds(0.5).prox(torch.tensor([2.0, -0.3, 0.8]), 1.0)
        tensor([1.7219, 0.0000, 0.0000])
    """

    alpha: Scalar

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("LTwoThirds", self.alpha))

    def phi(self, x: Tensor) -> Tensor:
        return self.alpha * _power(x, 2.0 / 3.0)

    def shrink(self, x: Tensor, step: Scalar) -> Tensor:
        return two_thirds(x, scaled(self.alpha, step))

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        _need_step("LTwoThirds", step)
        return Separable.alpha_max(self, grad, step)


@dataclass(frozen=True, eq=False, repr=False)
class LogSum(Separable):
    """The logarithm of weights: the penalty that iteratively reweighted L1 minimises.

    ``phi(w) = alpha * log(1 + |w| / eps)``: of slope ``alpha / eps`` at 0, and nearly flat for large weights.

    Args:
        alpha: strength, finite and >= 0; a number or a 0-d tensor.
        eps: > 0, the size of a weight at which the slope has halved.

    Raises:
        ValueError: if ``alpha`` or ``eps`` is out of range.

    Source:
        Candes, Wakin and Boyd, Journal of Fourier Analysis and Applications 14, 2008.

    Example:
        >>> import torch
        >>> from torchreg import LogSum
        >>> LogSum(0.5, eps=0.5).prox(torch.tensor([2.0, -0.3, 1.0]), 1.0)
        tensor([1.7808, 0.0000, 0.5000])
    """

    alpha: Scalar
    eps: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("LogSum", self.alpha))
        if not (isinstance(self.eps, Real) and math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"LogSum needs eps > 0, got {self.eps!r}; it is the size at which the slope has halved.")
        object.__setattr__(self, "eps", float(self.eps))

    def phi(self, x: Tensor) -> Tensor:
        return self.alpha * torch.log1p(x.abs() / self.eps)

    def shrink(self, x: Tensor, step: Scalar) -> Tensor:
        return log_sum(x, scaled(self.alpha, step), self.eps)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        return self.eps * largest(widened(grad).abs()) if step is None else Separable.alpha_max(self, grad, step)


def _power(x: Tensor, exponent: float) -> Tensor:
    """``|x|^exponent``, with gradient 0 at 0, where it is infinite."""
    at_zero = x == 0
    return torch.where(at_zero, torch.zeros_like(x), torch.where(at_zero, torch.ones_like(x), x).abs() ** exponent)


def _need_step(owner: str, step: Scalar | None) -> None:
    if step is None:
        raise ValueError(
            f"{owner}.alpha_max needs the step, since its slope at 0 is infinite, got step=None; pass "
            "step=learning rate, or 1 / Lipschitz constant in a fit."
        )


def _concavity(owner: str, gamma: float, least: float) -> float:
    if not (isinstance(gamma, Real) and math.isfinite(gamma) and gamma > least):
        raise ValueError(f"{owner} needs gamma > {least:g}, got {gamma!r}; use L1 if you want no concavity.")
    return float(gamma)
