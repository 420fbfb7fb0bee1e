"""Cells run one after the other in this process."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torchreg.ablation.executors.base import CellExecutor, Function


class Serial(CellExecutor):
    """The caller's own process: nothing to send, nothing to start, no process to lose, none to stop."""

    slots = 1
    stops = False

    def open(self, ledger: Path) -> None:
        """Nothing to do."""

    def submit(self, function: Function, argument: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(argument))
        except Exception as error:
            future.set_exception(error)
        return future

    def settle(self, future: Future[Any]) -> None:
        """Nothing to do."""

    def lost(self, error: BaseException) -> bool:
        return False

    def began(self, future: Future[Any]) -> float | None:
        return None

    def stop(self, future: Future[Any]) -> None:
        raise NotImplementedError("What runs in this process cannot be ended from within.")

    def close(self) -> None:
        """Nothing to do."""
