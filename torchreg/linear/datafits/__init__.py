"""Data terms: the loss of each row as a function of its linear predictor."""

from torchreg.linear.datafits.base import Datafit, NoHessian
from torchreg.linear.datafits.likelihoods import Multinomial, Poisson
from torchreg.linear.datafits.margin import Logistic, SquaredHinge
from torchreg.linear.datafits.residual import Huber, Quadratic

__all__ = [
    "Datafit",
    "Huber",
    "Logistic",
    "Multinomial",
    "NoHessian",
    "Poisson",
    "Quadratic",
    "SquaredHinge",
]
