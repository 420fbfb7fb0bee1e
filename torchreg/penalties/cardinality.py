"""Constraints on how many entries, or groups, are not zero, projected on in the metric of the step.

Of all points with the zeros of a pattern the nearest to ``w`` is ``w`` with these zeros, at the distance
``sum w_i^2 / (2 step_i)`` over them. So the projection keeps the entries that cost most to zero.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from dataclasses import dataclass, field
from numbers import Integral, Real

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut
from torchreg.functional.groups import Groups
from torchreg.functional.largest_entries import decimal_ratio, keep_largest, metric_size
from torchreg.functional.reductions import refuse_unreal, widened
from torchreg.functional.shrinkage import Scalar
from torchreg.penalties.base import Grain, Penalty
from torchreg.penalties.constraint import Constraint, Rounding


class Cardinality(Constraint):
    """A bound on the number of non-zeros: which entries it keeps follows from their sizes in the metric."""

    @property
    def even(self) -> bool:
        return True

    @property
    def radial(self) -> bool:
        return True  # after soft thresholding, zeroing an entry costs the square of what was left of it: still ordered

    @abstractmethod
    def keeps(self, size: Tensor) -> Tensor:
        """A mask of the entries that may differ from zero, those of the largest sizes; NaN comes last."""

    @abstractmethod
    def check_count(self, shape: tuple[int, ...], what: str) -> None:
        """Raise ValueError where sizes of this shape cannot be compared."""

    def among(self, cut: Cut, n: int) -> Cardinality | None:
        """This bound on n numbers of which a part lies here, None if it needs the others."""
        del cut, n
        return None

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        return projected(w, step, self)

    def check(self, w: Tensor) -> None:
        refuse_unreal(w)
        self.check_count(tuple(w.shape), "entries")


def projected(w: Tensor, step: Scalar, bound: Cardinality, by: Groups | None = None) -> Tensor:
    """``w`` with zeros where a bound on the number of entries, or of groups, keeps none; NaN stays.

    Entries whose step is 0 stay too, and take their places from the others.
    """
    x = widened(w.detach())
    if not isinstance(step, Tensor):
        if not step > 0:
            return w + 0.0
        size, fixed = x.abs(), None
    else:
        # of one entry, which may be what a process holds of many, a step of its own; else one number is that of all
        step = step.reshape(()) if step.numel() == 1 < x.numel() else step
        size, fixed = metric_size(x, step) if step.dim() else x.abs(), ~(step > 0)
    size = size if by is None else by.norms(size)
    kept = bound.keeps(size) | size.isnan()
    kept = kept if by is None else by.expand(kept, x)
    kept = kept if fixed is None else kept | fixed
    return torch.where(kept, w, torch.zeros_like(w)) + 0.0


def value_of_groups(w: Tensor, bound: Cardinality, by: Groups) -> Tensor:
    """The value of a bound on how many groups hold a non-zero entry."""
    x = widened(w)
    return bound.value(by.sum(torch.where(x.isnan(), x, (x != 0).to(x.dtype))))


def ranks(penalty: Penalty) -> bool:
    """Whether a penalty, or one that it is made of, compares what zeroing its entries costs."""
    inner = (getattr(penalty, "penalty", None), *getattr(penalty, "terms", ()))
    return isinstance(penalty, Cardinality) or any(ranks(p) for p in inner if p is not None)


@dataclass(frozen=True, eq=False, repr=False)
class TopK(Cardinality):
    """At most k non-zeros in a tensor: a proximal step keeps the k entries that cost most to zero.

    ``R(w) = 0`` if at most k entries are not zero, else infinity. ``prox`` keeps the k largest ``w_i^2 / step_i``: with
    one step for all the k largest ``|w_i|``, under an adaptive optimizer those that matter most to it. Exactly k, equal
    ones in their order; at step 0 it changes nothing. In `Group` it keeps the k groups of the largest sum of
    ``w_i^2 / step_i``.

    It holds for each tensor by itself, not for all layers together, and from the first step on. Entries that it has set
    to zero return where the optimizer moves them far enough (iterative hard thresholding). One that has never met a
    gradient goes first, whatever its size.

    Args:
        keep: a share of the entries as a float from 0.0 to 1.0, rounded down to whole entries, or how many as an int
            >= 0; more than there are keeps all. ``TopK(1)`` keeps one entry, ``TopK(1.0)`` all of them.

    Raises:
        TypeError: if ``keep`` is no number.
        ValueError: if it is out of range.

    Source:
        Blumensath and Davies, Applied and Computational Harmonic Analysis 27, 2009 (iterative hard thresholding).

    Example:
        >>> import torch
        >>> from torchreg import Group, TopK, rows
        >>> TopK(2).prox(torch.tensor([2.0, -0.3, 1.0, -3.0]), 1.0)
        tensor([ 2.,  0.,  0., -3.])
        >>> TopK(0.5).prox(torch.tensor([2.0, -0.3, 1.0, -3.0]), torch.tensor([9.0, 0.1, 0.1, 1.0]))
        tensor([ 0.,  0.,  1., -3.])
        >>> Group(TopK(1), by=rows).prox(torch.tensor([[3.0, 0.1], [2.0, 2.5]]), 1.0)
        tensor([[0.0000, 0.0000],
                [2.0000, 2.5000]])
    """

    keep: float | int
    _ratio: tuple[int, int] = field(default=(0, 1), init=False)  # of a share, for torch.compile takes no digits
    _cut: Cut | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        keep = self.keep
        if isinstance(keep, bool) or not isinstance(keep, Real):
            raise TypeError(
                f"TopK keeps a share as a float or a count as an int, got {type(keep).__name__}; use TopK(0.1) for a "
                "tenth of the entries, TopK(20) for 20 of them."
            )
        whole = isinstance(keep, Integral)
        if not (keep >= 0 and (whole or keep <= 1)):
            raise ValueError(
                f"TopK keeps a share between 0.0 and 1.0 or a whole number >= 0 of entries, got {keep!r}; use "
                "TopK(0.1) for a tenth of the entries, TopK(20) for 20 of them."
            )
        object.__setattr__(self, "keep", int(keep) if whole else float(keep))
        object.__setattr__(self, "_ratio", (0, 1) if whole else decimal_ratio(float(keep)))

    def count(self, n: int) -> int:
        """How many of n it keeps."""
        above, below = self._ratio
        return min(self.keep, n) if isinstance(self.keep, int) else n * above // below

    def keeps(self, size: Tensor) -> Tensor:
        k = self.count(size.numel()) if self._cut is None else int(self.keep)  # of all parts: `among`
        return keep_largest([size], k, [self._cut])[0]

    def outside(self, x: Tensor, rounding: Rounding) -> Tensor:
        found = (x != 0).sum()
        if self._cut is None:
            return found > self.count(x.numel())
        return self._cut.sum(found) > int(self.keep)

    def part(self, cut: Cut) -> Penalty | None:
        return self.among(cut, cut.like.numel())

    def among(self, cut: Cut, n: int) -> Cardinality:
        return self.replaced(keep=self.count(n), _cut=cut)

    def __repr__(self) -> str:
        return f"TopK(keep={self.keep!r})"  # a share of 1.0 is no count of 1

    def check_count(self, shape: tuple[int, ...], what: str) -> None:
        n = math.prod(shape)
        if n and self.keep and not self.count(n):
            warnings.warn(
                f"{self!r} keeps none of {n} {what}, and a layer of zeros passes no gradient on; keep a count, "
                "TopK(1), a larger share, or attach to larger layers alone.",
                stacklevel=6,  # who calls attach
            )


@dataclass(frozen=True, eq=False, repr=False)
class NM(Cardinality):
    """At most n non-zeros in every m consecutive inputs: NM(2, 4) is the pattern that sparse tensor cores multiply.

    ``R(w) = 0`` if every block of m has at most n non-zeros, else infinity. ``prox`` keeps in each block the n largest
    ``w_i^2 / step_i``, which is exact, equal ones in their order; at step 0 it changes nothing.

    Blocks run along dimension 1, the inputs: of a linear layer's (outputs, inputs) and of a convolution's (outputs,
    inputs, ...) at each place of the kernel, as sparse convolutions need it, which lay the inputs out last. After it
    ``torch.sparse.to_sparse_semi_structured`` takes a linear weight on CUDA, in half precision and with dimensions that
    are multiples of its blocks; it takes ``w.movedim(1, -1).flatten(1)`` of a convolution's.

    Args:
        n: non-zeros in a block, >= 0.
        m: entries of a block, >= 1, of which the inputs are a multiple.

    Raises:
        TypeError: if n or m is no whole number.
        ValueError: unless ``0 <= n <= m`` and ``m >= 1``; at attach, if the inputs are no multiple of m.

    Source:
        Mishra et al., arXiv 2104.08378, 2021 (2:4); blocks of convolutions as in NVIDIA's apex.contrib.sparsity.

    Example:
        >>> import torch
        >>> from torchreg import NM
        >>> NM(2, 4).prox(torch.tensor([[2.0, -0.3, 1.0, -3.0, 0.1, 0.2, 0.3, 0.0]]), 1.0)
        tensor([[ 2.0000,  0.0000,  0.0000, -3.0000,  0.0000,  0.2000,  0.3000,  0.0000]])
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        for name in ("n", "m"):
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, Integral):
                raise TypeError(f"NM needs whole numbers n and m, got {name}={given!r}; use NM(2, 4).")
            object.__setattr__(self, name, int(given))
        if not (0 <= self.n <= self.m and self.m >= 1):
            raise ValueError(f"NM needs 0 <= n <= m and m >= 1, got n={self.n}, m={self.m}; NM(2, 4) keeps 2 of 4.")

    @property
    def grain(self) -> Grain:
        return "row"  # of tensors with inputs, which `check` demands

    def part(self, cut: Cut) -> Penalty | None:
        blocks = any(getattr(placement, "dim", None) == 1 for placement in cut.like.placements)
        return None if blocks else self

    def keeps(self, size: Tensor) -> Tensor:
        ranked = torch.nan_to_num(self._blocks(size), nan=-1.0, posinf=math.inf)
        order = torch.sort(ranked, dim=-1, descending=True, stable=True).indices
        chosen = torch.zeros_like(ranked, dtype=torch.bool).scatter(-1, order[..., : self.n], True)
        return chosen.flatten(-2).movedim(-1, _inputs(size))

    def outside(self, x: Tensor, rounding: Rounding) -> Tensor:
        return ((self._blocks(x) != 0).sum(-1) > self.n).any()

    def _blocks(self, x: Tensor) -> Tensor:
        self.check_count(tuple(x.shape), "inputs")
        last = x.movedim(_inputs(x), -1)
        return last.unflatten(-1, (last.shape[-1] // self.m, self.m))

    def check(self, w: Tensor) -> None:
        refuse_unreal(w)
        if w.dim() < 2:
            raise ValueError(
                f"{self!r} acts on blocks of inputs, dimension 1, and a tensor of shape {tuple(w.shape)} has none; "
                "attach it to weights of linear layers or convolutions."
            )
        self.check_count(tuple(w.shape), "inputs")

    def check_count(self, shape: tuple[int, ...], what: str) -> None:
        found = shape[min(1, len(shape) - 1)] if shape else 1
        if found % self.m or not shape:
            raise ValueError(
                f"{self!r} needs a multiple of {self.m} {what}, got {found} in shape {shape}; choose another m, or "
                "attach it to the layers that fit, {name: w for name, w in weights(model).items() if w.shape[1] "
                f"% {self.m} == 0}}."
            )


def _inputs(x: Tensor) -> int:
    """The dimension of inputs; of numbers in a row their only one."""
    return min(1, x.dim() - 1)
