"""Differences to a baseline on equal seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchreg.ablation.results.grouping import Row, codes_of, grouped, numeric
from torchreg.ablation.results.intervals import check_confidence, means
from torchreg.ablation.results.metric_names import in_order
from torchreg.ablation.results.summary import Pairs, cell_columns, mean_columns, refuse_repeated
from torchreg.ablation.results.table import Table

Seeds = dict[int, int]  # seed -> place among the rows


@dataclass(frozen=True)
class _Group:
    """Cells that differ by their seeds, and the baseline that they are compared with."""

    key: tuple[Any, ...]
    failed: int
    baseline: str | None
    pairs: tuple[tuple[int, int], ...]


def paired(rows: Sequence[Row], axes: Sequence[str], metrics: Iterable[str], baseline_alpha: float, ci: float) -> Table:
    """The table of `Ablation.paired`."""
    check_confidence(ci)
    refuse_repeated(rows, axes)
    groups = list(_groups(rows, axes, baseline_alpha))
    if not any(group.pairs for group in groups):
        raise ValueError(_nothing(rows, baseline_alpha))
    left, right = np.array([pair for group in groups for pair in group.pairs]).T
    counted = [row if row["status"] == "ok" else {} for row in rows]
    codes = np.repeat(np.arange(len(groups)), [len(group.pairs) for group in groups])

    def columns() -> Pairs:
        yield from zip(cell_columns(axes), zip(*(group.key for group in groups), strict=True), strict=True)
        yield "baseline", [group.baseline for group in groups]
        yield "n", [len(group.pairs) for group in groups]
        yield "n_failed", [group.failed for group in groups]
        for metric, column in numeric(counted, in_order(metrics)).items():
            both = column.present[left] & column.present[right]
            with np.errstate(invalid="ignore"):  # inf - inf
                differences = column.values[left[both]] - column.values[right[both]]
            yield from mean_columns(f"{metric}.diff", means(differences, codes[both], len(groups), ci))

    return Table.of(columns())


def _groups(rows: Sequence[Row], axes: Sequence[str], baseline_alpha: float) -> Iterable[_Group]:
    """The groups of other strengths, each with the pairs that there are."""
    settings = codes_of(rows, (*axes, "mode")).tolist()
    cells = grouped(rows, cell_columns(axes))
    ok: dict[int, Seeds] = defaultdict(dict)
    failed, setting = [0] * len(cells.keys), [0] * len(cells.keys)
    baselines: dict[int, dict[str, Seeds]] = defaultdict(lambda: defaultdict(dict))
    for place, (row, code, which) in enumerate(zip(rows, cells.codes.tolist(), settings, strict=True)):
        setting[code] = which
        if row["status"] != "ok":
            failed[code] += 1
            continue
        ok[code][row["seed"]] = place
        if row["alpha"] == baseline_alpha:
            baselines[which][row["penalty"]][row["seed"]] = place
    for code, key in enumerate(cells.keys):
        penalty, alpha, *_, mode = key
        if alpha != baseline_alpha:
            shared = baseline_alpha == 0.0 and mode == "independent"
            baseline, pairs = _pairs(ok[code], baselines[setting[code]], penalty, shared=shared)
            yield _Group(key, failed[code], baseline, pairs)


def _pairs(
    seeds: Seeds, baselines: dict[str, Seeds], penalty: str, *, shared: bool
) -> tuple[str | None, tuple[tuple[int, int], ...]]:
    """Pairs with the penalty's own baseline; if it has none and all share one function, with the first that has any."""
    for name in (penalty, *(sorted(baselines) if shared else ())):
        theirs = baselines.get(name, {})
        pairs = tuple((place, theirs[seed]) for seed, place in seeds.items() if seed in theirs)
        if pairs:
            return name, pairs
    return None, ()


def _nothing(rows: Sequence[Row], baseline_alpha: float) -> str:
    ok = [row for row in rows if row["status"] == "ok"]
    alphas = sorted({row["alpha"] for row in ok})
    if baseline_alpha not in alphas:
        there = ", ".join(f"{alpha:g}" for alpha in alphas) or "none"
        return (
            f"No row that is ok has the baseline alpha={baseline_alpha:g}; those there: {there}. Choose one of these "
            "as baseline_alpha, or add the baseline to the ablation's alphas."
        )
    base = sorted({row["seed"] for row in ok if row["alpha"] == baseline_alpha})
    others = sorted({row["seed"] for row in ok if row["alpha"] != baseline_alpha})
    return (
        f"No pair of rows agrees in seed, axes, mode and penalty, one with alpha={baseline_alpha:g} (seeds {base}) and "
        f"one with another (seeds {others}); run both on the same seeds."
    )
