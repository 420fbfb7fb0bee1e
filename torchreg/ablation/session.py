"""A ledger, an executor and a function held together for as many grids as are asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from torchreg.ablation.executors.base import CellExecutor
from torchreg.ablation.executors.borrowed import Borrowed
from torchreg.ablation.executors.processes import Processes
from torchreg.ablation.executors.serial import Serial
from torchreg.ablation.ledger.ledger import Ledger
from torchreg.ablation.ledger.reader import Row
from torchreg.ablation.plan import Plan
from torchreg.ablation.runner import Runner
from torchreg.ablation.user_function import Run, check_travels, title

OnChange = Literal["error", "new"]


class Session:
    """Runs plans into one ledger, after everything that can be checked before has been.

    Args:
        run: the user's function.
        wanted: what it takes, from `arguments`.
        out: the directory; None takes ``runs/`` and the function's name.
        workers, executor, timeout, retries, on_change, progress: as of `ablate`.
    """

    def __init__(
        self, run: Run, wanted: tuple[str, ...], out: str | Path | None, *, workers: int,
        executor: Executor | CellExecutor | None, timeout: float | None, retries: int, on_change: OnChange,
        progress: bool,
    ) -> None:  # fmt: skip
        if on_change not in ("error", "new"):
            raise ValueError(f"on_change must be 'error' or 'new', got {on_change!r}.")
        if retries < 0:
            raise ValueError(f"retries must be >= 0, got {retries!r}.")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds, or None for no limit, got {timeout!r}.")
        self._run, self._wanted = run, wanted
        self._retries, self._timeout, self._progress = retries, timeout, progress
        self._executor = executor_for(workers, executor)
        if timeout is not None and not self._executor.stops:
            raise ValueError(
                f"timeout={timeout!r} needs a process that can be ended; give workers=1 or more, or RayExecutor()."
            )
        if workers:
            check_travels(run)
        out = Path("runs") / title(run).rpartition(".")[2] if out is None else Path(out)
        self.path = out.resolve()  # now: run may change the working directory
        self._ledger = Ledger(self.path, run, new=on_change == "new")

    def __enter__(self) -> Self:
        if unknown := self._ledger.unknown:
            warnings.warn(
                f"{title(self._run)} holds {len(unknown)} values that cannot be compared with those of a later call: "
                f"{', '.join(unknown)}. Rows count whatever these hold then; bind plain data, or make it an axis of "
                "the grid.",
                RuntimeWarning,
                stacklevel=4,
            )
        try:  # Ctrl-C may come at any line
            self._ledger.__enter__()
            self._executor.open(self._ledger.path)
            return self
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"Every finished cell is in {self.path}; run the same line again to go on.")
        try:
            self._executor.close()
        finally:
            self._ledger.__exit__(kind, error, trace)

    def run(self, *plans: Plan) -> None:
        """Run the plans' cells that are not done, those of all plans side by side."""
        for plan in plans:
            self._ledger.begin(plan)
        runner = Runner(
            self._executor, self._ledger, self._run, self._wanted, retries=self._retries, timeout=self._timeout
        )
        runner.run(chain.from_iterable(plan.chains() for plan in plans), progress=self._progress)

    def rows(self) -> Mapping[str, Row]:
        """The row that counts of each cell in the ledger, by key."""
        return self._ledger.rows()


def executor_for(workers: int, executor: Executor | CellExecutor | None) -> CellExecutor:
    """Where cells run.

    Raises:
        TypeError: if ``executor`` cannot be given work.
        ValueError: if ``workers`` is negative, or both are given.
    """
    if workers < 0 or workers != int(workers):
        raise ValueError(f"workers must be a whole number >= 0, got {workers!r}.")
    if executor is None:
        return Processes(workers) if workers else Serial()
    if workers:
        raise ValueError("Give either workers or an executor: the executor has workers of its own.")
    if isinstance(executor, CellExecutor):
        return executor
    submit: Callable[..., object] | None = getattr(executor, "submit", None)
    if not callable(submit):
        raise TypeError(f"executor must have submit(function, argument) -> Future, got {executor!r}.")
    return Borrowed(executor)
