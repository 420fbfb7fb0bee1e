"""The loss of held-out rows, for every strength of a path."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from torchreg.linear.datafits import Datafit
from torchreg.linear.designs.base import Design
from torchreg.linear.frame import Frame
from torchreg.linear.points import PathPoint

Metric = Callable[[Tensor, Tensor, Tensor], Tensor]
_BLOCK = 1 << 18  # coefficients made dense at a time


def held_out(frame: Frame, rows: Tensor, points: list[PathPoint], metric: Metric | None) -> Tensor:
    """The loss on some rows for every strength, (a,)."""
    design, y, weights = frame.raw.subset(rows), frame.target[rows], frame.weights[rows]
    weights = weights / weights.sum()
    losses = []
    for eta in _predictors(design, points):
        lifted = eta if frame.lift is None else eta + frame.lift[rows]
        losses.append(_loss(frame.problem.datafit, lifted, y, weights, metric))
    return torch.stack(losses)


def _predictors(design: Design, points: list[PathPoint]) -> Iterator[Tensor]:
    """The linear predictor of each point, by one product for as many as memory allows."""
    if points[0].values.dim() == 2:
        yield from (design.times(point.dense(design.p)) + point.intercept for point in points)
        return
    width = max(1, _BLOCK // max(design.p, 1))
    for start in range(0, len(points), width):
        block = points[start : start + width]
        products = design.times(torch.stack([point.dense(design.p) for point in block], 1))
        yield from (products[:, k] + point.intercept for k, point in enumerate(block))


def _loss(datafit: Datafit, eta: Tensor, y: Tensor, weights: Tensor, metric: Metric | None) -> Tensor:
    if metric is not None:
        loss = torch.as_tensor(metric(y, datafit.predict(eta), weights), dtype=torch.float64, device=eta.device)
        if loss.numel() != 1:
            raise ValueError(
                f"metric must return one number for all rows, got shape {tuple(loss.shape)}; weigh the rows and add "
                "them up: (weights * loss).sum()."
            )
        return loss.reshape(())
    if datafit.quadratic:
        squares = (y - eta).square()
        return (weights * (squares.mean(1) if squares.dim() == 2 else squares)).sum()
    return (weights * datafit.value(eta, y)).sum()


def refuse_nan(losses: Tensor) -> None:
    """Refuse losses of folds, (folds, a), that a metric has left undefined: no strength is the best then.

    Raises:
        ValueError: if one is nan.
    """
    undefined = losses.isnan().any(1).nonzero().flatten().tolist()
    if undefined:
        raise ValueError(
            f"metric gave nan for the held-out rows of fold {undefined[0] + 1} of {len(losses)}; give each fold the "
            "rows that it needs, such as both classes by cv=StratifiedKFold(5), or return a number there too."
        )
