"""Columns that change sides on a tableau: together where they are independent, else one against another."""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.linear.pivoting.limits import DEPENDENT
from torchreg.linear.pivoting.subproblem import Subproblem
from torchreg.linear.pivoting.tableau import Tableau


class Exchanges:
    """A tableau and the signs of its active columns.

    Args:
        device: where to compute.
        limit: no more columns than this will ever come.
        rank: no more columns than this are independent.
    """

    def __init__(self, device: torch.device, limit: int, rank: int) -> None:
        self._rank = rank
        self.tableau = Tableau(device, limit)
        self.signs = torch.zeros(0, dtype=torch.float64, device=device)

    def _change(self, chosen: Tensor, product: Tensor, excess: Tensor, g: Tensor, problem: Subproblem) -> bool:
        """Exchange columns; those that enter take the sign of their correlation.

        Returns:
            False if all are combinations of active columns that could grow forever, that is, if their correlations are
            beyond l1 by rounding alone, since the quadratic has a minimum.
        """
        table, active = self.tableau.table.diagonal(), self.tableau.active
        inside = active[chosen]
        entering, leaving = chosen[~inside], chosen[inside]
        self.signs[entering] = g[entering].sign()
        free = entering[table[entering] > DEPENDENT * self.tableau.gram.diagonal()[entering]]
        if self._rank < self.tableau.size:
            free = self._independent(free, leaving, excess)
        if len(free) or len(leaving):
            self._pivot(torch.cat([leaving, free]))
            return True
        held = entering[self._shrinking(entering, product, problem).any(0)]
        if len(held):
            self._swap(held[excess[held].argmax()], product, problem)
        return bool(len(held))

    def _pivot(self, chosen: Tensor) -> None:
        """Exchange columns together, or, where that block is singular, as many as are independent, one by one."""
        block = self.tableau.table[chosen[:, None], chosen]
        inverse, info = torch.linalg.inv_ex(block)
        lost = (inverse.diagonal() * block.diagonal()).abs().max() * DEPENDENT
        if not info and lost < 1.0:
            self.tableau.pivot(chosen, inverse)
            return
        for column in chosen:
            entry = self.tableau.table[column, column]
            if self.tableau.active[column] or entry > DEPENDENT * self.tableau.gram[column, column]:
                self.tableau.pivot(column[None])

    def _independent(self, entering: Tensor, leaving: Tensor, excess: Tensor) -> Tensor:
        """As many as the rank allows; columns with a ridge are independent of all."""
        bare = self.tableau.ridge == 0.0
        room = max(self._rank - int((self.tableau.active & bare).sum()) + int(bare[leaving].sum()), 0)
        held = entering[bare[entering]]
        if len(held) <= room:
            return entering
        return torch.cat([entering[~bare[entering]], held[excess[held].topk(room).indices]])

    def _shrinking(self, entering: Tensor, product: Tensor, problem: Subproblem) -> Tensor:
        """Which active coefficients come nearer to a kink as each dependent column grows, (size, k)."""
        way = self.signs[entering] * self.tableau.table[:, entering]
        shrinks = self.tableau.active[:, None] & (way * product[:, None] < 0.0)
        if problem.lower != 0.0:
            shrinks &= (problem.l1 > 0.0)[:, None]  # unpenalised columns may change sign
        return shrinks

    def _swap(self, entering: Tensor, product: Tensor, problem: Subproblem) -> None:
        """Let a dependent column grow until an active coefficient is zero, and exchange the two."""
        way = self.signs[entering] * self.tableau.table[:, entering]
        shrinks = self._shrinking(entering[None], product, problem)[:, 0]
        if bool(shrinks.any()):
            limit = torch.where(shrinks, -product / torch.where(shrinks, way, 1.0), torch.inf)
            self._pivot(torch.stack([limit.argmin(), entering]))
