"""What a place where cells run must offer: one way in, a future out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

Function = Callable[[Any], Any]


class CellExecutor(ABC):
    """Runs functions somewhere.

    Attributes:
        slots: how many it is given at once.
        stops: whether `stop` can end one that runs.
    """

    slots: int
    stops: bool

    @abstractmethod
    def open(self, ledger: Path) -> None:
        """Begin to work for a ledger."""

    @abstractmethod
    def submit(self, function: Function, argument: Any) -> Future[Any]:
        """Run ``function(argument)``; the future fails if the process dies that runs it."""

    @abstractmethod
    def settle(self, future: Future[Any]) -> None:
        """Told once of every future that is done."""

    @abstractmethod
    def lost(self, error: BaseException) -> bool:
        """Whether an error of a future says that its process is gone, so that the work may be given out again."""

    @abstractmethod
    def began(self, future: Future[Any]) -> float | None:
        """When it began to run, by `time.monotonic`; None if it has not, or if that is not known."""

    @abstractmethod
    def stop(self, future: Future[Any]) -> None:
        """End what runs for a future, its child processes too; the future fails. Only where ``stops``."""

    @abstractmethod
    def close(self) -> None:
        """Let go of all that this executor holds, and end what still runs."""


def pass_on(ours: Future[Any], theirs: Future[Any]) -> None:
    """Give a future what another, which is done, has; who keeps the first does not keep the second alive."""
    error = CancelledError() if theirs.cancelled() else theirs.exception()
    if error is None:
        ours.set_result(theirs.result())
    else:
        ours.set_exception(error)
