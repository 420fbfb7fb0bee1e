"""Single strengths of an adaptive search, each run for the same seeds into a ledger."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torchreg.ablation.grid import checked_grid, checked_seeds, named_penalties
from torchreg.ablation.ledger.reader import Row
from torchreg.ablation.plan import Plan
from torchreg.ablation.results.metric_names import is_test
from torchreg.penalties import Penalty


@dataclass(frozen=True)
class Trials:
    """What all trials of a search share.

    Attributes:
        penalties: by name.
        seeds: each trial's.
        axes: the one point of the grid.
    """

    penalties: Mapping[str, Penalty]
    seeds: tuple[int, ...]
    axes: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(cls, penalties: Any, seeds: Any, grid: Any) -> Trials:
        """Trials from the arguments of a search.

        Raises:
            ValueError: if an axis has more than one value.
        """
        axes = checked_grid(grid)
        for name, values in axes.items():
            if len(values) > 1:
                raise ValueError(
                    f"A search is at one point of the grid; grid[{name!r}] has {len(values)} values, search for each."
                )
        return cls(named_penalties(penalties), checked_seeds(seeds), axes)

    def plan(self, name: str, alpha: float) -> Plan:
        """One penalty at one strength, for every seed."""
        return Plan({name: self.penalties[name]}, (alpha,), self.seeds, self.axes, None)

    def keys(self, name: str, alpha: float) -> list[str]:
        """The keys of its cells."""
        return [spec.key for chain in self.plan(name, alpha).chains() for spec in chain]

    def rows(self, name: str, alpha: float, ledger: Mapping[str, Row]) -> list[Row]:
        """The rows of its cells that the ledger has."""
        return [ledger[key] for key in self.keys(name, alpha) if key in ledger]

    def finished(self, ledger: Mapping[str, Row]) -> Iterator[tuple[str, float]]:
        """Names and strengths that have a row that is ok for every seed, whoever asked for them."""
        there = dict.fromkeys((row["penalty"], row["alpha"]) for row in ledger.values())
        for name, alpha in there:
            if name in self.penalties:
                rows = self.rows(name, alpha, ledger)
                if len(rows) == len(self.seeds) and not failure(rows):
                    yield name, alpha


def failure(rows: Iterable[Row]) -> str | None:
    """How the first of the failed cells did."""
    return next((row["error"].splitlines()[0] for row in rows if row["status"] != "ok"), None)


def mean(rows: list[Row], metric: str) -> float:
    """The mean of a metric over cells.

    Raises:
        ValueError: if they have none of that name, or it is no number.
    """
    for row in rows:
        value = row["metrics"].get(metric)
        if not isinstance(value, (int, float)):
            raise ValueError(
                f"run returns no number called {metric!r}, but {', '.join(row['metrics'])}; search by one of these."
            )
    return math.fsum(row["metrics"][metric] for row in rows) / len(rows)


def checked_range(alphas: tuple[float, float]) -> tuple[float, float]:
    """The least and the largest strength.

    Raises:
        ValueError: unless 0 < low < high < inf.
    """
    low, high = map(float, alphas)
    if not 0.0 < low < high < math.inf:
        raise ValueError(f"alphas must be (low, high) with 0 < low < high < inf, got {alphas!r}.")
    return low, high


def warn_of_test(metrics: Iterable[str]) -> None:
    """Say that what is chosen by test data is no longer tested by them."""
    for metric in filter(is_test, metrics):
        warnings.warn(
            f"{metric!r} is of test data: a strength that is chosen by it is no longer tested by it. Search by "
            "a metric of validation data.",
            UserWarning,
            stacklevel=3,
        )
