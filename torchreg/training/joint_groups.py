"""The proximal step of groups over several tensors, in place of that of each tensor alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchreg.functional.dtensor import is_cut
from torchreg.functional.reductions import widened
from torchreg.functional.shrinkage import Scalar
from torchreg.penalties import Group
from torchreg.training.group_steps import prox_
from torchreg.training.site import Site
from torchreg.training.term_part import AnyTerm, Part
from torchreg.training.unit_layers import Layers
from torchreg.training.units import Units


class JointGroups:
    """What the parts of a term share: groups over all of their parameters, each part's being its share of them.

    It is the last of a term's controls, so what else controls the term asks it for the plain proximal step.

    Args:
        joint: the penalty of all parameters in one vector.
        parts: the parts of the term, one for each parameter, in that order.
        count: the groups that are units are the first so many; what has a higher number is not penalised.
        layers: the units of each layer, as of `Layers`.
    """

    def __init__(self, joint: Group, parts: list[Part], count: int, layers: Sequence[Sequence[int]]) -> None:
        self.joint, self.parts, self.count = joint, parts, count
        sizes = torch.as_tensor(joint.by.sizes(flat(self.parameters)))[:count]
        self.layers = Layers(layers, (sizes > 0).nonzero()[:, 0].tolist(), sizes.device)
        for part in parts:
            part.together = self

    @property
    def penalty(self) -> Group:
        """The joint penalty with the term's present strength."""
        now = self.parts[0].penalty
        return self.joint if now.alpha is self.joint.alpha else self.joint.with_alpha(now.alpha)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters in the order of the joint vector."""
        return [p for part in self.parts for p in part.parameters.values()]

    def units(self, parameters: Sequence[Tensor]) -> Units:
        """The groups of parameters like these."""
        return Units(tuple(parameters), self.joint.groups, self.count, self.layers)

    def value(self) -> Tensor:
        """The term's value, over all tensors together."""
        return self.penalty.value(flat(self.parameters))

    def ordered(self, sites: Sequence[Site]) -> list[Site]:
        """The sites of all parameters in the order of the joint vector.

        Raises:
            ValueError: if one has none, since it is frozen.
        """
        found = {id(site.part): site for site in sites}
        if missing := [name for part in self.parts if id(part) not in found for name in part.parameters]:
            raise ValueError(
                f"{missing[:3]}, {len(missing)} in all, are frozen, but they are a part of units that are selected "
                "over all tensors; unfreeze them, or call coupled(model, ...) once they are frozen."
            )
        return [found[id(part)] for part in self.parts]

    def check(self, term: AnyTerm, *, masters: bool) -> None:
        """Raise where parameters are cut over processes."""
        if any(is_cut(p) for p in term.parameters.values()):
            raise ValueError("Coupled groups cannot be stepped where parameters are cut over processes.")

    def before(self, sites: Sequence[Site]) -> None:
        """Nothing is done before the base's step."""

    def undo(self, sites: Sequence[Site]) -> None:
        """Nothing has been done that a failed step would leave."""

    def after(self, sites: Sequence[Site], shrink: Callable[[], None]) -> None:
        """Shrink all groups in one vector; a parameter that was not stepped counts, and stays."""
        found = {id(site.part): site for site in sites if site.stepped}
        tensors, steps = [], []
        for part in self.parts:
            site = found.get(id(part))
            tensors.append(next(iter(part.parameters.values())) if site is None else site.here)
            steps.append(0.0 if site is None else site.group_step())
        if not found:
            return
        joined = flat(tensors).detach()
        prox_(self.penalty, [joined], [joined_steps(tensors, steps)])
        for part, new in zip(self.parts, joined.split([t.numel() for t in tensors]), strict=True):
            if id(part) in found:
                target = found[id(part)].here
                target.copy_(new.view(target.shape))

    def __repr__(self) -> str:
        return f"coupled groups ({self.count} over {len(self.parts)} parameters)"


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector, of float32 at least."""
    return torch.cat([widened(t).reshape(-1) for t in tensors])


def joined_steps(tensors: Sequence[Tensor], steps: Sequence[Scalar]) -> Scalar:
    """One number where all have it, else a step for each entry."""
    first = steps[0]
    if not isinstance(first, Tensor) and all(not isinstance(t, Tensor) and t == first for t in steps):
        return first
    dtype = widened(tensors[0]).dtype
    filled = (torch.as_tensor(t, dtype=dtype, device=w.device) for t, w in zip(steps, tensors, strict=True))
    return torch.cat([t.broadcast_to(w.shape).reshape(-1) for t, w in zip(filled, tensors, strict=True)])
