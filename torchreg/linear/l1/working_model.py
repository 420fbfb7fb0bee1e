"""The second-order model of a loss whose minimisers with a penalty of type L1 are found by pivoting."""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.functional.shrinkage import Scalar
from torchreg.linear.l1.conditions import EntryConditions
from torchreg.linear.newton.working_model import WorkingModel
from torchreg.linear.pivoting.solver import PivotSolver
from torchreg.linear.pivoting.subproblem import Subproblem
from torchreg.linear.problem import Problem


class PivotModel(WorkingModel[EntryConditions]):
    """A working model with exact minimisers; the intercept is a column of the matrix.

    Args:
        problem: one output, of a datafit with a second derivative.
        eta: linear predictor at which the first matrix is made, (n,).
    """

    patience = 0.1

    def __init__(self, problem: Problem, eta: Tensor) -> None:
        super().__init__(problem, eta)
        design = problem.design
        self._solver = PivotSolver(design.device, design.p + 1, min(design.n, design.p + 1))
        if self.head:
            self._solver.append(self.curvature.sum().reshape(1, 1), None)

    def begin(self, w: Tensor) -> None:
        if self.size:
            self._solver.begin(w)

    def minimiser(self, w: Tensor, g: Tensor, inside: EntryConditions) -> Tensor:
        form, factor = inside.form, self.factor

        def parts(strength: Scalar) -> Tensor:
            return torch.cat([w.new_zeros(self.head), torch.as_tensor(strength, device=w.device) / factor])

        c = self._solver.tableau.gram @ w + g / factor
        l2 = parts(form.l2) if inside.ridge else None
        solved = self._solver.solve(Subproblem(c, parts(form.l1), l2, form.lower))
        return solved.clamp(
            min=form.lower
        )  # which pivoting meets to rounding; a copy, since the solver goes on in its own

    def _together(self, needed: Tensor) -> Tensor:
        return needed.nonzero().flatten()

    def _grown(self, old: int) -> None:
        block = self.columns.gram(self.curvature, old)
        if self.head:
            block = torch.cat([self.columns.transposed(self.curvature)[None, old:], block])
        self._solver.append(block, None)

    def _renewed(self) -> None:
        gram = self.columns.gram(self.curvature)
        if self.head:
            edge = torch.cat([self.curvature.sum()[None], self.columns.transposed(self.curvature)])
            gram = torch.cat([edge[None], torch.cat([edge[1:, None], gram], 1)])
        self._solver.replace(gram, None)
