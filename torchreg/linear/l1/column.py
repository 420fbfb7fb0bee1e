"""One output as a column of outputs: for signed coefficients beside a free intercept, which pairs profile out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchreg.linear.datafits import Datafit
from torchreg.linear.l1.multinomial import MultinomialPath
from torchreg.linear.points import PathPoint
from torchreg.linear.problem import Problem
from torchreg.penalties import L1Form


@dataclass(frozen=True)
class Column(Datafit):
    """A loss of one output, for predictors and targets of shape (n, 1).

    Example:
        >>> import torch
        >>> from torchreg.linear.datafits import Huber
        >>> Column(Huber(1.0)).grad(torch.tensor([[0.5], [9.0]]), torch.zeros(2, 1))
        tensor([[0.5000],
                [1.0000]])
    """

    single: Datafit

    @property
    def curvature(self) -> float | None:  # type: ignore[override]
        """Of the loss."""
        return self.single.curvature

    def value(self, eta: Tensor, y: Tensor) -> Tensor:
        return self.single.value(eta[..., 0], y[..., 0])

    def grad(self, eta: Tensor, y: Tensor) -> Tensor:
        return self.single.grad(eta[..., 0], y[..., 0])[..., None]

    def hessian(self, eta: Tensor, y: Tensor) -> Tensor:
        return self.single.hessian(eta[..., 0], y[..., 0])[..., None]

    def hessian_map(self, eta: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        second = self.hessian(eta, y)
        return lambda v: second * v

    def conjugate(self, u: Tensor, y: Tensor) -> Tensor:
        return self.single.conjugate(u[..., 0], y[..., 0])

    def feasible(self, u: Tensor, y: Tensor) -> Tensor:
        return self.single.feasible(u[..., 0], y[..., 0])

    def fenchel_gap(self, eta: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return self.single.fenchel_gap(eta[..., 0], u[..., 0], y[..., 0])

    def link(self, mean: Tensor) -> Tensor:
        return self.single.link(mean)


class ColumnPath:
    """Follows the path of one output.

    Args:
        problem: one output, of a datafit with a second derivative.
        start: (coef, intercept) to start from, or None.
        tol: a point is good enough when its gap is below ``tol`` times the null model's loss.
        max_iter: Newton steps for one strength.
    """

    def __init__(self, problem: Problem, start: tuple[Tensor, Tensor] | None, tol: float, max_iter: int) -> None:
        lift = None if problem.offset is None else problem.offset[:, None]
        column = replace(problem, y=problem.y[:, None], offset=lift, datafit=Column(problem.datafit))
        first = None if start is None else (start[0][:, None], start[1].reshape(1))
        self._like = problem.no_coef()
        self._path = MultinomialPath(column, first, tol, max_iter)

    def points(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions, one for each form.

        Args:
            alphas: strengths, descending; only their ratios matter.
            forms: the penalty at each of them, each of type L1.
        """
        for point in self._path.points(alphas, [self._tall(form) for form in forms]):
            yield replace(point, values=point.values[:, 0], intercept=point.intercept[0])

    def _tall(self, form: L1Form) -> L1Form:
        """The penalty of coefficients (p, 1)."""
        like = self._like
        l1, l2 = (torch.as_tensor(part, dtype=like.dtype, device=like.device) for part in (form.l1, form.l2))
        return L1Form(l1.expand(like.shape)[:, None], l2.expand(like.shape)[:, None], form.lower)
