"""What a penalty sets to zero as one: an entry of a parameter, a group of entries, or one over several parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut, is_cut
from torchreg.functional.groups import Groups
from torchreg.penalties import Penalty
from torchreg.training.site import Site
from torchreg.training.term_part import AnyTerm
from torchreg.training.unit_layers import Layers


@dataclass(frozen=True, eq=False)
class Units:
    """The entries of a parameter, the groups of them that its penalty has, or groups over several parameters.

    Tensors go in and come out as the parts that lie here, where a parameter is cut over processes. Groups that are
    cut themselves are gathered; then every process knows all of them. Of several parameters, which are whole, the
    groups are those of all entries in one vector.

    Args:
        parameters: the parameter, or all over which the groups go.
        groups: those of the penalty, None for entries.
        count: the groups that are units are the first so many; the entries of others are never zero. None for all.
        layers: their layers, None where each parameter is one.
    """

    parameters: Sequence[Tensor]
    groups: Groups | None
    count: int | None = None
    layers: Layers | None = None

    @property
    def number(self) -> int:
        """How many there are, over all processes."""
        if self.groups is None:
            return sum(p.numel() for p in self.parameters)
        return self.groups.inhabited(self.parameters[0]) - self._others

    @property
    def cut(self) -> Cut | None:
        """How the units are cut over processes, None if all of them are here."""
        cut = self._parameters_cut
        alone = cut is not None and (self.groups is None or (self.groups.by_row and cut.keeps_rows))
        return cut if alone else None

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors like the parameters as the groups take them: one as it is, several in one vector."""
        return tensors[0] if len(tensors) == 1 else torch.cat([x.reshape(-1) for x in tensors])

    def parted(self, x: Tensor) -> list[Tensor]:
        """What was `joined`, in the parameters' shapes."""
        if len(self.parameters) == 1:
            return [x]
        parts = x.split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def sizes(self, sizes: Sequence[Tensor]) -> Tensor:
        """The Euclidean norm of each unit, of sizes of entries; -1 for a group without entries."""
        size = self.joined(sizes)
        if self.groups is None:
            return size
        norms = self.groups.norms(self._with_whole_groups(size))
        each = self.groups.sizes(self.parameters[0] if len(sizes) == 1 else size)
        norms = torch.where(each > 0, norms, -1.0) if isinstance(each, Tensor) else norms
        return norms[: self.count]

    def spread(self, kept: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """A mask of units as masks of the entries that lie here, of the shapes of ``like``; True for other entries."""
        if self.groups is None:
            return [kept]
        if self._others:
            kept = torch.cat([kept, kept.new_ones(self._others)])
        if len(like) > 1:
            return self.parted(self.groups.expand(kept, kept.new_empty(sum(x.numel() for x in like))))
        whole = self._parameters_cut
        if whole is None or self.cut is not None:
            return [self.groups.expand(kept, like[0]).expand_as(like[0])]
        return [whole.part(self.groups.expand(kept, self.parameters[0])).expand_as(like[0])]

    def zeros(self, tensors: Sequence[Tensor], *, whole: bool = False) -> Tensor:
        """How many units are zero in all, a 0-d tensor; of the parts that lie here, or of the ``whole`` tensors."""
        w, alone = self.joined(tensors), None if whole else self.cut
        if self.groups is None:
            count = (w == 0).sum()
            return count if alone is None else alone.sum(count)
        alive = self.groups.sum(((w if whole else self._with_whole_groups(w)) != 0).float())[: self.count]
        count = (alive > 0).sum()
        return self.number - (count if alone is None else alone.sum(count))

    def spared(self, sizes: Tensor) -> Tensor:
        """The sizes of units, infinite of those without which a layer would have none, so that they come first."""
        return sizes if self.layers is None else self.layers.spared(sizes)

    @property
    def numbers(self) -> list[int]:
        """How many there are in each parameter, or in each layer."""
        return [self.number] if self.layers is None else [len(units) for units in self.layers.apart]

    def apart(self, sizes: Tensor) -> list[Tensor]:
        """The sizes of units, those of each layer apart."""
        return [sizes] if self.layers is None else [sizes[units] for units in self.layers.apart]

    def together(self, masks: Sequence[Tensor], like: Tensor) -> Tensor:
        """A mask of units, of a mask for each layer."""
        if self.layers is None:
            return masks[0]
        return torch.zeros_like(like, dtype=torch.bool).index_copy(0, torch.cat(self.layers.apart), torch.cat([*masks]))

    @property
    def _others(self) -> int:
        """How many groups are no units."""
        if self.count is None or self.groups is None:
            return 0
        return max(self.groups.count(self.parameters[0]) - self.count, 0)

    @property
    def _parameters_cut(self) -> Cut | None:
        return Cut(self.parameters[0]) if len(self.parameters) == 1 and is_cut(self.parameters[0]) else None

    def _with_whole_groups(self, x: Tensor) -> Tensor:
        cut = self._parameters_cut
        return cut.gathered(x) if cut is not None and self.cut is None else x


@dataclass(frozen=True, eq=False)
class Bundle:
    """Sites of a step whose units are the same: one parameter's, or all over which groups go.

    Attributes:
        sites: the sites.
        penalty: that of the units; of several parameters it takes one vector, `Units.joined`.
        units: the units.
    """

    sites: list[Site]
    penalty: Penalty
    units: Units


def bundles(sites: Sequence[Site]) -> list[Bundle]:
    """The sites of a term, all in one where groups go over them, else each alone."""
    together = sites[0].part.together if sites else None
    if together is not None:
        ordered: list[Site] = together.ordered(sites)
        return [Bundle(ordered, together.penalty, together.units([s.param for s in ordered]))]
    return [Bundle([s], s.part.penalty, Units((s.param,), s.part.penalty.groups)) for s in sites]


def shrunk(found: Sequence[Bundle], shrink: Callable[[], None]) -> None:
    """Shrink units by their penalty; of a layer of which nothing would be left the largest stays as it was."""
    asked = [(b.units, b.units.layers, [site.here for site in b.sites]) for b in found if b.units.layers is not None]
    before = [[w.clone() for w in now] for _, _, now in asked]
    shrink()
    for (units, layers, now), own in zip(asked, before, strict=True):
        back = units.spread(layers.last(units.sizes(own), units.sizes(now)), now)
        torch._foreach_copy_(now, [torch.where(m, w, x) for m, w, x in zip(back, own, now, strict=True)])


def units_of(term: AnyTerm) -> list[Units]:
    """The entries, or the groups, of a term: of each parameter, or of all together."""
    if term.together is not None:
        return [term.together.units([p.detach() for p in term.together.parameters])]
    return [Units((p.detach(),), part.penalty.groups) for part in term.parts for p in part.parameters.values()]
