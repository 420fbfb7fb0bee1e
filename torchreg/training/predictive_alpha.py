"""Strengths read off weights and gradients: by which so many units will be zero, and of the size of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut, here, is_cut
from torchreg.functional.largest_entries import median_of_moved
from torchreg.functional.reductions import wide, wide_dtype, widened
from torchreg.functional.shrinkage import filled
from torchreg.penalties import Penalty
from torchreg.training.group_steps import settled
from torchreg.training.sharded_step import part_of_state
from torchreg.training.site import Site
from torchreg.training.units import Bundle, Units, bundles

_OCTAVES = 40  # the strength lies within 2^-40 and 2^40
_HALVINGS = 32  # of that range of exponents: the strength is exact to 1e-8


@torch.no_grad()
def predictive_alpha(sites: Sequence[Site], zeros: Callable[[int], int], horizon: int) -> Tensor | None:
    """The least strength under which a number of units are zero ``horizon`` steps from now, all else staying equal.

    A unit w that lives dies within H steps of size t if ``prox(w, H t) = 0``: for L1 where ``|w| < H t alpha``. One
    that is zero stays so if ``prox(-t m, t) = 0`` for its mean gradient m: for L1 where ``|m| < alpha``. Both are asked
    of the penalty itself, at as many strengths as it takes to halve the interval to nothing. Where no strength makes
    so many zero, since some are not penalised, it is the least that makes as many as there can be.

    It is at most the strength under which so many units would stay zero if all were. At an optimum of L1 no ``|m|`` is
    above alpha; where weights must go on shrinking though all gradients are small, as in a net that is right on all of
    its data, alpha would grow until the whole net were zero.

    Args:
        sites: the parameters of a term, each after its step.
        zeros: of so many units how many are to be zero.
        horizon: H.

    Returns:
        A 0-d tensor, for which nobody waits; None where nothing has been stepped.
    """
    found = [bundle for bundle in bundles(sites) if any(site.stepped for site in bundle.sites)]
    if not found:
        return None
    return torch.minimum(*(_least([_Asked(bundle, steps) for bundle in found], zeros) for steps in (horizon, 0)))


@torch.no_grad()
def typical_gradient(sites: Sequence[Site], share: float) -> Tensor | None:
    """A share of the median size of the last step's gradients that are not 0: for L1, of what moves half the weights.

    Returns:
        A 0-d tensor, for which nobody waits, NaN where all are 0; None where there is no gradient any longer.
    """
    grads = [(site.param, site.param.grad) for site in sites if site.param.grad is not None]
    if not grads:
        return None
    cuts = [Cut(p) if is_cut(p) else None for p, _ in grads]
    return share * median_of_moved([here(grad).abs() for _, grad in grads], cuts)


def _least(asked: Sequence[_Asked], zeros: Callable[[int], int]) -> Tensor:
    """The least strength at which a number of all units are zero."""
    number = sum(one.units.number for one in asked)
    device = asked[0].start.device
    low, high = (wide(torch.full((), float(end), device=device)) for end in (-_OCTAVES, _OCTAVES))

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
    """Units, from where and how far their proximal step goes in the steps to come; in none as if they were zero."""

    def __init__(self, bundle: Bundle, horizon: int) -> None:
        self.units, penalty = bundle.units, bundle.penalty
        first = bundle.sites[0].param
        cut = Cut(first) if is_cut(first) else None
        part = penalty if cut is None else penalty.part(cut)
        self._whole = cut is None or part is None
        self.penalty: Penalty = penalty if part is None else part
        each = zip(*(_where_and_how_far(site) for site in bundle.sites), strict=True)
        w, mean, step = (self.units.joined(tensors) for tensors in each)
        if cut is not None and part is None:
            w, mean, step = (cut.gathered(x.contiguous()) for x in (w, mean, step))
        step, alive = settled(self.penalty, w, step), _alive(self.units, w) & (horizon > 0)
        self.start = torch.where(alive, w, -step * mean)
        self.step = torch.where(alive, horizon * step, step)

    def zeros(self, alpha: Tensor) -> Tensor:
        """How many of the units that strength makes zero."""
        x = self.penalty.with_alpha(alpha.to(self.start.dtype)).prox(self.start, self.step)
        return self.units.zeros(self.units.parted(x), whole=self._whole)


def _where_and_how_far(site: Site) -> tuple[Tensor, Tensor, Tensor]:
    """A parameter's entries that lie here, their mean gradients and steps; those of one not stepped stay."""
    w = widened(part_of_state(site.state).get("master", site.here))
    if not site.stepped:
        return w, torch.zeros_like(w), torch.zeros_like(w)
    return w, mean_gradient(site).expand_as(w), filled(site.group_step(), w).expand_as(w)


def _alive(units: Units, w: Tensor) -> Tensor:
    """Which entries belong to units that are not zero."""
    groups = units.groups
    return w != 0 if groups is None else groups.expand(groups.sum((w != 0).float()) > 0, w)


def mean_gradient(site: Site) -> Tensor:
    """The optimizer's mean of the gradients of a parameter's entries that lie here, else the last gradient."""
    state, group, w = part_of_state(site.state), site.group, site.here
    momentum: Any = group.get("momentum", 0.0)
    if "exp_avg" in state and "betas" in group:
        count = filled(state.get("step", torch.inf), w)
        return widened(state["exp_avg"]) / (1.0 - group["betas"][0] ** wide(count)).to(wide_dtype(w))
    if isinstance(state.get("momentum_buffer"), Tensor) and "dampening" in group:
        return widened(state["momentum_buffer"]) * ((1.0 - momentum) / (1.0 - group["dampening"]))
    return torch.zeros_like(widened(w)) if site.param.grad is None else widened(here(site.param.grad))
