"""What a penalty sets to zero as one: an entry of a parameter, or a group of entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.groups import Groups
from torchreg.parts import Cut, is_cut


@dataclass(frozen=True, eq=False)
class Units:
    """The entries of a parameter, or the groups of them that its penalty has.

    Tensors go in and come out as the parts that lie here, where the parameter is cut over processes. Groups that are
    cut themselves are gathered; then every process knows all of them.

    Args:
        w: the parameter.
        groups: those of its penalty, None for entries.
    """

    w: Tensor
    groups: Groups | None

    @property
    def number(self) -> int:
        """How many there are, over all processes."""
        return self.w.numel() if self.groups is None else self.groups.inhabited(self.w)

    @property
    def cut(self) -> Cut | None:
        """How the units are cut over processes, None if all of them are here."""
        cut = Cut(self.w) if is_cut(self.w) else None
        alone = cut is not None and (self.groups is None or (self.groups.by_row and cut.keeps_rows))
        return cut if alone else None

    def sizes(self, size: Tensor) -> Tensor:
        """The Euclidean norm of each unit, of sizes of entries; -1 for a group without entries."""
        if self.groups is None:
            return size
        norms = self.groups.norms(self._with_whole_groups(size))
        each = self.groups.sizes(self.w)
        return torch.where(each > 0, norms, -1.0) if isinstance(each, Tensor) else norms

    def spread(self, kept: Tensor, like: Tensor) -> Tensor:
        """A mask of units as one of the entries that lie here, of the shape of ``like``."""
        if self.groups is None:
            return kept
        if not is_cut(self.w) or self.cut is not None:
            return self.groups.expand(kept, like).expand_as(like)
        return Cut(self.w).part(self.groups.expand(kept, self.w)).expand_as(like)

    def zeros(self, w: Tensor, *, whole: bool = False) -> Tensor:
        """How many units of ``w`` are zero in all, a 0-d tensor; ``w`` is the part that lies here, or the ``whole``."""
        alone = None if whole else self.cut
        if self.groups is None:
            count = (w == 0).sum()
            return count if alone is None else alone.sum(count)
        alive = self.groups.sum(((w if whole else self._with_whole_groups(w)) != 0).float())
        count = (alive > 0).sum()
        return self.number - (count if alone is None else alone.sum(count))

    def _with_whole_groups(self, x: Tensor) -> Tensor:
        return Cut(self.w).gathered(x) if is_cut(self.w) and self.cut is None else x
