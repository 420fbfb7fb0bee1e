"""Tensors of which each process holds a part (DTensor): which part is here, and what all parts come to.

A DTensor reduced to a number gives this process's part of it when it is read, so everything that is told of one goes
through this file. Source: PyTorch issues 144054 and 152406 on ``DTensor.item``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Parameter


def is_cut(w: Tensor) -> bool:
    """Whether other processes hold parts of a tensor; plain tensors are told without loading anything."""
    if type(w) is Parameter or type(w) is Tensor:
        return False
    module = sys.modules.get("torch.distributed.tensor")  # without it no such tensor exists
    return module is not None and isinstance(w, module.DTensor)


def here(w: Tensor) -> Tensor:
    """The part of a tensor that lies here, of a plain tensor all of it."""
    return w.to_local() if is_cut(w) else w  # type: ignore[attr-defined]


def memory_of(w: Tensor) -> StorageWeakRef | None:
    """A reference to a tensor's memory that does not keep it, None for a tensor that has none yet or in several parts.

    A weak reference to the tensor itself would forbid ``Module.to`` on what FSDP2 has cut: torch's `swap_tensors`.
    """
    try:
        return StorageWeakRef(w.untyped_storage())
    except (NotImplementedError, RuntimeError, ValueError):
        return None


def is_memory_of(memory: StorageWeakRef | None, w: Tensor) -> bool:
    """Whether `memory_of` gave this for a tensor that had the id of ``w``."""
    now = memory_of(w)
    return memory is now if memory is None or now is None else memory == now


def whole(w: Tensor) -> Tensor:
    """All of a tensor as a plain one, gathered where it is cut; differentiable."""
    return w.full_tensor() if is_cut(w) else w  # type: ignore[attr-defined]


def has_entries(w: Tensor) -> bool:
    """Whether any entry of any part is not zero; the same answer on every process."""
    return bool(any_entry(w))


def any_entry(w: Tensor) -> Tensor:
    """`has_entries` as a 0-d tensor, 0 or 1, for which nobody waits yet."""
    found = here(w).any().float()
    return Cut(w).largest(found) if is_cut(w) else found


def read(tensors: Sequence[Tensor]) -> list[float]:
    """What 0-d tensors hold, for which the host waits once a device and not once a tensor."""
    held: dict[int, float] = {}
    for device in {t.device for t in tensors}:
        there = {k: t for k, t in enumerate(tensors) if t.device == device}
        held |= zip(there, torch.stack(list(there.values())).tolist(), strict=True)
    return [held[k] for k in range(len(tensors))]


@dataclass(frozen=True, eq=False)
class Cut:
    """How a tensor is cut into parts.

    Args:
        like: the tensor, a DTensor.

    Raises:
        ValueError: if its parts are summands of the tensor instead (``Partial``).
    """

    like: Any

    def __post_init__(self) -> None:
        if any(placement.is_partial() for placement in self.like.placements):
            raise ValueError(
                f"A penalty needs the entries of a tensor, and this one of shape {tuple(self.like.shape)} is a sum "
                f"over processes that was not taken yet ({self.like.placements}); redistribute it first."
            )

    @property
    def keeps_rows(self) -> bool:
        """Whether every slice of dimension 0 lies on one process."""
        return all(getattr(placement, "dim", 0) == 0 for placement in self.like.placements)

    def part(self, full: Tensor) -> Tensor:
        """This process's part of a tensor that broadcasts with the one that is cut; nothing is sent."""
        from torch.distributed.tensor import DTensor, Replicate

        mesh, placements = self.like.device_mesh, self.like.placements
        if not is_cut(full):
            spread = full.broadcast_to(self.like.shape)
            full = DTensor.from_local(spread, mesh, [Replicate()] * mesh.ndim, run_check=False)
        return full.redistribute(mesh, placements).to_local()  # type: ignore[attr-defined]

    def gathered(self, part: Tensor) -> Tensor:
        """The whole of which this process's part is given, of the shape that is cut."""
        from torch.distributed.tensor import DTensor

        mesh, placements = self.like.device_mesh, self.like.placements
        shape, stride = self.like.shape, self.like.stride()
        return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=stride).full_tensor()

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the parts; the gradient of each process's ``x`` is that of the sum."""
        return _SumOverParts.apply(x, self)  # type: ignore[no-untyped-call]

    def largest(self, x: Tensor) -> Tensor:
        """The largest over the parts, NaN if any is."""
        known = self.reduced(x.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), dist.ReduceOp.MAX)
        return torch.where(self.reduced(x.isnan().float(), dist.ReduceOp.MAX) > 0, torch.nan, known)

    def before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over the parts before this one, in the order of the processes, and that over all parts."""
        mesh, place, count = self.like.device_mesh, 0, 1
        for dimension, placement in enumerate(self.like.placements):
            if not placement.is_replicate():
                place = place * mesh.size(dimension) + mesh.get_local_rank(dimension)
                count *= mesh.size(dimension)
        each = x.new_zeros(count, *x.shape)
        each[place] = x
        each = self.reduced(each, dist.ReduceOp.SUM)
        return each[:place].sum(0), each.sum(0)

    def reduced(self, x: Tensor, how: Any) -> Tensor:
        """A tensor reduced over the processes that hold different parts; replicas of a part count once."""
        x = x.detach().clone()
        for dimension, placement in enumerate(self.like.placements):
            if not placement.is_replicate():
                dist.all_reduce(x, op=how, group=self.like.device_mesh.get_group(dimension))
        return x


class _SumOverParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cut: Cut) -> Tensor:
        return cut.reduced(x, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
