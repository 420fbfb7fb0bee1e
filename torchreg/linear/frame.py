"""The data as an engine sees it, and the way back: centring, scaling, offsets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchreg.linear.chunks import refuse_chunks
from torchreg.linear.data.validation import Validated, validated
from torchreg.linear.datafits import Datafit
from torchreg.linear.designs.base import Design, deviation
from torchreg.linear.intercept import mean_of
from torchreg.linear.moments import Moments, moments_of, moments_pay
from torchreg.linear.points import PathPoint
from torchreg.linear.problem import Problem


@dataclass(frozen=True)
class Coordinates:
    """How coefficients of centred and scaled columns become those of X.

    Attributes:
        mean: of the columns, (p,), or None. scale: of the columns, (p,), or None.
        shift: intercept of the centred data, 0-d or (K,); None where the engine finds the intercept.
        relative: whether only differences between intercepts matter, which then have mean 0.
    """

    mean: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    relative: bool = False

    def outward(self, point: PathPoint) -> PathPoint:
        """A solution in the coordinates of X."""
        values, index = point.values, point.index
        if self.scale is not None:
            values = values / _per_row(self.scale.index_select(0, index), values)
        intercept = point.intercept if self.shift is None else self.shift
        if self.mean is not None and len(index):
            intercept = intercept - self.mean.index_select(0, index) @ values
        if self.relative:
            intercept = intercept - intercept.mean()
        return replace(point, values=values, intercept=intercept)

    def nested(self, inner: Coordinates) -> Coordinates:
        """Those of data that is centred and scaled once more, by ``inner``."""
        mean, scale, shift = inner.mean, inner.scale, inner.shift
        if self.scale is not None:
            mean = None if mean is None else mean * self.scale
            scale = self.scale if scale is None else scale * self.scale
        if self.mean is not None:
            mean = self.mean if mean is None else mean + self.mean
        if self.shift is not None:
            shift = self.shift if shift is None else shift + self.shift
        return Coordinates(mean, scale, shift)

    def inward(self, start: tuple[Any, Any], like: Tensor) -> tuple[Tensor, Tensor]:
        """A start (coef, intercept) in the coordinates of the engines; ``like`` has coef's shape.

        Raises:
            ValueError: if the start is no pair, has other shapes or is not finite.
        """
        if not isinstance(start, (tuple, list)) or len(start) != 2 or any(part is None for part in start):
            raise ValueError(f"init takes a pair (coef, intercept), or None, got {start!r}.")
        coef, intercept = (torch.as_tensor(part, dtype=like.dtype, device=like.device) for part in start)
        if coef.numel() != like.numel() or intercept.numel() != like.shape[1:].numel():
            raise ValueError(
                f"init takes coef of shape {tuple(like.shape)} and intercept of shape {tuple(like.shape[1:])}, got "
                f"{tuple(coef.shape)} and {tuple(intercept.shape)}."
            )
        coef, intercept = coef.reshape(like.shape), intercept.reshape(like.shape[1:])
        if not bool(coef.isfinite().all() & intercept.isfinite().all()):
            raise ValueError("init contains NaN or infinity.")
        if self.mean is not None:
            intercept = intercept + self.mean @ coef
        if self.scale is not None:
            coef = coef * _per_row(self.scale, coef)
        return coef, intercept


class Spread(NamedTuple):
    """Weighted mean and variance of each column of X and then of each target, (p + K,)."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Frame:
    """Data in its own coordinates, and the problem that the engines solve.

    For a quadratic datafit with an intercept the columns and the target are centred, and the intercept follows.

    Attributes:
        n: number of rows of the data, those of weight 0 too.
        raw: the design of the rows of X that count; of chunks of rows, few rows that stand for all.
        target: prepared by the datafit. weights: positive, sum 1. lift: the offset, or None.
        fit_intercept, standardize: as asked for.
        problem: what the engines solve.
        coordinates: the way back.
        known: moments of the problem, where it was made from them.
        kept: numbers of the rows that count, where others have weight 0.
        names: of the columns, where X was a data frame that had some.
    """

    n: int
    raw: Design
    target: Tensor
    weights: Tensor
    lift: Tensor | None
    fit_intercept: bool
    standardize: bool
    problem: Problem
    coordinates: Coordinates
    known: Moments | None = None
    kept: Tensor | None = None
    names: tuple[str, ...] | None = None

    @cached_property
    def moments(self) -> Moments | None:
        """The Gram matrix of all columns, where least squares has enough rows for it to pay."""
        if self.known is not None:
            return self.known
        return moments_of(self.problem) if moments_pay(self.problem) else None

    @cached_property
    def spread(self) -> Spread:
        """Mean and variance of all columns and targets."""
        return spread_of(self.raw, self.problem.y, self.weights)

    @property
    def n_weighted(self) -> int:
        """How many rows have a weight that is not zero; of chunks, how many rows there are."""
        return self.n if self.kept is None else len(self.kept)

    def subset(self, rows: Tensor) -> Frame:
        """Some of the rows, centred and scaled by themselves."""
        part = Validated(self.raw, self.target, self.weights, self.lift).taken(rows)
        return frame_of(part, self.problem.datafit, self.fit_intercept, self.standardize)

    def weighing(self, rows: Tensor) -> Frame:
        """`subset` without a copy of X: the other rows stay, and weigh nothing."""
        weights = torch.bincount(rows, minlength=len(self.weights)) * self.weights
        whole = Validated(self.raw, self.target, weights / weights.sum(), self.lift)
        return _centred(whole, self.problem.datafit, self.fit_intercept, self.standardize)


def framed(
    X: Any, y: Any, datafit: Datafit, sample_weight: Any, offset: Any, fit_intercept: bool, standardize: bool,  # noqa: N803
    device: torch.device | str | None,
) -> Frame:  # fmt: skip
    """Validate the data, leave out rows of weight 0, centre and scale the others as the datafit asks."""
    refuse_chunks(X, y)
    return frame_of(validated(X, y, datafit, sample_weight, offset, device), datafit, fit_intercept, standardize)


def frame_of(data: Validated, datafit: Datafit, fit_intercept: bool, standardize: bool) -> Frame:
    """The frame of the rows that count; the others would cost time and, if they are large, digits."""
    kept = data.counting
    counted = data if kept is None else data.taken(kept)
    return replace(_centred(counted, datafit, fit_intercept, standardize), n=data.design.n, kept=kept, names=data.names)


def _centred(data: Validated, datafit: Datafit, fit_intercept: bool, standardize: bool) -> Frame:
    """The frame of all rows, those of weight 0 too."""
    raw, target, weights, lift = data.design, data.target, data.weights, data.lift
    eliminated, y, rest, shift = datafit.quadratic and fit_intercept, target, lift, None
    if datafit.quadratic and lift is not None:
        y, rest = target - lift, None
    if eliminated:
        shift = mean_of(y, weights)
        y = y - shift
        y = torch.where(deviation(shift, mean_of(y.square(), weights)) > 0, y, 0.0)  # a constant target is explained
    design = raw
    if fit_intercept or standardize:
        design = raw.standardised(weights, centre=fit_intercept, scale=standardize)
    problem = Problem(design, y, weights, rest, datafit, fit_intercept and not eliminated)
    coordinates = Coordinates(design.mean, design.scale, shift, datafit.relative and fit_intercept)
    return Frame(raw.n, raw, target, weights, lift, fit_intercept, standardize, problem, coordinates)


def spread_of(raw: Design, y: Tensor, weights: Tensor) -> Spread:
    """Of some rows of weights that add up to 1; the variance of what is constant is exactly 0."""
    mean, variance = raw.moments(weights)
    targets = y.reshape(len(y), -1)
    centre = weights @ targets
    mean = torch.cat([mean, centre])
    return Spread(mean, deviation(mean, torch.cat([variance, weights @ (targets - centre).square()])).square())


def _per_row(scale: Tensor, values: Tensor) -> Tensor:
    return scale[:, None] if values.dim() == 2 else scale
