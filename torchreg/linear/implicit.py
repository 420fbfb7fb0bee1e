"""The derivative of a solution: it is a fixed point of the proximal gradient step, so differentiate that equation.

At the minimiser ``w = prox(w - step * g(w))``, ``g`` the gradient of the mean loss, for every step. Let ``J`` be the
Jacobian of the prox and ``H`` the Hessian of the loss. Whatever the data and the strengths move the right-hand side
by, dT, the solution moves by dw with

``(I - J (I - step H)) dw = dT``

A coefficient whose row of ``J`` is zero (one at a kink of the penalty) stays where it is. The others are the active
set, on which one linear system is solved. For L1, where J is the identity there, it is the Hessian's block.
Source: Blondel et al., NeurIPS 2022, section 2 and eq. 9; that the active set suffices: Bertrand et al., JMLR 23, 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchreg.linear.problem import Problem
from torchreg.penalties import Penalty

_SINGULAR = 1e-12  # condition, inverted, beyond which a system with rows and columns of norm 1 counts as singular
_BLOCK = 1 << 23  # entries of the prox's Jacobian made at a time


@dataclass(frozen=True)
class Solution:
    """What is to be differentiated.

    Attributes:
        problem: data and datafit; its y, weights and offset may require grad.
        penalty: its strengths may require grad.
        coef: minimiser, (p,) or (p, K). intercept: 0-d or (K,).
        columns: some columns of X by number, (n, k), float64; they may require grad.
    """

    problem: Problem
    penalty: Penalty
    coef: Tensor
    intercept: Tensor
    columns: Callable[[Tensor], Tensor]


def attached(solution: Solution) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficients and the intercept with their derivatives, and the mask of the active coefficients."""
    problem, coef, intercept = solution.problem, solution.coef, solution.intercept
    curvature = _curvature(solution)
    step = _step(problem, curvature)
    with torch.no_grad():
        point = coef - step * problem.gradient(problem.eta(coef, intercept))
    prox = _Prox(solution.penalty, point, step)
    active = prox.active
    rows = (active if coef.dim() == 1 else active.any(1)).nonzero().flatten()
    X = solution.columns(rows)  # noqa: N806
    slope = problem.row_grad(problem.shifted(X @ coef[rows], intercept))
    again = coef[rows] - step * (X.T @ slope)
    here = point[rows] + (again - again.detach())  # at a threshold even rounding would tell another branch of the prox
    moved = solution.penalty.prox(point.index_copy(0, rows, here), step)
    change = torch.cat([(moved - coef)[active], -step * _intercepts(problem, slope.sum(0))])
    if not change.requires_grad:
        return coef, intercept, active
    hessian = step * _hessian(problem, X.detach(), curvature, active[rows])
    values = torch.cat([coef[active], _intercepts(problem, intercept)])
    values = _Moving.apply(values, change, _inverse(_system(hessian, prox.jacobian())))  # type: ignore[no-untyped-call]
    coef = coef.masked_scatter(active, values[: prox.count])
    if problem.fit_intercept:
        intercept = problem.reported(values[prox.count :].reshape(intercept.shape))
    return coef, intercept, active


class _Moving(torch.autograd.Function):
    """``values``, that move by ``inverse @ change`` where ``change`` moves from zero."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, change: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(change, inverse)  # change is rounding alone: values stay those that are certified
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        change, inverse = ctx.saved_tensors
        return None, _Last.apply(inverse.T @ grad, change), None  # type: ignore[no-untyped-call]


class _Last(torch.autograd.Function):
    """A first derivative that depends on ``change`` in a way that is not followed."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, change: Tensor) -> Tensor:
        del ctx, change
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        raise RuntimeError("solve has no second derivative; take differences of first ones, without create_graph.")


class _Prox:
    """The derivative of a penalty's proximal map at one point.

    Attributes:
        active: entries that move if the point moves, of its shape. count: how many.
    """

    def __init__(self, penalty: Penalty, point: Tensor, step: float) -> None:
        with torch.enable_grad():
            self._point = point.detach().requires_grad_()
            self._image = penalty.prox(self._point, step)
        if not self._image.requires_grad:
            raise ValueError(f"{penalty} has a prox that autograd cannot follow; write it without no_grad and detach.")
        probe = torch.randn(
            point.shape, dtype=point.dtype, generator=torch.Generator("cpu").manual_seed(0), device="cpu"
        )
        self.active = self._pulled(probe.to(point.device)) != 0  # a zero row is zero in every direction
        self.count = int(self.active.sum())

    def jacobian(self) -> Tensor:
        """Its block of the active entries, (count, count)."""
        where = self.active.flatten().nonzero().flatten()
        if not self.count:
            return self._point.new_zeros(0, 0)
        blocks = where.split(max(_BLOCK // self.active.numel(), 1))
        return torch.cat([self._rows(block)[:, where] for block in blocks])

    def _rows(self, block: Tensor) -> Tensor:
        units = self._point.new_zeros(len(block), self.active.numel()).scatter_(1, block[:, None], 1.0)
        return self._pulled(units.reshape(len(block), *self.active.shape), many=True).flatten(1)

    def _pulled(self, vectors: Tensor, *, many: bool = False) -> Tensor:
        return torch.autograd.grad(self._image, self._point, vectors, retain_graph=True, is_grads_batched=many)[0]


def _curvature(solution: Solution) -> Tensor:
    """Weighted second derivatives of the rows' losses, (n, K, K), K = 1 for a single output."""
    problem, outputs = solution.problem, solution.problem.K
    y, weights = problem.y.detach(), problem.weights.detach()
    with torch.enable_grad():
        eta = problem.eta(solution.coef, solution.intercept).detach().requires_grad_()
        grad = problem.datafit.grad(eta, y)
        sums = grad.sum(0).reshape(-1).unbind()
    rows = [torch.autograd.grad(one, eta, retain_graph=True)[0] for one in sums]
    size = 1 if outputs is None else outputs
    return weights[:, None, None] * torch.stack(rows, 1).reshape(-1, size, size)


def _step(problem: Problem, curvature: Tensor) -> float:
    """The inverse of the Hessian's trace: short enough for every fixed point of a longer step to be one."""
    bends = curvature.diagonal(dim1=1, dim2=2).sum(1).clamp(min=0.0)
    total = bends.sum()
    if not bool(total > 0):
        return 1.0
    mean, variance = problem.design.moments(bends / total)
    mean = mean if problem.design.mean is None else mean - problem.design.mean
    trace = float(total * (variance + mean.square()).sum())
    return 1.0 / trace if trace > 0 else 1.0


def _intercepts(problem: Problem, values: Tensor) -> Tensor:
    """Numbers for each intercept, (K,), (1,) or, where there is none, (0,)."""
    return values.reshape(-1) if problem.fit_intercept else values.new_zeros(0)


def _hessian(problem: Problem, X: Tensor, curvature: Tensor, active: Tensor) -> Tensor:  # noqa: N803
    """The Hessian of the mean loss in the active coefficients and the intercepts.

    Args:
        problem: tells whether there is an intercept.
        X: columns with an active coefficient, (n, k).
        curvature: of the rows, (n, K, K).
        active: which of their coefficients are, (k,) or (k, K).
    """
    chosen = active.reshape(len(active), curvature.shape[1])
    if problem.fit_intercept:
        X = torch.cat([X, X.new_ones(len(X), 1)], 1)  # noqa: N806
        chosen = torch.cat([chosen, chosen.new_ones(1, curvature.shape[1])])
    outputs = range(curvature.shape[1])
    grid = [[X.T @ (curvature[:, j, k, None] * X) for k in outputs] for j in outputs]
    whole = torch.stack([torch.stack(line, -1) for line in grid], 1)
    where = chosen.flatten().nonzero().flatten()
    return whole.reshape(chosen.numel(), chosen.numel())[where][:, where]


def _system(hessian: Tensor, jacobian: Tensor) -> Tensor:
    """``I - J (I - H)``; ``hessian`` is scaled by the step, and bordered by intercepts, which have no prox."""
    count = len(jacobian)
    system = hessian.clone()
    system[:count] = jacobian @ hessian[:count]
    system[:count, :count] += torch.eye(count, dtype=jacobian.dtype, device=jacobian.device) - jacobian
    return system


def _inverse(system: Tensor) -> Tensor:
    """The inverse or, where there is none, the pseudo-inverse; both after scaling rows and columns to norm 1."""
    columns = _norms(system, 0)
    scaled = system / columns
    rows = _norms(scaled, 1)
    scaled = scaled / rows[:, None]
    inverse, _ = torch.linalg.inv_ex(scaled)
    if not bool(scaled.norm() * inverse.norm() < 1.0 / _SINGULAR):
        inverse = torch.linalg.pinv(scaled, rtol=_SINGULAR)
    return inverse / rows / columns[:, None]


def _norms(matrix: Tensor, dim: int) -> Tensor:
    sizes = matrix.norm(dim=dim)
    return torch.where(sizes > 0, sizes, 1.0)
