"""The strength at which so many units will be zero some steps from now, read off the weights and their momentum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchreg.parts import Cut, here, is_cut
from torchreg.penalties import Penalty
from torchreg.shrinkage import Scalar, filled
from torchreg.sums import wide, wide_dtype, widened
from torchreg.training.control import Site
from torchreg.training.part_step import part_of_state
from torchreg.training.units import Units

_OCTAVES = 40  # the strength lies within 2^-40 and 2^40
_HALVINGS = 32  # of that range of exponents: the strength is exact to 1e-8


def predictive_alpha(sites: Sequence[Site], zeros: Callable[[int], int], horizon: int) -> Tensor:
    """The least strength under which a number of units are zero ``horizon`` steps from now, all else staying equal.

    A unit w that lives dies within H steps of size t if ``prox(w, H t) = 0``: for L1 where ``|w| < H t alpha``. One
    that is zero stays so if ``prox(-t m, t) = 0`` for its mean gradient m: for L1 where ``|m| < alpha``. Both are asked
    of the penalty itself, at as many strengths as it takes to halve the interval to nothing. Where no strength makes
    so many zero, since some are not penalised, it is the least that makes as many as there can be.

    Args:
        sites: the parameters of a term, each after its step.
        zeros: of so many units how many are to be zero.
        horizon: H.

    Returns:
        A 0-d tensor, for which nobody waits.
    """
    asked = [_Asked(site, horizon) for site in sites if site.stepped]
    number = sum(one.units.number for one in asked)
    device = asked[0].start.device
    low, high = torch.tensor([-_OCTAVES, _OCTAVES], dtype=torch.float32, device=device).double().unbind()

    def dead(exponent: Tensor) -> Tensor:
        counts = [one.zeros(torch.exp2(exponent)).to(device) for one in asked]
        return sum(counts[1:], counts[0])

    wanted = dead(high).clamp(max=zeros(number))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        enough = dead(middle) >= wanted
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.where(wanted > 0, torch.exp2(high), 0.0)


class _Asked:
    """A parameter, from where and how far its proximal step goes in the steps to come."""

    def __init__(self, site: Site, horizon: int) -> None:
        penalty, w = site.part.penalty, widened(part_of_state(site.state).get("master", site.here))
        self.units = Units(site.param, penalty.groups)
        alive = self.units.spread(self.units.sizes(w.abs()) > 0, w)
        step = filled(site.step(), w)
        start = torch.where(alive, w, -step * mean_gradient(site))
        self.start, self.step = start, torch.where(alive, horizon * step, step).expand_as(w)
        self.penalty: Penalty = penalty
        self._whole = True
        if is_cut(site.param):
            cut = Cut(site.param)
            part = penalty.part(cut)
            if part is None:
                self.start, self.step = cut.gathered(self.start), cut.gathered(self.step.contiguous())
            self.penalty = penalty if part is None else part
            self._whole = part is None

    def zeros(self, alpha: Tensor) -> Tensor:
        """How many of its units that strength makes zero."""
        x = self.penalty.with_alpha(alpha.to(self.start.dtype)).prox(self.start, self.step)
        return self.units.zeros(x, whole=self._whole)


def mean_gradient(site: Site) -> Scalar:
    """The optimizer's mean of the gradients of a parameter's entries that lie here, else the last gradient."""
    state, group, w = part_of_state(site.state), site.group, site.here
    momentum: Any = group.get("momentum", 0.0)
    if "exp_avg" in state and "betas" in group:
        count = filled(state.get("step", torch.inf), w)
        return widened(state["exp_avg"]) / (1.0 - group["betas"][0] ** wide(count)).to(wide_dtype(w))
    if isinstance(state.get("momentum_buffer"), Tensor) and "dampening" in group:
        return widened(state["momentum_buffer"]) * ((1.0 - momentum) / (1.0 - group["dampening"]))
    return torch.zeros_like(widened(w)) if site.param.grad is None else widened(here(site.param.grad))
