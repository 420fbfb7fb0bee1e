"""Convex penalties of whole rows as a function of their numbers, in a form that a compiler makes a few short loops of.

With a step for each entry the prox of a norm is ``x_i = r z_i / (r + level t_i)``, where r solves
``sum z_i^2 / (r + level t_i)^2 = 1`` (`penalties.diagonal_metric`). Here a row is divided by its norm first, so that r
lies between 0 and 1 and nothing overflows in float32; whether a row vanishes, and the last of Newton's steps, are
reckoned from sums in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchreg.functional.shrinkage import Scalar, soft
from torchreg.penalties import Penalty
from torchreg.penalties.structure import GroupForm
from torchreg.training.fused.penalty_inputs import PenaltyInputs, is_known

_SECULAR_STEPS = {torch.float32: 7, torch.float64: 9}  # in the tensor's precision; as many as that can use
_LAST_STEPS = 1  # with sums in float64
_LEAST = 1e-12  # of a radius, relative to the norm


def acts_on_rows(penalty: Penalty) -> bool:
    """Whether this is a convex penalty of groups that lie within rows, of the library's own."""
    by = penalty.groups
    return is_known(penalty) and penalty.convex and by is not None and by.by_row


def row_inputs(penalty: Penalty, p: Tensor) -> PenaltyInputs | None:
    """The inputs of a penalty that `acts_on_rows`; None where groups are no whole rows, or strengths no numbers."""
    form = penalty.form(p)
    if not isinstance(form, GroupForm) or p.numel() < 2 * p.shape[0] or p.shape[0] < 2:
        return None
    if form.by.count(p) != p.shape[0] or any(isinstance(x, Tensor) and x.dim() for x in (form.inner, form.l2)):
        return None
    flags = tuple(isinstance(x, Tensor) or x != 0.0 for x in (form.inner, form.l2))
    dtypes = tuple(x.dtype if isinstance(x, Tensor) else None for x in (form.inner, form.l2))
    lower = form.lower == 0.0

    def shrunk(given: Sequence[Tensor], w: Tensor, steps: Tensor) -> Tensor:
        level, inner, l2 = given
        return _prox(w, _settled(steps), level, inner if flags[0] else None, l2 if flags[1] else None, lower)

    inputs: list[Scalar] = [form.l1.to(p.dtype)[:, None], form.inner, form.l2]
    return PenaltyInputs(("rows", flags, dtypes, lower), shrunk, inputs, rows=p.shape[0])


def _sum(x: Tensor) -> Tensor:
    return x.sum(1, keepdim=True)


def _exact_sum(x: Tensor) -> Tensor:
    return x.double().sum(1, keepdim=True)


def _settled(steps: Tensor) -> Tensor:
    """The steps where entries without a gradient take the harmonic mean of their row's others, if there are any."""
    alone = steps < 0
    inverse = _exact_sum(torch.where(alone, 0.0, 1.0 / steps))
    met = _exact_sum((~alone).to(steps.dtype))
    mean = torch.where(met > 0, met / inverse, 0.0).to(steps.dtype)
    return torch.where(alone, torch.where(met > 0, mean, -steps), steps)


def _prox(w: Tensor, steps: Tensor, level: Tensor, inner: Tensor | None, l2: Tensor | None, lower: bool) -> Tensor:
    """The prox of ``level ||w|| + inner |w|_1 + l2 / 2 |w|^2`` of each row, on ``w >= 0`` if there is a lower bound."""
    z, t = w, steps
    if l2 is not None:
        factor = 1.0 / (1.0 + l2 * t)
        z, t = z * factor, t * factor
    if inner is not None:
        z = soft(z, inner * t)
    if lower:
        z = z.clamp(min=0.0)
    norm = _exact_sum(z.double() * z.double()).sqrt()
    still = t.amax(1, keepdim=True) == 0
    return torch.where(still | ~norm.isfinite(), w, _in_metric(z, t, level, norm) + 0.0)


def _in_metric(z: Tensor, t: Tensor, level: Tensor, norm: Tensor) -> Tensor:
    ratio = torch.where(z == 0, 0.0, z / t)
    dual = _exact_sum(ratio.double() * ratio.double()).sqrt()
    active = dual > level
    one = torch.where(norm > 0, norm, 1.0).to(z.dtype)
    unit, pull = z / one, t / one * torch.where(active, level, 0.0)
    least, most = t.amin(1, keepdim=True), t.amax(1, keepdim=True)
    inner = torch.where(least > 0, least * (dual - level), 0.0)
    start = torch.maximum(inner, norm - level * most) / one
    r = torch.where(active, start.clamp(min=_LEAST, max=1.0), 1.0).to(z.dtype)
    for _ in range(_SECULAR_STEPS[z.dtype]):
        r = _newton(r, unit, pull, exact=False)
    for _ in range(_LAST_STEPS):
        r = _newton(r, unit, pull, exact=True)
    return torch.where(active, r / (r + pull), 0.0) * z


def _newton(r: Tensor, unit: Tensor, pull: Tensor, exact: bool) -> Tensor:
    """Newton's step on ``1 / sqrt(g) - 1``, where ``g(r) = sum unit^2 / (r + pull)^2``."""
    below = 1.0 / (r + pull)
    ratio = unit * below
    ratio = ratio * ratio
    if exact:
        g, slope = _exact_sum(ratio), _exact_sum(ratio * below)
    else:
        g, slope = _sum(ratio), _sum(ratio * below)
    moved = r + (g.sqrt() - 1.0) * g / slope
    return torch.where(slope > 0, moved, r).clamp(min=_LEAST).to(r.dtype)
