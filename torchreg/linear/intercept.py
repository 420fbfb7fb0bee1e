"""The unpenalised intercept: the one number for each output that minimises the mean loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchreg.linear.datafits import Datafit, NoHessian
from torchreg.linear.solvers.linear_algebra import ARMIJO, line_search

_STEPS = 200  # Newton steps; a handful suffices, but from exp(eta) far too large each lowers eta by 1
_HALVINGS = 60  # of one step
_FLOOR = 4e-16  # rounding: of eta, relative to its largest; of a mean derivative, to that of absolute values times eta
_BUMP = 1e-5  # for central differences: error of the order of bump^2
_FLAT = 1e-9  # curvature, relative to the largest, below which a direction counts as flat


def best_shift(datafit: Datafit, eta: Tensor, y: Tensor, weights: Tensor, start: Tensor | None = None) -> Tensor:
    """What, added to every row of ``eta``, minimises the weighted mean loss.

    Newton's method on the K by K problem, with steps halved until the loss or its derivative
    falls. Directions in which the loss is flat (softmax) are left where they start.

    Args:
        datafit: the loss; without a second derivative, differences of its first stand in.
        eta: linear predictor of each row, intercept left out, shape (n,) or (n, K).
        y: prepared target.
        weights: of the rows, sum 1, shape (n,).
        start: first guess; None for the guess that is exact without an offset.

    Returns:
        A 0-d tensor, or (K,).

    Source:
        Curvature in absolute value: Nocedal and Wright, Numerical Optimization, 2006, section 3.4.

    Example:
        >>> import torch
        >>> from torchreg.linear.datafits import Poisson
        >>> counts, thirds = torch.tensor([0.0, 1.0, 5.0]), torch.full((3,), 1 / 3)
        >>> best_shift(Poisson(), torch.zeros(3), counts, thirds).exp()
        tensor(2.)
    """
    if datafit.quadratic:
        return mean_of(y - eta, weights)
    shift = _guess(datafit, eta, y, weights) if start is None else start
    steepness = torch.full_like(weights[0], torch.inf)

    def derivative(at: Tensor) -> Tensor:
        return mean_of(datafit.grad(eta + at, y), weights)

    def loss(at: Tensor) -> Tensor:
        return mean_of(datafit.value(eta + at, y), weights)

    for _ in range(_STEPS):
        rows = datafit.grad(eta + shift, y)
        slope = mean_of(rows, weights)
        far = (eta + shift).abs().max()
        if bool((slope.abs() <= _FLOOR * (1.0 + far) * mean_of(rows.abs(), weights)).all()):
            break
        step = _newton(slope, _curvature(datafit, eta + shift, y, weights, derivative, shift))
        if bool(step.abs().max() <= _FLOOR * far):
            break
        hidden = -(slope * step).sum() <= _FLOOR * mean_of(datafit.value(eta + shift, y).abs(), weights)
        if bool(hidden & (slope.abs().max() > 0.5 * steepness)):
            break
        steepness = slope.abs().max()
        found = _searched(loss, derivative, shift, slope, step)
        if found is None:
            break
        shift = found
    return shift


def mean_of(rows: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over rows: 0-d for (n,), (K,) for (n, K)."""
    return torch.mv(rows.T, weights) if rows.dim() == 2 else torch.dot(rows, weights)


def _guess(datafit: Datafit, eta: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return datafit.link(mean_of(y, weights)) - mean_of(eta, weights)


def _curvature(
    datafit: Datafit, eta: Tensor, y: Tensor, weights: Tensor, derivative: Callable[[Tensor], Tensor], shift: Tensor
) -> Tensor:
    """The second derivative of the mean loss with respect to the shift, (K, K), or (1, 1)."""
    try:
        if not shift.dim():
            return mean_of(datafit.hessian(eta, y), weights).reshape(1, 1)
        second = datafit.hessian_map(eta, y)
        units = torch.eye(shift.numel(), dtype=shift.dtype, device=shift.device)
        return torch.stack([mean_of(second(unit.expand_as(eta)), weights) for unit in units])
    except NoHessian:
        pass
    size = _BUMP * (1.0 + shift.abs().max())
    bumps = size * torch.eye(shift.numel(), dtype=shift.dtype, device=shift.device)
    columns = [
        (derivative(shift + b.reshape(shift.shape)) - derivative(shift - b.reshape(shift.shape))).reshape(-1)
        for b in bumps
    ]
    difference = torch.stack(columns, 1) / (2.0 * size)
    return (difference + difference.T) / 2.0


def _newton(slope: Tensor, curvature: Tensor) -> Tensor:
    """Newton's step with curvatures taken in absolute value, so that it goes down."""
    values, vectors = torch.linalg.eigh(curvature)
    size = values.abs()
    floor = (_FLAT * size.max()).clamp(min=torch.finfo(size.dtype).eps)
    return -(vectors @ ((vectors.T @ slope.reshape(-1)) / torch.maximum(size, floor))).reshape(slope.shape)


def _searched(
    loss: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor], shift: Tensor, slope: Tensor, step: Tensor
) -> Tensor | None:
    """The longest of the step's halvings with less loss or, where rounding hides that, less slope."""
    before, descent, steepness = loss(shift), (slope * step).sum(), slope.abs().max()

    def trial(share: float) -> Tensor | None:
        moved = shift + share * step
        falls = bool(loss(moved) <= before + ARMIJO * share * descent)
        return moved if falls or bool(derivative(moved).abs().max() <= 0.5 * steepness) else None

    return line_search(trial, _HALVINGS)
