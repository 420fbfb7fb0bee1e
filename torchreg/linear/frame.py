"""The data as an engine sees it, and the way back: centring, scaling, offsets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from torchreg.linear.chunks import are_chunks
from torchreg.linear.datafits import Datafit
from torchreg.linear.designs.base import Design, deviation
from torchreg.linear.designs.inputs import as_design
from torchreg.linear.intercept import mean_of
from torchreg.linear.moments import Moments, moments_of, moments_pay
from torchreg.linear.points import PathPoint
from torchreg.linear.problem import Problem
from torchreg.linear.rows import as_offset, as_target, as_weights


@dataclass(frozen=True)
class Coordinates:
    """How coefficients of centred and scaled columns become those of X.

    Attributes:
        mean: of the columns, (p,), or None. scale: of the columns, (p,), or None.
        shift: intercept of the centred data, 0-d or (K,); None where the engine finds the intercept.
    """

    mean: Tensor | None
    scale: Tensor | None
    shift: Tensor | None

    def outward(self, point: PathPoint) -> PathPoint:
        """A solution in the coordinates of X."""
        values, index = point.values, point.index
        if self.scale is not None:
            values = values / _per_row(self.scale[index], values)
        intercept = point.intercept if self.shift is None else self.shift
        if self.mean is not None and len(index):
            intercept = intercept - self.mean[index] @ values
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
            ValueError: if the start has other shapes or is not finite.
        """
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


@dataclass(frozen=True)
class Frame:
    """Data in its own coordinates, and the problem that the engines solve.

    For a quadratic datafit with an intercept the columns and the target are centred, and the intercept follows.

    Attributes:
        n: number of rows of the data.
        raw: the design of X itself; of chunks of rows, few rows that stand for all.
        target: prepared by the datafit. weights: sum 1. lift: the offset, or None.
        fit_intercept, standardize: as asked for.
        problem: what the engines solve.
        coordinates: the way back.
        known: moments of the problem, where it was made from them.
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

    @cached_property
    def moments(self) -> Moments | None:
        """The Gram matrix of all columns, where least squares has enough rows for it to pay."""
        if self.known is not None:
            return self.known
        return moments_of(self.problem) if moments_pay(self.problem) else None

    @property
    def n_weighted(self) -> int:
        """How many rows have a weight that is not zero; of chunks, how many rows there are."""
        return self.n if len(self.weights) != self.n else int(self.weights.count_nonzero())

    def subset(self, rows: Tensor) -> Frame:
        """Some of the rows, centred and scaled by themselves."""
        lift = None if self.lift is None else self.lift[rows]
        weights = self.weights[rows]
        return frame_of(
            self.raw.subset(rows), self.target[rows], weights / weights.sum(), lift, self.problem.datafit,
            self.fit_intercept, self.standardize,
        )  # fmt: skip

    def weighing(self, rows: Tensor) -> Frame:
        """`subset` without a copy of X: the other rows stay, and weigh nothing."""
        weights = torch.bincount(rows, minlength=len(self.weights)) * self.weights
        return frame_of(
            self.raw, self.target, weights / weights.sum(), self.lift, self.problem.datafit,
            self.fit_intercept, self.standardize,
        )  # fmt: skip


def framed(
    X: Any, y: Any, datafit: Datafit, sample_weight: Any, offset: Any, fit_intercept: bool, standardize: bool,  # noqa: N803
    device: torch.device | str | None,
) -> Frame:  # fmt: skip
    """Validate the data, and centre and scale it as the datafit asks."""
    if are_chunks(X, y):
        raise ValueError(
            f"X is {type(X).__name__} and y {type(y).__name__}, but this fit requires y to be passed, and X as one "
            "array that holds all rows; fit_path alone takes chunks of rows."
        )
    design = as_design(X, device)
    target = datafit.prepare(as_target(y, design))
    weights = as_weights(sample_weight, design)
    lift = as_offset(offset, design, datafit.outputs(target))
    return frame_of(design, target, weights, lift, datafit, fit_intercept, standardize)


def frame_of(
    raw: Design, target: Tensor, weights: Tensor, lift: Tensor | None, datafit: Datafit, fit_intercept: bool,
    standardize: bool,
) -> Frame:  # fmt: skip
    """The frame of validated data."""
    eliminated, y, rest, shift = datafit.quadratic and fit_intercept, target, lift, None
    if datafit.quadratic and lift is not None:
        y, rest = target - lift, None
    if eliminated:
        shift = mean_of(y, weights)
        y = y - shift
        y = torch.where(deviation(shift, mean_of(y.square(), weights)) > 0, y, 0.0)  # a constant target is explained
    design = raw
    if eliminated or standardize:
        design = raw.standardised(weights, centre=fit_intercept, scale=standardize)
    problem = Problem(design, y, weights, rest, datafit, fit_intercept and not eliminated)
    coordinates = Coordinates(design.mean, design.scale, shift)
    return Frame(raw.n, raw, target, weights, lift, fit_intercept, standardize, problem, coordinates)


def _per_row(scale: Tensor, values: Tensor) -> Tensor:
    return scale[:, None] if values.dim() == 2 else scale
