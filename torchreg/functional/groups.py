"""Groups of entries of one tensor: rows, columns, convolution filters, labels, or all of it.

A ``Groups`` knows three things: how to add up entries within each group, how to hand one number
per group back to the entries, and which tensors it fits. Nothing else in the library knows shapes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchreg.functional.blocking import row_blocks
from torchreg.functional.reductions import square_sum, wide, wide_dtype, widened

_EXACT = 100_000  # entries; over longer rows a float32 norm loses digits on CPU


class Groups(ABC):
    """A partition of the entries of a tensor into groups."""

    @property
    def by_row(self) -> bool:
        """Whether every group lies within one slice of dim 0, so that slices are independent."""
        return False

    @abstractmethod
    def check(self, w: Tensor) -> None:
        """Raise ValueError where these groups do not fit the shape of ``w``."""

    @abstractmethod
    def sum(self, x: Tensor) -> Tensor:
        """Sums of the entries of ``x`` within each group, shape (groups,)."""

    @abstractmethod
    def extreme(self, x: Tensor, *, largest: bool) -> Tensor:
        """Largest or smallest entry of ``x`` within each group, shape (groups,)."""

    @abstractmethod
    def expand(self, v: Tensor, like: Tensor) -> Tensor:
        """Each group's entry of ``v`` (groups,), in a shape that broadcasts with ``like``."""

    @abstractmethod
    def count(self, w: Tensor) -> int:
        """How many groups ``w`` has."""

    def inhabited(self, w: Tensor) -> int:
        """How many groups of ``w`` have entries."""
        return self.count(w) if w.numel() else 0

    def sizes(self, w: Tensor) -> float | Tensor:
        """How many entries each group has: one number if they all have as many, else (groups,)."""
        return w.numel() / max(self.count(w), 1)

    def norms(self, w: Tensor) -> Tensor:
        """Euclidean norm of each group, shape (groups,); its gradient at a zero group is 0.

        Squares are added in float64 where the device has it, so that no float32 group
        overflows or underflows.
        """
        x = wide(widened(w))
        return root(self.sum(x * x))

    def quick_norms(self, w: Tensor) -> Tensor:
        """`norms` outside autograd, in w's own precision where that loses nothing but speed."""
        return self.norms(w)


def root(x: Tensor) -> Tensor:
    """Square root of ``x >= 0`` with gradient 0 (not infinity) at 0."""
    positive = x > 0
    safe = torch.where(positive, x, torch.ones_like(x)).sqrt()
    return torch.where(positive, safe, x)  # x keeps a NaN


def label_sums(x: Tensor, index: Tensor, count: int) -> Tensor:
    """Sums of the slices of dim 0 of ``x`` that bear the same label, (count, ...); 0 for a label that none bears."""
    zero = torch.zeros(count, *x.shape[1:], dtype=x.dtype, device=x.device)
    return zero.index_add(0, index, x)


def label_extremes(x: Tensor, index: Tensor, count: int, *, largest: bool) -> Tensor:
    """Largest or smallest entries of the slices that bear the same label, as `label_sums`."""
    zero = torch.zeros(count, *x.shape[1:], dtype=x.dtype, device=x.device)
    where = index.view(-1, *[1] * (x.dim() - 1)).expand_as(x)
    return zero.scatter_reduce(0, where, x, "amax" if largest else "amin", include_self=False)


@dataclass(frozen=True)
class _Slices(Groups):
    """One group for each index of a dimension."""

    name: str
    dim: int
    least_ndim: int

    @property
    def by_row(self) -> bool:
        return self.dim == 0

    def check(self, w: Tensor) -> None:
        if w.dim() < self.least_ndim:
            raise ValueError(
                f"Groups by {self.name} need a tensor with at least {self.least_ndim} dimension(s), got shape "
                f"{tuple(w.shape)}; use by=whole, or by=labels(index) for groups of your own."
            )

    def _others(self, x: Tensor) -> list[int]:
        return [d for d in range(x.dim()) if d != self.dim]

    def sum(self, x: Tensor) -> Tensor:
        others = self._others(x)
        return x.sum(others) if others else x

    def extreme(self, x: Tensor, *, largest: bool) -> Tensor:
        others = self._others(x)
        if not others:
            return x
        return x.amax(others) if largest else x.amin(others)

    def expand(self, v: Tensor, like: Tensor) -> Tensor:
        return v.reshape([-1 if d == self.dim else 1 for d in range(like.dim())])

    def count(self, w: Tensor) -> int:
        return w.shape[self.dim]

    def quick_norms(self, w: Tensor) -> Tensor:
        if w.dtype not in (torch.float32, torch.float64) or not w.numel():
            return self.norms(w)
        if self.by_row and w.numel() <= _EXACT * w.shape[0]:
            return torch.linalg.vector_norm(w.flatten(1) if w.dim() > 1 else w[:, None], dim=1)
        if self.by_row:
            return self.norms(w)
        parts = [self.sum(block * block) for block in row_blocks(w)]
        return sum(parts[1:], parts[0]).sqrt()

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Whole(Groups):
    """All entries are one group."""

    def check(self, w: Tensor) -> None:
        del w  # any shape is one group

    def sum(self, x: Tensor) -> Tensor:
        return x.sum().reshape(1)

    def extreme(self, x: Tensor, *, largest: bool) -> Tensor:
        return (x.max() if largest else x.min()).reshape(1)

    def expand(self, v: Tensor, like: Tensor) -> Tensor:
        return v.reshape([1] * like.dim())

    def count(self, w: Tensor) -> int:
        return 1

    def quick_norms(self, w: Tensor) -> Tensor:
        return square_sum(w).sqrt().reshape(1)

    def __repr__(self) -> str:
        return "whole"


@dataclass(frozen=True, eq=False, repr=False)
class labels(Groups):
    """Groups by label: entries that bear the same integer form a group.

    Args:
        index: integers >= 0, of the penalised tensor's shape, or of its first dimension only
            (then whole slices of dim 0 are labelled). Group ``k`` has the entries labelled ``k``;
            a number that no entry bears is an empty group.

    Raises:
        TypeError: if ``index`` is not an integer tensor.
        ValueError: if a label is negative.

    Example:
        >>> import torch
        >>> from torchreg import L1, Group, labels
        >>> penalty = Group(L1(1.0), by=labels(torch.tensor([0, 0, 1])), weights=1.0)
        >>> penalty.prox(torch.tensor([3.0, 4.0, 0.5]), 1.0)
        tensor([2.4000, 3.2000, 0.0000])
    """

    index: Tensor
    _sizes: Tensor = field(init=False)
    _inhabited: int = field(init=False)

    def __post_init__(self) -> None:
        index = self.index
        if (
            not isinstance(index, Tensor)
            or index.is_floating_point()
            or index.is_complex()
            or index.dtype is torch.bool
        ):
            given = index.dtype if isinstance(index, Tensor) else type(index).__name__
            raise TypeError(f"labels needs a tensor of integers, got {given}; use torch.tensor([0, 0, 1, ...]).")
        if index.numel() and int(index.min()) < 0:
            raise ValueError(f"labels need integers >= 0, got {int(index.min())}; number the groups from 0.")
        object.__setattr__(self, "index", index.detach().long().clone())
        object.__setattr__(self, "_sizes", torch.bincount(self.index.reshape(-1)))
        object.__setattr__(self, "_inhabited", int((self._sizes > 0).sum()))

    def inhabited(self, w: Tensor) -> int:
        return self._inhabited if w.numel() else 0

    def count(self, w: Tensor) -> int:
        del w
        return self._sizes.numel()

    def sizes(self, w: Tensor) -> float | Tensor:
        return self._sizes.to(wide_dtype(w)) * (w.numel() // max(self.index.numel(), 1))

    def check(self, w: Tensor) -> None:
        if self.index.shape not in (w.shape, w.shape[:1]):
            raise ValueError(
                f"labels of shape {tuple(self.index.shape)} do not fit a tensor of shape {tuple(w.shape)}; "
                f"give one label per entry, {tuple(w.shape)}, or one per slice of dim 0, {tuple(w.shape[:1])}."
            )
        if self.index.device != w.device:
            raise ValueError(
                f"labels lie on {self.index.device}, the tensor on {w.device}; use labels(index.to({str(w.device)!r}))."
            )

    def _per_label(self, x: Tensor) -> Tensor:
        """``x`` brought to one entry for each entry of ``index``, flattened."""
        if self.index.dim() == 1 and x.dim() > 1:
            return x.flatten(1).sum(1)
        return x.reshape(-1)

    def sum(self, x: Tensor) -> Tensor:
        return label_sums(self._per_label(x), self.index.reshape(-1), self._sizes.numel())

    def extreme(self, x: Tensor, *, largest: bool) -> Tensor:
        if self.index.dim() == 1 and x.dim() > 1:
            x = x.flatten(1).amax(1) if largest else x.flatten(1).amin(1)
        return label_extremes(x.reshape(-1), self.index.reshape(-1), self._sizes.numel(), largest=largest)

    def expand(self, v: Tensor, like: Tensor) -> Tensor:
        if self.index.dim() == 1 and like.dim() > 1:
            return v[self.index].reshape([-1] + [1] * (like.dim() - 1))
        return v[self.index.reshape(-1)].reshape(like.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, labels) and torch.equal(self.index.cpu(), other.index.cpu())

    def __hash__(self) -> int:
        return hash((self._sizes.numel(), tuple(self.index.shape)))

    def __repr__(self) -> str:
        return f"labels({self._sizes.numel()} groups, index of shape {tuple(self.index.shape)})"


rows: Groups = _Slices("rows", dim=0, least_ndim=1)
columns: Groups = _Slices("columns", dim=1, least_ndim=2)
filters: Groups = _Slices("filters", dim=0, least_ndim=3)
whole: Groups = _Whole()
