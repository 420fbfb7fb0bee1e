"""The data as an engine sees it, and the way back: centring, scaling, offsets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchreg.linear.datafits import Datafit
from torchreg.linear.design import Design
from torchreg.linear.inputs import as_design
from torchreg.linear.intercept import mean_of
from torchreg.linear.points import PathPoint
from torchreg.linear.problem import Problem
from torchreg.linear.rows import as_offset, as_target, as_weights
from torchreg.linear.unpenalised import unpenalised


@dataclass(frozen=True)
class Frame:
    """A problem in the coordinates of the engines.

    For a quadratic datafit with an intercept the columns and the target are centred, and the intercept follows.

    Attributes:
        problem: what the engines see.
        raw: the design of X itself.
        shift: what was subtracted from the target, 0-d or (K,).
        eliminated: whether the intercept follows from the means.
    """

    problem: Problem
    raw: Design
    shift: Tensor
    eliminated: bool

    def outward(self, point: PathPoint) -> PathPoint:
        """A solution in the coordinates of X."""
        design, values, index = self.problem.design, point.values, point.index
        if design.scale is not None:
            scale = design.scale[index]
            values = values / (scale[:, None] if values.dim() == 2 else scale)
        intercept = point.intercept
        if self.eliminated:
            intercept = self.shift
        if design.mean is not None and len(index):
            intercept = intercept - design.mean[index] @ values
        return replace(point, values=values, intercept=intercept)

    def inward(self, start: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
        """A start in the coordinates of the engines."""
        zero = self.problem.no_coef()
        coef = torch.as_tensor(start[0]).to(zero).reshape(zero.shape)
        intercept = torch.as_tensor(start[1]).to(zero).reshape(self.shift.shape)
        design = self.problem.design
        if design.mean is not None:
            intercept = intercept + design.mean @ coef
        if design.scale is not None:
            coef = coef * (design.scale[:, None] if coef.dim() == 2 else design.scale)
        return coef, intercept

    def refit(self, index: Tensor) -> PathPoint:
        """The columns ``index`` alone, without a penalty."""
        return self.outward(unpenalised(self.problem, index))


def framed(
    X: Any, y: Any, datafit: Datafit, sample_weight: Any, offset: Any, fit_intercept: bool, standardize: bool,  # noqa: N803
    device: torch.device | str | None,
) -> Frame:  # fmt: skip
    """Validate the data and centre and scale it as the datafit asks."""
    design = as_design(X, device)
    target = datafit.prepare(as_target(y, design))
    weights = as_weights(sample_weight, design)
    outputs = datafit.outputs(target)
    lift = as_offset(offset, design, outputs)
    eliminated = datafit.quadratic and fit_intercept
    shift = torch.zeros(() if outputs is None else (outputs,), dtype=torch.float64, device=design.device)
    seen = design
    if datafit.quadratic:
        target = target if lift is None else target - lift
        lift = None
        if fit_intercept:
            shift = mean_of(target, weights)
            target = target - shift
    if eliminated or standardize:
        seen = design.standardised(weights, centre=fit_intercept, scale=standardize)
    problem = Problem(seen, target, weights, lift, datafit, fit_intercept and not eliminated)
    return Frame(problem, design, shift, eliminated)
