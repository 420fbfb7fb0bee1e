"""The front door: a training function, penalties, strengths and seeds in; a table out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from torchreg.ablation.executors.base import CellExecutor
from torchreg.ablation.plan import Direction, Plan
from torchreg.ablation.results.ablation import Ablation
from torchreg.ablation.session import OnChange, Session
from torchreg.ablation.user_function import Run, arguments
from torchreg.penalties import Penalty
from torchreg.text_table import printable


class CellsFailed(RuntimeWarning):
    """Some cells of an ablation have failed; their rows say how."""


def ablate(
    run: Run,
    penalties: Penalty | Iterable[Penalty] | Mapping[str, Penalty],
    alphas: Iterable[float],
    *,
    seeds: Iterable[int] = (0,),
    grid: Mapping[str, Iterable[Any]] | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    executor: Executor | CellExecutor | None = None,
    path: Direction | None = None,
    progress: bool = True,
    timeout: float | None = None,
    retries: int = 1,
    on_change: OnChange = "error",
) -> Ablation:
    """Train once for every penalty, strength, seed and point of a grid, and keep every result.

    The cells are all combinations. Each has one row in the directory ``out``, on the disk before the
    next cell of its process begins. Run the same line again after Ctrl-C, a crash or a failed cell:
    what has a row is not run again, a longer grid runs only what is new.

    A cell that raises is a result, "failed", and is tried again by the next call. Seeds are given to
    ``run`` and nothing is seeded for it; ``cell.seed_everything()`` does.

    Args:
        run: trains a model and returns its metrics, a mapping of names to numbers (strings, lists and
            dicts are kept too). It receives by keyword those of ``penalty``, ``seed``, ``cell`` and the
            grid's axes that its signature names; see `Cell`. What it does must follow from these alone.
        penalties: one, a list, or a dict from names in the tables to penalties; their own alphas do not
            count. Without a dict a penalty's name is its ``repr`` without alpha.
        alphas: strengths, >= 0, none twice; `logspace` makes them.
        seeds: whole numbers from 0 to 2**32 - 1.
        grid: further arguments of ``run``, each with its values, in JSON's types: 0 and 0.0 are one value, True and
            1 are two. Each run has lists and dicts of its own.
        out: a directory of this ablation's own; None takes ``runs/`` and the function's name.
        workers: processes that run cells; 0 runs them in this one. ``run`` must then be importable, and a
            script must call `ablate` under ``if __name__ == "__main__":``. Cores are shared out among the
            workers as torch's threads, so that sums may be rounded otherwise than in this process.
        executor: where cells run instead: `RayExecutor`, or any `concurrent.futures.Executor`, which is
            left open.
        path: "descending" or "ascending": the cells of one penalty and seed run in this order of alpha,
            each from the solution before, by ``cell.start()`` and ``cell.save(state)``. Such rows have
            the mode "path" and are never mixed with others.
        progress: a bar, where the output is a terminal.
        timeout: seconds for a cell, after which its process and those that it has started are ended and the cell
            has failed (on a path: for its cells together, as many times as long). It needs ``workers`` or a
            `RayExecutor`.
        retries: how often a cell is run again whose process died.
        on_change: what to do if ``run`` is not the function that made the rows that are there: "error", or "new",
            which leaves those rows and their cells' files, and counts them no more. A function is the code that
            runs, as it was imported, with that of the user's own functions which it reaches by name, and the values
            bound to it: by `functools.partial`, a closure, a default, as attributes of an object that is called.
            Values of globals are not looked at, nor comments, nor what a function imports while it runs; other
            versions of Python make other code.

    Returns:
        An `Ablation` of all rows in the directory, those of earlier calls too.

    Raises:
        TypeError: if ``run`` needs what is not offered, or cannot be sent to workers.
        WorkerError: if workers cannot start, cannot load ``run``, or import other code of it than this process has.
        ValueError: for an empty or repeated grid, a changed ``run``, or cells with different metrics.
        FileExistsError: if ``out`` holds other files; nothing of them is touched.
        LedgerBusy: if another driver works in ``out``, or workers of one that was killed.
        LedgerError: if a row cannot be written: the disk is full, the directory read-only; if what is there was
            damaged, or is a link that leads elsewhere.

    Warns:
        CellsFailed: if cells have failed.
        RuntimeWarning: if ``run`` holds values, such as locks, that cannot be compared with those of a later call.

    Example:
        >>> import tempfile
        >>> from torchreg import L1
        >>> from torchreg.ablation import ablate
        >>> def run(penalty, seed):
        ...     return {"loss": penalty.alpha + seed}
        >>> with tempfile.TemporaryDirectory() as out:
        ...     result = ablate(run, L1(1.0), [0.0, 0.5], seeds=range(2), out=out, progress=False)
        >>> [row["loss"] for row in result.rows]
        [0.0, 0.5, 1.0, 1.5]
    """
    plan = Plan.of(penalties, alphas, seeds, grid, path)
    wanted = arguments(run, plan.axes, len(plan.seeds))
    session = Session(
        run, wanted, out, workers=workers, executor=executor, timeout=timeout, retries=retries, on_change=on_change,
        progress=progress,
    )  # fmt: skip
    with session:
        session.run(plan)
    ablation = Ablation.load(session.path)
    warn_of_failures(ablation)
    return ablation


def warn_of_failures(ablation: Ablation) -> None:
    """Say that cells have failed, and how the first did."""
    failed = [row for row in ablation.rows if row["status"] == "failed"]
    if failed:
        first = failed[0]
        penalty, error = printable(first["penalty"]), printable(first["error"].splitlines()[0])
        warnings.warn(
            f"{len(failed)} of {len(ablation.rows)} cells failed, the first ({penalty}, "
            f"alpha={first['alpha']:g}, seed={first['seed']}) by {error}; "
            "see the column error of .rows; the next call tries them again.",
            CellsFailed,
            stacklevel=3,
        )
