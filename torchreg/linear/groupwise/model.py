"""Newton's equations of a quadratic with a group penalty, on the groups and entries that are not zero.

Where ``w_g != 0`` the penalty is smooth, with Hessian ``l1_g (I - u u') / ||w_g|| + ridge_g I``, ``u = w_g / ||w_g||``.
Source: Zhang, Zhang, Sun and Toh, Math. Program. 179, 2020 (second-order structure of group penalties).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.groupwise.growing_gram import Gram
from torchreg.linear.groupwise.partition import Partition
from torchreg.linear.groupwise.strengths import Strengths
from torchreg.linear.solvers.linear_algebra import conjugate_gradients, safe_cholesky

_TINY = 1e-300
_STEEPEST = 1e30  # curvature of a group: single precision holds it
_LEAST = 1e-14  # of a group's curvature along u, relative to that across: less is rounding
_BARRED = 1e30  # curvature of entries that may not move
_RIDGE = 1e-13  # of the largest diagonal entry, for singular matrices
_STEPS = 500  # of conjugate gradients


@dataclass(frozen=True)
class Model:
    """Of the objective at one point; the penalty's Hessian is ``shift I - stiffness u u'`` in each group.

    Attributes:
        unit: u, zero in groups that are zero.
        stiffness: ``l1_g / ||w_g||``.
        shift: the same with the ridge.
        free: 1 where entries may move, else 0; broadcasts with shaped entries.
        slope: minus the gradient where entries may move, else 0.
    """

    unit: Tensor
    stiffness: Tensor
    shift: Tensor
    free: Tensor
    slope: Tensor


def model_at(strengths: Strengths, w: Tensor, norms: Tensor, g: Tensor) -> Model:
    """At coefficients with norms of their groups and correlations ``g``, all shaped."""
    parts = strengths.parts
    alive = norms.sign()
    inverse = alive / norms.clamp(min=_TINY)
    stiffness = (strengths.l1 * inverse).clamp_(max=_STEEPEST)
    shift = stiffness if strengths.ridge is None else stiffness + strengths.ridge
    slope = torch.addcmul(g, w, parts.spread(shift), value=-1.0)
    if not strengths.signed:
        free = alive if strengths.free is None else torch.maximum(alive, strengths.free)
        return Model(w * parts.spread(inverse), stiffness, shift, parts.spread(free), slope.mul_(parts.spread(free)))
    signs = w.sign()
    if strengths.inner is not None:
        slope = slope - strengths.inner * signs
    free = signs.abs()
    return Model(w * parts.spread(inverse), stiffness, shift, free, slope.mul_(free))


def same_group(parts: Partition) -> Tensor:
    """1.0 where two entries are of one group, else 0, (entries, entries)."""
    labels = parts.labels
    return (labels[:, None] == labels).double()


def dense_direction(gram: Tensor, same: Tensor, strengths: Strengths, at: Model) -> Tensor | None:
    """Newton's direction by Cholesky's factorisation; None where the matrix is not positive definite.

    Args:
        gram: of the entries.
        same: `same_group` of the entries.
        strengths: of the penalty.
        at: the model.
    """
    spread = strengths.parts.spread
    bent = (at.unit * spread(at.stiffness.sqrt())).view(-1)
    matrix = torch.addcmul(gram, same * bent, bent[:, None], value=-1.0)
    shift = torch.where(at.free > 0.0, spread(at.shift), _BARRED)
    ridge = shift.expand_as(at.slope).reshape(-1) + _RIDGE * gram.diagonal().max()
    factor, regular = safe_cholesky(matrix, ridge)
    return torch.cholesky_solve(at.slope.view(-1, 1), factor).view(at.slope.shape) if regular else None


def inexact_direction(gram: Gram, diagonal: Tensor, strengths: Strengths, at: Model, tol: float) -> Tensor:
    """Newton's direction up to a relative error, by conjugate gradients in the precision of ``gram``.

    Args:
        gram: of the entries.
        diagonal: of gram, shaped.
        strengths: of the penalty.
        at: the model.
        tol: error relative to the direction, in the norm of the preconditioner.
    """
    hessian = _Hessian(gram, diagonal, strengths, at)
    side = at.slope.to(gram.dtype)
    return conjugate_gradients(hessian.times, hessian.precondition, side, tol=tol, limit=_STEPS).x.to(at.slope)


class _Hessian:
    """The Hessian of a model, and its inverse where the Gram matrix is taken for its diagonal.

    That one is a diagonal plus a rank-one matrix in each group, inverted by the formula of Sherman and Morrison.
    """

    def __init__(self, gram: Gram, diagonal: Tensor, strengths: Strengths, at: Model) -> None:
        self._gram, self._sums, self._spread = gram, strengths.parts.sums, strengths.parts.spread
        dtype, shift = gram.dtype, self._spread(at.shift)
        inverse = at.free / (diagonal + shift).clamp_(min=_TINY)
        bent = inverse * at.unit
        lost = at.stiffness / (1.0 - at.stiffness * self._sums(at.unit * bent)).clamp_(min=_LEAST)
        self._shift, self._unit = shift.to(dtype), at.unit.to(dtype)
        self._stiff = (at.unit * self._spread(at.stiffness)).to(dtype)
        self._inverse, self._bent, self._back = inverse.to(dtype), bent.to(dtype), (bent * self._spread(lost)).to(dtype)

    def times(self, p: Tensor) -> Tensor:
        """``H p``."""
        along = self._spread(self._sums(self._unit * p))
        return self._gram.times(p).addcmul_(self._shift, p).addcmul_(self._stiff, along, value=-1.0)

    def precondition(self, r: Tensor) -> Tensor:
        """``M r``, M nearly the inverse of H."""
        along = self._spread(self._sums(self._bent * r))
        return (self._inverse * r).addcmul_(self._back, along)


def moved(strengths: Strengths, w: Tensor, way: Tensor) -> Tensor:
    """``w + way``, zero in groups and entries that would pass through zero."""
    parts, fresh = strengths.parts, w + way
    if strengths.signed:
        fresh = torch.where(fresh * w > 0.0, fresh, 0.0)
    kept = parts.sums(w * fresh).sign_().clamp_(min=0.0)
    if strengths.free is not None and not strengths.signed:
        kept = torch.maximum(kept, strengths.free)
    return fresh.mul_(parts.spread(kept))
