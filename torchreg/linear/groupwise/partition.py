"""Sums over groups of the entries of a flat vector."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from torchreg.functional.groups import Groups


class Partition(ABC):
    """Groups of the entries of a vector, and the shapes in which they are summed fastest.

    `shaped` brings a vector (entries,) or a batch (entries, batch) to these shapes, `column` one number for each
    group; then both multiply each other after `spread`, and `sums` leads from one to the other.
    """

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """The group of each entry, (entries,)."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of groups."""

    @abstractmethod
    def shaped(self, x: Tensor) -> Tensor:
        """Entries, (entries,) or (entries, batch), as this partition sums them."""

    @abstractmethod
    def column(self, v: Tensor) -> Tensor:
        """Numbers of groups, (groups,) or (groups, batch), as this partition multiplies them."""

    @abstractmethod
    def spread(self, v: Tensor) -> Tensor:
        """Numbers of groups, shaped, so that they broadcast with shaped entries."""

    @abstractmethod
    def sums(self, x: Tensor) -> Tensor:
        """Of the entries of each group."""

    @abstractmethod
    def norms(self, x: Tensor) -> Tensor:
        """Euclidean norms of the groups."""

    @abstractmethod
    def largest(self, x: Tensor) -> Tensor:
        """Entry of each group."""

    @abstractmethod
    def total(self, v: Tensor) -> Tensor:
        """Sum over groups, 0-d or (batch,)."""

    @abstractmethod
    def least(self, v: Tensor) -> Tensor:
        """Smallest number of a group, 0-d or (batch,)."""

    @abstractmethod
    def entries(self, groups: Tensor) -> Tensor:
        """Numbers of the entries of some groups, (m,), in their order."""

    @abstractmethod
    def part(self, groups: Tensor) -> Partition:
        """The partition of the entries of some groups."""


class Even(Partition):
    """Groups of one size that follow each other: vectors are (groups, width), numbers (groups, 1).

    Args:
        count: how many.
        width: entries of each.
        device: of the vectors.
    """

    def __init__(self, count: int, width: int, device: torch.device) -> None:
        self._count, self.width, self._device = count, width, device

    @property
    def labels(self) -> Tensor:
        return torch.arange(self._count, device=self._device).repeat_interleave(self.width)

    def __len__(self) -> int:
        return self._count

    def shaped(self, x: Tensor) -> Tensor:
        return x.view(self._count, self.width, *x.shape[1:])

    def column(self, v: Tensor) -> Tensor:
        return v.unsqueeze(1)

    def spread(self, v: Tensor) -> Tensor:
        return v

    def sums(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True)

    def norms(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return x.square().sum(1, keepdim=True).sqrt_()  # over a middle dimension vector_norm is 20 times slower

    def largest(self, x: Tensor) -> Tensor:
        return x.amax(1, keepdim=True)

    def total(self, v: Tensor) -> Tensor:
        return v.sum((0, 1))

    def least(self, v: Tensor) -> Tensor:
        return v.amin((0, 1))

    def entries(self, groups: Tensor) -> Tensor:
        inside = torch.arange(self.width, device=groups.device)
        return (groups[:, None] * self.width + inside).view(-1)

    def part(self, groups: Tensor) -> Even:
        return Even(len(groups), self.width, self._device)


class Uneven(Partition):
    """Groups of any sizes, in any order: vectors are (entries,), numbers (groups,).

    Args:
        labels: the group of each entry, (entries,); every number from 0 to the largest occurs.
    """

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels
        self.sizes = torch.bincount(labels)
        self._order = labels.argsort(stable=True)

    @property
    def labels(self) -> Tensor:
        return self._labels

    def __len__(self) -> int:
        return len(self.sizes)

    def shaped(self, x: Tensor) -> Tensor:
        return x

    def column(self, v: Tensor) -> Tensor:
        return v

    def spread(self, v: Tensor) -> Tensor:
        return v.index_select(0, self._labels)

    def sums(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(self), *x.shape[1:]).index_add_(0, self._labels, x)

    def norms(self, x: Tensor) -> Tensor:
        return self.sums(x * x).sqrt_()

    def largest(self, x: Tensor) -> Tensor:
        index = self._labels.view(-1, *[1] * (x.dim() - 1)).expand_as(x)
        return x.new_zeros(len(self), *x.shape[1:]).scatter_reduce_(0, index, x, "amax", include_self=False)

    def total(self, v: Tensor) -> Tensor:
        return v.sum(0)

    def least(self, v: Tensor) -> Tensor:
        return v.amin(0)

    def entries(self, groups: Tensor) -> Tensor:
        sizes = self.sizes[groups]
        ends = sizes.cumsum(0)
        first = (self.sizes.cumsum(0) - self.sizes)[groups] - (ends - sizes)
        return self._order[torch.repeat_interleave(first, sizes) + torch.arange(int(sizes.sum()), device=sizes.device)]

    def part(self, groups: Tensor) -> Uneven:
        return Uneven(torch.repeat_interleave(torch.arange(len(groups), device=groups.device), self.sizes[groups]))


def partition(labels: Tensor) -> Partition:
    """Of entries by the group of each, (entries,); every number from 0 to the largest occurs."""
    count = int(labels.max()) + 1 if len(labels) else 0
    width = len(labels) // max(count, 1)
    if width * count == len(labels):
        regular = torch.arange(count, device=labels.device).repeat_interleave(max(width, 1))
        if torch.equal(regular, labels):
            return Even(count, width, labels.device)
    return Uneven(labels)


def contiguous(sizes: Tensor, width: int | None) -> Partition:
    """Of groups that follow each other.

    Args:
        sizes: of the groups, (groups,).
        width: the size of all, None where they differ.
    """
    if width is not None:
        return Even(len(sizes), width, sizes.device)
    return Uneven(torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes))


def group_of_rows(by: Groups, coef: Tensor) -> Tensor | None:
    """The group of each row of coef, (p,), numbered as ``by`` does; None where a row has entries of several groups.

    Args:
        by: groups of the entries of coef.
        coef: (p,) or (p, K).
    """
    numbers = torch.arange(by.count(coef), dtype=torch.float64, device=coef.device)
    labels = by.expand(numbers, coef).broadcast_to(coef.shape).reshape(len(coef), -1).long()
    return labels[:, 0] if labels.shape[1] and bool((labels == labels[:, :1]).all()) else None
