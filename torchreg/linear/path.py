"""`fit_path`: a penalised linear model for a whole path of strengths, every point with a certificate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from torchreg.linear.certificate import is_free
from torchreg.linear.chunk_frame import framed_chunks
from torchreg.linear.chunks import are_chunks
from torchreg.linear.datafits import Datafit
from torchreg.linear.designs.base import Design, divided
from torchreg.linear.frame import Frame, framed
from torchreg.linear.intercept import mean_of
from torchreg.linear.kinks import Start
from torchreg.linear.path_result import Fit, Path, is_converged, summary
from torchreg.linear.points import PathPoint
from torchreg.linear.problem import Problem
from torchreg.linear.settings import check_flags, checked
from torchreg.linear.solvers.dispatch import solver_for
from torchreg.linear.stations import solved
from torchreg.penalties import GroupForm, L1Form, Penalty

__all__ = ["Fit", "Path", "fit_path"]

MAX_ITER = 20_000  # of iterative engines, unless asked otherwise
_EXACT = 1e-12  # tolerance for the unpenalised fit from which alpha_max follows
_FAINT = 1e-10  # of the loss's slope over the rows: a strength so small may be rounding of columns that are constant
_ROUNDING = 1e-15
_EXPLAINED = 1e-11  # of the null model's slope over the rows: what an unpenalised fit leaves of it may be rounding
_HUGE = 1e100  # a strength at which every penalised coefficient is zero


def fit_path(
    X: Any,  # noqa: N803
    y: Any,
    penalty: Penalty,
    *,
    datafit: Datafit | None = None,
    alphas: int | Sequence[float] | Tensor = 100,
    eps: float = 1e-3,
    tol: float = 1e-6,
    max_iter: int | None = None,
    sample_weight: Any = None,
    offset: Any = None,
    fit_intercept: bool = True,
    standardize: bool = False,
    device: torch.device | str | None = None,
    progress: bool = False,
    init: Start | None = None,
) -> Path:
    """Fit a penalised linear model for descending strengths, each solution with a duality gap.

    ``minimise (1 / sum s_i) sum_i s_i loss(x_i' coef + intercept + offset_i, y_i) + penalty(coef)``

    The penalty's own alpha is replaced by each of ``alphas``. The intercept is never penalised. Everything is
    computed in float64, whatever the dtype of X, which is never made dense or written to; a dense X of floats that lies
    on the device is not copied, a sparse one is kept by rows and by columns. A forked process, such as a worker of a
    pool or of a DataLoader, fits on one thread: torch's others stay behind in its parent.

    Least squares on more rows than memory holds: X may be `RowChunks`, or any iterable of pairs (X, y) or triples
    (X, y, sample_weight) that can be iterated again. They are read once; what is kept are second moments, so that the
    limit is p: three (p, p) matrices of float64 have to fit, 24 p^2 bytes. `fit_cv` and `solve` take arrays alone.

    Args:
        X: (n, p); numpy, torch (any device, where it stays), scipy CSR/CSC or torch sparse CSR, or a data frame of
            pandas or polars, whose names are kept. Or chunks of rows.
        y: (n,) or, for several outputs, (n, K); None with chunks.
        penalty: any penalty on coefficients (p,) or (p, K).
        datafit: the loss of a row; None for `Quadratic`, half the squared error.
        alphas: strengths >= 0 in any order, 0 for no penalty; or how many, geometrically from ``alpha_max`` to
            ``eps * alpha_max``.
        eps: ratio of the ends of that grid, in (0, 1].
        tol: a point has converged if its gap is at most ``tol`` times the null model's objective; without a gap, if its
            distance from optimality is at most ``tol`` times the null model's largest gradient.
        max_iter: limit for iterative engines at each strength, those on the way included; None for 20000.
        sample_weight: >= 0, (n,). Rows of weight 0 are validated and then left out, by a copy of the others.
        offset: added to the linear predictor, (n,) or (n, K).
        fit_intercept: whether there is an intercept.
        standardize: penalise the coefficients of columns scaled to variance 1; reported are those of X's own columns.
        device: where to compute; None for where X is.
        progress: whether to show a bar; it counts the strengths too that are solved between distant ``alphas``.
        init: (coef, intercept) to start from.

    Shapes:
        Of the `Path` that is returned, for a strengths: coefs (a, p) or (a, p, K), intercepts (a,) or (a, K), all else
        (a,).

    Raises:
        ValueError: if shapes, alphas, ``tol``, ``max_iter``, weights or targets do not fit, or something is not
            finite; if chunks come with another datafit, with an offset, or with weights or a target beside them.
        TypeError: if the penalty or the datafit is not one; if chunks can be read only once, as a generator can.

    Source:
        L1 of least squares: Osborne, Presnell and Turlach, IMA J. Numer. Anal. 20, 2000 (homotopy) and Kim and Park,
        AISTATS 2010 (block pivoting), behind strong rules (Tibshirani et al., JRSS B 74, 2012); L1 of other losses:
        Lee, Sun and Saunders, SIAM J. Optim. 24, 2014 (proximal Newton); groups: Yuan and Lin, JRSS B 68, 2006, solved
        as in Zhang, Zhang, Sun and Toh, Math. Program. 179, 2020; ridge: Hoerl and Kennard, Technometrics 12, 1970; all
        else: Beck and Teboulle, SIAM J. Imaging Sci. 2, 2009 (FISTA).

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> X = torch.eye(4).repeat(2, 1)
        >>> path = fit_path(X, X @ torch.tensor([3.0, -2.0, 0.0, 0.0]), L1(1.0), alphas=[0.25], fit_intercept=False)
        >>> path.coefs
        tensor([[ 2., -1.,  0.,  0.]], dtype=torch.float64)
        >>> bool(path.dual_gaps < 1e-12)
        True
    """
    check_flags(fit_intercept=fit_intercept, standardize=standardize)
    make = framed_chunks if are_chunks(X, y) else framed
    frame = make(
        X, y, checked(penalty, datafit, tol, max_iter), sample_weight, offset, fit_intercept, standardize, device
    )
    return fit_framed(frame, penalty, alphas=alphas, eps=eps, tol=tol, max_iter=max_iter, progress=progress, init=init)


def fit_framed(
    frame: Frame,
    penalty: Penalty,
    *,
    alphas: int | Sequence[float] | Tensor,
    eps: float,
    tol: float,
    max_iter: int | None,
    progress: bool,
    init: Start | None,
) -> Path:
    """`fit_path` on data that is already validated and framed."""
    problem = frame.problem
    penalty.check(problem.no_coef())
    limit = MAX_ITER if max_iter is None else max_iter
    alpha_max = strongest(frame, penalty, tol, limit)
    grid = alpha_grid(alphas, alpha_max, eps)
    start = None if init is None else frame.coordinates.inward(init, problem.no_coef())
    solver = solver_for(problem, penalty, start=start, tol=tol, max_iter=limit, moments=frame.moments)
    points = solved(solver, penalty, grid, alpha_max if start is None else math.inf, progress=progress)
    return assembled(frame, penalty, grid, points, alpha_max=alpha_max, tol=tol)


def assembled(
    frame: Frame, penalty: Penalty, grid: list[float], points: list[PathPoint], *, alpha_max: float, tol: float
) -> Path:
    """The path of these points, with objectives and verdicts."""
    problem = frame.problem
    values = [
        penalty.with_alpha(a).value(p.dense(problem.design.p)) if p.penalty is None else p.penalty
        for a, p in zip(grid, points, strict=True)
    ]
    objectives = torch.stack([point.loss for point in points]) + torch.stack(values)
    outward = tuple(frame.coordinates.outward(point) for point in points)
    columns = summary(outward, objectives)
    null, slope = float(problem.null_loss()), float(problem.null_slope())
    converged = is_converged(columns["dual_gaps"], columns["violations"], gap=tol * null, violation=tol * slope)
    return Path(
        alphas=torch.tensor(grid, dtype=torch.float64, device=problem.design.device), **columns, converged=converged,
        null_objective=null, null_slope=slope, alpha_max=alpha_max, tol=tol, datafit=problem.datafit, penalty=penalty,
        n_samples=frame.n, n_features=problem.design.p, n_weighted=frame.n_weighted, fit_intercept=frame.fit_intercept,
        standardize=frame.standardize, _points=outward, feature_names=frame.names,
    )  # fmt: skip


def strongest(frame: Frame, penalty: Penalty, tol: float, max_iter: int) -> float:
    """The least strength at which all penalised coefficients are zero; the unpenalised ones are fitted."""
    problem = frame.problem
    coef, eta, gradient = problem.no_coef(), problem.null_eta(), problem.null_gradient
    left = 0.0  # of the slope over the rows, by the unpenalised fit
    if _spares(penalty, coef):
        left = _EXPLAINED * _width(problem, eta)
        solver = solver_for(problem, penalty, start=None, tol=_EXACT, max_iter=max_iter, moments=frame.moments)
        point = next(iter(solver.points([_HUGE], [penalty.with_alpha(_HUGE)])))
        eta = problem.eta(point.dense(problem.design.p), point.intercept)
        gradient = problem.gradient(eta)
    try:
        found = float(penalty.alpha_max(gradient))
    except ValueError:  # an infinite slope at zero: no strength is known before the step
        return math.inf
    width = _width(problem, eta)
    if not found or not (left or found < _FAINT * width):
        return found
    rounding = max(_ROUNDING * width, left)
    return float(penalty.alpha_max(_without_rounding(gradient, problem.design, problem.weights, rounding)))


def _width(problem: Problem, eta: Tensor) -> float:
    """The loss's slope over the rows, their root mean square."""
    return float(mean_of(problem.datafit.grad(eta, problem.y).square(), problem.weights).sum().sqrt())


def _without_rounding(gradient: Tensor, design: Design, weights: Tensor, rounding: float) -> Tensor:
    """The gradient with exact zeros for columns of which it is but rounding: constant ones, or where all is explained.

    Args:
        gradient: (p,) or (p, K).
        design: X.
        weights: of the rows.
        rounding: of the loss's slope over the rows.
    """
    mean, variance = design.moments(weights)
    size = divided((mean.square() + variance).sqrt() * rounding, design.scale)
    return torch.where(gradient.abs() <= (size[:, None] if gradient.dim() == 2 else size), 0.0, gradient)


def _spares(penalty: Penalty, coef: Tensor) -> bool:
    """Whether some coefficients are unpenalised and others are not."""
    form = penalty.with_alpha(1.0).form(coef)
    if not isinstance(form, (L1Form, GroupForm)):
        return False
    free = is_free(form, coef)
    return bool(free.any()) and not bool(free.all())


def alpha_grid(alphas: int | Sequence[float] | Tensor, alpha_max: float, eps: float) -> list[float]:
    """Strengths, descending: those given, or a geometric grid.

    Raises:
        ValueError: if one is negative or not finite, or a grid is asked for where ``alpha_max`` is infinite.
    """
    if hasattr(alphas, "tolist"):
        alphas = alphas.tolist()
    numbers = alphas if isinstance(alphas, Sequence) else [alphas]
    plain = all(isinstance(a, Real | Tensor) and not isinstance(a, bool) for a in numbers)
    if not plain or not isinstance(alphas, (int, Sequence)):
        raise TypeError(f"alphas takes a whole number or a sequence of strengths, got {alphas!r}.")
    if isinstance(alphas, int):
        if alphas < 1:
            raise ValueError(f"alphas must be >= 1 as a number of strengths, got {alphas}.")
        if not (isinstance(eps, Real) and 0.0 < eps <= 1.0):
            raise ValueError(f"eps must be between 0 and 1, got {eps!r}.")
        if not math.isfinite(alpha_max):
            raise ValueError(
                "Automatic alpha grid generation is not supported for this penalty, which sets no coefficient to "
                "zero at any finite alpha (L2, l1_ratio=0) or needs a step (L0); supply a grid: alphas=[1.0, 0.1]."
            )
        top = alpha_max if alpha_max > 0.0 else 1.0
        return [top * eps ** (k / max(alphas - 1, 1)) for k in range(alphas)]
    given = [float(a) for a in alphas]
    bad = [a for a in given if not (math.isfinite(a) and a >= 0.0)]
    if bad or not given:
        raise ValueError(f"alphas must be finite numbers >= 0, at least one, got {bad or 'none'}.")
    return sorted(given, reverse=True)
