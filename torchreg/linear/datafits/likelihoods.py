"""Negative log likelihoods of classes and counts: Multinomial and Poisson."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.datafits.base import Datafit, finite_where
from torchreg.linear.datafits.entropy import largest_scale, near, relative_entropy
from torchreg.linear.datafits.targets import count_target, one_hot_target

_SIMPLEX = 1e-12  # how far from 1 rounding may take a sum of probabilities


@dataclass(frozen=True)
class Multinomial(Datafit):
    """The negative log likelihood of K classes, with one linear predictor for each class.

    ``f(eta, y) = log(sum_k exp(eta_k)) - eta_y``; with ``q = u + onehot(y)``, the chances that u
    gives to the classes, ``f*(u) = sum_k q_k log q_k`` for q on the simplex.

    The form is symmetric: no class is the reference, and adding one number to all predictors of a
    row changes nothing. A penalty settles the coefficients; the intercepts are reported with mean
    0. Two classes have half the coefficients of `Logistic`, once with each sign.

    Shapes:
        y: (n,), integers 0 to K - 1; prepared to one-hot rows (n, K).
        eta, u: (n, K).

    Source:
        Friedman, Hastie and Tibshirani, J. Statistical Software 33, 2010, section 4; the curvature
        1/2: Boehning, Annals of the Institute of Statistical Mathematics 44, 1992.

    Example:
        >>> import torch
        >>> from torchreg.linear.datafits import Multinomial
        >>> y = Multinomial().prepare(torch.tensor([0, 2, 1]))
        >>> Multinomial().predict(torch.zeros(1, 3))
        tensor([[0.3333, 0.3333, 0.3333]])
    """

    curvature = 0.5
    likelihood = True
    relative = True
    classes = True

    def value(self, eta: Tensor, y: Tensor) -> Tensor:
        below = eta - eta.amax(-1, keepdim=True)
        return below.exp().sum(-1).log() - (y * below).sum(-1)

    def grad(self, eta: Tensor, y: Tensor) -> Tensor:
        wrong = _softmax(eta) * (1.0 - y)
        return wrong - y * wrong.sum(-1, keepdim=True)  # softmax - y without cancellation in a row that is certain

    def hessian(self, eta: Tensor, y: Tensor) -> Tensor:
        del y
        chances = _softmax(eta)
        return chances * (1.0 - chances)

    def hessian_map(self, eta: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        del y
        chances = _softmax(eta)

        def times(v: Tensor) -> Tensor:
            part = chances * v
            return part.addcmul_(chances, part.sum(-1, keepdim=True), value=-1.0)

        return times

    def conjugate(self, u: Tensor, y: Tensor) -> Tensor:
        chances = u + y
        inside = (chances >= 0).all(-1) & (u.sum(-1).abs() <= _SIMPLEX)
        chances = chances.clamp(min=0.0)
        return finite_where(inside, torch.xlogy(chances, chances).sum(-1))

    def prepare(self, y: Tensor) -> Tensor:
        return one_hot_target(y)

    def feasible(self, u: Tensor, y: Tensor) -> Tensor:
        off_simplex = u.sum(-1).abs()
        return torch.minimum(largest_scale(-u, y), largest_scale(off_simplex, off_simplex.clamp(max=_SIMPLEX)))

    def fenchel_gap(self, eta: Tensor, u: Tensor, y: Tensor) -> Tensor:
        chances = _softmax(eta)
        change = u - self.grad(eta, y)
        gap = relative_entropy(change, chances).sum(-1)
        close = near(change, chances).all(-1) & (u.sum(-1).abs() <= _SIMPLEX)
        return torch.where(close, gap, Datafit.fenchel_gap(self, eta, u, y))

    def predict(self, eta: Tensor) -> Tensor:
        return _softmax(eta)

    def link(self, mean: Tensor) -> Tensor:
        logarithms = mean.clamp(min=torch.finfo(mean.dtype).eps).log()
        return logarithms - logarithms.mean(-1, keepdim=True)


@dataclass(frozen=True)
class Poisson(Datafit):
    """The negative log likelihood of counts whose log mean is ``eta``, without its constant.

    ``f(eta, y) = exp(eta) - y eta``; with ``m = u + y``, the mean that u gives to the row,
    ``f*(u) = m log m - m`` for ``m >= 0``.

    It is not the deviance: it can be negative, and half the deviance is
    ``value(eta, y) + y log y - y``. Its curvature is unbounded, so solvers search along the line;
    beyond ``eta = 709`` it is inf.

    Shapes:
        y: (n,), numbers >= 0, not only integers.

    Source:
        McCullagh and Nelder, Generalized Linear Models, 1989, chapter 6.

    Example:
        >>> import torch
        >>> from torchreg.linear.datafits import Poisson
        >>> Poisson().grad(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 3.0]))
        tensor([ 0., -2.])
    """

    likelihood = True

    def value(self, eta: Tensor, y: Tensor) -> Tensor:
        return torch.exp(eta) - y * eta

    def grad(self, eta: Tensor, y: Tensor) -> Tensor:
        return torch.exp(eta) - y

    def hessian(self, eta: Tensor, y: Tensor) -> Tensor:
        del y
        return torch.exp(eta)

    def conjugate(self, u: Tensor, y: Tensor) -> Tensor:
        mean = u + y
        return finite_where(mean >= 0, torch.xlogy(mean, mean / math.e))

    def prepare(self, y: Tensor) -> Tensor:
        return count_target(y)

    def feasible(self, u: Tensor, y: Tensor) -> Tensor:
        return largest_scale(-u, y)

    def fenchel_gap(self, eta: Tensor, u: Tensor, y: Tensor) -> Tensor:
        mean = torch.exp(eta)
        change = u - (mean - y)
        gap = torch.where(near(change, mean), relative_entropy(change, mean), Datafit.fenchel_gap(self, eta, u, y))
        return finite_where(mean < torch.inf, gap)

    def predict(self, eta: Tensor) -> Tensor:
        return torch.exp(eta)

    def link(self, mean: Tensor) -> Tensor:
        return mean.clamp(min=torch.finfo(mean.dtype).eps).log()


def _softmax(eta: Tensor) -> Tensor:
    """As softmax of torch, which takes three times as long for a few columns."""
    raised = (eta - eta.amax(-1, keepdim=True)).exp()
    return raised / raised.sum(-1, keepdim=True)
