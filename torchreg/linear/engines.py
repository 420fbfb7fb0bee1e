"""Which algorithm solves which problem: decided by the penalty's form and what the datafit knows, never by classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from torchreg.linear.certificate import full_gap
from torchreg.linear.datafits import NoHessian
from torchreg.linear.designs.base import divided
from torchreg.linear.groupwise.newton_path import GroupNewtonPath
from torchreg.linear.groupwise.partition import group_of_rows
from torchreg.linear.groupwise.path import GroupPath
from torchreg.linear.intercept import mean_of
from torchreg.linear.kinks import Start, allowed, is_smooth, without_kink
from torchreg.linear.l1.column import ColumnPath
from torchreg.linear.l1.least_squares import L1Path
from torchreg.linear.l1.multinomial import MultinomialPath
from torchreg.linear.l1.newton import L1NewtonPath
from torchreg.linear.l1.tasks import TaskPath
from torchreg.linear.moments import Moments
from torchreg.linear.oracle import DataOracle, GramOracle, Oracle
from torchreg.linear.points import PathPoint, nonzero_rows
from torchreg.linear.problem import Problem
from torchreg.linear.proximal_gradient import proximal_gradient
from torchreg.linear.solvers.newton_cg import NewtonCGPath
from torchreg.linear.solvers.ridge import RidgePath
from torchreg.penalties import GroupForm, L1Form, Penalty

_SHARE = 0.3  # of the tolerance: a gap over a working set that leaves room for rounding
_LOOSEST = 1e-3  # tolerance of engines that start where the last strength ended: worse starts cost more time
STRIDE = 0.9  # of the last strength: a longer way to the next has stations; from far away exchanges go astray
_LONG = 0.5  # the same for groups under other losses, whose steps start from anywhere, but on few columns
_ROUNDING = 1e-13  # of the largest correlation that there can be: an unpenalised coefficient's may be rounding
_FACTORED = 6144  # rows and columns of the largest matrix that least squares with a ridge factors


class FormPath(Protocol):
    """Solves for descending strengths, given as the penalty's forms, all of one kind."""

    def points(self, alphas: Sequence[float], forms: Sequence[Any], /) -> Iterator[PathPoint]:
        """The solutions, one for each form."""


class Engine(ABC):
    """Solves one problem for descending strengths, each from the solution before.

    Attributes:
        stride: of the last strength; on a longer way to the next, stations between save time. 0 where none ever do.
    """

    stride: float = STRIDE

    @abstractmethod
    def points(self, alphas: Sequence[float], penalties: Sequence[Penalty]) -> Iterator[PathPoint]:
        """The solutions, one for each penalty."""


class L1Engine(Engine):
    """Least squares with a penalty of type L1: exact points by pivoting."""

    def __init__(self, problem: Problem, start: Start | None, moments: Moments | None) -> None:
        self._coef = problem.no_coef()
        self._path = L1Path(oracle_of(problem, moments), None if start is None else start[0])

    def points(self, alphas: Sequence[float], penalties: Sequence[Penalty]) -> Iterator[PathPoint]:
        forms = [cast(L1Form, penalty.form(self._coef)) for penalty in penalties]
        return self._path.points(alphas, forms)


class TaskEngine(Engine):
    """Least squares of several targets with a penalty of type L1 on each coefficient: target by target."""

    def __init__(self, problem: Problem, start: Start | None, moments: Moments | None) -> None:
        self._coef = problem.no_coef()
        self._path = TaskPath(problem, None if start is None else start[0], moments)

    def points(self, alphas: Sequence[float], penalties: Sequence[Penalty]) -> Iterator[PathPoint]:
        return self._path.points(alphas, [cast(L1Form, penalty.form(self._coef)) for penalty in penalties])


class GroupEngine(Engine):
    """Least squares with a penalty of groups of rows: Newton's method on the groups that are not zero."""

    def __init__(
        self, problem: Problem, rows: Tensor, start: Start | None, tol: float, max_iter: int, moments: Moments | None
    ) -> None:
        self._coef = problem.no_coef()
        target = _SHARE * tol * float(problem.null_loss())
        coef = None if start is None else start[0]
        self._path = GroupPath(oracle_of(problem, moments), rows, target, max_iter, coef)

    def points(self, alphas: Sequence[float], penalties: Sequence[Penalty]) -> Iterator[PathPoint]:
        return self._path.points(alphas, [cast(GroupForm, penalty.form(self._coef)) for penalty in penalties])


class NewtonEngine(Engine):
    """A second derivative and a penalty of L1 or group type: proximal Newton; Newton's method where no kink is left.

    ``rows`` is the group of each row of coef, None for a penalty of L1 type.
    """

    def __init__(self, problem: Problem, rows: Tensor | None, start: Start | None, tol: float, max_iter: int) -> None:
        self._problem, self._rows, self._start = problem, rows, start
        self._tol, self._max_iter = tol, max_iter
        single = STRIDE if rows is None else _LONG
        self.stride = single if problem.K is None else 0.0

    def points(self, alphas: Sequence[float], penalties: Sequence[Penalty]) -> Iterator[PathPoint]:
        problem, start = self._problem, self._start
        coef = problem.no_coef()
        forms = [cast(L1Form | GroupForm, penalty.form(coef)) for penalty in penalties]
        smooth = [without_kink(form, coef) for form in forms]
        count = next((k for k, form in enumerate(smooth) if form is not None), len(forms))
        if count:
            start = None if start is None else allowed(start, forms[0])
            path = newton_path_for(problem, forms[0], self._rows, start, self._tol, self._max_iter)
            for point in path.points(alphas[:count], forms[:count]):
                start = (point.dense(len(coef)), point.intercept)
                yield point
        rest = [form for form in smooth[count:] if form is not None]
        yield from NewtonCGPath(problem, start, self._tol, self._max_iter).points(rest)


class RidgeEngine(Engine):
    """Least squares with a ridge or nothing: in closed form."""

    stride = 0.0

    def __init__(self, problem: Problem, moments: Moments | None) -> None:
        self._coef = problem.no_coef()
        self._path = RidgePath(problem, moments)

    def points(self, alphas: Sequence[float], penalties: Sequence[Penalty]) -> Iterator[PathPoint]:
        del alphas
        return self._path.points([cast(L1Form, penalty.form(self._coef)) for penalty in penalties])


class SmoothEngine(Engine):
    """A second derivative and a ridge or nothing: Newton's method."""

    stride = 0.0

    def __init__(self, problem: Problem, start: Start | None, tol: float, max_iter: int) -> None:
        self._coef = problem.no_coef()
        self._path = NewtonCGPath(problem, start, tol, max_iter)

    def points(self, alphas: Sequence[float], penalties: Sequence[Penalty]) -> Iterator[PathPoint]:
        del alphas
        return self._path.points([cast(L1Form, penalty.form(self._coef)) for penalty in penalties])


class ProximalEngine(Engine):
    """Any datafit with any penalty: proximal gradient."""

    def __init__(
        self, problem: Problem, start: Start | None, tol: float, max_iter: int, moments: Moments | None
    ) -> None:
        self._problem, self._tol, self._max_iter = problem, tol, max_iter
        self._start = start
        self._gram = (None, None) if moments is None else (moments.gram, moments.cross)

    def points(self, alphas: Sequence[float], penalties: Sequence[Penalty]) -> Iterator[PathPoint]:
        problem = self._problem
        coef, intercept = self._start or (problem.no_coef(), problem.null_intercept())
        null = problem.null_loss()
        scale = problem.null_slope()
        unexplained = self._tol * scale + _ROUNDING * _reach(problem)
        step: Tensor | None = None
        for penalty in penalties:
            known = bool(full_gap(problem, penalty, coef, problem.eta(coef, intercept)).isfinite())

            def gap(w: Tensor, eta: Tensor | None, penalty: Penalty = penalty) -> Tensor:
                eta = problem.eta(w) if eta is None else eta
                return full_gap(problem, penalty, w, eta, unexplained=unexplained)

            found = proximal_gradient(
                problem, penalty, tol=1e-12 if known else self._tol, max_iter=self._max_iter, coef=coef,
                intercept=intercept, step=step, scale=scale, gap=gap if known else None,
                gap_tol=float(self._tol * null) if known else 0.0, gram=self._gram[0], cross=self._gram[1],
            )  # fmt: skip
            coef, intercept, step = found.coef, found.intercept, found.step
            eta = problem.eta(coef, intercept)
            kept = nonzero_rows(coef)
            yield PathPoint(
                kept, coef[kept], intercept, gap(coef, eta), found.violation, problem.value(eta), found.n_iter
            )


def _reach(problem: Problem) -> Tensor:
    """What no correlation exceeds with all coefficients zero, 0-d: Cauchy and Schwarz, columns not centred."""
    mean, variance = problem.design.moments(problem.weights)
    width = divided((mean.square() + variance).sqrt(), problem.design.scale).amax()
    slopes = problem.datafit.grad(problem.null_eta(), problem.y)
    return width * mean_of(slopes.square(), problem.weights).sum().sqrt()


def engine_for(
    problem: Problem, penalty: Penalty, *, start: Start | None, tol: float, max_iter: int, moments: Moments | None
) -> Engine:
    """The fastest algorithm that is exact for this problem.

    Args:
        problem: data and datafit.
        penalty: decides by its form.
        start: coefficients and intercept to start from.
        tol: gap relative to the null model's objective, for iterative engines.
        max_iter: their limit.
        moments: of a quadratic problem, where they pay.
    """
    if is_smooth(penalty, problem.no_coef()):
        if problem.datafit.quadratic and (moments is not None or is_small(problem, penalty)):
            return RidgeEngine(problem, moments)
        if has_hessian(problem):
            return SmoothEngine(problem, start, tol, max_iter)
    if fits_l1(problem, penalty):
        return L1Engine(problem, start, moments)
    form, rows = penalty.form(problem.no_coef()), grouped_rows(problem, penalty)
    if rows is not None and problem.datafit.quadratic:
        return GroupEngine(problem, rows, start, min(tol, _LOOSEST), max_iter, moments)
    if isinstance(form, L1Form) and problem.K is not None and problem.datafit.quadratic:
        return TaskEngine(problem, start, moments)
    if (isinstance(form, L1Form) or (rows is not None and problem.K is None)) and has_hessian(problem):
        return NewtonEngine(problem, rows, start, min(tol, _LOOSEST), max_iter)
    return ProximalEngine(problem, start, tol, max_iter, moments)


def newton_path_for(
    problem: Problem, form: L1Form | GroupForm, rows: Tensor | None, start: Start | None, tol: float, max_iter: int
) -> FormPath:
    """Proximal Newton for one output or several; signed coefficients beside a free intercept go the way of several."""
    if rows is not None:
        return GroupNewtonPath(problem, rows, start, tol, max_iter)
    if problem.K is not None:
        return MultinomialPath(problem, start, tol, max_iter)
    if problem.fit_intercept and form.lower == 0.0:
        return ColumnPath(problem, start, tol, max_iter)
    return L1NewtonPath(problem, start, tol, max_iter)


def is_small(problem: Problem, penalty: Penalty) -> bool:
    """Whether a matrix over the rows, or over the columns that are not forced to zero, can be factored."""
    coef = problem.no_coef()
    form = cast(L1Form, penalty.with_alpha(1.0).form(coef))
    closed = torch.as_tensor(form.l1, dtype=coef.dtype, device=coef.device).expand(coef.shape) > 0.0
    columns = int((~closed if coef.dim() == 1 else ~closed.all(1)).sum())
    return min(problem.design.n, columns) <= _FACTORED


def fits_l1(problem: Problem, penalty: Penalty) -> bool:
    """Whether pivoting solves it: least squares of one target with a penalty of type L1."""
    form = penalty.form(problem.no_coef())
    return problem.datafit.quadratic and problem.K is None and isinstance(form, L1Form)


def grouped_rows(problem: Problem, penalty: Penalty) -> Tensor | None:
    """The group of each row of coef, (p,), where the penalty is one of groups of rows, else None."""
    coef = problem.no_coef()
    form = penalty.form(coef)
    return group_of_rows(form.by, coef) if isinstance(form, GroupForm) else None


def oracle_of(problem: Problem, moments: Moments | None) -> Oracle:
    """Where correlations come from."""
    if moments is None:
        return DataOracle(problem.design, problem.weights, problem.y)
    return GramOracle(moments.gram, moments.cross, moments.energy)


def has_hessian(problem: Problem) -> bool:
    """Whether the datafit knows its second derivative."""
    try:
        problem.datafit.hessian_map(problem.null_eta(0.0)[:1], problem.y[:1])
    except NoHessian:
        return False
    return True
