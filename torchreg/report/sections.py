"""What stands in a report, in its order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torchreg.ablation.results.overview import Overview
from torchreg.report import provenance, tables
from torchreg.report.html import Html, element, figure, join, text
from torchreg.report.page import Section

if TYPE_CHECKING:
    from torchreg.ablation import Ablation

_BEST = "Metrics of test data choose nothing: what they would choose would flatter them."
_FRONT = "Fronts compare means; points whose intervals overlap may change places with other seeds."


def title(ablation: Ablation) -> str:
    """The name of the user's function, where it is known."""
    run = ablation.manifest.get("run")
    return f"Ablation of {run['name']}" if run else "Ablation"


def opening(ablation: Ablation) -> Html:
    """How far the ablation has come."""
    return join([element("p", text(ablation.status())), provenance.grid(ablation)])


def sections(ablation: Ablation, overview: Overview) -> Iterator[Section]:
    """All that the ablation's rows allow."""
    yield Section("Means", tables.means_table(overview))
    if overview.metrics:
        yield Section("Differences to alpha = 0", tables.paired_table(ablation, overview))
    if (best := tables.best_table(ablation, overview)) is not None:
        yield Section("Best strengths", join([_note(f"{_directions(overview)} {_BEST}"), best]))
    if fronts := join(tables.front_tables(overview)):
        yield Section("Pareto fronts", join([_note(_FRONT), fronts]))
    yield from _pictures(ablation, overview)
    failures = tables.failures_table(ablation)
    yield Section("Failed cells", _note("None failed.") if failures is None else failures)
    yield Section("Run record", provenance.record(ablation))
    yield Section("How to reproduce", provenance.reproduce(ablation))


def _pictures(ablation: Ablation, overview: Overview) -> Iterator[Section]:
    """The figures by kind, or why there are none."""
    try:
        from torchreg.plots import svg
        from torchreg.plots.ablation_figures import pictures
    except ImportError as error:
        yield Section("Figures", _note(f"There are none: {error}"))
        return
    kinds: dict[str, list[Html]] = {}
    for one in pictures(ablation, overview):
        drawn = figure(svg(one.figure), one.caption, f"{one.caption} {one.contents}")
        kinds.setdefault(one.kind, []).append(drawn)
    for kind, drawn_all in kinds.items():
        yield Section(kind, element("div", *drawn_all, class_="figures"))


def _note(words: str) -> Html:
    return element("p", text(words), class_="muted")


def _directions(overview: Overview) -> str:
    less = ", ".join(name for name in overview.metrics if name in overview.minimize)
    return f"Less is better of {less}; more of the others." if less else "More is better of all metrics."
