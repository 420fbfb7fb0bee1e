"""Numerics of all solvers: a line search, a Cholesky factor, conjugate gradients, the largest eigenvalue."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

ARMIJO = 1e-4  # of the fall that the slope promises: a step must attain it
_CUT = 4.0 * torch.finfo(torch.float64).eps  # of a diagonal entry, for each row: less is rounding
_TRIES = 8  # ridges, each larger than the one before
_POWER_STEPS = 15  # of power iteration: the largest eigenvalue to some percent


def line_search(trial: Callable[[float], T | None], halvings: int) -> T | None:
    """What ``trial`` makes of the longest of the step sizes 1, 1/2, 1/4, ... that it accepts.

    Args:
        trial: gives its result for a step size that it accepts, as by Armijo's rule, and None for another.
        halvings: how many step sizes are tried.

    Returns:
        None where no step size is accepted.

    Source:
        Armijo, Pacific J. Mathematics 16, 1966.
    """
    for k in range(halvings):
        found = trial(0.5**k)
        if found is not None:
            return found
    return None


def safe_cholesky(
    square: Tensor, ridge: Tensor | float = 0.0, *, least: float = 0.0, growth: float = 100.0
) -> tuple[Tensor, bool]:
    """The lower factor of ``square + diag(ridge)``; where that is singular to rounding, of one with more ridge.

    Args:
        square: symmetric, (..., m, m); its diagonal is overwritten.
        ridge: >= 0, (..., m) or a number.
        least: a factor with a diagonal entry below it counts as singular.
        growth: of what is added from one attempt to the next, relative to the diagonal.

    Returns:
        The factor, and whether it is one: not for NaN, or what is far from positive semidefinite.
    """
    diagonal = square.diagonal(dim1=-2, dim2=-1)
    raised, regular = diagonal + ridge, False
    extra = (_CUT * square.shape[-1] * raised.abs()).clamp_(min=torch.finfo(square.dtype).tiny)
    for _ in range(_TRIES):
        diagonal.copy_(raised)
        factor, failed = torch.linalg.cholesky_ex(square)
        regular = not bool(failed.any()) and (not least or bool(factor.diagonal(dim1=-2, dim2=-1).min() >= least))
        if regular:
            break
        raised, extra = raised + extra, growth * extra
    return factor, regular


class LinearSolution(NamedTuple):
    """What conjugate gradients have found.

    Attributes:
        x: of the side's shape. steps: how many were taken.
    """

    x: Tensor
    steps: int


def conjugate_gradients(
    times: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    side: Tensor,
    *,
    tol: float,
    limit: int,
    follow: Callable[[Tensor], None] | None = None,
) -> LinearSolution:
    """The solution of ``H x = side`` up to an error, or a direction in which ``H`` is not convex, cut off there.

    Args:
        times: the product with H, positive semidefinite to rounding, of a tensor of side's shape.
        precondition: the product with about the inverse of H; what it gives may be overwritten by its next call.
        side: of any shape.
        tol: of the residual in the norm of the preconditioner, relative to that of the side.
        limit: steps at most.
        follow: is told the length of each step, 0-d, before the next product is asked for.

    Source:
        Hestenes and Stiefel, J. Res. NBS 49, 1952; truncation: Dembo and Steihaug, Math. Programming 26, 1983.
    """
    x, residual = torch.zeros_like(side), side.clone()
    way = precondition(residual).clone()
    size = _dot(residual, way)
    stop, steps = tol * tol * float(size), 0
    while steps < limit:
        steps += 1
        image = times(way)
        steepness = _dot(way, image)
        convex = steepness > 0.0
        length = torch.where(convex, size / steepness, float(steps == 1))
        x.addcmul_(length, way)
        residual.addcmul_(length, image, value=-1.0)
        if follow is not None:
            follow(length)
        z = precondition(residual)
        fresh = _dot(residual, z)
        if not float(torch.where(convex, fresh, 0.0)) > stop:
            break
        torch.addcmul(z, way, fresh / size, out=way)
        size = fresh
    return LinearSolution(x, steps)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))


def largest_eigenvalue(times: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """About the largest eigenvalue of a positive semidefinite matrix by power iteration, from below, 0-d.

    Args:
        times: the product with the matrix.
        like: a vector or a table of the length, device and dtype of those that it takes; its first dimension counts.
    """
    draw = torch.Generator("cpu").manual_seed(0)
    v = torch.randn(len(like), dtype=like.dtype, generator=draw, device="cpu").to(like.device)
    size = v.norm()
    for _ in range(_POWER_STEPS):
        v = times(v / size.clamp(min=torch.finfo(v.dtype).tiny))
        size = v.norm()
    return size
