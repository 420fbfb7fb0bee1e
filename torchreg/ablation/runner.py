"""The loop that every executor is driven by: hand out, wait, retry what was lost, stop what takes too long."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from torchreg.ablation.execute import Done, Task, execute, failed_row
from torchreg.ablation.executors.base import CellExecutor
from torchreg.ablation.ledger.ledger import Ledger
from torchreg.ablation.ledger.reader import Row
from torchreg.ablation.plan import CellSpec
from torchreg.ablation.user_function import Run

_LOOK = 0.1  # seconds between looks at what may have run too long


@dataclass
class _HandedOut:
    """A chain that an executor has, and how often it was given out."""

    task: Task
    tries: int = 1
    late: bool = False


class Runner:
    """Drives an executor over the cells of a ledger.

    Args:
        executor: where cells run, open.
        ledger: where rows go, held.
        run: the user's function, and ``arguments`` that it takes.
        retries: how often a cell is given out again whose process died.
        timeout: seconds that a cell may take; None for no limit.
    """

    def __init__(
        self, executor: CellExecutor, ledger: Ledger, run: Run, arguments: tuple[str, ...],
        *, retries: int, timeout: float | None,
    ) -> None:  # fmt: skip
        self._executor, self._ledger, self._run, self._arguments = executor, ledger, run, arguments
        self._retries, self._timeout = retries, timeout
        self._metrics: tuple[str, set[str]] | None = None  # of the first row that is ok, with its cell

    def run(self, chains: Iterable[Sequence[CellSpec]], *, progress: bool) -> None:
        """Run what has no durable row that is ok.

        Raises:
            LedgerError: if a row could not be written.
            ValueError: if two cells return other metrics.
        """
        chains, rows = list(chains), self._ledger.rows()
        for row in rows.values():
            self._check_metrics(row)
        tasks = [task for task in (self._task(chain, rows) for chain in chains) if task.cells]
        total, left = sum(map(len, chains)), sum(len(task.cells) for task in tasks)
        with tqdm(total=total, initial=total - left, unit="cell", disable=None if progress else True) as self._bar:
            self._failed = 0
            self._unread: frozenset[str] | None = None  # axes, by all chains that were run here
            self._drive(deque(map(_HandedOut, tasks)))
        self._tell_unread()

    def _task(self, chain: Sequence[CellSpec], rows: Any) -> Task:
        """What is still to do of a chain: from its first cell on that is not done."""
        keys = [spec.key for spec in chain]
        done = next((k for k, key in enumerate(keys) if rows.get(key, {"status": ""})["status"] != "ok"), len(keys))
        attempts = tuple(rows[key]["attempt"] + 1 if key in rows else 1 for key in keys[done:])
        ledger = self._ledger
        return Task(
            self._run, self._arguments, tuple(chain[done:]), ledger.path, ledger.mark, ledger.source, ledger.code,
            ledger.cells, attempts,
        )  # fmt: skip

    def _drive(self, waiting: deque[_HandedOut]) -> None:
        running: dict[Future[Any], _HandedOut] = {}
        while waiting or running:
            while waiting and len(running) < self._executor.slots:
                given = waiting.popleft()
                running[self._executor.submit(execute, given.task)] = given
            self._bar.set_postfix(failed=self._failed, running=len(running))
            done, _ = wait(running, None if self._timeout is None else _LOOK, FIRST_COMPLETED)
            for future in done:
                again = self._settled(future, running.pop(future))
                waiting.extend(again)
            self._stop_late(running)

    def _tell_unread(self) -> None:
        for axis in sorted(self._unread or ()):
            warnings.warn(
                f"No cell has read the axis {axis!r}, so it changed nothing: rows that differ in it alone are copies. "
                f"Read cell.axes[{axis!r}], take {axis!r} as an argument, or leave it out of the grid.",
                UserWarning,
                stacklevel=5,
            )

    def _settled(self, future: Future[Any], given: _HandedOut) -> list[_HandedOut]:
        """Take in what a future brought; returns what must be given out again."""
        self._executor.settle(future)
        error = CancelledError() if future.cancelled() else future.exception()
        if error is not None and (future.cancelled() or self._executor.lost(error)):
            return self._lost(given, error)
        done: Done = future.result()
        self._ledger.keep()
        self._ledger.write(done.rows, done.places)
        self._unread = done.unread if self._unread is None else self._unread & done.unread
        self._count(done.rows)
        return []

    def _lost(self, given: _HandedOut, error: BaseException) -> list[_HandedOut]:
        """A process died or was stopped: what it wrote is there, the rest goes out again or has failed."""
        rows = self._ledger.rows()
        left = self._task(given.task.cells, rows)
        finished = len(given.task.cells) - len(left.cells)
        self._count([rows[spec.key] for spec in given.task.cells[:finished]])
        if not left.cells:
            return []
        tries = 1 if finished else given.tries  # of the first cell that is left
        attempts = (left.attempts[0] + tries, *left.attempts[1:])
        if tries <= self._retries and not given.late:
            return [_HandedOut(replace(left, attempts=attempts), tries + 1)]
        late = f"TimeoutError: stopped, since it took longer than {self._timeout} s"
        told = "; ".join((f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())))
        what = late if given.late else f"its process died ({told})"
        row = failed_row(left.cells[0], left.source, attempts[0] - 1, what)
        self._ledger.write([row])
        self._count([row])
        return []

    def _count(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._check_metrics(row)
        self._failed += sum(row["status"] == "failed" for row in rows)
        self._bar.update(len(rows))

    def _check_metrics(self, row: Row) -> None:
        if row["status"] != "ok":
            return
        told, found = f"{row['penalty']}, alpha={row['alpha']:g}, seed={row['seed']}", set(row["metrics"])
        self._metrics = self._metrics or (told, found)
        if found != self._metrics[1]:
            raise ValueError(
                f"Cells return different metrics: {sorted(self._metrics[1])} for {self._metrics[0]}, {sorted(found)} "
                f"for {told}; return the same names from each run (nan where one has no value). All rows are kept."
            )

    def _stop_late(self, running: dict[Future[Any], _HandedOut]) -> None:
        if self._timeout is None:
            return
        for future, given in running.items():
            began = self._executor.began(future)
            allowed = self._timeout * len(given.task.cells)
            if began is not None and time.monotonic() - began > allowed and not given.late and not future.done():
                given.late = True
                self._executor.stop(future)
