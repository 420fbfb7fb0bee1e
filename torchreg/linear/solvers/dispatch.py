"""Which solver follows which path: decided by the penalty's form and what the datafit knows, never by classes.

1. `ridge`: least squares without a kink, where a matrix can be factored, in closed form.
2. `newton_cg`: a second derivative, and no kink.
3. `pivoting`: least squares with a penalty of L1 type, one target after the other, exactly.
4. `group_newton`: least squares with a penalty of groups of rows.
5. `prox_newton`: a second derivative with a penalty of L1 type or, for one output, of groups; where no kink is left,
   as at alpha = 0, `newton_cg`.
6. `proximal_gradient`: everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchreg.linear.datafits import NoHessian
from torchreg.linear.groupwise.conditions import GroupTerms, group_terms
from torchreg.linear.groupwise.partition import group_of_rows, partition
from torchreg.linear.groupwise.path import GroupLeastSquares
from torchreg.linear.groupwise.working_model import GroupModel
from torchreg.linear.kinks import Start, allowed, is_kinkless, without_kink
from torchreg.linear.l1.least_squares import PivotLeastSquares
from torchreg.linear.l1.tasks import TaskPath
from torchreg.linear.moments import Moments
from torchreg.linear.objective.entry_terms import EntryTerms
from torchreg.linear.oracle import oracle_of
from torchreg.linear.points import PathPoint
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.newton_cg import NewtonCGPath
from torchreg.linear.solvers.path_following import PathFollower
from torchreg.linear.solvers.prox_newton import ProxNewton
from torchreg.linear.solvers.proximal_path import proximal_points
from torchreg.linear.solvers.ridge import RidgePath
from torchreg.linear.solvers.working_model import PivotModel
from torchreg.penalties import GroupForm, L1Form, Penalty

_LOOSEST = 1e-3  # tolerance of solvers that start where the last strength ended: worse starts cost more time
STRIDE = 0.9  # of the last strength: a longer way to the next has stations; from far away exchanges go astray
_FAR = 0.1  # the same for L1 under other losses, where a working set grows by few columns at once
_LONG = 0.5  # the same for groups under other losses, whose steps start from anywhere, but on few columns
_FACTORED = 6144  # rows and columns of the largest matrix that least squares with a ridge factors

Points = Iterator[PathPoint]
Strengths = Sequence[float]
Forms = Sequence[Any]  # of one kind


@dataclass(frozen=True)
class PathSolver:
    """A solver of one problem for descending strengths, each from the solution before.

    Attributes:
        name: of the algorithm, as this module's docstring has it.
        stride: of the last strength; on a longer way to the next, stations between save time. 0 where none ever do.
        points: of strengths and the penalties at them, the solutions.
    """

    name: str
    stride: float
    points: Callable[[Strengths, Sequence[Penalty]], Points]


def solver_for(
    problem: Problem, penalty: Penalty, *, start: Start | None, tol: float, max_iter: int, moments: Moments | None
) -> PathSolver:
    """The fastest solver that is exact for this problem.

    Args:
        problem: data and datafit.
        penalty: decides by its form.
        start: coefficients and intercept to start from.
        tol: gap relative to the null model's objective, for iterative solvers.
        max_iter: their limit.
        moments: of a quadratic problem, where they pay.
    """
    coef, quadratic, outputs = problem.no_coef(), problem.datafit.quadratic, problem.K
    form, rows = penalty.with_alpha(1.0).form(coef), grouped_rows(problem, penalty)
    first, firm = None if start is None else start[0], min(tol, _LOOSEST)

    def solver(name: str, stride: float, follow: Callable[[Strengths, Forms], Points]) -> PathSolver:
        return PathSolver(name, stride, lambda alphas, some: follow(alphas, [each.form(coef) for each in some]))

    if isinstance(form, L1Form) and is_kinkless(form):
        if quadratic and (moments is not None or _is_small(problem, form)):
            return solver("ridge", 0.0, lambda alphas, forms: RidgePath(problem, moments).points(forms))
        if has_hessian(problem):
            smooth = NewtonCGPath(problem, start, tol, max_iter)
            return solver("newton_cg", 0.0, lambda alphas, forms: smooth.points(forms))
    if isinstance(form, L1Form) and quadratic:
        if outputs is not None:
            return solver("pivoting", 0.0, TaskPath(problem, first, moments).points)
        path = PathFollower(PivotLeastSquares(oracle_of(problem, moments), first))
        return solver(
            "pivoting", 0.0, lambda alphas, forms: path.points(alphas, [EntryTerms.of(form, coef) for form in forms])
        )
    if rows is not None and quadratic:
        goal, labels = firm * float(problem.null_loss()), rows.unique(return_inverse=True)[1]
        groups = PathFollower(GroupLeastSquares(oracle_of(problem, moments), labels, goal, max_iter, first))
        return solver(
            "group_newton", STRIDE, lambda alphas, forms: groups.points(alphas, _grouped(problem, rows, forms))
        )
    if (isinstance(form, L1Form) or (rows is not None and outputs is None)) and has_hessian(problem):
        stride = 0.0 if outputs is not None else _FAR if rows is None else _LONG
        return solver("prox_newton", stride, partial(_newton_points, problem, rows, start, firm, max_iter))
    options: dict[str, Any] = {"start": start, "tol": tol, "max_iter": max_iter, "moments": moments}
    return PathSolver("proximal_gradient", STRIDE, lambda _, some: proximal_points(problem, some, **options))


def _newton_points(
    problem: Problem,
    rows: Tensor | None,
    start: Start | None,
    tol: float,
    max_iter: int,
    alphas: Strengths,
    forms: Forms,
) -> Points:
    """Proximal Newton while there are kinks, Newton's method where there are none; ``rows``: groups of coef's rows."""
    coef = problem.no_coef()
    smooth = [without_kink(form, coef) for form in forms]
    count = next((k for k, form in enumerate(smooth) if form is not None), len(forms))
    if count:
        start = None if start is None else allowed(start, forms[0])
        model, terms = _newton_terms(problem, rows, forms[:count])
        for point in PathFollower(ProxNewton(problem, model, start, tol, max_iter)).points(alphas[:count], terms):
            start = (point.dense(len(coef)), point.intercept)
            yield point
    yield from NewtonCGPath(problem, start, tol, max_iter).points([form for form in smooth[count:] if form is not None])


def _newton_terms(problem: Problem, rows: Tensor | None, forms: Forms) -> tuple[Callable[[Tensor], Any], Sequence[Any]]:
    """What makes a working model of the loss, and the penalties in the terms that it understands."""
    coef = problem.no_coef()
    if rows is None:
        return partial(PivotModel, problem), [EntryTerms.of(form, coef) for form in forms]
    terms = _grouped(problem, rows, forms)
    return partial(GroupModel, problem, terms[0].parts), terms


def _grouped(problem: Problem, rows: Tensor, forms: Forms) -> list[GroupTerms]:
    """Penalties of groups of the rows of coef, all on one partition of its entries."""
    present, labels = rows.unique(return_inverse=True)
    parts = partition(labels.repeat_interleave(problem.K or 1))
    return group_terms(forms, problem.no_coef(), parts, present)


def _is_small(problem: Problem, form: L1Form) -> bool:
    """Whether a matrix over the rows, or over the columns that are not forced to zero, can be factored."""
    coef = problem.no_coef()
    closed = torch.as_tensor(form.l1, dtype=coef.dtype, device=coef.device).expand(coef.shape) > 0.0
    columns = int((~closed if coef.dim() == 1 else ~closed.all(1)).sum())
    return min(problem.design.n, columns) <= _FACTORED


def pivots(problem: Problem, penalty: Penalty) -> bool:
    """Whether pivoting solves it: least squares of one target with a penalty of type L1."""
    form = penalty.form(problem.no_coef())
    return problem.datafit.quadratic and problem.K is None and isinstance(form, L1Form)


def grouped_rows(problem: Problem, penalty: Penalty) -> Tensor | None:
    """The group of each row of coef, (p,), where the penalty is one of groups of rows, else None."""
    coef = problem.no_coef()
    form = penalty.form(coef)
    return group_of_rows(form.by, coef) if isinstance(form, GroupForm) else None


def has_hessian(problem: Problem) -> bool:
    """Whether the datafit knows its second derivative."""
    try:
        problem.datafit.hessian_map(problem.null_eta(0.0)[:1], problem.y[:1])
    except NoHessian:
        return False
    return True
