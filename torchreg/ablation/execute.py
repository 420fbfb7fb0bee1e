"""One chain of cells run in whatever process, each row made durable there before the next cell begins."""

from __future__ import annotations

import copy
import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchreg.ablation.cell import Cell
from torchreg.ablation.executors.worker import WorkerError
from torchreg.ablation.fingerprint import Fingerprint
from torchreg.ablation.grid import TAKEN
from torchreg.ablation.json_values import dumps, plain
from torchreg.ablation.ledger.directory_id import sees
from torchreg.ablation.ledger.files import LedgerError
from torchreg.ablation.ledger.provenance import now
from torchreg.ablation.ledger.reader import Row, as_line
from torchreg.ablation.ledger.rows import cell_folder
from torchreg.ablation.ledger.shard import Place, append
from torchreg.ablation.plan import CellSpec
from torchreg.ablation.user_function import Run, title

_TOLD = 4000  # characters of a traceback
_seen: set[str] = set()  # code that this process has been seen to run


@dataclass(frozen=True)
class Task:
    """What a process needs for a chain of cells.

    Attributes:
        run: the user's function.
        arguments: what it takes of ``penalty, seed, cell`` and the axes.
        cells: to be run in this order.
        ledger: its directory, absolute.
        mark: the ledger's own name, by which a process on another machine knows that it sees the same directory.
        source: sha256 of what the function does.
        code: of the part of it that every process must have, byte code.
        files: name of the directory of the cells' own files.
        attempts: of each cell, this one included.
    """

    run: Run
    arguments: tuple[str, ...]
    cells: tuple[CellSpec, ...]
    ledger: Path
    mark: str
    source: str
    code: str
    files: str
    attempts: tuple[int, ...]


@dataclass(frozen=True)
class Done:
    """Rows of a chain, where they were written (None where the ledger is not seen), and axes that no cell has read."""

    rows: tuple[Row, ...]
    places: tuple[Place | None, ...]
    unread: frozenset[str] = frozenset()


def execute(task: Task) -> Done:
    """Run the cells of a chain up to the first that fails.

    Raises:
        LedgerError: if a row could not be written.
        WorkerError: if this process has other code than the driver.
    """
    _check_code(task)
    here = sees(task.ledger, task.mark)
    rows, places, unread = [], [], frozenset(task.cells[0].axes) - set(task.arguments)
    for spec, attempt in zip(task.cells, task.attempts, strict=True):
        home = cell_folder(task.ledger, spec.key, task.files)
        previous = cell_folder(task.ledger, spec.previous, task.files) if spec.previous else None
        axes = copy.deepcopy(dict(spec.axes))  # lists and dicts in it are the run's, to be changed as it likes
        cell = Cell(spec.penalty, spec.seed, axes, home, previous)
        row = _run(task, spec, cell, attempt)
        places.append(append(task.ledger, as_line(row)) if here else None)
        rows.append(row)
        if row["status"] == "failed":
            unread = frozenset()  # it may have been on its way to them
            break
        unread &= cell.axes.unread
    return Done(tuple(rows), tuple(places), unread)


def _check_code(task: Task) -> None:
    """See that this process runs what its driver hashed: a file may have been edited after the driver imported it."""
    if task.code in _seen:
        return
    found = Fingerprint(task.run).code
    if found != task.code:
        raise WorkerError(
            f"A worker has other code of {title(task.run)} than its driver, sha256 {found} for {task.code} (it is "
            f"{sys.implementation.cache_tag}). A file that it is in was edited since the driver has imported it, or "
            "the worker has another copy or another Python; start the driver again. All rows are kept."
        )
    _seen.add(task.code)


def failed_row(spec: CellSpec, source: str, attempt: int, error: str) -> Row:
    """The row of a cell that left none of its own; nobody knows how long it ran."""
    return _row(spec, source, attempt, "failed", {}, math.nan, error)


def _run(task: Task, spec: CellSpec, cell: Cell, attempt: int) -> Row:
    offered = {"penalty": spec.penalty, "seed": spec.seed, "cell": cell, **copy.deepcopy(dict(spec.axes))}
    begin, start, process = now(), time.perf_counter(), os.getpid()
    metrics: dict[str, Any] = {}
    error = None
    try:
        metrics = _checked(task.run(**{name: offered[name] for name in task.arguments}), spec)
        if spec.before is not None and not cell.saved:
            raise RuntimeError(
                "On a path run must call cell.save(state), and begin at cell.start() if that is not None."
            )
    except (LedgerError, KeyboardInterrupt):
        raise
    except BaseException as raised:  # SystemExit too: a run that calls sys.exit has failed
        metrics, error = {}, _told(raised)
    if os.getpid() != process:
        os._exit(1)  # run has forked, and its child has come back too: there is one driver, one worker, one row
    status = "ok" if error is None else "failed"
    seconds = time.perf_counter() - start + cell.seconds_elsewhere
    return _row(spec, task.source, attempt, status, metrics, seconds, error) | {"start": begin}


def _checked(returned: Any, spec: CellSpec) -> dict[str, Any]:
    if not isinstance(returned, Mapping):
        raise TypeError(f"run must return a mapping of metrics such as {{'accuracy': 0.9}}, got {returned!r:.200}.")
    metrics: dict[str, Any] = plain(returned, "metrics")
    dumps(metrics)  # raises for what has JSON's types and yet cannot be written, such as an int of 5000 digits
    if not metrics:
        raise ValueError("run returned no metric; return at least one, such as {'accuracy': 0.9}.")
    if taken := [name for name in metrics if name in TAKEN or name in spec.axes]:
        raise ValueError(f"run returned a metric {taken[0]!r}, a name that a column has; name it otherwise.")
    return metrics


def _row(
    spec: CellSpec, source: str, attempt: int, status: str, metrics: dict[str, Any], seconds: float, error: str | None
) -> Row:
    return {
        "key": spec.key,
        "penalty": spec.name,
        "alpha": spec.alpha,
        "seed": spec.seed,
        "axes": dict(spec.axes),
        "mode": spec.mode,
        "before": spec.before,
        "status": status,
        "metrics": metrics,
        "seconds": round(seconds, 6),
        "attempt": attempt,
        "error": error,
        "source": source,
        "end": now(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def _told(error: BaseException) -> str:
    """The message, and the end of the traceback within the user's files."""
    try:
        message = f"{type(error).__name__}: {error}"
    except Exception:  # __str__ is the user's too
        message = f"{type(error).__name__}: its text cannot be made"
    text = "".join(traceback.format_exception(error, limit=-8))
    return f"{message[:_TOLD]}\n{text[-_TOLD:]}".encode(errors="backslashreplace").decode()
