"""The second-order model of a loss whose minimisers with a penalty of groups are found by `GroupNewton`."""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.linear.groupwise.conditions import GroupTerms
from torchreg.linear.groupwise.partition import Partition
from torchreg.linear.newton.working_model import WorkingModel
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.group_newton import GroupNewton
from torchreg.linear.solvers.group_quadratic import GroupQuadratic

_LEFT = 0.1  # of the model's gap, where its minimiser is good enough: the loss is not the model
_ROUNDS = 100  # for one minimiser


class GroupModel(WorkingModel[GroupTerms]):
    """A working model of whole groups; the intercept, if there is one, is profiled out of the matrix.

    Args:
        problem: one output, of a datafit with a second derivative.
        parts: groups of the columns of X.
        width: the size of all, None where they differ.
        eta: linear predictor at which the first matrix is made, (n,).
    """

    patience = 0.3

    def __init__(self, problem: Problem, parts: Partition, width: int | None, eta: Tensor) -> None:
        super().__init__(problem, eta)
        self._parts, self._width = parts, width
        self._null = 2.0 * abs(float(problem.null_loss()))  # without a conjugate it can be negative
        self._renewed()

    def begin(self, w: Tensor) -> None:
        del w  # each minimiser starts from the coefficients that it is given

    def minimiser(self, w: Tensor, g: Tensor, inside: GroupTerms) -> Tensor:
        head, old, pull = self.head, w[self.head :], g / self.factor
        rest = pull[:1] / self._total
        if not len(old):
            return w + rest[:head]
        quadratic, penalty = self._quadratic, inside.times(1.0 / self.factor)
        slope = pull[head:] - self._edge * pull[0] if head else pull
        cross = quadratic.gram.times(old) + slope
        quadratic.aim(cross, self._null / self.factor + float(torch.dot(old, cross + slope)))
        newton = GroupNewton(quadratic, penalty, old, slope)
        newton.run(_LEFT * float(quadratic.gap(penalty, old, slope)), _ROUNDS)
        fresh = newton.w
        return torch.cat([w[:head] + rest[:head] - self._edge @ (fresh - old), fresh]) if head else fresh

    def _together(self, needed: Tensor) -> Tensor:
        return self._parts.entries(self._parts.labels[needed].unique())

    def _grown(self, old: int) -> None:
        piece = self.columns.gram(self.curvature, old)
        if self.head:
            self._edge = self.columns.transposed(self.curvature) / self._total
            piece.addr_(self._edge, self._edge[old:], alpha=-float(self._total))
        sizes = self._parts.labels[self.index[old:]].unique_consecutive(return_counts=True)[1]
        self._quadratic.append(piece, piece.new_zeros(piece.shape[1]), sizes)

    def _renewed(self) -> None:
        self._quadratic = GroupQuadratic(self.curvature.device, 1, self._width, self._null, thin=False)
        self._total, self._edge = self.curvature.sum(), self.curvature[:0]
        if len(self.index):
            self._grown(0)
