"""Counting the steps that an optimizer has made, for what moves with them: a strength, a share of zeros."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.functional.dtensor import has_entries
from torchreg.training.cuda_graphs import is_capturing
from torchreg.training.gradients import entries


class StepCount(ABC):
    """What a term tells of each step that its optimizer has made. Abstract.

    Attributes:
        count: optimizer steps made.
    """

    count: int
    target = False  # whether it is a `TargetSparsity`, beside which nothing else may move a term
    _compiled = _captured = False

    @abstractmethod
    def _move(self, count: int) -> None:
        """Go to a count, with all that follows from it."""

    def step(self) -> None:
        """Follow a compiled or captured optimizer step; after a step that Python ran it does nothing."""
        if self._compiled or self._captured:
            self._compiled = False
            self._move(self.count + 1)

    def stepped(self, optimizer: Optimizer) -> None:
        """Called by the optimizer after each step that it has made.

        While a step is traced or captured, the count must stay out of the graph: it is only noted
        that there was a step, for `step` to count.
        """
        if torch.compiler.is_compiling():
            self._compiled = True
            return
        self._captured = is_capturing()
        if not self._captured and moves(optimizer):
            self._move(self.count + 1)

    def release(self) -> None:  # noqa: B027  most listen to no one
        """Stop listening to an optimizer that does not own the term."""

    def put_back(self, fields: dict[str, Any]) -> None:
        """Be what it was, after a load that failed."""
        vars(self).update(fields)


def moves(optimizer: Optimizer) -> bool:
    """Whether a step could move anything: not with every lr 0 and no gradient but zeros.

    Such is the step by which torch.distributed.checkpoint creates an optimizer's state. Gradients
    are read only where every lr is a 0 that lies on the host.
    """
    if not all("lr" in group and _is_zero(group["lr"]) for group in optimizer.param_groups):
        return True
    given = (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
    return any(has_entries(entries(p)) for p in given)


def _is_zero(lr: Any) -> bool:
    return not (isinstance(lr, Tensor) and lr.device.type != "cpu") and float(lr) == 0.0
