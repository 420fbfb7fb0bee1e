"""Coordinates for smooth fits: coefficients themselves, or, for fewer rows than columns, those of the row space."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from torchreg.linear.designs.base import Design
from torchreg.linear.designs.inputs import as_design
from torchreg.linear.problem import Problem
from torchreg.linear.smooth.features import Features, WholeFeatures, features_of
from torchreg.linear.solvers.ridge_systems import kernel_of

_CUT = 1e-15  # of the largest eigenvalue of a kernel, for each row: less is rounding
_TOGETHER = 16  # points of the row space that are brought back to X together


class Chart(ABC):
    """A way to write coefficients (p,) or (p, K) and intercepts as ``theta``, (width,) or (width, K).

    Attributes:
        design: X, its columns centred where there is an intercept.
        features: the columns that multiply theta.
        together: how many points are best brought back at once.
    """

    design: Design
    features: Features
    together: int

    @abstractmethod
    def inward(self, coef: Tensor, intercept: Tensor) -> Tensor:
        """Theta of coefficients that are zero where they must be."""

    @abstractmethod
    def outward(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (p, r) and intercepts (r,) of ``theta``, (width, r)."""

    @abstractmethod
    def ridge(self, l2: Tensor) -> Tensor:
        """Strengths of theta for those of the coefficients, ``l2``, (p,) or (p, K)."""


class Plain(Chart):
    """The coefficients that may be other than zero, and the intercept for centred columns.

    Args:
        problem: the data.
        kept: numbers of those columns, (m,), or None for all.
    """

    together = 1

    def __init__(self, problem: Problem, kept: Tensor | None) -> None:
        self.design = design = centred(problem)
        self._mean = None if design is problem.design else design.mean
        self._kept, self._p = kept, design.p
        self.features = features_of(design, kept, problem.fit_intercept, problem.weights)

    def inward(self, coef: Tensor, intercept: Tensor) -> Tensor:
        if self.features.ones:
            last = intercept if self._mean is None else intercept + self._mean @ coef
        coef = coef if self._kept is None else coef[self._kept]
        return torch.cat([coef, last[None]]) if self.features.ones else coef

    def outward(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        coef, intercept = theta[: self.features.count], theta.new_zeros(theta.shape[1:])
        if self._kept is not None:
            coef = coef.new_zeros(self._p, *coef.shape[1:]).index_copy_(0, self._kept, coef)
        if self.features.ones:
            intercept = theta[-1] if self._mean is None else theta[-1] - self._mean @ coef
        return coef, intercept

    def ridge(self, l2: Tensor) -> Tensor:
        l2 = l2 if self._kept is None else l2[self._kept]
        return torch.cat([l2, torch.zeros_like(l2[:1])]) if self.features.ones else l2


class RowSpace(Chart):
    """An orthonormal basis of the space of the rows, in the norm of the ridge, and the columns without ridge.

    A ridge leaves nothing outside of it. ``coef = shares^-1 X' U t / root`` for the eigenvectors U of
    the kernel ``X diag(1 / shares) X'`` and its eigenvalues ``root^2``.

    Args:
        problem: the data.
        shares: of the strongest ridge, for each column, (p,); inf for one that must be zero, 0 for one without ridge.
    """

    together = _TOGETHER

    def __init__(self, problem: Problem, shares: Tensor) -> None:
        design = centred(problem)
        self.design, self._ones = design, problem.fit_intercept
        self._mean = None if design is problem.design else design.mean
        self._scales = torch.where(shares > 0.0, 1.0 / shares, 0.0)
        self._free = (shares == 0.0).nonzero().flatten()
        values, vectors = torch.linalg.eigh(kernel_of(design, self._scales))
        alive = values > _CUT * design.n * values[-1]
        self._root, self._vectors = values[alive].sqrt(), vectors[:, alive]
        columns = self._vectors * self._root
        if len(self._free):
            chosen = torch.zeros(design.p, len(self._free), dtype=columns.dtype, device=columns.device)
            chosen[self._free, torch.arange(len(self._free), device=columns.device)] = 1.0
            columns = torch.cat([columns, design.times(chosen)], 1)
        self.features = WholeFeatures(as_design(columns), None, self._ones)

    def inward(self, coef: Tensor, intercept: Tensor) -> Tensor:
        ridged = coef.index_fill(0, self._free, 0.0)
        inner = (self._vectors.T @ self.design.times(ridged)) / _down(self._root, coef)
        parts = [inner, coef[self._free]]
        if self._ones:
            parts.append((intercept if self._mean is None else intercept + self._mean @ coef)[None])
        return torch.cat(parts)

    def outward(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        rank, count = len(self._root), self.features.count
        rows = self._vectors @ (theta[:rank] / _down(self._root, theta))
        coef = _down(self._scales, theta) * self.design.transposed(rows)
        coef = coef.index_copy_(0, self._free, theta[rank:count])
        intercept = theta.new_zeros(theta.shape[1:])
        if self._ones:
            intercept = theta[-1] if self._mean is None else theta[-1] - self._mean @ coef
        return coef, intercept

    def ridge(self, l2: Tensor) -> Tensor:
        top = torch.where(_down(self._scales, l2) > 0.0, l2, 0.0).amax(0, keepdim=True)
        rest = torch.zeros_like(top).expand(self.features.width - len(self._root), *top.shape[1:])
        return torch.cat([top.expand(len(self._root), *top.shape[1:]), rest])


def centred(problem: Problem) -> Design:
    """The design with centred columns where there is an intercept: that makes the two nearly independent."""
    design = problem.design
    if not problem.fit_intercept or design.mean is not None:
        return design
    return design.standardised(problem.weights, centre=True, scale=False)


def _down(scales: Tensor, like: Tensor) -> Tensor:
    return scales if like.dim() == 1 else scales[:, None]
