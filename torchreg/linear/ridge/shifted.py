"""Linear systems ``(M + s D) u = b`` with one symmetric matrix M and many s: what ridge regressions are."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from torchreg.linear.solvers.linear_algebra import safe_cholesky

_CUT = 4.0 * torch.finfo(torch.float64).eps  # of the largest eigenvalue, for each row: less is rounding
_MANY = 12  # Cholesky factorisations that cost as much as one eigendecomposition; measured
_LIFT = 1e-9  # of the mean diagonal: a ridge for columns that have none; refinement takes it off again


class Shifted(ABC):
    """Solves ``(M + s D) u = b``; M is positive semidefinite and D has ones and zeros on its diagonal."""

    @abstractmethod
    def solve(self, strengths: Tensor, sides: Tensor) -> Tensor:
        """Solutions, (m, r), for ``sides`` (m, r), each with its own ``strengths`` (r,)."""


class Spectrum(Shifted):
    """By eigendecomposition, D = 1: each further strength costs two products; at 0 the least solution.

    Args:
        square: M, (m, m).
    """

    def __init__(self, square: Tensor) -> None:
        self._values, self._vectors = torch.linalg.eigh(square)
        largest = self._values[-1:].clamp(min=0.0)
        self._cut = _CUT * len(square) * largest

    def solve(self, strengths: Tensor, sides: Tensor) -> Tensor:
        shifted = self._values.clamp(min=0.0)[:, None] + strengths
        kept = shifted > self._cut
        inner = self._vectors.T @ sides
        return self._vectors @ torch.where(kept, inner / torch.where(kept, shifted, 1.0), 0.0)


class Factor(Shifted):
    """By a Cholesky factorisation for each strength.

    A column without ridge gets a small one, and so does a matrix that is singular to rounding: solutions are then
    near, and correcting them by their residuals makes them exact.

    Args:
        square: M, (m, m).
        ridged: D's diagonal, (m,), bool; None for ones.
    """

    def __init__(self, square: Tensor, ridged: Tensor | None) -> None:
        self._square = square
        self._lift = _LIFT * square.diagonal().mean()
        self._bare = None if ridged is None else ~ridged
        self._ridged = None if ridged is None else ridged.to(square.dtype)
        self._last: tuple[float, Tensor] | None = None

    def solve(self, strengths: Tensor, sides: Tensor) -> Tensor:
        distinct, owners = strengths.unique(return_inverse=True)
        solutions = torch.empty_like(sides)
        for k, strength in enumerate(distinct.tolist()):
            mine = owners == k
            solutions[:, mine] = torch.cholesky_solve(sides[:, mine], self._factor(strength))
        return solutions

    def _factor(self, strength: float) -> Tensor:
        if self._last is None or self._last[0] != strength:
            ridge = torch.full_like(self._square[0], strength)
            if self._ridged is not None:
                ridge = strength * self._ridged + torch.where(self._ridged > 0, 0.0, self._lift)
            self._last = (strength, safe_cholesky(self._square.clone(), ridge)[0])
        return self._last[1]


def shifted(square: Tensor, ridged: Tensor | None, strengths: int, least: float) -> Shifted:
    """The cheaper way.

    Args:
        square: M, (m, m).
        ridged: D's diagonal, or None for ones.
        strengths: how many there will be.
        least: the weakest; at 0 only eigenvectors tell what is null.
    """
    cut = _CUT * len(square) * float(square.diagonal().sum())
    if ridged is None and (strengths >= _MANY or least <= cut):
        return Spectrum(square)
    return Factor(square, ridged)
