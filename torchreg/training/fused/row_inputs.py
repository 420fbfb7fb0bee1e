"""Convex penalties of whole rows as a function of their numbers, in a form that a compiler makes a few short loops of.

With a step t for each entry the prox of a norm is ``x_i = r z_i / (r + level t_i)``, where r solves
``sum z_i^2 / (r + level t_i)^2 = 1`` (`torchreg.functional.secular`). Optimizers divide by what their steps are the
inverse of, so c = 1 / t comes in, and each round takes one division an entry: ``r c / (r c + level)``. Whether a row
vanishes, and the last round, are reckoned from sums that are as precise as in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchreg.functional.secular import growth, in_two
from torchreg.functional.shrinkage import Scalar, soft
from torchreg.penalties import Penalty
from torchreg.penalties.structure import GroupForm
from torchreg.training.fused.penalty_inputs import PenaltyInputs, is_known
from torchreg.training.fused.update import once

_ROUNDS = {torch.float32: 2, torch.float64: 3}
_LEAST = 1e-12  # of a radius, relative to the norm
_TINY = 1e-30  # of a radius


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

    def shrunk(given: Sequence[Tensor], w: Tensor, inverse: Tensor) -> Tensor:
        level, inner, l2 = given
        own, most = _settled(once(inverse))
        return _prox(once(w), own, most, level, inner if flags[0] else None, l2 if flags[1] else None, lower)

    inputs: list[Scalar] = [form.l1.to(p.dtype)[:, None], form.inner, form.l2]
    return PenaltyInputs(("rows", flags, dtypes, lower), shrunk, inputs, rows=p.shape[0])


def _sum(x: Tensor) -> Tensor:
    return x.sum(1, keepdim=True)


def _precise_sum(x: Tensor) -> Tensor:
    """A sum as if in float64 where it is about 1 or less."""
    if x.dtype is torch.float64:
        return _sum(x)
    high, rest = in_two(x)
    return _sum(high).double() + _sum(rest).double()


def _settled(inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse steps, where entries without a gradient take the mean of their row's others, and the largest of a row."""
    met, most = _sum((inverse >= 0).to(inverse.dtype)), inverse.abs().amax(1, keepdim=True)
    mean = once(torch.where(met > 0, _sum(inverse.clamp(min=0.0)) / met, most))
    return once(torch.where(inverse < 0, mean, inverse)), once(most)


def _prox(
    w: Tensor, inverse: Tensor, most: Tensor, level: Tensor, inner: Tensor | None, l2: Tensor | None, lower: bool
) -> Tensor:
    """The prox of ``level ||w|| + inner |w|_1 + l2 / 2 |w|^2`` of each row, on ``w >= 0`` if there is a lower bound."""
    z, c = w, inverse
    if l2 is not None:
        c, most = inverse + l2, most + l2
        z = z * (inverse / c)
    if inner is not None:
        z = soft(z, inner / c)
    if lower:
        z = z.clamp(min=0.0)
    least, squares = c.amin(1, keepdim=True), _sum(z * z)
    unit = once(torch.where(level > 0, 1.0 / level, 0.0))
    ratio = z * c * unit
    sums = _sums(ratio * ratio, c * once(1.0 / most), precise=True)
    active = (sums[0] > 1.0) | (level == 0)
    norm = squares.sqrt()
    first = torch.maximum(growth(sums) * (level / most), norm - level / least)
    first = torch.nan_to_num(first, nan=0.0, posinf=0.0).minimum(norm).maximum(_LEAST * norm).clamp(min=_TINY)
    r = once(torch.where(active, first.to(z.dtype), 1.0))
    pull = once(torch.where(active, level, 0.0))
    for k in range(_ROUNDS[z.dtype]):
        below = 1.0 / (r * c + pull)
        part, share = z * c * below, r * c * below
        sums = _sums(part * part, share, precise=k == _ROUNDS[z.dtype] - 1)
        grown = torch.where(sums[0] > 0, growth(sums), 0.0)
        r = once((r * (1.0 + grown)).clamp(min=_TINY).to(z.dtype))
    alive, stays = once(torch.where(active, r, 0.0)), once((least.isinf() | ~norm.isfinite()).to(z.dtype))
    return torch.where(stays > 0, w, z * (alive * c / (r * c + pull)) + 0.0)


def _sums(part: Tensor, share: Tensor, *, precise: bool) -> list[Tensor]:
    """``sum part share^k`` of each row for k = 0, 1, 2, 3, the first precisely if so asked."""
    found = [_precise_sum(part) if precise else _sum(part)]
    for _ in range(3):
        part = part * share
        found.append(_sum(part))
    return found
