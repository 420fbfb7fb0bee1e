"""Dual averaging in the base's metric: zeros are decided by the sum of all steps, against the sum of all thresholds.

The dense iterate is ``z_k = w_0 - sum_j t_j g_j`` with gradients at the sparse ``w_k = soft(z_k, A_k)``,
``A_k = sum_j t_j alpha_j``, entry by entry (math of regularized dual averaging, Xiao, JMLR 11, 2010). Both sums grow
without bound while w stays small, and their difference would lose w's digits. So the state is the dual sum
``s = z - w``, which lies between -A and A, at these ends where w is not zero. There a step takes exactly ``t alpha``
off: that is the plain proximal step. Where w is zero the base's step adds to s, and w leaves zero once s leaves
``[-A, A]``: once the mean of the gradients, not one of them, exceeds alpha.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchreg.parts import Cut, here, is_cut
from torchreg.penalties import Penalty
from torchreg.penalties.forms import L1Form
from torchreg.shrinkage import Scalar, filled, ridge_step, scaled

if TYPE_CHECKING:
    from torchreg.training.control import Site
    from torchreg.training.term import Term

DUAL, THRESHOLD = "dual", "threshold"  # the entries of a parameter's state: s, and A
_HALF = (torch.bfloat16, torch.float16)


class DualAveraging:
    """The control of mode "dual_averaging"."""

    def __repr__(self) -> str:
        return "mode='dual_averaging'"

    def check(self, term: Term, *, masters: bool) -> None:
        """Raise ValueError for a penalty whose zeros are not decided by one slope, or sums in half precision."""
        for part in term.parts:
            for name, p in part.parameters.items():
                if not isinstance(part.penalty.form(p), L1Form):
                    raise ValueError(
                        f"mode='dual_averaging' takes L1, alone or with L2, weights or NonNegative, got "
                        f"{part.penalty!r} for {name!r}: only a slope that is the same wherever w > 0 can be summed. "
                        "Use mode='prox'."
                    )
                if p.dtype in _HALF and not masters:
                    raise ValueError(
                        f"mode='dual_averaging' sums steps, and {name!r} is of {p.dtype}, in which sums stand still "
                        "after some hundred; use ProxOptimizer(..., masters=True)."
                    )

    def before(self, sites: Sequence[Site]) -> None:
        """Where w is not zero the dual sum is at an end, whoever has written w; a NaN in it starts anew."""
        for site in sites:
            if DUAL in site.state:
                w, s, most = site.here, site.kept(DUAL), here(site.state[THRESHOLD])
                end = torch.where(w > 0, most, torch.where(w < 0, -most, s))
                s.copy_(torch.where(end.isnan(), 0.0, end))

    def after(self, sites: Sequence[Site], shrink: Callable[[], None]) -> None:
        """One step of dual averaging of each parameter."""
        del shrink
        for site in sites:
            _step(site)

    def undo(self, sites: Sequence[Site]) -> None:
        """What a step that raised has added to zeros goes to their dual sum."""
        for site in sites:
            if DUAL in site.state:
                w, s, most = site.here, site.kept(DUAL), here(site.state[THRESHOLD])
                inside = (s.abs() < most) & w.isfinite()
                summed = torch.where(inside, (s + w).clamp(-most, most), s)
                torch._foreach_copy_([s, w], [summed, torch.where(inside, 0.0, w)])


def _step(site: Site) -> None:
    """``y`` is w after the base's step; ``c`` is what the threshold takes off it, and goes to the dual sum."""
    y, s, step = site.here, site.kept(DUAL), site.step()
    form = _penalty(site).form(y)
    assert isinstance(form, L1Form)
    more = filled(scaled(form.l1, step), y)
    most = _threshold(site, more)
    up, down = _room(most - s) + more, _room(most + s) + more
    bounded = form.lower != 0.0
    c = torch.clamp(y, -down if bounded else torch.full_like(down, -math.inf), up)
    factor, _ = ridge_step(step, form.l2 / 2.0)
    x = (y - c) * factor + 0.0
    least = -(most + more) if bounded else torch.full_like(s, -math.inf)
    summed = torch.clamp(s + c, least, (most + more).expand_as(s))
    if not bounded:
        moved = filled(step, y) > 0
        x, summed = torch.where(moved, x, y), torch.where(moved, summed, s)
    torch._foreach_copy_([s, y, most], [summed, x, most + more])


def _room(gap: Tensor) -> Tensor:
    """How far a sum is from an end; at an infinite one, inf - inf, it is there."""
    return torch.where(gap.isnan(), 0.0, gap)


def _penalty(site: Site) -> Penalty:
    part = site.part.penalty.part(Cut(site.param)) if is_cut(site.param) else site.part.penalty
    assert part is not None  # of entries
    return part


def _threshold(site: Site, more: Tensor) -> Tensor:
    """The summed threshold so far: one number where it has always been one, else entry by entry."""
    y, kept = site.here, site.state.get(THRESHOLD)
    if kept is None:
        kept = site.state[THRESHOLD] = (
            torch.zeros_like(site.param, requires_grad=False) if more.dim() else y.new_zeros(())
        )
    if more.dim() and not kept.dim():
        kept = site.state[THRESHOLD] = torch.zeros_like(site.param, requires_grad=False) + kept
    return here(kept)


__all__ = ["DUAL", "THRESHOLD", "DualAveraging", "Scalar"]
