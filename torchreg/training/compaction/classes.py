"""Units of a network that can only be removed together, and the largest set of them that nothing depends on.

Every index of every dimension of every tensor of a forward pass is numbered. Numbers are joined where an operation
keeps an index in place (element-wise functions, sums, the rows of a layer with its bias). What then remains:

1. A class that is pinned is kept, for the reason noted first: an output of the model, a size of its input.
2. A layer reads a class through a column. It may go if the column is zero in every row that is kept, or if the class
   is constant there and the constant can be added to the bias.
3. Where a dimension is seen as a grid (units as heads x width), whole slices of the grid go, and nothing else.
4. No dimension loses all of its indices.

Kept classes are found from the pins on, until nothing is added; all others go. That is the largest such set, so that
units that are read by each other alone are removed too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Index = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(eq=False)
class Read:
    """Columns of a layer that multiply units.

    Attributes:
        layer: what reads, for a report.
        units: the unit of every column, (K,).
        rows: the unit of every row, (O,); None for rows that are always kept.
        nonzero: where the weights are not zero, (O, K).
        absorbs: where the unit is constant, and the layer can do without it, (K,).
        constants: the constants in float64, (K,); 0 elsewhere.
        weight: sums of the weights over positions in float64, (O, K); None where only zeros can be left out.
        bias: name of the bias that takes the constants; "" where the layer has none yet.
        module: name of the layer's module.
        obstacle: why a constant that is not zero cannot be folded, or "".
        weight_name: name of the weights, "" where they are computed.
        rescaled: an RMS norm, whose scale and eps change with the number of its units.
    """

    layer: str
    units: Index
    rows: Index | None
    nonzero: Flags
    absorbs: Flags
    constants: Tensor
    weight: Tensor | None = None
    bias: str = ""
    module: str = ""
    obstacle: str = ""
    weight_name: str = ""
    rescaled: bool = False


@dataclass
class UnitClasses:
    """A partition of numbered units, with the reasons for which some are kept."""

    parent: list[int] = field(default_factory=list)
    pinned: dict[int, str] = field(default_factory=dict)
    grids: list[tuple[Index, list[Index]]] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    dimensions: dict[int, Index] = field(default_factory=dict)

    def new(self, n: int, why: str = "") -> Index:
        """Numbers for the n indices of a dimension, pinned if a reason is given; one index is always kept."""
        made = np.arange(len(self.parent), len(self.parent) + n, dtype=np.int64)
        self.parent.extend(made.tolist())
        if n == 1 and not why:
            why = "is the only one of its dimension"
        if why:
            self.pinned.update(dict.fromkeys(made.tolist(), why))
        return made

    def find(self, unit: int) -> int:
        """The representative of a unit's class."""
        parent = self.parent
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    def join(self, a: Index, b: Index) -> None:
        """Units that go together, index by index."""
        if a is b:
            return
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            root, gone = self.find(one), self.find(other)
            if root != gone:
                self.parent[gone] = root
                why = self.pinned.pop(gone, "")
                if why:
                    self.pinned.setdefault(root, why)

    def pin(self, units: Index, why: str) -> None:
        """Keep units, for a reason."""
        for unit in units.tolist():
            self.pinned.setdefault(self.find(unit), why)

    def fixed(self, units: Index) -> bool:
        """Whether all of the units are pinned by now."""
        return all(self.find(unit) in self.pinned for unit in units.tolist())

    def why(self, units: Index) -> str:
        """A reason for which the units are pinned."""
        found = (self.pinned.get(self.find(unit), "") for unit in units.tolist())
        return next((reason for reason in found if reason), "is of a fixed size")

    def note(self, dimension: Index) -> None:
        """Keep at least one index of a dimension."""
        self.dimensions[id(dimension)] = dimension

    def grid(self, flat: Index, factors: list[Index]) -> None:
        """A dimension that is the product of others, in row-major order."""
        self.grids.append((flat.reshape([len(f) for f in factors]), factors))

    def solve(self) -> KeptClasses:
        """The units that are kept; see the module's text."""
        root = np.array([self.find(unit) for unit in range(len(self.parent))], dtype=np.int64)
        kept = np.zeros(len(root), dtype=bool)
        reasons = dict(self.pinned)
        kept[list(reasons)] = True
        solution = KeptClasses(root, kept, reasons)
        solution.spread(self)
        for dimension in reversed(self.dimensions.values()):  # what is kept keeps what it reads
            if len(dimension) and not kept[root[dimension]].any():
                solution.keep(dimension[:1], "is the last of its dimension")
                solution.spread(self)
        return solution


@dataclass
class KeptClasses:
    """Which classes of units are kept, and why.

    Attributes:
        root: the class of every unit.
        kept: of every class, whether it is kept.
        reasons: of a kept class, why.
    """

    root: Index
    kept: Flags
    reasons: dict[int, str]

    def stays(self, units: Index) -> Flags:
        """Whether each unit is kept."""
        stays: Flags = self.kept[self.root[units]]
        return stays

    def reason(self, unit: Any) -> str:
        """Why a unit is kept, "" if it is not."""
        return self.reasons.get(int(self.root[unit]), "")

    def keep(self, units: Index, why: str) -> bool:
        """Keep units; whether one of them was not kept before."""
        new = [unit for unit in self.root[units].tolist() if not self.kept[unit]]
        for unit in new:
            self.kept[unit] = True
            self.reasons.setdefault(unit, why)
        return bool(new)

    def spread(self, classes: UnitClasses) -> None:
        """Keep whatever kept units need, until nothing is added."""
        grown = True
        while grown:
            grown = False
            for flat, factors in classes.grids:
                grown |= self._whole_slices(flat, factors)
            for read in reversed(classes.reads):
                grown |= self.keep(read.units[needed(read, self)], left_by(read))

    def _whole_slices(self, flat: Index, factors: list[Index]) -> bool:
        cells, grown = self.stays(flat), False
        for d, factor in enumerate(factors):
            others = tuple(k for k in range(len(factors)) if k != d)
            grown |= self.keep(factor[cells.any(others)], "shares a slice of a reshaped dimension with one that stays")
        inside = np.ones_like(cells)
        for d, factor in enumerate(factors):
            inside &= self.stays(factor).reshape([-1 if k == d else 1 for k in range(len(factors))])
        return grown | self.keep(flat[inside], "is only part of a slice of a reshaped dimension (a head, say)")


def needed(read: Read, solution: KeptClasses) -> Flags:
    """Columns that a layer reads in a row that is kept, of units that it cannot do without."""
    rows = slice(None) if read.rows is None else solution.stays(read.rows)
    needs: Flags = read.nonzero[rows].any(0) & ~read.absorbs
    return needs


def left_by(read: Read) -> str:
    """Why a unit is kept for a layer."""
    return f"is read by {read.layer}" + (f" ({read.obstacle})" if read.obstacle else "")
