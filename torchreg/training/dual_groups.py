"""Dual averaging of groups: whether a group is zero follows from the sums, and where it is not it takes the plain step.

``u = s / A`` is the mean of the subgradients so far, ``||u|| <= 1``, and ``u = w / ||w||`` while the group lives. A
step y with the threshold a makes ``(A u + y) / (A + a) = u + d`` of it, ``d = (y - a u) / (A + a)``, and the group is
zero if that lies in the unit ball. To sum the direction of a living group as well would turn it ever more slowly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.functional.groups import Groups
from torchreg.functional.shrinkage import Scalar, filled, ridge_step, scaled
from torchreg.penalties import Penalty
from torchreg.penalties.diagonal_metric import norm_prox
from torchreg.penalties.structure import GroupForm
from torchreg.training.group_steps import settled

_ROUND = 64.0  # ulps by which the norm of a unit vector may be off
_HUGE = 1e15  # whose square float32 has


def ends(by: Groups, w: Tensor, s: Tensor, most: Tensor) -> Tensor:
    """The dual sum, which where a group is not zero is its direction times the threshold."""
    norm = by.expand(by.norms(w).to(w.dtype), w)
    return torch.where(norm > 0, most * (w / norm), s)


def inside(by: Groups, s: Tensor, most: Tensor) -> Tensor:
    """The entries of groups that the sums hold at zero."""
    u = _mean(s, most)
    return by.expand((_excess(by.sum(u * u) - 1.0) < 0).to(s.dtype), s).broadcast_to(s.shape) > 0


def step(
    penalty: Penalty, form: GroupForm, y: Tensor, s: Tensor, before: Tensor, step: Scalar, kept: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The new w, s and A; ``y`` is w after the base's step, ``kept`` the share of the threshold that stays."""
    step = settled(penalty, y, step)
    level = form.by.expand(form.l1.to(y.dtype), y).broadcast_to(y.shape)
    more = filled(scaled(level, step), y).broadcast_to(y.shape)
    u, most, after = _mean(s, before), before + more, before + kept * more
    d = torch.nan_to_num((y - more * u) / most, nan=0.0).clamp(-_HUGE, _HUGE)
    lived = _excess(form.by.sum(u * u) - 1.0)
    alive = lived + form.by.sum(2.0 * u * d + d * d) > 0
    ones = torch.ones_like(lived)
    born = norm_prox(s + y, most, ones, form.by) * ridge_step(step, form.l2 / 2.0)[0]
    x = torch.where(_each(form.by, lived < 0, y), born, penalty.prox(y, step))
    x = torch.where(_each(form.by, alive, y) | y.isnan(), x, 0.0)
    return x, ends(form.by, x, (s + y) * torch.nan_to_num(after / most, nan=1.0), after), after


def _mean(s: Tensor, most: Tensor) -> Tensor:
    """``s / A``, 0 where nothing was summed."""
    return torch.nan_to_num(s / most, nan=0.0, posinf=0.0, neginf=0.0)


def _excess(squares: Tensor) -> Tensor:
    """A squared norm less 1, exactly 0 where only rounding keeps it from that."""
    return torch.where(squares.abs() < _ROUND * torch.finfo(squares.dtype).eps, 0.0, squares)


def _each(by: Groups, group: Tensor, like: Tensor) -> Tensor:
    return by.expand(group.to(like.dtype), like) > 0
