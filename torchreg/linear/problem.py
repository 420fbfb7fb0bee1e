"""What a fit minimises, without the penalty: the weighted mean loss of a linear predictor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchreg.linear.datafits import Datafit
from torchreg.linear.intercept import best_shift, mean_of
from torchreg.penalties import NoConjugate

if TYPE_CHECKING:
    from torchreg.linear.designs.base import Design


@dataclass(frozen=True)
class Problem:
    """Validated data of one fit, on one device.

    ``value(eta) = sum_i weights_i * f(eta_i, y_i)`` for ``eta = X coef + intercept + offset``.

    Shapes:
        coef: (p,), or (p, K) where the datafit has K outputs; the intercept is 0-d or (K,).
        eta: (n,) or (n, K).

    Attributes:
        design: the n rows and p columns of X.
        y: prepared by the datafit.
        weights: float64, (n,), sum 1.
        offset: added to eta, (n,) or (n, K), or None.
        datafit: the loss of each row.
        fit_intercept: whether there is an intercept; it is never penalised.

    Example:
        >>> import torch
        >>> from torchreg.linear.datafits import Quadratic
        >>> from torchreg.linear.designs.inputs import as_design
        >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
        >>> y = Quadratic().prepare(4.0 * X[:, 0] + 0.1 * X[:, 1] + 7.0)
        >>> weights = torch.full((4,), 0.25, dtype=torch.float64)
        >>> problem = Problem(as_design(X), y, weights, None, Quadratic(), fit_intercept=True)
        >>> problem.null_intercept(), problem.null_value()
        (tensor(7., dtype=torch.float64), tensor(4.0025, dtype=torch.float64))
    """

    design: Design
    y: Tensor
    weights: Tensor
    offset: Tensor | None
    datafit: Datafit
    fit_intercept: bool

    @property
    def K(self) -> int | None:  # noqa: N802
        """The number of outputs, None for one that has no dimension."""
        return self.datafit.outputs(self.y)

    def no_coef(self) -> Tensor:
        """Coefficients zero, (p,) or (p, K)."""
        return self._zeros(self.design.p)

    def eta(self, coef: Tensor, intercept: Tensor | float = 0.0) -> Tensor:
        """The linear predictor, offset included."""
        return self.shifted(self.design.times(coef), intercept)

    def shifted(self, product: Tensor, intercept: Tensor | float = 0.0) -> Tensor:
        """The linear predictor for ``product = X coef``."""
        eta = product + intercept
        return eta if self.offset is None else eta + self.offset

    def value(self, eta: Tensor) -> Tensor:
        """The weighted mean loss, 0-d."""
        return mean_of(self.datafit.value(eta, self.y), self.weights)

    def row_grad(self, eta: Tensor) -> Tensor:
        """The derivative of `value` with respect to ``eta``, of its shape."""
        grad = self.datafit.grad(eta, self.y)
        return grad * (self.weights[:, None] if grad.dim() == 2 else self.weights)

    def gradient(self, eta: Tensor) -> Tensor:
        """The derivative of `value` with respect to the coefficients, of their shape."""
        return self.design.transposed(self.row_grad(eta))

    def null_intercept(self) -> Tensor:
        """The intercept that minimises the mean loss with all coefficients zero; 0 if there is none."""
        return self._null_intercept

    def reported(self, intercept: Tensor) -> Tensor:
        """The same intercept, or the one with mean 0 where only differences between outputs matter."""
        return intercept - intercept.mean() if self.datafit.relative and self.fit_intercept else intercept

    def null_eta(self, intercept: Tensor | float | None = None) -> Tensor:
        """The linear predictor with all coefficients zero, at its best intercept unless one is given."""
        intercept = self.null_intercept() if intercept is None else intercept
        return self.shifted(self._zeros(self.design.n), intercept)

    def null_value(self) -> Tensor:
        """The mean loss with all coefficients zero, 0-d."""
        return self.value(self.null_eta())

    def null_loss(self) -> Tensor:
        """`null_value` above the least loss of each row, 0-d: what tolerances are relative to.

        The least loss of a row is ``-f*(0)``, 0 for most losses; where no conjugate is known it is taken as 0, which
        need not be the least.
        """
        eta = self.null_eta()
        try:
            return mean_of(self.datafit.fenchel_gap(eta, torch.zeros_like(eta), self.y), self.weights)
        except NoConjugate:
            return self.null_value()

    @cached_property
    def null_gradient(self) -> Tensor:
        """`gradient` with all coefficients zero."""
        return self.gradient(self.null_eta())

    def null_slope(self) -> Tensor:
        """The largest derivative of `value` by a coefficient with all of them zero, 0-d."""
        return self.null_gradient.abs().max()

    def has_gaps(self) -> bool:
        """Whether the datafit knows its conjugate, so that there are duality gaps."""
        eta = self.null_eta(0.0)[:1]
        try:
            self.datafit.fenchel_gap(eta, torch.zeros_like(eta), self.y[:1])
        except NoConjugate:
            return False
        return True

    @cached_property
    def _null_intercept(self) -> Tensor:
        if not self.fit_intercept:
            return self._zeros()
        return self.reported(best_shift(self.datafit, self.null_eta(0.0), self.y, self.weights))

    def _zeros(self, *rows: int) -> Tensor:
        shape = rows if self.K is None else (*rows, self.K)
        return torch.zeros(shape, dtype=torch.float64, device=self.y.device)
