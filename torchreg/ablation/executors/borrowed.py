"""Cells run in an executor that the caller brings, such as Dask's."""

from __future__ import annotations

import pickle
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from torchreg.ablation.executors.base import CellExecutor, Function, pass_on
from torchreg.ablation.executors.worker import WorkerError
from torchreg.ablation.ledger.files import LedgerError
from torchreg.ablation.ledger.lock import shown_as_worker

_AT_ONCE = 1000  # what an executor of unknown size is given, so that a long plan does not fill its memory

# what is raised where work cannot be sent or a row cannot be written: trying again would not help
_NO_LOSS = (LedgerError, WorkerError, pickle.PickleError, AttributeError, ImportError, TypeError)


class Borrowed(CellExecutor):
    """Any `concurrent.futures.Executor`. It is used and never shut down; what it runs cannot be ended from here."""

    slots = _AT_ONCE
    stops = False

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._given: dict[Future[Any], Future[Any]] = {}

    def open(self, ledger: Path) -> None:
        self._ledger = ledger

    def submit(self, function: Function, argument: Any) -> Future[Any]:
        theirs, ours = self._executor.submit(_once, function, argument, self._ledger, uuid4().hex), Future[Any]()
        self._given[ours] = theirs
        theirs.add_done_callback(partial(pass_on, ours))
        return ours

    def settle(self, future: Future[Any]) -> None:
        del self._given[future]  # nobody else holds theirs: Dask runs again what is held when its worker dies
        if isinstance(error := future.exception(), BrokenExecutor):
            raise RuntimeError(
                f"The executor broke ({error}) and takes no more work. Every finished cell has its row: make a new "
                "executor and run the same line again. With workers=n a process that dies costs its own cell alone."
            ) from error

    def lost(self, error: BaseException) -> bool:
        return not isinstance(error, _NO_LOSS)  # each executor has errors of its own; a cell's own errors are rows

    def began(self, future: Future[Any]) -> float | None:
        return None

    def stop(self, future: Future[Any]) -> None:
        raise NotImplementedError("An executor of the caller's has no way to end what it runs.")

    def close(self) -> None:
        for theirs in self._given.values():
            theirs.cancel()


def _once(function: Function, argument: Any, ledger: Path, number: str) -> Any:
    """Each call has its number: Dask answers equal calls with the result, or the error, that it had for the first.

    An executor outlives a driver that is killed, and goes on with the cells that it has.
    """
    with shown_as_worker(ledger):
        return function(argument)
