"""The control of a `TargetSparsity`: which entries, or groups, are kept in a step.

1. Before ``begin`` nothing is pruned.
2. On the ramp, "projection" keeps the units that are largest in the metric of the base's step, ``|z_i| / sqrt(t_i)``,
   of the dense copy z that the base steps (`torchreg.training.dense_copy`): what zeroing them would cost a proximal
   step, Yun, Lozano and Yang, NeurIPS 2021, with an indicator as the penalty. In each step what is not kept loses a
   share ``10 / steps`` of z, after Zhou et al., "Learning N:M fine-grained structured sparse neural networks from
   scratch", ICLR 2021: an adaptive base moves weights by about its rate whatever their gradient, so that, summed for
   good, noise and values of before the ramp would decide who comes back. What is left is an average of the last tenth
   of the steps, to which a gradient that persists gives a value: ``-m t / d`` for its mean m. "magnitude"
   keeps the largest ``|w|`` of those that were kept before: Zhu and Gupta, 2017. "feedback" shrinks by the penalty,
   whose alpha is set between steps (`torchreg.training.predictive_alpha`).
3. With the last step of the ramp's hold the number of kept units is exact, whatever the method.
4. From ``freeze`` on the kept ones are trained alone (`torchreg.training.held_zeros`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut, here, is_cut
from torchreg.functional.largest_entries import keep_largest, metric_size
from torchreg.functional.reductions import widened
from torchreg.training.cuda_graphs import is_capturing
from torchreg.training.dense_copy import KEY as DENSE
from torchreg.training.dense_copy import dense, keep, renew, take_back
from torchreg.training.effective_step import rule_for
from torchreg.training.held_zeros import SUPPORT, Noted, hold, noted, support
from torchreg.training.sharded_step import part_of_state
from torchreg.training.site import Site
from torchreg.training.step_count import moves
from torchreg.training.step_rules import StepRule
from torchreg.training.term_part import AnyTerm
from torchreg.training.units import Units, bundles, shrunk

Act = Literal["rest", "shrink", "select", "keep", "hold"]  # what a step does; "keep": as the last selection said
Method = Literal["projection", "feedback", "magnitude"]
_FADING = 10.0  # over all steps: the dense copy of what is not kept falls by 1 / e in a tenth of them
_FIXED = 1e30  # above every size of what can move
_UNMET = 1e-6  # of what has met no gradient, so that it goes first: its plain step would make it the largest


class Target(Protocol):
    """What a `TargetSparsity` tells of a step."""

    term: Any
    method: Method
    scope: Literal["global", "parameter"]
    every: int
    steps: int

    @property
    def act(self) -> Act:
        """What the step does."""

    @property
    def shrinks(self) -> bool:
        """Whether the penalty shrinks in it."""

    def kept_of(self, number: int, *, known: bool = True) -> int | Tensor:
        """How many of so many units are kept."""

    def refuse_frozen(self, found: int) -> None:
        """Raise where parameters were frozen, or are gone."""


class Pruning:
    """Which units of a term's parameters a step keeps, as a target says."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._noted: Noted = {}

    def check(self, term: AnyTerm, *, masters: bool) -> None:
        """What a target cannot move is refused when it is made."""

    def before(self, sites: Sequence[Site]) -> None:
        """Entries that somebody has written to start anew; the zeros that no state knows are noted."""
        act = self.target.act
        self.target.refuse_frozen(len(sites))
        if not torch.compiler.is_compiling() and is_capturing() and (not self._is_dense or self.target.every > 1):
            raise RuntimeError(
                f"{self.target!r} does another thing from one step to the next, which a captured graph would not; use "
                "method='projection' with every=1, and capture anew when target.phase has changed."
            )
        if act == "hold":
            self._noted = noted(sites)
        elif self._is_dense:
            renew(sites)

    def after(self, sites: Sequence[Site], shrink: Callable[[], None]) -> None:
        """What a step does after the base's."""
        act = self.target.act
        if act == "hold":
            hold(sites, self._noted)
            self._noted = {}
            return
        for site in sites:
            if site.stepped:
                self._make(site)
        if act == "shrink":
            shrunk(bundles(sites), shrink)
        elif act == "select" and self._is_real():
            self._select(sites)
        elif act in ("select", "keep") and self._is_dense:
            for site in sites:
                if site.stepped:
                    self._hide(site, here(_known(site)), dense(site))
        elif act == "keep":
            hold(sites, {})
        if self.target.shrinks:
            self._shrink(sites)

    def undo(self, sites: Sequence[Site]) -> None:
        """After a step that raised."""
        if self.target.act != "hold" and self._is_dense:
            take_back(sites)
            return
        for site in sites:
            kept = self._noted.get(site.place) if support(site.state) is None else support(site.state)
            if kept is not None:
                site.here.masked_fill_(~here(kept), 0.0)

    def _is_real(self) -> bool:
        """Whether this is not the step by which torch.distributed.checkpoint creates a state."""
        owner = self.target.term.owner
        return torch.compiler.is_compiling() or is_capturing() or owner is None or moves(owner.base)

    def _select(self, sites: Sequence[Site]) -> None:
        """Keep the largest units, which is decided in a step that a scaler skips too, since it counts."""
        owner = self.target.term.owner
        assert owner is not None
        rule = rule_for(owner.base, owner.metric)
        sites = [replace(s, rule=rule, skipped=None, stepped=_has_weight(s, rule)) for s in sites]
        found = bundles(sites)
        z = [[dense(s) if s.stepped and self._is_dense else s.here for s in bundle.sites] for bundle in found]
        sizes = [
            bundle.units.spared(bundle.units.sizes([self._size(s, x) for s, x in zip(bundle.sites, own, strict=True)]))
            for bundle, own in zip(found, z, strict=True)
        ]
        for bundle, own, mask in zip(found, z, self._chosen([b.units for b in found], sizes), strict=True):
            for site, x, kept in zip(bundle.sites, own, bundle.units.spread(mask, own), strict=True):
                if site.stepped:
                    self._take(site, kept | x.isnan(), x)  # which stays to be seen

    @property
    def _is_dense(self) -> bool:
        return self.target.method == "projection"

    def _size(self, site: Site, z: Tensor) -> Tensor:
        """How much each entry weighs; what the base has never stepped, or cannot move, counts as it is."""
        if not site.stepped:
            return torch.where(z == 0, 0.0, torch.inf)
        if self.target.method == "magnitude":
            return widened(z).abs() * here(_known(site))
        size = metric_size(z, site.step())
        fixed, large = size.isinf(), widened(z).abs()  # of step 0: before all others, and among each other by size
        size = torch.where(fixed & large.isfinite(), _FIXED * (large / (1.0 + large)), size)
        if self._is_dense:
            size = torch.where(fixed & ~here(_known(site)), 0.0, size)
        unmet = site.rule.unmet
        if unmet is None:
            return size
        return torch.where(unmet(site.group, part_of_state(site.state)), size * _UNMET, size)

    def _chosen(self, units: Sequence[Units], sizes: Sequence[Tensor]) -> list[Tensor]:
        known = not (torch.compiler.is_compiling() or is_capturing())
        cuts = [u.cut for u in units]
        if self.target.scope == "global":
            return keep_largest(sizes, self.target.kept_of(sum(u.number for u in units), known=known), cuts)
        masks = []
        for u, size, cut in zip(units, sizes, cuts, strict=True):
            each = zip(u.apart(size), u.numbers, strict=True)
            alone = [keep_largest([s], self.target.kept_of(n, known=known), [cut])[0] for s, n in each]
            masks.append(u.together(alone, size))
        return masks

    def _take(self, site: Site, mask: Tensor, z: Tensor) -> None:
        if self._is_dense:
            self._hide(site, mask, z)
            return
        here(site.state[SUPPORT]).copy_(mask)
        hold([site], {})

    def _hide(self, site: Site, mask: Tensor, z: Tensor) -> None:
        """The dense copy where a mask holds, else 0; what is not kept fades, and is told by not being 0."""
        faded, tiny = z * (1.0 - min(_FADING / self.target.steps, 1.0)), torch.finfo(z.dtype).tiny
        keep(site, mask, torch.where(mask, z, torch.where(faded.abs() < tiny, tiny, faded)))

    def _shrink(self, sites: Sequence[Site]) -> None:
        """Shrink the dense copy by the penalty; what comes to zero is left the least of its sign, so none is pruned."""
        owner = self.target.term.owner
        assert owner is not None
        rule = rule_for(owner.base, owner.metric)  # whose step is not clipped once more: alpha is of clipped gradients
        for site in sites:
            if site.stepped:
                cut, penalty, z = is_cut(site.param), site.part.penalty, dense(site)
                part = penalty.part(Cut(site.param)) if cut else penalty
                assert part is not None  # of entries
                x = part.prox(z, replace(site, rule=rule).step())
                least = torch.finfo(z.dtype).tiny * z.sign()
                keep(site, here(_known(site)), torch.where(x == 0, least, x))

    def _make(self, site: Site) -> None:
        """Its entry of the state, from the first step on: a distributed load fills the entries that there are."""
        if self._is_dense:
            site.kept(DENSE)
        elif SUPPORT not in site.state:
            site.state[SUPPORT] = torch.ones_like(site.param, dtype=torch.bool, requires_grad=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"target": self.target, "_noted": {}}

    def __repr__(self) -> str:
        return repr(self.target)


def _has_weight(site: Site, rule: StepRule) -> bool:
    """Whether a parameter is selected from: it was stepped now, or before and has a metric still."""
    return site.stepped or (rule.shape != "tensor" and support(site.state) is not None)


def _known(site: Site) -> Tensor:
    known = support(site.state)
    assert known is not None
    return known
