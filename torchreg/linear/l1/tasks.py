"""Paths of least squares with several targets and a penalty of type L1 on each entry: one path for each target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from torchreg.linear.l1.least_squares import PivotLeastSquares
from torchreg.linear.moments import Moments
from torchreg.linear.objective.entry_terms import EntryTerms
from torchreg.linear.oracle import DataOracle, GramOracle, Oracle
from torchreg.linear.points import PathPoint, nonzero_rows, zero_intercept
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.path_following import PathFollower
from torchreg.penalties import L1Form


class TaskPath:
    """Follows the targets side by side, on one Gram matrix if there is one: neither loss nor penalty joins them.

    Args:
        problem: least squares with K targets.
        start: coefficients to start from, (p, K); None for zeros.
        moments: of the problem, where they pay.
    """

    def __init__(self, problem: Problem, start: Tensor | None, moments: Moments | None) -> None:
        self._like = problem.no_coef()
        self._paths = [
            PathFollower(PivotLeastSquares(_oracle(problem, moments, k), None if start is None else start[:, k]))
            for k in range(self._like.shape[1])
        ]

    def points(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> Iterator[PathPoint]:
        """The solutions, one for each form.

        Args:
            alphas: strengths, descending; only their ratios matter.
            forms: the penalty at each of them, each of type L1.
        """
        single = [[self._of(form, k) for form in forms] for k in range(len(self._paths))]
        for parts in zip(*(p.points(alphas, f) for p, f in zip(self._paths, single, strict=True)), strict=True):
            yield self._joined(parts)

    def _of(self, form: L1Form, target: int) -> EntryTerms:
        """The penalty of one target's coefficients."""
        like = self._like
        l1, l2 = (torch.as_tensor(part, dtype=like.dtype, device=like.device) for part in (form.l1, form.l2))
        if not l1.dim() and not l2.dim():
            return EntryTerms(form, like[:, 0])
        l1, l2 = (part.expand(like.shape)[:, target] for part in (l1, l2))
        return EntryTerms(L1Form(l1, l2, form.lower), like[:, 0])

    def _joined(self, parts: Sequence[PathPoint]) -> PathPoint:
        coef = torch.stack([part.dense(len(self._like)) for part in parts], 1)
        kept = nonzero_rows(coef)
        gap, loss = (torch.stack([getattr(part, name) for part in parts]).sum() for name in ("gap", "loss"))
        violation = torch.stack([part.violation for part in parts]).max()
        intercept = zero_intercept(coef, len(parts))
        return PathPoint(kept, coef[kept], intercept, gap, violation, loss, max(part.n_iter for part in parts))


def _oracle(problem: Problem, moments: Moments | None, target: int) -> Oracle:
    y = problem.y[:, target].contiguous()
    if moments is None:
        return DataOracle(problem.design, problem.weights, y)
    return GramOracle(moments.gram, moments.cross[:, target].contiguous(), (problem.weights * y.square()).sum())
