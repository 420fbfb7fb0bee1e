"""Paths of generalised linear models with a penalty of type L1: proximal Newton steps solved by pivoting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from torchreg.linear.l1.conditions import EntryConditions
from torchreg.linear.l1.working_model import PivotModel
from torchreg.linear.newton.path import NewtonPath
from torchreg.linear.points import PathPoint
from torchreg.linear.problem import Problem
from torchreg.penalties import L1Form


class L1NewtonPath:
    """Follows one path, from the strongest penalty to the weakest.

    Args:
        problem: one output, of a datafit with a second derivative.
        start: (coef, intercept) to start from, which the penalties allow, or None.
        tol: a point is good enough when its gap is below ``tol`` times the null model's loss.
        max_iter: Newton steps for one strength.
    """

    def __init__(self, problem: Problem, start: tuple[Tensor, Tensor] | None, tol: float, max_iter: int) -> None:
        self._like = problem.no_coef()
        self._path = NewtonPath(problem, partial(PivotModel, problem), start, tol, max_iter)

    def points(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions, one for each form.

        Args:
            alphas: strengths, descending; only their ratios matter.
            forms: the penalty at each of them.
        """
        return self._path.points(alphas, [EntryConditions(form, self._like) for form in forms])
