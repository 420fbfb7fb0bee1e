"""The one description of a penalty that path following and its solvers read: made once per fit, for each strength.

Coefficients are flat vectors: those of (p, K), for K outputs, are numbered ``column * K + output``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self, TypeVar

from torch import Tensor


class PenaltyTerms(ABC):
    """A convex penalty R at one strength, or a batch of them: its value, and the optimality that follows from it.

    Correlations ``g`` are minus the gradient of the data term. Vectors are (m,) or, for a batch, (m, batch).

    Attributes:
        lower: -inf or 0, the least coefficient that is allowed.
        ridge: whether some coefficient has a ridge.
        least: the least strength that is not zero, inf where there is none.
        free: whether some coefficient is unpenalised: at zero a gap says nothing of it.
    """

    lower: float
    ridge: bool
    least: float
    free: bool

    @abstractmethod
    def batch(self, others: Sequence[Self]) -> Self:
        """Several penalties, this one the first of them, as one batch."""

    @abstractmethod
    def within(self, index: Tensor) -> Self:
        """The penalty of some coefficients, by their numbers; those of a group stand together."""

    @abstractmethod
    def slack(self, w: Tensor, g: Tensor) -> Tensor:
        """Correlations less the ridge's part."""

    @abstractmethod
    def reached(self, slack: Tensor, share: float) -> Tensor:
        """Which coefficients' correlations are at least ``share`` of the strength that holds them at zero."""

    @abstractmethod
    def excess(self, slack: Tensor) -> Tensor:
        """How far coefficients' correlations go beyond the strength that holds them at zero."""

    @abstractmethod
    def violation(self, w: Tensor, g: Tensor) -> Tensor:
        """The largest distance of ``g`` from the subdifferential at ``w``, 0-d or (batch,)."""

    @abstractmethod
    def scale(self, g: Tensor) -> Tensor:
        """A scale ``s <= 1``, as large as is known, for which the conjugate is finite at ``s g``, 0-d or (batch,)."""

    @abstractmethod
    def gap(self, w: Tensor, z: Tensor) -> Tensor:
        """``R(w) + R*(z) - <z, w>`` for feasible ``z``, without cancellation, 0-d or (batch,)."""

    @abstractmethod
    def change(self, w: Tensor, fresh: Tensor) -> Tensor:
        """``R(fresh) - R(w)`` for one penalty without infinite strengths, 0-d."""

    @abstractmethod
    def extent(self, w: Tensor) -> Tensor:
        """The sum of what strengths multiply: absolute values, or norms of groups, 0-d."""


C = TypeVar("C", bound=PenaltyTerms)
