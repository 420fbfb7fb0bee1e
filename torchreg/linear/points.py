"""What every engine hands to a path: one solution, with its certificate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.after_fork import one_thread_after_fork


@dataclass(frozen=True)
class PathPoint:
    """The solution at one strength.

    Attributes:
        index: rows of coef that are not all zero, (k,).
        values: these rows, (k,) or (k, K).
        intercept: 0-d or (K,); 0 where the data is centred.
        gap: duality gap, 0-d; nan where no conjugate is known.
        violation: distance from optimality, 0-d.
        loss: the mean loss, without the penalty, 0-d.
        n_iter: iterations, of the kind that the engine counts.
        penalty: the penalty's value, 0-d, where the solver has it at hand; else None.
    """

    index: Tensor
    values: Tensor
    intercept: Tensor
    gap: Tensor
    violation: Tensor
    loss: Tensor
    n_iter: int
    penalty: Tensor | None = None

    def dense(self, rows: int) -> Tensor:
        """The coefficients, (p,) or (p, K)."""
        one_thread_after_fork()
        full = self.values.new_zeros(rows, *self.values.shape[1:])
        return full.index_copy_(0, self.index, self.values)


def nonzero_rows(coef: Tensor) -> Tensor:
    """Numbers of the rows with an entry that is not zero."""
    alive = coef != 0
    return (alive if coef.dim() == 1 else alive.any(1)).nonzero().flatten()


def zero_intercept(like: Tensor, outputs: int | None) -> Tensor:
    """No intercept: 0-d, or (K,)."""
    return torch.zeros(() if outputs is None else (outputs,), dtype=torch.float64, device=like.device)
