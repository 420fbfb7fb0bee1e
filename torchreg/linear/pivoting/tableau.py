"""The principal pivot transform of a Gram matrix on its active set: one matrix product solves for any signs.

With ``A`` the active and ``N`` the other columns, the tableau of ``G`` is

    T = [  H        -H G_AN               ]      H = G_AA^-1
        [  G_NA H    G_NN - G_NA H G_AN   ]

so that ``T [v_A; 0] = [H v_A; G_NA H v_A]``: coefficients of the active columns and what they take from the
correlations of the others, at once. Taking a set ``K`` of columns in or out (in any mixture) is one update of
rank ``|K|``; it is its own inverse.
Source: Tucker, Proc. Symp. Appl. Math. 10, 1960; Tsatsomeros, Linear Algebra Appl. 307, 2000.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST = 64  # columns of the first buffers
_LAZY = 2112  # on a CPU, which gives memory where it is first written to: less copying, and no holes left behind
_NEAR = 0.75  # of the limit: buffers as wide as this are made as wide as the limit


class Tableau:
    """A growing Gram matrix ``G``, a ridge on its diagonal, and the tableau ``T`` of ``G + diag(ridge)``.

    Args:
        device: where the matrices lie.
        limit: no more columns than this will ever come; bounds the memory by ``2 limit^2`` doubles.

    Attributes:
        size: number of columns.
        gram: ``G``, (size, size).
        table: ``T``, (size, size).
        ridge: what is added to the diagonal of ``G``, (size,).
        active: which columns are active, (size,).
    """

    gram: Tensor
    table: Tensor
    ridge: Tensor
    active: Tensor

    def __init__(self, device: torch.device, limit: int) -> None:
        self._limit, self.size = limit, 0
        square, line = torch.zeros(0, 0, dtype=torch.float64, device=device), torch.zeros(0, device=device)
        self._rooms = {"gram": square, "table": square.clone(), "ridge": line.double(), "active": line.bool()}
        self._grow(0)

    def append(self, gram: Tensor, ridge: Tensor) -> None:
        """New columns, none of them active.

        Args:
            gram: all columns, old and new, against the new ones, (size + k, k).
            ridge: of the new columns, (k,).
        """
        old = self.size
        self._grow(old + gram.shape[1])
        table, active = self.table, self.active[:old]
        self.ridge[old:] = ridge
        self.active[old:] = False
        self.gram[:, old:] = gram
        self.gram[old:, :old] = gram[:old].T
        inner = gram[:old] * active[:, None]
        taken = table[:old, :old] @ inner
        above, corner = table[:old, old:], table[old:, old:]
        torch.sub(gram[:old], inner, out=above).sub_(taken)
        torch.mul(above.T, _side(active), out=table[old:, :old])  # symmetric but for the sign between active and not
        corner.copy_(gram[old:]).diagonal().add_(ridge)
        corner.addmm_(inner.T, taken, alpha=-1.0)

    def _grow(self, size: int) -> None:
        """Room for so many columns. One part moves after the other, so that no two lie there twice."""
        old, self.size = self.size, size
        wider = self._capacity(size)
        for name, room in self._rooms.items():
            if wider > len(room):
                self._rooms[name] = room.new_empty((wider,) * room.dim())
                self._rooms[name][(slice(old),) * room.dim()] = getattr(self, name)
            setattr(self, name, self._rooms[name][(slice(size),) * room.dim()])

    def _capacity(self, size: int) -> int:
        """Columns of the buffers, which double; near the limit they are made for all that may come."""
        present = len(self._rooms["active"])
        if size <= present:
            return present
        wider = max(size, 2 * present, _LAZY if self._rooms["active"].device.type == "cpu" else _FIRST)
        return wider if wider < _NEAR * self._limit else max(self._limit, size)

    def pivot(self, chosen: Tensor, inverse: Tensor | None = None) -> None:
        """Exchange: columns ``chosen`` that are active leave, the others enter.

        Args:
            chosen: distinct column numbers, (k,); the exchanged block must be regular.
            inverse: of the tableau's block of these rows and columns, if it is known, (k, k).
        """
        table = self.table
        below, side = table.index_select(0, chosen), _side(self.active)
        if inverse is None:
            inverse = torch.linalg.inv_ex(below.index_select(1, chosen))[0]
        update = inverse @ below
        right = below.mul_(side * side[chosen, None]).T  # T is symmetric but for the sign between active and not
        table.addmm_(right, update, alpha=-1.0)
        table.index_copy_(0, chosen, update.neg_())
        table.index_copy_(1, chosen, right @ inverse)
        table[chosen[:, None], chosen] = inverse
        self.active[chosen] = ~self.active[chosen]

    def rebuild(self, gram: Tensor | None = None, ridge: Tensor | None = None) -> None:
        """The same active set from scratch, with another Gram matrix or ridge if given."""
        if gram is not None:
            self.gram.copy_(gram)
        if ridge is not None:
            self.ridge.copy_(ridge)
        self.table.copy_(self.gram).diagonal().add_(self.ridge)
        chosen, others = self.active.nonzero().flatten(), (~self.active).nonzero().flatten()
        rows = self.table.index_select(0, chosen)
        inverse = torch.linalg.inv_ex(rows.index_select(1, chosen))[0]
        side = rows.index_select(1, others)
        taken = inverse @ side
        self.table[others[:, None], others] -= side.T @ taken
        self.table[others[:, None], chosen] = taken.T
        self.table[chosen[:, None], others] = -taken
        self.table[chosen[:, None], chosen] = inverse


def _side(active: Tensor) -> Tensor:
    """-1.0 for active columns, 1.0 for the others."""
    return torch.where(active, -1.0, 1.0)
