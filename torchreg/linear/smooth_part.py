"""The smooth part of an objective as proximal gradient sees it: from the rows of X, or from a Gram matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from torchreg.linear.datafits import NoHessian
from torchreg.linear.intercept import best_shift, mean_of
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.linear_algebra import largest_eigenvalue

_ROUNDING = 1e-14  # of a sum, relative to the sum of absolute values, generously
_BUMP = 1e-5  # for central differences: error of the order of bump^2


class Point(NamedTuple):
    """The smooth part at some coefficients.

    Attributes:
        image: a linear map of the coefficients, (n[, K]) or (p[, K]): what a step has to compute once.
        eta: linear predictor, or the image again.
        shift: intercept of the centred columns, 0-d or (K,).
        slope: derivative with respect to ``eta``, or to the coefficients.
        value: 0-d.
        noise: rounding of the value, 0-d.
    """

    image: Tensor
    eta: Tensor
    shift: Tensor
    slope: Tensor
    value: Tensor
    noise: Tensor


class Smooth(ABC):
    """A smooth function of the coefficients, minimised over the intercept.

    Attributes:
        quadratic: whether it is quadratic in the coefficients.
        no_coef: zero coefficients, (p,) or (p, K).
    """

    quadratic: bool
    no_coef: Tensor

    @abstractmethod
    def image(self, coef: Tensor) -> Tensor:
        """The linear map of the coefficients from which all else follows."""

    @abstractmethod
    def at(self, coef: Tensor, image: Tensor, shift: Tensor, *, refit: bool = False) -> Point:
        """The function at ``coef``; ``refit`` takes a Newton step in the intercept, if that does no harm."""

    @abstractmethod
    def settled(self, image: Tensor, shift: Tensor | None) -> Tensor:
        """The best intercept there, from ``shift`` if there is one; 0 without an intercept."""

    @abstractmethod
    def moved(self, coef: Tensor) -> Tensor | float:
        """What centring took out of the linear predictor: the intercept of X is shift - moved."""

    @abstractmethod
    def gradient(self, point: Point) -> Tensor:
        """The derivative with respect to the coefficients, of their shape."""

    @abstractmethod
    def steepness(self, here: Point, there: Point, move: Tensor) -> Tensor:
        """An upper estimate of the second derivative on the way ``move`` from here to there, less its rounding."""

    @abstractmethod
    def steepest(self, point: Point) -> Tensor:
        """About the largest second derivative in any direction, by power iteration."""

    @abstractmethod
    def floor(self, point: Point, steepest: Tensor) -> Tensor:
        """Rounding of the gradient, 0-d."""


class GramTerm(Smooth):
    """``coef' G coef / 2 - c' coef``: least squares whose rows are summed up in ``G = X' W X`` and ``c = X' W y``.

    Args:
        gram: (p, p), symmetric.
        cross: (p,) or (p, K).
    """

    quadratic = True

    def __init__(self, gram: Tensor, cross: Tensor) -> None:
        self.gram, self.cross = gram, cross
        self.no_coef = torch.zeros_like(cross)

    def image(self, coef: Tensor) -> Tensor:
        return self.gram @ coef

    def at(self, coef: Tensor, image: Tensor, shift: Tensor, *, refit: bool = False) -> Point:
        del refit
        terms = coef * (image / 2.0 - self.cross)
        return Point(image, image, shift, image - self.cross, terms.sum(), _ROUNDING * terms.abs().sum())

    def settled(self, image: Tensor, shift: Tensor | None) -> Tensor:
        return self.no_coef.sum(0)

    def moved(self, coef: Tensor) -> Tensor | float:
        return 0.0

    def gradient(self, point: Point) -> Tensor:
        return point.slope

    def steepness(self, here: Point, there: Point, move: Tensor) -> Tensor:
        return _ratio((move * (there.image - here.image)).sum(), move)

    def steepest(self, point: Point) -> Tensor:
        return largest_eigenvalue(lambda v: self.gram @ v, self.cross)

    def floor(self, point: Point, steepest: Tensor) -> Tensor:
        return _ROUNDING * (largest(point.image) + largest(self.cross))


class RowTerm(Smooth):
    """A `Problem`'s mean loss, with columns centred at their weighted mean, never written down.

    Centring takes the intercept's part out of the coefficients' curvature, so that a step in one
    hardly disturbs the other; for least squares they are independent.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.design = problem, problem.design
        self.quadratic = problem.datafit.quadratic
        self.no_coef = problem.no_coef()
        self._mean = self.design.transposed(problem.weights) if problem.fit_intercept else None

    def image(self, coef: Tensor) -> Tensor:
        product = self.design.times(coef)
        return product if self._mean is None else product - mean_of(coef, self._mean)

    def moved(self, coef: Tensor) -> Tensor | float:
        return 0.0 if self._mean is None else mean_of(coef, self._mean)

    def at(self, coef: Tensor, image: Tensor, shift: Tensor, *, refit: bool = False) -> Point:
        point = self._point(image, shift)
        if not (refit and self.problem.fit_intercept) or self.quadratic:
            return point
        better = self._point(image, shift - point.slope.sum(0) / self._bend(point.eta))
        improves = better.value <= point.value + point.noise
        return Point(*(torch.where(improves, new, old) for new, old in zip(better, point, strict=True)))

    def _point(self, image: Tensor, shift: Tensor) -> Point:
        eta = self.problem.shifted(image, shift)
        losses = self.problem.datafit.value(eta, self.problem.y)
        value, size = mean_of(losses, self.problem.weights), mean_of(losses.abs(), self.problem.weights)
        return Point(image, eta, shift, self.problem.row_grad(eta), value, _ROUNDING * size)

    def _bend(self, eta: Tensor) -> Tensor:
        """A bound of the mean second derivative in the intercept, per output.

        For K outputs twice the diagonal: that bounds a Hessian whose rows sum to zero (softmax).
        """
        datafit, y = self.problem.datafit, self.problem.y
        try:
            second = datafit.hessian(eta, y)
        except NoHessian:
            second = (datafit.grad(eta + _BUMP, y) - datafit.grad(eta - _BUMP, y)) / (2.0 * _BUMP)
        return mean_of(second, self.problem.weights) * (1.0 if eta.dim() == 1 else 2.0)

    def settled(self, image: Tensor, shift: Tensor | None) -> Tensor:
        if not self.problem.fit_intercept:
            return self.no_coef.sum(0)
        eta = self.problem.shifted(image)
        return best_shift(self.problem.datafit, eta, self.problem.y, self.problem.weights, shift)

    def gradient(self, point: Point) -> Tensor:
        return self._transposed(point.slope)

    def _transposed(self, rows: Tensor) -> Tensor:
        product = self.design.transposed(rows)
        if self._mean is None:
            return product
        return product - (self._mean * rows.sum() if rows.dim() == 1 else torch.outer(self._mean, rows.sum(0)))

    def steepness(self, here: Point, there: Point, move: Tensor) -> Tensor:
        """Twice the excess over the tangent, or the change of slope where rounding hides that.

        Source:
            Becker, Candes and Grant, Mathematical Programming Computation 3, 2011, section 5.3.
        """
        along = there.image - here.image
        rise = ((there.slope - here.slope) * along).sum()
        if not self.quadratic:
            excess = there.value - here.value - (here.slope * along).sum()
            rise = torch.maximum(rise, 2.0 * (excess - here.noise - there.noise))
        rounding = (here.slope.abs() + self._weigh(here.eta.abs())) * along.abs()
        return _ratio(rise - _ROUNDING * rounding.sum(), move)

    def _weigh(self, rows: Tensor) -> Tensor:
        return rows * (self.problem.weights if rows.dim() == 1 else self.problem.weights[:, None])

    def steepest(self, point: Point) -> Tensor:
        bend = self.problem.weights * self._row_bend(point.eta)
        return largest_eigenvalue(lambda v: self._transposed(bend * self.image(v)), self.no_coef)

    def _row_bend(self, eta: Tensor) -> Tensor | float:
        """The second derivative of each row: the datafit's bound, or what it is about at ``eta``."""
        datafit, y = self.problem.datafit, self.problem.y
        if datafit.curvature is not None:
            return datafit.curvature
        bump = _BUMP * torch.ones_like(eta)
        if eta.dim() == 2:
            bump[:, ::2] *= -1.0  # softmax is flat in the direction of ones
        change = (datafit.grad(eta + bump, y) - datafit.grad(eta - bump, y)) / (2.0 * bump)
        return (change if eta.dim() == 1 else change.amax(1)).clamp(min=0.0)

    def floor(self, point: Point, steepest: Tensor) -> Tensor:
        """By ``|x_j' W r| <= sqrt(x_j' W x_j) sqrt(r' W r)`` for the rounding r of each row."""
        curvature = self.problem.datafit.curvature or 1.0
        slopes = self.problem.datafit.grad(point.eta, self.problem.y) / curvature
        size = self._weigh(slopes.square() + point.eta.square()).sum().sqrt()
        return _ROUNDING * (steepest * curvature).sqrt() * size


def largest(x: Tensor) -> Tensor:
    """The largest absolute entry, 0-d; 0 if there is none."""
    return x.abs().max() if x.numel() else x.sum()


def _ratio(rise: Tensor, move: Tensor) -> Tensor:
    size = move.square().sum()
    return torch.where(size > 0, rise / size, 0.0)
