"""The tables of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torchreg.ablation.results.layout import shown
from torchreg.ablation.results.overview import SPARSITY, Overview
from torchreg.ablation.results.table import Table
from torchreg.report.choices import choices
from torchreg.report.html import Html, element, table, text

if TYPE_CHECKING:
    from torchreg.ablation import Ablation

_ROWS = 1000  # of a table, at the most


def means_table(overview: Overview) -> Html:
    """Means with intervals and n."""
    return _results(f"Mean over seeds [{100.0 * overview.ci:.4g} % t-interval]; n: seeds that finished", overview.table)


def paired_table(ablation: Ablation, overview: Overview) -> Html:
    """Differences to alpha = 0 on equal seeds, or why there are none."""
    try:
        found = ablation.paired(ci=overview.ci)
    except ValueError as error:
        return element("p", text(error), class_="muted")
    interval = f"[{100.0 * overview.ci:.4g} % t-interval]"
    return _results(f"Metric minus that of alpha = 0 on the same seed: mean of n pairs {interval}", found)


def best_table(ablation: Ablation, overview: Overview) -> Html | None:
    """The strength that each metric chooses, by penalty; None where nothing can be chosen."""
    head = ("metric", "penalty", "best mean", "at alpha", "1-SE alpha")
    body = [[text(cell) for cell in row] for row in choices(ablation, overview)]
    caption = "Best mean by penalty, and the largest alpha whose mean is within one standard error of it"
    return table(caption, head, body, numbers=frozenset({2, 3, 4})) if body else None


def front_tables(overview: Overview) -> Iterator[Html]:
    """The points of each Pareto front, best in sparsity first."""
    for metric in overview.against_sparsity:
        front = overview.front(metric)
        if len(front):
            caption = f"Pareto front for {overview.wish(SPARSITY)} and {overview.wish(metric)}, of means"
            yield _results(caption, _only(front, overview, (SPARSITY, metric)))


def failures_table(ablation: Ablation) -> Html | None:
    """Cells whose last attempt failed, with their errors; None for none."""
    failed = [row for row in ablation.rows if row["status"] != "ok"]
    if not failed:
        return None
    names = ("penalty", "alpha", "seed", *ablation.axes, "attempt", "seconds")
    cells = shown(names, [tuple(row.get(name) for name in names) for row in failed[:_ROWS]])
    errors = [element("pre", text(row.get("error") or "no message")) for row in failed[:_ROWS]]
    body = [[*map(text, row), error] for *row, error in zip(*(texts for _, texts in cells), errors, strict=True)]
    numbers = frozenset(k for k, name in enumerate(names) if name in ("alpha", "seed", "attempt", "seconds"))
    return table(_cut("Cells that failed", len(failed)), [*(name for name, _ in cells), "error"], body, numbers=numbers)


def _results(caption: str, found: Table) -> Html:
    """A table of results as `print` shows it, with more rows."""
    columns = shown(found.columns, found.rows[:_ROWS])
    numbers = frozenset(
        k for k, (name, _) in enumerate(columns) if name in found.columns and _has_numbers(found.column(name))
    )
    body = ([text(cell) for cell in cells] for cells in zip(*(texts for _, texts in columns), strict=True))
    return table(_cut(caption, len(found)), [name for name, _ in columns], body, numbers=numbers)


def _only(found: Table, overview: Overview, metrics: Sequence[str]) -> Table:
    """Without the columns of other metrics."""
    others = tuple(name for name in overview.metrics if name not in metrics)
    kept = [k for k, name in enumerate(found.columns) if name not in others and not _is_of(name, others)]
    return Table(tuple(found.columns[k] for k in kept), tuple(tuple(row[k] for k in kept) for row in found.rows))


def _is_of(column: str, metrics: Sequence[str]) -> bool:
    return column.rpartition(".")[0] in metrics


def _has_numbers(column: Sequence[Any]) -> bool:
    return all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in column)


def _cut(caption: str, rows: int) -> str:
    return caption if rows <= _ROWS else f"{caption} (the first {_ROWS} of {rows} rows; to_csv writes all)"
