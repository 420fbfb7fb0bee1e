"""Cells run one after the other in this process."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from torchreg.ablation.engines.base import Engine, Function


class Serial(Engine):
    """The caller's own process: nothing to send, nothing to start, no process to lose."""

    def submit(self, function: Function, argument: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(argument))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """There is nothing to let go of."""
