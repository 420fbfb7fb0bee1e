"""Which cells an ablation has: every penalty at every strength, for each seed and each point of the grid."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from torchreg.ablation.grid import checked_alphas, checked_grid, checked_seeds, named_penalties
from torchreg.ablation.json_values import unified
from torchreg.penalties import Penalty
from torchreg.penalties.spec import canonical

Direction = Literal["descending", "ascending"]


@dataclass(frozen=True)
class CellSpec:
    """One run to be done.

    Attributes:
        key: the same for the same cell on any machine: the start of the sha256 of its canonical description.
        name: of the penalty.
        penalty: with this cell's strength.
        seed: of the run.
        axes: its point of the grid, in JSON's types.
        before: in path mode, the strengths whose solutions lead to its start; None for an independent cell.
        previous: in path mode, the key of the cell at whose solution it starts; None for the first.
    """

    key: str
    name: str
    penalty: Penalty
    alpha: float
    seed: int
    axes: Mapping[str, Any]
    before: tuple[float, ...] | None
    previous: str | None

    @property
    def mode(self) -> Literal["independent", "path"]:
        """Whether the run starts afresh or where another strength ended."""
        return "independent" if self.before is None else "path"


@dataclass(frozen=True)
class Plan:
    """A grid, checked.

    Attributes:
        penalties: by name; their own strengths do not count.
        alphas: the strengths.
        seeds: the seeds.
        axes: the values of each further axis.
        path: the order of warm starts along the strengths; None for independent cells.
    """

    penalties: Mapping[str, Penalty]
    alphas: tuple[float, ...]
    seeds: tuple[int, ...]
    axes: Mapping[str, tuple[Any, ...]]
    path: Direction | None

    @classmethod
    def of(cls, penalties: Any, alphas: Any, seeds: Any, grid: Any, path: Direction | None) -> Plan:
        """A plan from the arguments of `ablate`."""
        if path not in (None, "descending", "ascending"):
            raise ValueError(f"path must be None, 'descending' or 'ascending', got {path!r}.")
        return cls(named_penalties(penalties), checked_alphas(alphas), checked_seeds(seeds), checked_grid(grid), path)

    def chains(self) -> Iterator[tuple[CellSpec, ...]]:
        """What runs one after the other: single cells, or in path mode the cells of all strengths."""
        points = [dict(zip(self.axes, point, strict=True)) for point in product(*self.axes.values())]
        strengths = {name: self._strengths(penalty) for name, penalty in self.penalties.items()}
        for seed, axes, name in product(self.seeds, points, self.penalties):
            chain: list[CellSpec] = []
            for penalty, spec, before in strengths[name]:
                key = _key(spec, seed, axes, before)
                previous = chain[-1].key if before else None
                chain.append(CellSpec(key, name, penalty, float(penalty.alpha), seed, axes, before, previous))
            yield from [tuple(chain)] if self.path else ((cell,) for cell in chain)

    def _strengths(self, penalty: Penalty) -> list[tuple[Penalty, dict[str, Any], tuple[float, ...] | None]]:
        """The penalty at each strength, described once for all seeds: it may hold tensors of weights."""
        order = steps(self.alphas, self.path) if self.path else ((alpha, None) for alpha in self.alphas)
        scaled = ((penalty.with_alpha(alpha), before) for alpha, before in order)
        return [(at, at.spec(), before) for at, before in scaled]

    def describe(self) -> dict[str, Any]:
        """The plan in JSON's types, for the manifest."""
        return {
            "penalties": list(self.penalties),
            "alphas": list(self.alphas),
            "seeds": list(self.seeds),
            "axes": {name: list(values) for name, values in self.axes.items()},
            "path": self.path,
        }


def steps(alphas: Iterable[float], path: Direction) -> Iterator[tuple[float, tuple[float, ...]]]:
    """The strengths of a path in its order, each with those before it."""
    order = sorted(alphas, reverse=path == "descending")
    return ((alpha, tuple(order[:k])) for k, alpha in enumerate(order))


def _key(penalty: Mapping[str, Any], seed: int, axes: Mapping[str, Any], before: tuple[float, ...] | None) -> str:
    told = {"penalty": penalty, "seed": seed, "axes": unified(dict(axes))}
    if before is not None:
        told["before"] = [alpha.hex() for alpha in before]
    return hashlib.sha256(canonical(told).encode()).hexdigest()[:32]
