"""Losses of the residual ``eta - y``: Quadratic and Huber."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from torchreg.linear.datafits.base import Datafit, finite_where
from torchreg.linear.datafits.entropy import largest_scale
from torchreg.linear.datafits.targets import real_target


@dataclass(frozen=True)
class Quadratic(Datafit):
    """Half the squared error, for one response or several: the data term of the lasso.

    ``f(eta, y) = |eta - y|^2 / 2``; ``f*(u) = |u|^2 / 2 + <u, y>``.

    The mean over rows is half the mean squared error; several responses (tasks) are summed, not
    averaged, as in scikit-learn's ``MultiTaskLasso``.

    Shapes:
        y: (n,), or (n, K) for K tasks.

    Source:
        Tibshirani, JRSS B 58, 1996; several tasks: Obozinski et al., Statistics and Computing 20, 2010.

    Example:
        >>> import torch
        >>> from torchreg.linear.datafits import Quadratic
        >>> Quadratic().value(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0]))
        tensor([2., 0.])
    """

    curvature = 1.0
    quadratic = True

    def value(self, eta: Tensor, y: Tensor) -> Tensor:
        return _half_square(eta - y, y)

    def grad(self, eta: Tensor, y: Tensor) -> Tensor:
        return eta - y

    def hessian(self, eta: Tensor, y: Tensor) -> Tensor:
        return torch.ones_like(eta - y)

    def hessian_map(self, eta: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda v: v

    def conjugate(self, u: Tensor, y: Tensor) -> Tensor:
        inner = u * y
        return _half_square(u, y) + (inner.sum(-1) if y.dim() == 2 else inner)

    def fenchel_gap(self, eta: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return _half_square(eta - y - u, y)


@dataclass(frozen=True)
class Huber(Datafit):
    """Quadratic for small residuals, linear for large ones, so that outliers pull with bounded force.

    ``f(eta, y) = r^2 / 2`` for ``r = |eta - y| <= delta``, else ``delta r - delta^2 / 2``;
    ``f*(u) = u^2 / 2 + u y`` for ``|u| <= delta``.

    ``delta`` is in the units of y: scikit-learn's ``HuberRegressor`` also estimates a scale, this
    does not. Divide y by a robust scale (the median absolute deviation / 0.6745) for the usual 1.35.

    Args:
        delta: the residual from which the loss is linear, > 0; 1.35.

    Raises:
        ValueError: if ``delta`` is not a positive finite number.

    Source:
        Huber, Annals of Mathematical Statistics 35, 1964.

    Example:
        >>> import torch
        >>> from torchreg.linear.datafits import Huber
        >>> Huber(delta=1.0).grad(torch.tensor([0.5, 9.0]), torch.zeros(2))
        tensor([0.5000, 1.0000])
    """

    delta: float = 1.35
    curvature = 1.0

    def __post_init__(self) -> None:
        known = isinstance(self.delta, Real) and not isinstance(self.delta, bool)
        if not (known and math.isfinite(self.delta) and self.delta > 0):
            raise ValueError(
                f"Huber needs a finite delta > 0, got {self.delta!r}; use Quadratic if no residual is an outlier."
            )
        object.__setattr__(self, "delta", float(self.delta))

    def value(self, eta: Tensor, y: Tensor) -> Tensor:
        size = (eta - y).abs()
        inside = size.clamp(max=self.delta)
        return inside * (size - inside / 2.0)

    def grad(self, eta: Tensor, y: Tensor) -> Tensor:
        return (eta - y).clamp(-self.delta, self.delta)

    def hessian(self, eta: Tensor, y: Tensor) -> Tensor:
        return ((eta - y).abs() <= self.delta).double()

    def conjugate(self, u: Tensor, y: Tensor) -> Tensor:
        return finite_where(u.abs() <= self.delta, u.square() / 2.0 + u * y)

    def prepare(self, y: Tensor) -> Tensor:
        return real_target(y)

    def feasible(self, u: Tensor, y: Tensor) -> Tensor:
        del y
        return largest_scale(u.abs(), torch.full_like(u, self.delta))

    def fenchel_gap(self, eta: Tensor, u: Tensor, y: Tensor) -> Tensor:
        residual = eta - y
        force = residual.clamp(-self.delta, self.delta)
        gap = (force - u).square() / 2.0 + (residual - force) * (force - u)
        return finite_where(u.abs() <= self.delta, gap)


def _half_square(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square() / 2.0
    return squares.sum(-1) if y.dim() == 2 else squares
