"""The second-order model of a loss whose minimisers with a penalty of groups are found by `GroupNewton`."""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.linear.groupwise.conditions import GroupTerms
from torchreg.linear.groupwise.partition import Partition
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.group_newton import GroupNewton
from torchreg.linear.solvers.group_quadratic import GroupQuadratic
from torchreg.linear.solvers.working_model import WorkingModel

_LEFT = 0.1  # of the model's gap, where its minimiser is good enough: the loss is not the model
_ROUNDS = 100  # for one minimiser


class GroupModel(WorkingModel[GroupTerms]):
    """A working model of whole groups.

    Args:
        problem: one output, of a datafit with a second derivative.
        parts: groups of the columns of X.
        eta: linear predictor at which the first matrix is made, (n,).
    """

    patience = 0.3

    def __init__(self, problem: Problem, parts: Partition, eta: Tensor) -> None:
        sizes = parts.sizes
        self._parts, self._width = parts, int(sizes[0]) if bool((sizes == sizes[0]).all()) else None
        self._null = 2.0 * abs(float(problem.null_loss()))  # without a conjugate it can be negative
        super().__init__(problem, eta)

    def begin(self, w: Tensor) -> None:
        del w  # each minimiser starts from the coefficients that it is given

    def _minimised(self, w: Tensor, slope: Tensor, inside: GroupTerms) -> Tensor:
        quadratic, penalty = self._quadratic, inside.times(1.0 / self.factor)
        cross = quadratic.gram.times(w) + slope
        quadratic.aim(cross, self._null / self.factor + float(torch.dot(w, cross + slope)))
        newton = GroupNewton(quadratic, penalty, w, slope)
        newton.run(_LEFT * float(quadratic.gap(penalty, w, slope)), _ROUNDS)
        return newton.w

    def _together(self, needed: Tensor) -> Tensor:
        return self._parts.entries(self._parts.labels[needed].unique())

    def _emptied(self) -> None:
        self._quadratic = GroupQuadratic(self.chosen.device, 1, self._width, self._null, thin=False)

    def _grown(self, block: Tensor, old: int, terms: GroupTerms) -> None:
        del terms
        sizes = self._parts.labels[self.index[old:]].unique_consecutive(return_counts=True)[1]
        self._quadratic.append(block, block.new_zeros(block.shape[1]), sizes)

    def _renewed(self, block: Tensor, inside: GroupTerms) -> None:
        self._emptied()
        self._grown(block, 0, inside)
