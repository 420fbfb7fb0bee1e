"""A penalised parameter at a step, as the controls of its term see it."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.dtensor import here
from torchreg.functional.shrinkage import Scalar
from torchreg.training.group_steps import marked
from torchreg.training.sharded_step import part_of_step
from torchreg.training.step_rules import StepRule
from torchreg.training.term_part import Part


@dataclass(frozen=True)
class Site:
    """A penalised parameter at a step.

    Attributes:
        part: the part of the term that it belongs to, with the penalty.
        param: the parameter as the base steps it: a float32 master, or a DTensor that is cut over processes.
        state: the base's state of it, which may be written to once the base has made it, after its first step.
        group: its param group.
        rule: how its effective step follows from these.
        skipped: a 0-d bool tensor, whether a scaler skips this step on the device; None where no scaler may.
        place: its group's number and its position there; the tensor that stands there may change within a step.
        stepped: whether the base has stepped it; in `Control.before`, whether it has a state.
    """

    part: Part
    param: Tensor
    state: MutableMapping[str, Any]
    group: MutableMapping[str, Any]
    rule: StepRule
    skipped: Tensor | None
    place: tuple[int, int]
    stepped: bool

    @property
    def here(self) -> Tensor:
        """The parameter's entries that lie here, to read and write."""
        return here(self.param)

    def kept(self, key: str) -> Tensor:
        """The part that lies here of a tensor of the parameter's shape in its state, zeros at first."""
        if key not in self.state:
            self.state[key] = torch.zeros_like(self.param, requires_grad=False)
        return here(self.state[key])

    def step(self) -> Scalar:
        """The effective step of the entries that lie here, a number or a new tensor; 0 in a skipped step."""
        return part_of_step(self.param, self.state, self.group, self.rule)

    def group_step(self) -> Scalar:
        """`step` with a minus before entries without a gradient, for `torchreg.training.group_steps.settled`."""
        return part_of_step(self.param, self.state, self.group, marked(self.rule, self.part.penalty))
