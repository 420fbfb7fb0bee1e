"""`solve`: a penalised linear model whose coefficients can be differentiated by what they were fitted to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchreg.linear.chunks import refuse_chunks
from torchreg.linear.data.validation import validated
from torchreg.linear.datafits import Datafit
from torchreg.linear.frame import Coordinates, frame_of
from torchreg.linear.implicit import Solution, attached
from torchreg.linear.intercept import best_shift, mean_of
from torchreg.linear.path import fit_framed
from torchreg.linear.problem import Problem
from torchreg.linear.settings import at_its_own_strength, check_flags, checked
from torchreg.penalties import Penalty

_NUDGE = 0.25  # no label of a class moved by it is still a label


@dataclass(frozen=True, eq=False)
class Solved:
    """A minimiser that remembers what it depends on.

    Attributes:
        coef: (p,) or (p, K), float64, differentiable.
        intercept: 0-d or (K,), float64, differentiable; 0 without an intercept.
        dual_gap: objective minus a lower bound of the minimum, absolute; nan where no conjugate is known.
        violation: distance from optimality.
        active: mask of the coefficients that move with the data, of coef's shape; the others have derivative 0.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> from torchreg.linear import solve
        >>> y = torch.tensor([3.0, 0.1, 3.0, 0.1], requires_grad=True)
        >>> fit = solve(torch.eye(2).repeat(2, 1), y, L1(0.25), fit_intercept=False)
        >>> fit.coef.detach() == 0, fit.active
        (tensor([False,  True]), tensor([ True, False]))
        >>> torch.autograd.grad(fit.coef.sum(), y)[0] != 0  # the zero does not move with its rows
        tensor([ True, False,  True, False])
    """

    coef: Tensor
    intercept: Tensor
    dual_gap: float
    violation: float
    active: Tensor


def solve(
    X: Any,  # noqa: N803
    y: Any,
    penalty: Penalty,
    *,
    datafit: Datafit | None = None,
    tol: float = 1e-10,
    sample_weight: Any = None,
    offset: Any = None,
    fit_intercept: bool = True,
    device: torch.device | str | None = None,
) -> Solved:
    """Fit a penalised linear model at the penalty's own alpha, differentiably.

    ``minimise (1 / sum s_i) sum_i s_i loss(x_i' coef + intercept + offset_i, y_i) + penalty(coef)``

    Gradients reach whatever requires them: the penalty's alpha (a 0-d tensor), weights per feature or group, X, y,
    sample_weight and offset. They are those of the exact solution, by the implicit function theorem; no iteration is
    unrolled. One linear system of the active set's size is solved, whatever the number of gradients.

    The solution is piecewise smooth: where a coefficient is just entering or leaving, the derivative is one-sided.
    A coefficient that is zero has derivative zero. Where active columns are linearly dependent, the solution is not
    unique, and the derivative is that of least norm for columns of equal scale. There is no second derivative.

    Args:
        X: (n, p), as in `fit_path`; to have a gradient, a strided tensor. The active columns are made dense.
        y: (n,) or (n, K); class labels have no gradient.
        penalty: any with a prox that autograd can follow: the built-in ones can. Where it is not convex, the
            derivative is that of the minimum that was found.
        datafit: the loss of a row, with a ``grad`` that autograd can follow; None for `Quadratic`.
        tol: the gap is to be at most ``tol`` times the null model's objective. Gradients are less precise than that:
            their relative error is about its square root.
        sample_weight: >= 0, (n,).
        offset: added to the linear predictor, (n,) or (n, K).
        fit_intercept: whether there is an intercept, which is never penalised.
        device: where to compute; None for where X is.

    Raises:
        TypeError: as `fit_path`.
        ValueError: as `fit_path`; if class labels or a sparse X require grad, or a prox breaks the graph.
        RuntimeError: from a second backward pass with respect to the first.

    Warns:
        RuntimeWarning: if the tolerance was not reached, since gradients away from the solution are not right.

    Source:
        Bertrand et al., Implicit differentiation for fast hyperparameter selection in non-smooth convex learning,
        JMLR 23, 2022; Blondel et al., NeurIPS 2022.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> X = torch.eye(4).repeat(2, 1)
        >>> alpha = torch.tensor(0.25, requires_grad=True)
        >>> fit = solve(X, X @ torch.tensor([3.0, -2.0, 0.0, 0.0]), L1(alpha), fit_intercept=False)
        >>> fit.coef.detach().round(decimals=9)
        tensor([ 2., -1.,  0.,  0.], dtype=torch.float64)
        >>> torch.autograd.grad(fit.coef[0], alpha)  # d coef_0 / d alpha
        (tensor(-4.),)
    """
    check_flags(fit_intercept=fit_intercept)
    datafit = checked(penalty, datafit, tol)
    with _outside_inference_mode():
        penalty, y, sample_weight, offset = (_ordinary(part) for part in (penalty, y, sample_weight, offset))
        penalty = at_its_own_strength(penalty)
        alpha = float(_detached(penalty.alpha))
        with torch.no_grad():
            refuse_chunks(X, y)
            data = validated(X, y, datafit, sample_weight, offset, device)
            frame = frame_of(data, datafit, fit_intercept, False)
            path = fit_framed(
                frame, _detached(penalty), alphas=[alpha], eps=0.5, tol=tol, max_iter=None, progress=False, init=None
            )
            fit = path.at(alpha)
        if not fit.converged:
            _warn(fit.dual_gap, fit.violation, tol)
        kept = None if _requires_grad(sample_weight) else data.counting  # a weight of 0 has a derivative
        data = data if kept is None else data.taken(kept)
        with torch.no_grad():
            design = data.design.standardised(data.weights, centre=fit_intercept, scale=False)
            problem = Problem(design, data.target, data.weights, data.lift, datafit, fit_intercept)
            inner = Coordinates(design.mean, None, None).inward((fit.coef, fit.intercept), fit.coef)[1]
            if design.mean is not None:  # where it is far away, the intercept has lost digits by it
                inner = best_shift(datafit, problem.eta(fit.coef), problem.y, problem.weights, inner)
        problem = _followed(problem, kept, y, sample_weight, offset)
        solution = Solution(problem, penalty, fit.coef, inner, _columns(X, kept, problem))
        coef, intercept, active = attached(solution)
        if design.mean is not None:
            intercept = problem.reported(intercept - mean_of(coef, design.mean))
        return Solved(coef, intercept, fit.dual_gap, fit.violation, active)


def _followed(problem: Problem, kept: Tensor | None, y: Any, sample_weight: Any, offset: Any) -> Problem:
    """The problem on the ``kept`` rows of the caller's tensors where they require grad."""
    target, weights, lift = problem.y, problem.weights, problem.offset
    if _requires_grad(y):
        if not _moves(problem.datafit, y):
            raise ValueError(
                f"y requires grad, but the targets of {type(problem.datafit).__name__} are labels of classes, which "
                "have no gradient; pass y.detach()."
            )
        target = _taken(y.to(target), kept)
    if _requires_grad(sample_weight):
        scores = sample_weight.to(weights).expand(len(weights))
        weights = scores / scores.sum()
    if lift is not None and _requires_grad(offset):
        lift = _taken(offset.to(lift), kept)
    return replace(problem, y=target, weights=weights, offset=lift)


def _taken(rows: Tensor, kept: Tensor | None) -> Tensor:
    return rows if kept is None else rows[kept]


def _moves(datafit: Datafit, y: Tensor) -> bool:
    """Whether a target a little larger is still a target."""
    nudged = y.detach().double() + _NUDGE
    try:
        return torch.equal(datafit.prepare(nudged), nudged)
    except ValueError:
        return False


def _columns(X: Any, kept: Tensor | None, problem: Problem) -> Callable[[Tensor], Tensor]:  # noqa: N803
    """Reads columns by number, dense, centred as the problem's, (n, k): from X itself where it requires grad."""
    if not _requires_grad(X):

        def read(index: Tensor) -> Tensor:
            chosen = problem.design.selection(problem.weights.detach())
            chosen.append(index)
            return chosen.times(torch.eye(len(index), dtype=torch.float64, device=index.device))

        return read
    if X.layout != torch.strided:
        raise ValueError(f"X requires grad with layout {X.layout}; pass X.detach(), or X.to_dense() for its gradient.")

    def follow(index: Tensor) -> Tensor:
        columns, mean = _taken(X[:, index.to(X.device)].to(index.device, torch.float64), kept), problem.design.mean
        return columns if mean is None else columns - mean[index]

    return follow


def _requires_grad(given: Any) -> bool:
    return isinstance(given, Tensor) and given.requires_grad


@contextmanager
def _outside_inference_mode() -> Iterator[None]:
    """Leave inference mode, whose tensors autograd refuses, for no_grad: what moves is found by a derivative."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def _ordinary(value: Any) -> Any:
    """The same with copies of tensors that were made in inference mode."""
    return _with_tensors(value, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)


def _detached(value: Any) -> Any:
    """A penalty whose tensors require no grad, so that a fit leaves no trace in the caller's graph."""
    return _with_tensors(value, Tensor.detach)


def _with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value, a tuple or a penalty with its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_with_tensors(part, change) for part in value)
    if isinstance(value, Penalty):
        return value.replaced(**{name: _with_tensors(part, change) for name, part in vars(value).items()})
    return value


def _warn(gap: float, violation: float, tol: float) -> None:
    reached = f"violation {violation:.3e}" if math.isnan(gap) else f"duality gap {gap:.3e}"
    warnings.warn(
        f"solve did not reach tol={tol:g} ({reached}), so its gradients are not those of the solution; raise tol, "
        "scale the columns of X, or penalise more.",
        RuntimeWarning,
        stacklevel=3,
    )
