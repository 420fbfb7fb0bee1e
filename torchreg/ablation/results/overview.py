"""The means of an ablation and what is better, as reports and figures need them together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from torchreg.ablation.results.choice import pareto
from torchreg.ablation.results.metric_names import is_test, less_is_better
from torchreg.ablation.results.table import Table

if TYPE_CHECKING:
    from torchreg.ablation.results.ablation import Ablation

SPARSITY = "sparsity"  # the metric that others are traded against


@dataclass(frozen=True)
class Overview:
    """Means and intervals of an ablation, made once.

    Attributes:
        table: what `Ablation.summary` returned.
        metrics: those that finished cells have as a number.
        minimize: those of them where less is better.
        ci: the intervals' confidence.
    """

    table: Table
    metrics: tuple[str, ...]
    minimize: frozenset[str]
    ci: float

    @classmethod
    def of(cls, ablation: Ablation, minimize: Collection[str] | None = None, ci: float = 0.95) -> Self:
        """Summarise an ablation.

        Args:
            ablation: of at least one row.
            minimize: metrics where less is better; None takes those whose names say so, such as ``val_loss``.
            ci: confidence of the intervals.

        Raises:
            ValueError: if there are no rows, or ``minimize`` has a metric that has no mean.
        """
        table = ablation.summary(ci=ci)
        metrics = tuple(name for name in table.columns if f"{name}.low" in table.columns)
        if unknown := [name for name in minimize or () if name not in metrics]:
            known = ", ".join(metrics) or "none"
            raise ValueError(f"minimize has {unknown[0]!r}, which has no mean; metrics with a mean: {known}.")
        less = filter(less_is_better, metrics) if minimize is None else minimize
        return cls(table, metrics, frozenset(less), ci)

    @property
    def against_sparsity(self) -> tuple[str, ...]:
        """The other metrics, if there is sparsity, against which to hold them."""
        return tuple(name for name in self.metrics if name != SPARSITY) if SPARSITY in self.metrics else ()

    def front(self, metric: str) -> Table:
        """The means on the Pareto front of sparsity and a metric; none for one of test data, which chooses nothing."""
        if is_test(metric):
            return Table(self.table.columns, ())
        return pareto(self.table, (SPARSITY, metric), tuple(self.minimize))

    def wish(self, metric: str) -> str:
        """What is better, in words."""
        return f"{'less' if metric in self.minimize else 'more'} {metric}"
