"""One round of block pivoting in lockstep: what it found, and how many columns may change sides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.pivoting.limits import ASTRAY, SPARE

_QUARTERS = 10  # such exchanges, before only the worst column changes


@dataclass(frozen=True)
class Sides:
    """Which columns are active, and their signs: (K, m) each; and how many are active in each problem."""

    active: Tensor
    signs: Tensor
    counts: list[int]


@dataclass
class Patience:
    """How long the exchanges of one problem may go on without getting better."""

    fewest: int
    spare: int = SPARE
    last: int = 0

    def astray(self, count: int) -> bool:
        """Whether ``count`` violations say that the last exchange led nowhere."""
        return count > ASTRAY * max(self.fewest, ASTRAY)

    def again(self) -> int:
        """How many columns may change instead of those of the last exchange, which is taken back; 0 if it was one."""
        self.last = max(1, self.last // 4) if self.last > 1 else 0
        return self.last

    def allowed(self, count: int) -> int:
        """How many of ``count`` columns that violate optimality may change."""
        self.last = count
        if count < self.fewest:
            self.fewest, self.spare = count, SPARE
            return self.last
        self.spare -= 1
        if self.spare < 0:
            self.last = max(1, count // 4) if self.spare >= -_QUARTERS else 1
        return self.last


@dataclass(frozen=True)
class Round:
    """What a round found: the sides, how far each column is from optimal there, correlations; violations by problem."""

    sides: Sides
    excess: Tensor
    g: Tensor
    counts: list[int]
    leaving: list[int]

    def but(self, other: Round, where: list[bool]) -> Round:
        """With the problems ``where`` as the other round found them."""
        mask = torch.tensor(where, device=self.g.device)[:, None]
        active, signs = self.sides.active, self.sides.signs
        sides = Sides(
            torch.where(mask, other.sides.active, active),
            torch.where(mask, other.sides.signs, signs),
            _picked(where, other.sides.counts, self.sides.counts),
        )
        return Round(
            sides,
            torch.where(mask, other.excess, self.excess),
            torch.where(mask, other.g, self.g),
            _picked(where, other.counts, self.counts),
            _picked(where, other.leaving, self.leaving),
        )


def _picked(where: list[bool], first: list[int], second: list[int]) -> list[int]:
    return [a if chosen else b for chosen, a, b in zip(where, first, second, strict=True)]
