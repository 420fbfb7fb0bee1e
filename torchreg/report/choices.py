"""Which strength each metric chooses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torchreg.ablation.results.choice import Rule, best
from torchreg.ablation.results.curves import namer
from torchreg.ablation.results.metric_names import is_test
from torchreg.ablation.results.overview import SPARSITY, Overview

if TYPE_CHECKING:
    from torchreg.ablation import Ablation


def choices(ablation: Ablation, overview: Overview) -> Iterator[tuple[str, str, str, str, str]]:
    """Metric, penalty, best mean, its alpha, and the 1-SE rule's alpha, as words.

    Metrics of test data choose nothing, and neither does sparsity, which the largest alpha maximises.
    """
    for metric in overview.metrics:
        if metric == SPARSITY or is_test(metric):
            continue
        less = metric in overview.minimize
        simplest = _chosen(ablation, overview, metric, "1se-min" if less else "1se")
        for name, row in _chosen(ablation, overview, metric, "min" if less else "max").items():
            one_se = f"{simplest[name]['alpha']:.4g}" if name in simplest else "-"
            told = f"{'lowest' if less else 'highest'} {row[metric]:.4g}"
            yield metric, name, told, f"{row['alpha']:.4g}", one_se


def _chosen(ablation: Ablation, overview: Overview, metric: str, rule: Rule) -> dict[str, dict[str, Any]]:
    """The row that a rule chooses, by line; empty where the rule cannot choose, such as 1-SE with one seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of penalties without a finite mean, which have no row here
        try:
            found = best(overview.table, ablation.axes, metric, rule)
        except ValueError:
            return {}
    name = namer(overview.table, ablation.axes)
    return {name(row): row for row in found}
