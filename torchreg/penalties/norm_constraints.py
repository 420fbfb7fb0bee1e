"""Constraints on Euclidean norms: of a tensor, of its rows or other groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.functional.groups import Groups, rows, whole
from torchreg.functional.reductions import wide_dtype
from torchreg.functional.shrinkage import Scalar
from torchreg.functional.spheres import nearest_of_norm
from torchreg.penalties.constraint import GroupConstraint, Rounding


class _NormBall(GroupConstraint):
    """A bound on the Euclidean norm of each group."""

    radius: Scalar

    @property
    def convex(self) -> bool:
        return True

    @property
    def even(self) -> bool:
        return True

    @property
    def radial(self) -> bool:
        return True

    def nearest(self, x: Tensor, step: Scalar) -> Tensor:
        return nearest_of_norm(x, step, self.radius, self.by, within=True)

    def breaks(self, x: Tensor, rounding: Rounding) -> Tensor:
        least = rounding.least * self.by.norms(torch.ones_like(x))
        return self.by.norms(x) > self.radius * (1.0 + rounding.relative) + least

    def conjugate(self, z: Tensor) -> Tensor:
        return (self.radius * self.by.norms(z).sum()).to(wide_dtype(z))


@dataclass(frozen=True, eq=False, repr=False)
class L2Ball(_NormBall):
    """A tensor whose Euclidean (Frobenius) norm is at most a radius.

    ``prox(w, step) = w * min(1, radius / ||w||)``. With a step per entry (an adaptive optimizer's) it is the exact
    projection in that metric, ``w_i / (1 + mu step_i)`` with one multiplier mu: entries of large steps shrink most.

    Args:
        radius: the largest norm, > 0.

    Raises:
        TypeError: if ``radius`` is no number.
        ValueError: if ``radius`` is not finite and > 0.

    Source:
        The multiplier: More and Sorensen, SIAM J. Sci. Stat. Comput. 4, 1983.

    Example:
        >>> import torch
        >>> from torchreg import L2Ball
        >>> L2Ball(1.0).prox(torch.tensor([3.0, -4.0]), 0.1)
        tensor([ 0.6000, -0.8000])
    """

    radius: Scalar
    by = whole  # of every one, so no field

    def __post_init__(self) -> None:
        self._settle()


@dataclass(frozen=True, eq=False, repr=False)
class MaxNorm(_NormBall):
    """Each row's Euclidean norm is at most a radius: max-norm regularisation, Keras's ``MaxNorm``.

    ``prox(w, step)`` scales each row that is too long, ``w_g * min(1, radius / ||w_g||)``. A row of a linear layer
    holds the weights into one unit, of a convolution those of one filter. With a step per entry (an adaptive
    optimizer's) it is the exact projection in that metric, so entries of large steps shrink most.

    Args:
        radius: the largest norm of each group, > 0.
        by: the groups: ``rows``, ``columns``, ``filters``, ``whole`` or ``labels(index)``.

    Raises:
        TypeError: if ``radius`` is no number or ``by`` no grouper.
        ValueError: if ``radius`` is not finite and > 0; at attach, if the groups do not fit.

    Source:
        Srebro, Rennie and Jaakkola, NIPS 2004; with dropout: Srivastava et al., JMLR 15, 2014, sec. 5.1.

    Example:
        >>> import torch
        >>> from torchreg import MaxNorm
        >>> MaxNorm(1.0).prox(torch.tensor([[3.0, -4.0], [0.5, 0.5]]), 0.1)
        tensor([[ 0.6000, -0.8000],
                [ 0.5000,  0.5000]])
    """

    radius: Scalar
    by: Groups = rows

    def __post_init__(self) -> None:
        self._settle()


@dataclass(frozen=True, eq=False, repr=False)
class UnitNorm(GroupConstraint):
    """Each row's Euclidean norm is exactly 1: directions, as for scale-free layers and dictionaries.

    ``prox(w, step) = w_g / ||w_g||``; of a row of zeros, to which all are equally near, the first entry becomes 1.
    With a step per entry (an adaptive optimizer's) it is the exact projection in that metric. The set is not convex.

    Args:
        by: the groups: ``rows``, ``columns``, ``filters``, ``whole`` or ``labels(index)``.

    Raises:
        TypeError: if ``by`` is no grouper.
        ValueError: at attach, if the groups do not fit.

    Source:
        The metric's secular equation with its hard case: More and Sorensen, SIAM J. Sci. Stat. Comput. 4, 1983.

    Example:
        >>> import torch
        >>> from torchreg import UnitNorm
        >>> UnitNorm().prox(torch.tensor([[3.0, -4.0], [0.0, 0.5]]), 0.1)
        tensor([[ 0.6000, -0.8000],
                [ 0.0000,  1.0000]])
    """

    by: Groups = rows

    def __post_init__(self) -> None:
        self._settle()

    def nearest(self, x: Tensor, step: Scalar) -> Tensor:
        return nearest_of_norm(x, step, 1.0, self.by, within=False)

    def breaks(self, x: Tensor, rounding: Rounding) -> Tensor:
        return (self.by.norms(x) - 1.0).abs() > rounding.relative + rounding.least * self.by.norms(torch.ones_like(x))
