"""Paths of generalised linear models with a penalty of groups: proximal Newton steps, Newton's method inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from torchreg.linear.groupwise.conditions import group_terms
from torchreg.linear.groupwise.partition import partition
from torchreg.linear.groupwise.working_model import GroupModel
from torchreg.linear.newton.path import NewtonPath
from torchreg.linear.points import PathPoint
from torchreg.linear.problem import Problem
from torchreg.penalties import GroupForm


class GroupNewtonPath:
    """Follows one path, from the strongest penalty to the weakest.

    Args:
        problem: one output, of a datafit with a second derivative.
        rows: the group of each column of X, (p,).
        start: (coef, intercept) to start from, which the penalties allow, or None.
        tol: a point is good enough when its gap is below ``tol`` times the null model's loss.
        max_iter: Newton steps for one strength.
    """

    def __init__(
        self, problem: Problem, rows: Tensor, start: tuple[Tensor, Tensor] | None, tol: float, max_iter: int
    ) -> None:
        self._like = problem.no_coef()
        self._present, labels = rows.unique(return_inverse=True)
        self._parts, sizes = partition(labels), torch.bincount(labels)
        self._width = int(sizes[0]) if bool((sizes == sizes[0]).all()) else None
        model_at = partial(GroupModel, problem, self._parts, self._width)
        self._path = NewtonPath(problem, model_at, start, tol, max_iter)

    def points(self, alphas: Sequence[float], forms: Sequence[GroupForm]) -> Iterator[PathPoint]:
        """The solutions, one for each form.

        Args:
            alphas: strengths, descending; only their ratios matter.
            forms: the penalty at each of them.
        """
        parts, present = self._parts, self._present
        return self._path.points(alphas, group_terms(forms, self._like, parts, present))
