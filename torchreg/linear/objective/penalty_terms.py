"""The one description of a penalty that path following and its solvers read: made once per fit, for each strength.

Coefficients are flat vectors: those of (p, K), for K outputs, are numbered ``column * K + output``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, TypeVar

import torch
from torch import Tensor

from torchreg.linear.certificate import columns, dual_scale, penalty_gap, table, violation
from torchreg.penalties import L1Form


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


@dataclass(frozen=True)
class EntryTerms(PenaltyTerms):
    """``sum_j l1_j |w_j| + l2_j / 2 w_j^2``, subject to ``w_j >= lower``.

    Attributes:
        form: the penalty; for a batch a `table`.
        like: any coefficients, (m,).
    """

    form: L1Form
    like: Tensor

    @classmethod
    def of(cls, form: L1Form, coef: Tensor) -> EntryTerms:
        """The penalty of coefficients of coef's shape, (p,) or (p, K), made flat."""
        l1, l2 = (
            part.to(coef).broadcast_to(coef.shape).reshape(-1) if isinstance(part, Tensor) and part.dim() else part
            for part in (form.l1, form.l2)
        )
        return cls(L1Form(l1, l2, form.lower), coef.reshape(-1))

    @property
    def lower(self) -> float:  # type: ignore[override]
        return self.form.lower

    @cached_property
    def ridge(self) -> bool:  # type: ignore[override]
        l2 = self.form.l2
        return bool((l2 > 0.0).any()) if isinstance(l2, Tensor) else l2 > 0.0

    @property
    def l1(self) -> Tensor:
        """Strengths of absolute values, (m,)."""
        return columns(self.form.l1, self.like).expand_as(self.like)

    @property
    def l2(self) -> Tensor | None:
        """Strengths of squares, (m,); None without a ridge."""
        return columns(self.form.l2, self.like).expand_as(self.like) if self.ridge else None

    @cached_property
    def least(self) -> float:  # type: ignore[override]
        l1 = columns(self.form.l1, self.like)
        return float(torch.where(l1 > 0.0, l1, torch.inf).amin()) if l1.numel() else torch.inf

    @cached_property
    def free(self) -> bool:  # type: ignore[override]
        l1, l2 = columns(self.form.l1, self.like), columns(self.form.l2, self.like)
        return bool(((l1 == 0.0) & (l2 == 0.0)).any())

    def batch(self, others: Sequence[EntryTerms]) -> EntryTerms:
        return EntryTerms(table([other.form for other in others], self.like[:, None]), self.like)

    def within(self, index: Tensor) -> EntryTerms:
        """The penalty of some coefficients, by their numbers, or a batch of them."""
        l1, l2 = (
            part[index] if isinstance(part, Tensor) and part.dim() and len(part) != 1 else part
            for part in (self.form.l1, self.form.l2)
        )
        return EntryTerms(L1Form(l1, l2, self.form.lower), self.like[index])

    def raised(self, factor: float) -> EntryTerms:
        """With l1 multiplied by a factor."""
        return EntryTerms(replace(self.form, l1=factor * self.form.l1), self.like)

    def strongest(self, slack: Tensor) -> float:
        """The factor of l1 at which no correlation reaches it any more, for one penalty."""
        l1 = columns(self.form.l1, slack)
        return float(torch.where(l1 > 0.0, self._size(slack) / l1, 0.0).amax())

    def slack(self, w: Tensor, g: Tensor) -> Tensor:
        return g - columns(self.form.l2, g) * w if self.ridge else g

    def reached(self, slack: Tensor, share: float) -> Tensor:
        return self._size(slack) >= share * columns(self.form.l1, slack)

    def excess(self, slack: Tensor) -> Tensor:
        return self._size(slack) - columns(self.form.l1, slack)

    def violation(self, w: Tensor, g: Tensor) -> Tensor:
        return violation(self.form, w, g)

    def scale(self, g: Tensor) -> Tensor:
        return dual_scale(self.form, g)

    def gap(self, w: Tensor, z: Tensor) -> Tensor:
        return penalty_gap(self.form, w, z)

    def change(self, w: Tensor, fresh: Tensor) -> Tensor:
        l1, l2 = columns(self.form.l1, w), columns(self.form.l2, w)
        return (l1 * (fresh.abs() - w.abs()) + 0.5 * l2 * (fresh.square() - w.square())).sum()

    def extent(self, w: Tensor) -> Tensor:
        return w.abs().sum()

    def _size(self, g: Tensor) -> Tensor:
        """What of correlations counts against l1."""
        return g if self.form.lower == 0.0 else g.abs()
