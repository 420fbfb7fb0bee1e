"""Penalties of each entry alone: the base class, and the convex ones L1, L2 and L1L2."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from torchreg.functional.blocking import LONG, entry_pieces
from torchreg.functional.reductions import absolute_sum, narrowed, square_sum, total, wide_dtype, widened
from torchreg.functional.shrinkage import (
    Scalar,
    multiply_,
    ridge_step,
    ridge_steps,
    scaled,
    scaled_many,
    soft,
    soft_,
    soft_many_,
)
from torchreg.penalties.alpha import strength
from torchreg.penalties.base import Form, Grain, Penalty
from torchreg.penalties.structure import L1Form


class Separable(Penalty):
    """A penalty ``sum_i phi(w_i)`` of each entry alone: write ``phi`` and ``shrink``.

    Both take and return tensors of at least float32, and use ``self.alpha`` as a number that
    broadcasts with their argument, so that weights and groups work at once. Combinators assume
    ``phi`` even, 0 at 0 and not falling in ``|w|``.
    """

    @property
    def grain(self) -> Grain:
        return "entry"

    @property
    def even(self) -> bool:
        return True

    @abstractmethod
    def phi(self, x: Tensor) -> Tensor:
        """The penalty of each entry."""

    @abstractmethod
    def shrink(self, x: Tensor, step: Scalar) -> Tensor:
        """The proximal map of each entry."""

    def value(self, w: Tensor) -> Tensor:
        return total(self.phi, w)

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        return narrowed(self.shrink(widened(w), step), w)

    def prox_(self, tensors: Sequence[Tensor], steps: Sequence[Scalar]) -> None:
        with torch.no_grad():
            for w, step in zip(tensors, steps, strict=True):
                for x, s in entry_pieces(w, step):
                    x.copy_(self.prox(x, s))


@dataclass(frozen=True, eq=False, repr=False)
class L1(Separable):
    """The L1 norm, which sets weights to exactly zero under a proximal step.

    ``R(w) = alpha * sum_i |w_i|``; ``prox(w, step) = sign(w) * max(|w| - alpha * step, 0)``.

    Added to a loss it shrinks but gives no exact zeros; stepped by `ProxOptimizer` it does.
    ``Lasso(alpha)`` of scikit-learn minimises mean squared error / 2 + ``L1(alpha)``.

    Args:
        alpha: strength, finite and >= 0; a number or a 0-d tensor.

    Raises:
        ValueError: if ``alpha`` is negative, NaN or infinite.

    Source:
        Tibshirani, JRSS B 58, 1996; soft thresholding: Donoho and Johnstone, Biometrika 81, 1994.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> L1(0.5).prox(torch.tensor([2.0, -0.3, 0.5]), 1.0)
        tensor([1.5000, 0.0000, 0.0000])
    """

    alpha: Scalar

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("L1", self.alpha))

    @property
    def convex(self) -> bool:
        return True

    @property
    def sublinear(self) -> bool:
        return True

    def phi(self, x: Tensor) -> Tensor:
        return self.alpha * x.abs()

    def shrink(self, x: Tensor, step: Scalar) -> Tensor:
        return soft(x, scaled(self.alpha, step))

    def value(self, w: Tensor) -> Tensor:
        return self.alpha * absolute_sum(w)

    def prox_(self, tensors: Sequence[Tensor], steps: Sequence[Scalar]) -> None:
        with torch.no_grad():
            if len(tensors) > 1 and wide_dtype(tensors[0]) == tensors[0].dtype:
                soft_many_(list(tensors), scaled_many(self.alpha, steps))
                return
            for w, step in zip(tensors, steps, strict=True):
                if not (isinstance(step, Tensor) or isinstance(self.alpha, Tensor)):
                    soft_(w, scaled(self.alpha, step))
                elif wide_dtype(w) != w.dtype:
                    Separable.prox_(self, [w], [step])
                else:
                    for x, s in entry_pieces(w, step):
                        soft_(x, scaled(self.alpha, s))

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        del step
        return largest(widened(grad).abs())

    def form(self, w: Tensor) -> Form:
        del w
        return L1Form(self.alpha)


@dataclass(frozen=True, eq=False, repr=False)
class L2(Separable):
    """The squared L2 norm without a half, which shrinks every weight and sets none to zero.

    ``R(w) = alpha * sum_i w_i^2``; gradient ``2 alpha w``; ``prox(w, step) = w / (1 + 2 alpha step)``.

    There is no half: ``L2(alpha)`` in the loss has the gradient of ``weight_decay = 2 * alpha``,
    and is the ridge part ``L1L2(2 * alpha, l1_ratio=0)``.

    Args:
        alpha: strength, finite and >= 0; a number or a 0-d tensor.

    Raises:
        ValueError: if ``alpha`` is negative, NaN or infinite.

    Source:
        Hoerl and Kennard, Technometrics 12, 1970.

    Example:
        >>> import torch
        >>> from torchreg import L2
        >>> L2(0.5).prox(torch.tensor([2.0, -0.3, 0.0]), 1.0)
        tensor([ 1.0000, -0.1500,  0.0000])
    """

    alpha: Scalar

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("L2", self.alpha))

    @property
    def convex(self) -> bool:
        return True

    @property
    def ridge(self) -> Scalar | None:
        return self.alpha

    def phi(self, x: Tensor) -> Tensor:
        return self.alpha * x.square()

    def shrink(self, x: Tensor, step: Scalar) -> Tensor:
        return x * ridge_step(step, self.alpha)[0] + 0.0

    def prox_(self, tensors: Sequence[Tensor], steps: Sequence[Scalar]) -> None:
        _elastic_(self, 0.0, self.alpha, tensors, steps)

    def value(self, w: Tensor) -> Tensor:
        return self.alpha * square_sum(w)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        del step
        return torch.where((grad == 0).all(), 0.0, math.inf).to(widened(grad).dtype)

    def form(self, w: Tensor) -> Form:
        del w
        return L1Form(0.0, 2.0 * self.alpha)


@dataclass(frozen=True, eq=False, repr=False)
class L1L2(Separable):
    """The elastic net in scikit-learn's convention: exact zeros, and stable on correlated weights.

    ``R(w) = alpha * (l1_ratio * sum |w_i| + (1 - l1_ratio) / 2 * sum w_i^2)``.

    The half is on the quadratic part here, as in scikit-learn and glmnet: ratio 0 is
    ``L2(alpha / 2)``, ratio 1 is ``L1(alpha)``.

    Args:
        alpha: strength, finite and >= 0; a number or a 0-d tensor.
        l1_ratio: share of L1, between 0 and 1.

    Raises:
        ValueError: if ``alpha`` is negative, NaN or infinite, or ``l1_ratio`` outside [0, 1].

    Source:
        Zou and Hastie, JRSS B 67, 2005.

    Example:
        >>> import torch
        >>> from torchreg import L1L2
        >>> L1L2(1.0, l1_ratio=0.5).prox(torch.tensor([2.0, -0.3, 0.5]), 1.0)
        tensor([1., 0., 0.])
    """

    alpha: Scalar
    l1_ratio: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("L1L2", self.alpha))
        if not (isinstance(self.l1_ratio, Real) and 0.0 <= self.l1_ratio <= 1.0):
            raise ValueError(
                f"L1L2 needs l1_ratio between 0 and 1, got {self.l1_ratio!r}; use 1.0 for L1 alone, 0.0 for L2 alone."
            )
        object.__setattr__(self, "l1_ratio", float(self.l1_ratio))

    @property
    def _l1(self) -> Scalar:
        return self.alpha * self.l1_ratio

    @property
    def _ridge(self) -> Scalar:
        return self.alpha * (0.5 * (1.0 - self.l1_ratio))

    @property
    def convex(self) -> bool:
        return True

    def phi(self, x: Tensor) -> Tensor:
        return self._l1 * x.abs() + self._ridge * x.square()

    def shrink(self, x: Tensor, step: Scalar) -> Tensor:
        factor, rest = ridge_step(step, self._ridge)
        return soft(x * factor, scaled(self._l1, rest)) + 0.0

    def value(self, w: Tensor) -> Tensor:
        return self._l1 * absolute_sum(w) + self._ridge * square_sum(w)

    def prox_(self, tensors: Sequence[Tensor], steps: Sequence[Scalar]) -> None:
        _elastic_(self, self._l1 if self.l1_ratio else 0.0, self._ridge, tensors, steps)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        del step
        top = largest(widened(grad).abs())
        return top / self.l1_ratio if self.l1_ratio else torch.where(top == 0, top, math.inf)

    def form(self, w: Tensor) -> Form:
        del w
        return L1Form(self._l1, 2.0 * self._ridge)


def largest(x: Tensor) -> Tensor:
    """The largest entry, 0 if there is none."""
    return x.max() if x.numel() else x.sum()


@torch.no_grad()
def _elastic_(
    penalty: Separable, l1: Scalar, ridge: Scalar, tensors: Sequence[Tensor], steps: Sequence[Scalar]
) -> None:
    """`prox_` of ``l1 |w| + ridge w^2``: many tensors at once, or large ones piece by piece."""
    flat = isinstance(l1, Tensor) or l1 == 0.0  # then no threshold turns -0.0 into 0.0
    alike = len({isinstance(s, Tensor) for s in steps}) == 1
    if len(tensors) > 1 and alike and all(wide_dtype(w) == w.dtype for w in tensors):
        factors, rests = ridge_steps(steps, ridge)
        multiply_(list(tensors), factors)
        if flat:
            torch._foreach_add_(list(tensors), 0.0)
        if isinstance(l1, Tensor) or l1:
            soft_many_(list(tensors), scaled_many(l1, rests))
        return
    for w, step in zip(tensors, steps, strict=True):
        if wide_dtype(w) != w.dtype:
            Separable.prox_(penalty, [w], [step])
            continue
        for x, t in entry_pieces(w, step, LONG):
            factor, rest = ridge_step(t, ridge)
            x.mul_(factor)
            if flat:
                x.add_(0.0)
            soft_(x, scaled(l1, rest))
