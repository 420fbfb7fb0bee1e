"""Train once for every penalty, strength, seed and point of a grid; resume, look, report.

  torchreg ablate run train:run --alphas 0,1e-5:1e-1:9 --seeds 5 --workers 4 --out runs/digits
  torchreg ablate run train:run --alphas 1e-3 --penalty l1 --penalty mine=train:PENALTY --grid width=64,128
  torchreg ablate status runs/digits
  torchreg ablate table runs/digits --csv table.csv
  torchreg ablate report runs/digits
  torchreg ablate merge runs/all runs/machine1 runs/machine2

The function lives in a module that Python finds from here. It takes by keyword what it names of
penalty, seed, cell and the axes of --grid, trains, and returns a dict of metrics. What has a row in
the directory is never run again: the same line resumes, a longer one extends.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchreg.ablation import Ablation, CellsFailed, ablate, merge
from torchreg.ablation.user_function import Run
from torchreg.cli import terminal
from torchreg.cli.ablate.arguments import PENALTIES
from torchreg.penalties import Penalty
from torchreg.report import write_report

Say = Callable[[str], None]
_ERRORS = 5  # different ones that are printed


def run_cells(
    run: Run, penalties: Sequence[tuple[str, Penalty]] | None, alphas: Sequence[float], seeds: Sequence[int],
    grid: Sequence[tuple[str, Sequence[Any]]], ray: bool, gpus: float, say: Say = terminal.say, **options: Any,
) -> int:  # fmt: skip
    """Run the cells that are not done, and print the table; returns 1 if cells have failed."""
    named = dict(penalties or [("l1", PENALTIES["l1"])])
    if len(named) < len(penalties or []):
        raise ValueError("two penalties have one name; give --penalty NAME=PENALTY.")
    if gpus and not ray:
        raise ValueError("--gpus is of a cell on Ray; give --ray, or --workers, each of which has one GPU in turn.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CellsFailed)  # said below
        ablation = ablate(
            run, named, alphas, seeds=seeds, grid=dict(grid), executor=_ray(gpus) if ray else None, **options
        )
    say(repr(ablation.summary()))
    return _say_failures(ablation, say)


def show_status(directory: Path, *, say: Say = terminal.say) -> None:
    """Print how many cells are done, failed and missing."""
    say(repr(Ablation.load(directory).status()))


def show_table(
    directory: Path, *, by: Sequence[str] | None = None, ci: float = 0.95, csv: Path | None = None,
    say: Say = terminal.say,
) -> None:  # fmt: skip
    """Print the means over seeds; write them to a CSV file if one is named."""
    table = Ablation.load(directory).summary(by, ci=ci)
    say(repr(table))
    if csv is not None:
        table.to_csv(csv)
        say(f"Written to {csv}")


def plot(directory: Path, *, out: Path | None, say: Say = terminal.say) -> None:
    """Draw every figure that the rows allow."""
    from torchreg.plots.ablation_figures import figures

    folder = directory / "figures" if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures(Ablation.load(directory))
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png")
    say(f"Written to {folder}: {', '.join(f'{name}.png' for name in drawn)}")


def report(directory: Path, *, out: Path | None, say: Say = terminal.say) -> None:
    """Write the HTML report."""
    path = directory / "report.html" if out is None else out
    write_report(Ablation.load(directory), path)
    say(f"Written to {path}")


def join(out: Path, sources: Sequence[Path], *, say: Say = terminal.say) -> None:
    """Merge directories into a new one."""
    merge(out, sources)
    show_status(out, say=say)


def _say_failures(ablation: Ablation, say: Say) -> int:
    failed = [row for row in ablation.rows if row["status"] == "failed"]
    for error, count in Counter(row["error"].splitlines()[0] for row in failed).most_common(_ERRORS):
        say(f"{count} of {len(ablation.rows)} cells failed by {error}")
    return 1 if failed else 0


def _ray(gpus: float) -> Any:
    from torchreg.ablation import RayExecutor

    return RayExecutor(num_gpus=gpus)


ACTIONS: Mapping[str, Callable[..., int | None]] = {
    "run": run_cells,
    "status": show_status,
    "table": show_table,
    "plot": plot,
    "report": report,
    "merge": join,
}
