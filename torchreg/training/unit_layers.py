"""The layers of units over several tensors: of each one unit is to be left, or the net is dead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Layers:
    """Which units make a layer.

    Args:
        layers: the numbers of the units of each layer, of which it cannot lose all.
        present: the numbers of all units that there are.
        device: where their sizes lie.

    Attributes:
        apart: the numbers of the units of each layer, and of those of none, each unit once.
    """

    def __init__(self, layers: Sequence[Sequence[int]], present: Sequence[int], device: torch.device) -> None:
        width = max((len(layer) for layer in layers), default=0)
        rows = [[*layer, *([layer[0]] * (width - len(layer)))] for layer in layers]
        self._table = torch.tensor(rows, device=device) if rows else None
        left, apart = dict.fromkeys(present), []
        for layer in (*layers, list(present)):
            apart.append([unit for unit in layer if unit in left])
            for unit in apart[-1]:
                left.pop(unit, None)
        self.apart = [torch.tensor(units, device=device) for units in apart if units]

    @property
    def number(self) -> int:
        """How many layers there are."""
        return 0 if self._table is None else len(self._table)

    def spared(self, sizes: Tensor) -> Tensor:
        """The sizes of units, infinite of the largest of each layer, so that it comes first."""
        if self._table is None:
            return sizes
        first = self._largest(self._table, sizes)
        return sizes.clamp(max=torch.finfo(sizes.dtype).max).index_fill(0, first, torch.inf)

    def last(self, before: Tensor, after: Tensor) -> Tensor:
        """A mask of what was largest in each layer of which nothing is left, by sizes before and after."""
        if self._table is None:
            return torch.zeros_like(before, dtype=torch.bool)
        lost = ~(after[self._table] > 0).any(1)
        return torch.zeros_like(before).index_add(0, self._largest(self._table, before), lost.to(before.dtype)) > 0

    def _largest(self, table: Tensor, sizes: Tensor) -> Tensor:
        known = torch.where(sizes.isnan(), -1.0, sizes)[table]
        return table.gather(1, known.argmax(1, keepdim=True)).squeeze(1)
