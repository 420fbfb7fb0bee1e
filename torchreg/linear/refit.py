"""`refit`: the supports of a path, fitted again without a penalty."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.shrinkage import Scalar
from torchreg.linear.after_fork import one_thread_after_fork
from torchreg.linear.chunk_frame import framed_chunks
from torchreg.linear.chunks import are_chunks
from torchreg.linear.designs.tables import check_names
from torchreg.linear.frame import Frame, framed
from torchreg.linear.kinks import Start
from torchreg.linear.new_rows import check_width
from torchreg.linear.path_result import Path, is_converged, summary
from torchreg.linear.points import PathPoint
from torchreg.linear.settings import checked
from torchreg.linear.solvers.dispatch import solver_for
from torchreg.penalties import L1Form, Penalty
from torchreg.penalties.base import Form

_TOL = 1e-12
_ROUGH = 1e-8
_AWAY = 1.0  # in units of the linear predictor: more than the root of _ROUGH, less than log(_ROUGH / _TOL)
_MAX_ITER = 20_000


@dataclass(frozen=True, eq=False, repr=False)
class _Support(Penalty):
    """The constraint that only the rows in ``kept`` may be other than zero."""

    kept: Tensor
    alpha: Scalar = 1.0

    @property
    def convex(self) -> bool:
        return True

    def _closed(self, w: Tensor) -> Tensor:
        return ~(self.kept[:, None] if w.dim() == 2 else self.kept)

    def value(self, w: Tensor) -> Tensor:
        return torch.where((self._closed(w) & (w != 0)).any(), torch.inf, 0.0).to(w)

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        del step
        return torch.where(self._closed(w), 0.0, w)

    def form(self, w: Tensor) -> Form:
        return L1Form(torch.where(self._closed(w), torch.inf, 0.0).to(w))


@dataclass(frozen=True, eq=False)
class _Refit:
    """A fit without a penalty.

    Attributes:
        point: the solution, in the coordinates of X.
        attained: False where the loss has no minimum, as for classes that some line separates: coefficients grow
            without end while the loss sinks to its bound, so that no small gap makes them a solution.
    """

    point: PathPoint
    attained: bool


def refit(
    path: Path,
    X: Any,  # noqa: N803
    y: Any,
    *,
    sample_weight: Any = None,
    offset: Any = None,
    max_iter: int | None = None,
    device: torch.device | str | None = None,
) -> Path:
    """Fit the columns that each point of a path has chosen again, without a penalty: the relaxed path.

    The catch: a path holds no data, so everything that `fit_path` was given with it is given anew, weights and offset
    too; the datafit, the intercept and the standardisation are the path's. Rows that the path has not seen make an
    honest estimate: there the choice of the columns owes nothing to their noise.

    A refit has converged as a point of `fit_path` has; never where the loss has no minimum without a penalty, as for
    classes that the support separates. Its objective is its loss.

    Args:
        path: as `fit_path` gives it, `CVPath.path` or an estimator's ``path_.path``.
        X: as for `fit_path`, of the same columns; or chunks of rows.
        y: as for `fit_path`, with as many outputs; None with chunks.
        sample_weight: as for `fit_path`.
        offset: as for `fit_path`.
        max_iter: limit for iterative engines; None for 20000.
        device: where to compute; None for where X is.

    Shapes:
        As those of ``path``.

    Raises:
        ValueError: as `fit_path`; also if X has other columns, or y other outputs, than the path.
        TypeError: if ``path`` is no `Path`.

    Source:
        Meinshausen, Computational Statistics & Data Analysis 52, 2007 (the relaxed lasso, at phi = 0).

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> from torchreg.linear import fit_path
        >>> X = torch.eye(4).repeat(2, 1)
        >>> y = X @ torch.tensor([3.0, -2.0, 0.0, 0.0])
        >>> path = fit_path(X, y, L1(1.0), alphas=[0.25], fit_intercept=False)
        >>> path.coef(0), refit(path, X, y).coef(0)  # doctest: +NORMALIZE_WHITESPACE
        (tensor([ 2., -1.,  0.,  0.], dtype=torch.float64), tensor([ 3., -2.,  0.,  0.], dtype=torch.float64))
    """
    if not isinstance(path, Path):
        raise TypeError(
            f"refit takes a Path: what fit_path returns, CVPath.path or model.path_.path; got {type(path).__name__}."
        )
    make = framed_chunks if are_chunks(X, y) else framed
    datafit = checked(path.penalty, path.datafit, path.tol, max_iter)
    frame = make(X, y, datafit, sample_weight, offset, path.fit_intercept, path.standardize, device)
    problem = frame.problem
    check_names(path.feature_names, frame.names)
    check_width(path.n_features, problem.design.p)
    if problem.no_coef().shape[1:] != path.intercepts.shape[1:]:
        raise ValueError(
            f"The path has outputs of shape {tuple(path.intercepts.shape[1:])}, but y asks for "
            f"{tuple(problem.no_coef().shape[1:])}; give the columns, or all the classes, that it was fitted to."
        )
    refits: dict[tuple[int, ...], _Refit] = {}
    keys = [tuple(point.index.tolist()) for point in path._points]
    for key, point in zip(keys, path._points, strict=True):
        if key not in refits:
            refits[key] = _unpenalised(frame, point.index.to(problem.y.device), max_iter or _MAX_ITER)
    points = tuple(refits[key].point for key in keys)
    columns = summary(points, torch.stack([point.loss for point in points]))
    attained = torch.tensor([refits[key].attained for key in keys], device=problem.y.device)
    null, slope = float(problem.null_loss()), float(problem.null_slope())
    near = is_converged(columns["dual_gaps"], columns["violations"], gap=path.tol * null, violation=path.tol * slope)
    return replace(
        path, **columns, alphas=path.alphas.to(problem.y.device), converged=attained & near, null_objective=null,
        null_slope=slope, n_samples=frame.n, n_weighted=frame.n_weighted, _points=points,
        feature_names=path.feature_names or frame.names,
    )  # fmt: skip


def _unpenalised(frame: Frame, index: Tensor, max_iter: int) -> _Refit:
    """The least mean loss with only the columns ``index``, (k,).

    A likelihood, whose linear predictor is a logarithm of odds or means, is first fitted less tightly. Towards a
    minimum the predictor then moves by about the root of that tolerance; away to infinity, where the loss sinks like
    exp(-eta), by the logarithm of the two tolerances' ratio, which is 9.

    Source:
        Albert and Anderson, Biometrika 71, 1984: where maximum likelihood estimates of logistic models exist.
    """
    one_thread_after_fork()
    problem = frame.problem
    kept = torch.zeros(problem.design.p, dtype=torch.bool, device=problem.design.device)
    kept[index] = True
    if not problem.datafit.likelihood:
        return _Refit(frame.coordinates.outward(_fitted(frame, kept, None, _TOL, max_iter)), attained=True)
    rough = _fitted(frame, kept, None, _ROUGH, max_iter)
    start = rough.dense(problem.design.p), rough.intercept
    fine = _fitted(frame, kept, start, _TOL, max_iter)
    moved = problem.eta(fine.dense(problem.design.p), fine.intercept) - problem.eta(*start)
    if problem.datafit.relative:
        moved = moved - moved.mean(-1, keepdim=True)
    weighted = problem.weights > 0.0
    return _Refit(
        frame.coordinates.outward(replace(fine, n_iter=rough.n_iter + fine.n_iter)),
        attained=bool((moved[weighted].abs() < _AWAY).all()),
    )


def _fitted(frame: Frame, kept: Tensor, start: Start | None, tol: float, max_iter: int) -> PathPoint:
    """The solution in the engine's coordinates, with only the columns in ``kept``."""
    penalty = _Support(kept)
    solver = solver_for(frame.problem, penalty, start=start, tol=tol, max_iter=max_iter, moments=frame.moments)
    return next(iter(solver.points([0.0], [penalty])))
