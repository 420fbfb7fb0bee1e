"""Cells run in an executor that the caller brings, such as Dask's."""

from __future__ import annotations

import pickle
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from torchreg.ablation.engines.base import Engine, Function
from torchreg.ablation.ledger.shard import LedgerError

_FOR_ALL = (LedgerError, pickle.PickleError, TypeError, AttributeError, ImportError)
# It could not write its row, or could not be sent or loaded: so it would be with every other cell.
_AT_ONCE = 1000  # what an executor of unknown size is given, so that a long plan does not fill its memory


class Borrowed(Engine):
    """Any `concurrent.futures.Executor`. It is used and never shut down; what it runs cannot be ended from here."""

    slots = _AT_ONCE
    stops = False

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._given: set[Future[Any]] = set()

    def open(self, ledger: Path) -> None:
        """It is open."""

    def submit(self, function: Function, argument: Any) -> Future[Any]:
        future = self._executor.submit(function, argument)
        self._given.add(future)
        return future

    def settle(self, future: Future[Any]) -> None:
        self._given.discard(future)

    def lost(self, error: BaseException) -> bool:
        return not isinstance(error, _FOR_ALL)  # executors have errors of their own; a cell's own errors are rows

    def began(self, future: Future[Any]) -> float | None:
        return None

    def stop(self, future: Future[Any]) -> None:
        raise NotImplementedError("An executor of the caller's has no way to end what it runs.")

    def close(self) -> None:
        for future in self._given:
            future.cancel()
