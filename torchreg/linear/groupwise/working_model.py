"""The second-order model of a loss whose minimisers with a penalty of groups are found by `GroupNewton`."""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.linear.groupwise.conditions import GroupTerms
from torchreg.linear.groupwise.newton import GroupNewton
from torchreg.linear.groupwise.partition import Partition
from torchreg.linear.groupwise.system import GroupSystem
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.working_model import WorkingModel

_LEFT = 0.1  # of the model's gap, where its minimiser is good enough: the loss is not the model
_ROUNDS = 100  # for one minimiser


class GroupModel(WorkingModel[GroupTerms]):
    """A working model of whole groups.

    Args:
        problem: one output, of a datafit with a second derivative.
        parts: groups of the columns of X.
        width: the size of all, None where they differ.
        eta: linear predictor at which the first matrix is made, (n,).
    """

    patience = 0.3

    def __init__(self, problem: Problem, parts: Partition, width: int | None, eta: Tensor) -> None:
        self._parts, self._width = parts, width
        self._null = 2.0 * abs(float(problem.null_loss()))  # without a conjugate it can be negative
        super().__init__(problem, eta)

    def begin(self, w: Tensor) -> None:
        del w  # each minimiser starts from the coefficients that it is given

    def _minimised(self, w: Tensor, slope: Tensor, inside: GroupTerms) -> Tensor:
        system, strengths = self._system, inside.strengths.times(1.0 / self.factor)
        start, slope = system.parts.shaped(w), system.parts.shaped(slope)
        cross = system.gram.times(start) + slope
        system.aim(cross, self._null / self.factor + float((start * (cross + slope)).sum()))
        gap = system.gap(strengths, start, system.parts.norms(start), slope)
        young = torch.zeros_like(strengths.l1, dtype=torch.bool)
        newton = GroupNewton(system, strengths, start, slope, young)
        newton.run(_LEFT * gap, _ROUNDS)
        return newton.w.view(-1)

    def _together(self, needed: Tensor) -> Tensor:
        return self._parts.entries(self._parts.labels[needed].unique())

    def _emptied(self) -> None:
        device, limit = self.chosen.device, len(self.chosen)
        self._system = GroupSystem(device, 1, self._width, limit, self._null, thin=False)

    def _grown(self, block: Tensor, old: int, terms: GroupTerms) -> None:
        del terms
        sizes = self._parts.labels[self.index[old:]].unique_consecutive(return_counts=True)[1]
        self._system.append(block, block.new_zeros(block.shape[1]), sizes)

    def _renewed(self, block: Tensor, inside: GroupTerms) -> None:
        self._emptied()
        self._grown(block, 0, inside)
