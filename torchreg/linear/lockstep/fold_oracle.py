"""Where several training problems of one data set get Gram blocks and correlations from, all at once.

The training problems of a cross-validation see the same columns and different rows. What they need comes from the
columns of the whole data, in its coordinates: one product for all folds, rows that a fold holds out weighing nothing
there. Gram blocks of training rows are those of all rows less those of the rows held out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from torchreg.linear.designs.base import Design, Selection, as_scale, deviation
from torchreg.linear.folds import Fold
from torchreg.linear.frame import Frame
from torchreg.linear.moments import remainder

_GRAMS = 1 << 28  # entries of all training Gram matrices: 2 GiB; where they are more, the data is read instead


class FoldOracle(ABC):
    """K least-squares problems over the same columns and a growing set of these.

    Everything has one row a fold. A fold's columns and target are centred and scaled by its own training rows.

    Attributes:
        cross: correlations at zero coefficients, (K, p).
        energy: weighted squares of the target, (K,).
        chosen: the columns of the set in the order in which they came, (m,).
        ranks: an upper bound of the rank of each fold's columns.
        mean: of the columns in the coordinates of the whole data, (K, p), or None where they are not centred.
        scale: of the columns there, (K, p), or None where they are not scaled.
        shift: of the target there, (K,).
    """

    cross: Tensor
    energy: Tensor
    chosen: Tensor
    ranks: list[int]
    mean: Tensor | None
    scale: Tensor | None
    shift: Tensor

    @abstractmethod
    def append(self, new: Tensor) -> Tensor:
        """Add columns to the set, (k,); the Gram matrices of the whole set with them, (K, m + k, k)."""

    @abstractmethod
    def correlations(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """At coefficients over the set, (batch, K, m): correlations (batch, K, p), residual squares (batch, K)."""


class FoldGrams(FoldOracle):
    """From one Gram matrix a fold, of all columns."""

    def __init__(self, frame: Frame, folds: tuple[Fold, ...]) -> None:
        assert frame.moments is not None
        centre, scale = frame.fit_intercept, frame.standardize
        rests = [remainder(frame.problem, frame.moments, test, centre=centre, scale=scale) for _, test in folds]
        self._grams = torch.stack([rest.moments.gram for rest in rests])
        self.cross = torch.stack([rest.moments.cross for rest in rests])
        self.energy = torch.stack([rest.moments.energy for rest in rests])
        self.ranks = _ranks(frame, folds)
        self.mean = torch.stack([rest.mean for rest in rests]) if centre else None
        self.scale = torch.stack([rest.scale for rest in rests if rest.scale is not None]) if scale else None
        self.shift = torch.stack([rest.shift for rest in rests])
        self.chosen = torch.zeros(0, dtype=torch.long, device=frame.raw.device)

    def append(self, new: Tensor) -> Tensor:
        self.chosen = torch.cat([self.chosen, new])
        return self._grams.index_select(1, new).index_select(2, self.chosen).mT

    def correlations(self, w: Tensor) -> tuple[Tensor, Tensor]:
        dense = w.new_zeros(*w.shape[:2], self.cross.shape[1]).index_copy_(2, self.chosen, w)
        explained = torch.bmm(dense.transpose(0, 1), self._grams).transpose(0, 1)
        taken = (dense * (2.0 * self.cross - explained)).sum(2)
        return self.cross - explained, (self.energy - taken).clamp(min=0.0)


class FoldRows(FoldOracle):
    """From the data."""

    def __init__(self, frame: Frame, folds: tuple[Fold, ...]) -> None:
        problem = frame.problem
        self._design, self._columns = problem.design, problem.design.selection(problem.weights)
        self._weights, self._left = _training_weights(frame.weights, folds)
        self._held = _held_out(problem.design, problem.weights, folds)
        centre = frame.fit_intercept
        self.mean = self._design.transposed(self._weights.T).T if centre else None
        self.shift = self._weights @ problem.y * float(centre)
        self.scale = _scales(frame, self._weights) if frame.standardize else None
        self._targets = problem.y - self.shift[:, None]
        cross, energy = self._seen(self._targets[None])
        self.cross, self.energy = cross[0], energy[0]
        self.ranks = _ranks(frame, folds)

    @property
    def chosen(self) -> Tensor:  # type: ignore[override]
        return self._columns.index

    def append(self, new: Tensor) -> Tensor:
        grams = torch.stack(self._blocks(new))
        if self.mean is not None:
            grams -= self.mean[:, self.chosen, None] * self.mean[:, None, new]
        if self.scale is not None:
            grams = grams.div_(self.scale[:, self.chosen, None]).div_(self.scale[:, None, new])
        return grams

    def correlations(self, w: Tensor) -> tuple[Tensor, Tensor]:
        w = w if self.scale is None else w / self.scale[:, self.chosen]
        eta = self._columns.times(w.flatten(0, 1).T).T.unflatten(0, w.shape[:2])
        residuals = self._targets - eta
        if self.mean is not None:
            residuals += (w * self.mean[:, self.chosen]).sum(2, keepdim=True)
        return self._seen(residuals)

    def _seen(self, residuals: Tensor) -> tuple[Tensor, Tensor]:
        """Correlations of residuals, (batch, K, n), and their squares."""
        weighted = self._weights * residuals
        squares = (weighted * residuals).sum(2)
        g = self._design.transposed(weighted.flatten(0, 1).T).T.unflatten(0, residuals.shape[:2])
        if self.mean is not None:
            g = g - self.mean * weighted.sum(2, keepdim=True)
        return (g if self.scale is None else g / self.scale), squares

    def _blocks(self, new: Tensor) -> list[Tensor]:
        """Products of the set, new columns included, with these over each fold's training rows, centred by all rows."""
        if self._held:
            whole = self._columns.append(new)
            return [(whole - held.append(new)) / left for held, left in zip(self._held, self._left, strict=True)]
        self._columns.add(new)
        return [self._columns.gram(weights, len(self.chosen) - len(new)) for weights in self._weights]


def fold_oracle(frame: Frame, folds: tuple[Fold, ...]) -> FoldOracle:
    """The cheaper one for these folds."""
    p = frame.raw.p
    if frame.moments is not None and len(folds) * p * p <= _GRAMS and all(is_complete(f, frame.raw.n) for f in folds):
        return FoldGrams(frame, folds)
    return FoldRows(frame, folds)


def is_complete(fold: Fold, n: int) -> bool:
    """Whether the fold trains on exactly the rows that it holds out not."""
    both = torch.cat(fold)
    return torch.equal(both.sort().values, torch.arange(n, device=both.device))


def _training_weights(weights: Tensor, folds: tuple[Fold, ...]) -> tuple[Tensor, Tensor]:
    """Weights of the training rows, each fold's adding up to 1, (K, n); and what they added up to before, (K,)."""
    given = torch.stack([torch.bincount(train, minlength=len(weights)) * weights for train, _ in folds])
    left = given.sum(1)
    return given / left[:, None], left


def _held_out(design: Design, weights: Tensor, folds: tuple[Fold, ...]) -> list[Selection]:
    """The rows that each fold holds out; empty where they would take more room than X, or a fold trains on some."""
    if sum(len(test) for _, test in folds) > design.n or not all(is_complete(fold, design.n) for fold in folds):
        return []
    return [design.subset(test).selection(weights[test]) for _, test in folds]


def _ranks(frame: Frame, folds: tuple[Fold, ...]) -> list[int]:
    """As many as there are different training rows, less one that centring takes, and no more than columns."""
    rows = [int((frame.weights[train.unique()] > 0.0).sum()) - frame.fit_intercept for train, _ in folds]
    return [min(count, frame.raw.p) for count in rows]


def _scales(frame: Frame, weights: Tensor) -> Tensor:
    """Deviations of each fold's training columns in the coordinates of the whole data, (K, p)."""
    scales = torch.stack([as_scale(deviation(*frame.raw.moments(one))) for one in weights])
    whole = frame.coordinates.scale
    return scales if whole is None else scales / whole
