"""Losses of two classes, functions of the margin ``(2 y - 1) eta``: Logistic and SquaredHinge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.datafits.base import Datafit, finite_where
from torchreg.linear.datafits.entropy import largest_scale, near, relative_entropy
from torchreg.linear.datafits.targets import binary_target


@dataclass(frozen=True)
class Logistic(Datafit):
    """The negative log likelihood of two classes, whose log odds are ``eta``.

    ``f(eta, y) = log(1 + exp(eta)) - y eta``; with ``q = (1 - 2 y) u``, the chance that u gives
    to the wrong class, ``f*(u) = q log q + (1 - q) log(1 - q)`` for ``0 <= q <= 1``.

    Shapes:
        y: (n,), labels 0 and 1, -1 and 1, or booleans; prepared to 0.0 and 1.0.

    Source:
        Cox, JRSS B 20, 1958; its dual: Jaakkola and Haussler, AISTATS 1999.

    Example:
        >>> import torch
        >>> from torchreg.linear.datafits import Logistic
        >>> Logistic().grad(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0]))
        tensor([ 0.5000, -0.5000])
    """

    curvature = 0.25
    likelihood = True
    classes = True

    def value(self, eta: Tensor, y: Tensor) -> Tensor:
        return -torch.nn.functional.logsigmoid(_signs(y) * eta)

    def grad(self, eta: Tensor, y: Tensor) -> Tensor:
        signs = _signs(y)
        return -signs * torch.sigmoid(-signs * eta)

    def hessian(self, eta: Tensor, y: Tensor) -> Tensor:
        del y
        return torch.sigmoid(eta) * torch.sigmoid(-eta)

    def conjugate(self, u: Tensor, y: Tensor) -> Tensor:
        wrong = -_signs(y) * u
        inside = (wrong >= 0) & (wrong <= 1)
        q = wrong.clamp(0.0, 1.0)
        return finite_where(inside, torch.xlogy(q, q) + torch.special.xlog1py(1.0 - q, -q))

    def prepare(self, y: Tensor) -> Tensor:
        return binary_target(y)

    def feasible(self, u: Tensor, y: Tensor) -> Tensor:
        wrong = -_signs(y) * u
        return torch.minimum(
            largest_scale(wrong, torch.ones_like(wrong)), largest_scale(-wrong, torch.zeros_like(wrong))
        )

    def fenchel_gap(self, eta: Tensor, u: Tensor, y: Tensor) -> Tensor:
        signs = _signs(y)
        wrong, right = torch.sigmoid(-signs * eta), torch.sigmoid(signs * eta)
        change = -signs * u - wrong
        close = near(change, wrong) & near(change, right)
        gap = relative_entropy(change, wrong) + relative_entropy(-change, right)
        return torch.where(close, gap, Datafit.fenchel_gap(self, eta, u, y))

    def predict(self, eta: Tensor) -> Tensor:
        return torch.sigmoid(eta)

    def link(self, mean: Tensor) -> Tensor:
        return torch.logit(mean, torch.finfo(mean.dtype).eps)


@dataclass(frozen=True)
class SquaredHinge(Datafit):
    """The smooth hinge loss of support vector machines: rows beyond margin 1 cost nothing.

    ``f(eta, y) = max(0, 1 - m)^2 / 2`` with the margin ``m = (2 y - 1) eta``; with
    ``v = (2 y - 1) u``, ``f*(u) = v + v^2 / 2`` for ``v <= 0``.

    There is a half, which scikit-learn's ``LinearSVC`` does not have. ``predict`` is the chance of
    class 1 whose mean loss ``eta`` minimises, ``(1 + eta) / 2`` cut to [0, 1].

    Shapes:
        y: (n,), labels 0 and 1, -1 and 1, or booleans; prepared to 0.0 and 1.0.

    Source:
        Hsieh et al., ICML 2008, eq. 1 (L2-SVM); the chance: Zhang, Annals of Statistics 32, 2004, table 1.

    Example:
        >>> import torch
        >>> from torchreg.linear.datafits import SquaredHinge
        >>> SquaredHinge().value(torch.tensor([2.0, 0.0, -1.0]), torch.ones(3))
        tensor([0.0000, 0.5000, 2.0000])
    """

    curvature = 1.0
    classes = True

    def value(self, eta: Tensor, y: Tensor) -> Tensor:
        return _shortfall(eta, y).square() / 2.0

    def grad(self, eta: Tensor, y: Tensor) -> Tensor:
        return -_signs(y) * _shortfall(eta, y)

    def hessian(self, eta: Tensor, y: Tensor) -> Tensor:
        return (_shortfall(eta, y) > 0).double()

    def conjugate(self, u: Tensor, y: Tensor) -> Tensor:
        v = _signs(y) * u
        return finite_where(v <= 0, v + v.square() / 2.0)

    def prepare(self, y: Tensor) -> Tensor:
        return binary_target(y)

    def feasible(self, u: Tensor, y: Tensor) -> Tensor:
        v = _signs(y) * u
        return largest_scale(v, torch.zeros_like(v))

    def fenchel_gap(self, eta: Tensor, u: Tensor, y: Tensor) -> Tensor:
        v, excess = _signs(y) * u, (_signs(y) * eta - 1.0).clamp(min=0.0)
        return finite_where(v <= 0, (_shortfall(eta, y) + v).square() / 2.0 - v * excess)

    def predict(self, eta: Tensor) -> Tensor:
        return ((1.0 + eta) / 2.0).clamp(0.0, 1.0)

    def link(self, mean: Tensor) -> Tensor:
        return 2.0 * mean - 1.0


def _signs(y: Tensor) -> Tensor:
    return 2.0 * y - 1.0


def _shortfall(eta: Tensor, y: Tensor) -> Tensor:
    return (1.0 - _signs(y) * eta).clamp(min=0.0)
