"""Sums over groups of the entries of a flat vector."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from torchreg.functional.groups import Groups, label_extremes, label_sums


class Partition:
    """Groups of the entries of a vector; numbers of groups are (groups,), and a batch has one dimension more.

    Args:
        count: how many groups.
        labels: the group of each entry, (entries,).
        width: entries of each group, where all have as many and follow each other; None otherwise.
    """

    def __init__(self, count: int, labels: Tensor, width: int | None) -> None:
        self._count, self.labels, self.width = count, labels, width

    @cached_property
    def sizes(self) -> Tensor:
        """Entries of each group, (groups,)."""
        return torch.bincount(self.labels, minlength=self._count)

    @cached_property
    def _order(self) -> Tensor:
        return self.labels.argsort(stable=True)

    def __len__(self) -> int:
        return self._count

    def sums(self, x: Tensor) -> Tensor:
        """Sums of the entries of each group."""
        if self.width is None:
            return label_sums(x, self.labels, self._count)
        return x.view(self._count, self.width, *x.shape[1:]).sum(1)

    def norms(self, x: Tensor) -> Tensor:
        """Euclidean norms of the groups."""
        if self.width is not None and x.dim() == 1:
            return torch.linalg.vector_norm(x.view(self._count, self.width), dim=1)
        return self.sums(x * x).sqrt_()  # over a middle dimension vector_norm is 20 times slower

    def largest(self, x: Tensor) -> Tensor:
        """Largest entry of each group."""
        if self.width is None:
            return label_extremes(x, self.labels, self._count, largest=True)
        return x.view(self._count, self.width, *x.shape[1:]).amax(1)

    def spread(self, v: Tensor) -> Tensor:
        """Each group's number, handed to its entries."""
        if self.width is None:
            return v.index_select(0, self.labels)
        return v.unsqueeze(1).expand(self._count, self.width, *v.shape[1:]).reshape(-1, *v.shape[1:])

    def along(self, left: Tensor, right: Tensor, x: Tensor) -> Tensor:
        """``left_g (right_g' x_g)`` in each group: the product with a matrix of rank one."""
        if self.width is None:
            return left * self.spread(self.sums(right * x))
        shape = (self._count, self.width)
        return (left.view(shape) * (right * x).view(shape).sum(1, keepdim=True)).view(-1)

    def entries(self, groups: Tensor) -> Tensor:
        """Numbers of the entries of some groups, (m,), in the order of the groups."""
        if self.width is not None:
            return (groups[:, None] * self.width + torch.arange(self.width, device=groups.device)).view(-1)
        sizes = self.sizes[groups]
        ends = sizes.cumsum(0)
        first = (self.sizes.cumsum(0) - self.sizes)[groups] - (ends - sizes)
        return self._order[torch.repeat_interleave(first, sizes) + torch.arange(int(sizes.sum()), device=sizes.device)]


def partition(labels: Tensor) -> Partition:
    """The groups of entries by the label of each, (entries,); every number from 0 to the largest occurs."""
    count = int(labels.max()) + 1 if len(labels) else 0
    width = len(labels) // max(count, 1)
    regular = torch.arange(count, device=labels.device).repeat_interleave(max(width, 1))
    return Partition(count, labels, width if torch.equal(regular, labels) else None)


def contiguous(sizes: Tensor, width: int | None) -> Partition:
    """Groups that follow each other.

    Args:
        sizes: of the groups, (groups,).
        width: the size of all, None where they differ.
    """
    numbers = torch.arange(len(sizes), device=sizes.device)
    return Partition(len(sizes), numbers.repeat_interleave(sizes if width is None else width), width)


def group_of_rows(by: Groups, coef: Tensor) -> Tensor | None:
    """The group of each row of coef, (p,), numbered as ``by`` does; None where a row has entries of several groups.

    Args:
        by: groups of the entries of coef.
        coef: (p,) or (p, K).
    """
    labels = entry_labels(by, coef).reshape(len(coef), -1)
    return labels[:, 0] if labels.shape[1] and bool((labels == labels[:, :1]).all()) else None


def entry_labels(by: Groups, coef: Tensor) -> Tensor:
    """The group of each entry, of coef's shape."""
    numbers = torch.arange(by.count(coef), dtype=torch.float64, device=coef.device)
    return by.expand(numbers, coef).broadcast_to(coef.shape).long()
