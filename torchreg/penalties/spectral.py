"""Penalties of a matrix's singular values, and of the angles between its rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, Literal

import torch
from torch import Tensor

from torchreg.functional.reductions import narrowed, widened
from torchreg.functional.shrinkage import Scalar, filled, scaled
from torchreg.functional.singular_values import as_matrix, shrunk, singular_values, smallest, truncated
from torchreg.penalties.alpha import strength
from torchreg.penalties.base import Penalty
from torchreg.penalties.constraint import Constraint, Rounding
from torchreg.penalties.one_step import no_prox, one_step


def _check_matrix(owner: str, w: Tensor) -> None:
    if w.dim() < 2:
        raise ValueError(
            f"{owner} needs a tensor of 2 or more dimensions, of which it takes (dim 0, all others) as a matrix, got "
            f"shape {tuple(w.shape)}."
        )


@dataclass(frozen=True, eq=False, repr=False)
class Nuclear(Penalty):
    """The nuclear norm: the L1 norm of the singular values, which makes a matrix exactly low-rank.

    ``R(W) = alpha * sum_i s_i(W)``; ``prox(W, step) = U diag(max(s - alpha step, 0)) V'``. A tensor of more dimensions
    is the matrix (dim 0, all others).

    Singular values reach 0 to rounding, entries only where the whole matrix does; what it saves is a factorisation.
    A proximal step takes one singular value decomposition, in float32 for half precision, and one step for the
    matrix. Under an optimizer with a step per entry (Adam), `ProxOptimizer` makes the base's step and the threshold
    with the common step ``1 / sqrt(mean(1 / t_i^2))``, ``lr / sqrt(mean v)`` for Adam; the minimiser stays. For that a
    copy of the matrix is kept while the base steps. On an accelerator torch's decomposition makes the host wait.

    Args:
        alpha: strength, finite and >= 0; a number or a 0-d tensor.

    Raises:
        ValueError: if ``alpha`` is negative, NaN or infinite; at attach, if the tensor has fewer than 2 dimensions.
        NoExactProx: from ``prox``, for a step per entry.

    Source:
        Cai, Candes and Shen, SIAM J. Optim. 20, 2010; one step per matrix: Zhang et al., ICLR 2025 (Adam-mini).

    Example:
        >>> import torch
        >>> from torchreg import Nuclear
        >>> Nuclear(1.0).prox(torch.diag(torch.tensor([3.0, 0.5])), 1.0)
        tensor([[2., 0.],
                [0., 0.]])
    """

    alpha: Scalar
    prox_steps: ClassVar[Literal["entry", "tensor", "none"]] = "tensor"

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("Nuclear", self.alpha))

    @property
    def convex(self) -> bool:
        return True

    def value(self, w: Tensor) -> Tensor:
        return self.alpha * singular_values(as_matrix(widened(w))).sum() if w.numel() else widened(w).sum()

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        x = widened(w)
        if not w.numel():
            return w.clone()
        threshold = scaled(self.alpha, one_step(self, step))
        if not isinstance(threshold, Tensor):
            threshold = filled(min(threshold, torch.finfo(x.dtype).max), x)  # torch refuses a number beyond it
        return narrowed(shrunk(as_matrix(x), threshold).reshape(w.shape), w)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        return _largest(grad)

    def conjugate(self, z: Tensor) -> Tensor:
        inside = _largest(z) <= self.alpha
        return torch.where(inside, 0.0, math.inf).to(widened(z).dtype)

    def check(self, w: Tensor) -> None:
        super().check(w)
        _check_matrix("Nuclear", w)


class _LossOnly(Penalty):
    """A penalty of a matrix that is added to a loss: it gives no zeros and has no proximal map."""

    prox_steps: ClassVar[Literal["entry", "tensor", "none"]] = "none"

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        raise no_prox(self)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        raise no_prox(self)

    def check(self, w: Tensor) -> None:
        super().check(w)
        _check_matrix(type(self).__name__, w)


@dataclass(frozen=True, eq=False, repr=False)
class Spectral(_LossOnly):
    """The largest singular value of a matrix, for the loss alone: it bounds how much a layer can amplify its input.

    ``R(W) = alpha * s_max(W)^power``. A tensor of more dimensions is the matrix (dim 0, all others). It gives no zeros
    and has no proximal map here: write ``loss + penalty(model)``; `ProxOptimizer` refuses it.

    Args:
        alpha: strength, finite and >= 0; a number or a 0-d tensor.
        power: 1 for the spectral norm, 2 for its square; spectral norm regularisation with lambda / 2 is
            ``Spectral(lambda / 2, power=2)``.

    Raises:
        ValueError: if ``alpha`` is negative, NaN or infinite, or ``power`` is neither 1 nor 2.
        NoExactProx: from ``prox``.

    Source:
        Yoshida and Miyato, arXiv 1705.10941, whose power iteration is here a singular value decomposition.

    Example:
        >>> import torch
        >>> from torchreg import Spectral
        >>> Spectral(0.5)(torch.diag(torch.tensor([3.0, -4.0])))
        tensor(2.)
    """

    alpha: Scalar
    power: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("Spectral", self.alpha))
        if not isinstance(self.power, int) or isinstance(self.power, bool) or self.power not in (1, 2):
            raise ValueError(f"Spectral needs power 1 (the norm) or 2 (its square), got {self.power!r}.")

    @property
    def convex(self) -> bool:
        return True

    def value(self, w: Tensor) -> Tensor:
        return self.alpha * _largest(w) ** self.power


@dataclass(frozen=True, eq=False, repr=False)
class Orthogonality(_LossOnly):
    """The distance of a matrix's rows from being orthonormal, for the loss alone.

    ``R(W) = alpha * |W W' - I|_F^2``, of the columns, ``W' W``, where there are fewer of them. A tensor of more
    dimensions is the matrix (dim 0, all others): the filters of a convolution. It is not convex, gives no zeros and
    has no proximal map: write ``loss + penalty(model)``; `ProxOptimizer` refuses it.

    Args:
        alpha: strength, finite and >= 0; a number or a 0-d tensor.
        of: "rows", "columns", or "fewer" of the two; more vectors than they have entries cannot be orthogonal.
        unit: False leaves their lengths free and takes only the products of different ones.

    Raises:
        TypeError: if ``unit`` is no bool.
        ValueError: if ``alpha`` is negative, NaN or infinite, or ``of`` none of these.
        NoExactProx: from ``prox``.

    Source:
        Bansal, Chen and Wang, NeurIPS 2018 (soft orthogonality); Brock et al., ICLR 2017 for ``unit=False``.

    Example:
        >>> import torch
        >>> from torchreg import Orthogonality
        >>> Orthogonality(1.0)(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))  # products 1, twice; lengths^2 1 and 2
        tensor(3.)
        >>> Orthogonality(1.0, unit=False)(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor(2.)
    """

    alpha: Scalar
    of: Literal["fewer", "rows", "columns"] = "fewer"
    unit: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", strength("Orthogonality", self.alpha))
        if self.of not in ("fewer", "rows", "columns"):
            raise ValueError(f"Orthogonality needs of='rows', 'columns' or 'fewer', got {self.of!r}.")
        if not isinstance(self.unit, bool):
            raise TypeError(f"Orthogonality needs unit as True or False, got {self.unit!r}.")

    def value(self, w: Tensor) -> Tensor:
        x = as_matrix(widened(w))
        by_rows = self.of == "rows" or (self.of == "fewer" and x.shape[0] <= x.shape[1])
        gram = x @ x.mT if by_rows else x.mT @ x
        diagonal = torch.diagonal(gram)
        wanted = torch.ones_like(diagonal) if self.unit else diagonal
        return self.alpha * (gram - torch.diag_embed(wanted)).square().sum()


def _largest(w: Tensor) -> Tensor:
    """The largest singular value, 0 of a tensor without entries."""
    return singular_values(as_matrix(widened(w))).amax() if w.numel() else widened(w).sum()


@dataclass(frozen=True, eq=False, repr=False)
class Rank(Constraint):
    """The constraint that a matrix has rank ``r`` at most: a proximal step keeps the ``r`` largest singular values.

    ``R(W) = 0`` if at most ``r`` singular values are not zero, else inf. A tensor of more dimensions is the matrix (dim
    0, all others). Zero is a singular value that rounding can make: eps |W|_F of the entries to their dtype, and of the
    decomposition as in `torch.linalg.matrix_rank`, but for tall matrices 10 sqrt(smaller side) eps times the largest.

    Not convex: training finds a stationary point. It costs one singular value decomposition per step, and like
    `Nuclear` takes one step for the matrix.

    Args:
        r: the rank, an integer >= 0.

    Raises:
        TypeError, ValueError: if ``r`` is no integer >= 0; at attach, if the tensor has fewer than 2 dimensions.
        NoExactProx: from ``prox``, for a step per entry.

    Source:
        Eckart and Young, Psychometrika 1, 1936; as a projected gradient: Jain, Meka and Dhillon, NeurIPS 2010.

    Example:
        >>> import torch
        >>> from torchreg import Rank
        >>> Rank(1).prox(torch.diag(torch.tensor([3.0, 0.5])), 1.0)
        tensor([[3., 0.],
                [0., 0.]])
    """

    r: int
    prox_steps: ClassVar[Literal["entry", "tensor", "none"]] = "tensor"

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, Integral):
            raise TypeError(f"Rank needs an integer, got {type(self.r).__name__}; use Rank(8), say.")
        if self.r < 0:
            raise ValueError(f"Rank needs an integer >= 0, got {self.r}; use Rank(8), say.")
        object.__setattr__(self, "r", int(self.r))

    def outside(self, x: Tensor, rounding: Rounding) -> Tensor:
        if not x.numel():
            return torch.zeros((), dtype=torch.bool, device=x.device)
        s, eps = singular_values(as_matrix(x)), rounding.relative / 4.0
        decomposed = smallest(as_matrix(x), s, min(eps, torch.finfo(torch.float32).eps))
        added = eps * s.square().sum().sqrt() + rounding.least * math.sqrt(x.numel())  # by rounding the entries
        above = s > added + decomposed
        return s.isnan().any() | (above.sum() > self.r)  # NaN: of an infinite entry

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        x = widened(w)
        if not w.numel():
            return w.clone()
        one = one_step(self, step)
        moved = one > 0 if isinstance(one, Tensor) else torch.full((), one > 0, device=x.device)
        return narrowed(torch.where(moved, truncated(as_matrix(x), self.r).reshape(w.shape), x), w)

    def check(self, w: Tensor) -> None:
        super().check(w)
        _check_matrix("Rank", w)
