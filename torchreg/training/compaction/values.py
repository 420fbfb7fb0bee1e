"""What is known of a tensor of a forward pass before it is run: the units of its dimensions, and constant entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from torchreg.training.compaction.classes import Flags, Index, UnitClasses


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of a forward pass.

    Attributes:
        shape: its shape on the example.
        units: the unit of every index, for each dimension.
        known: where entries are the same for every input; broadcasts to the shape.
        entries: the known entries, floating-point ones in float64; broadcasts to the shape, 0 where unknown.
        name: name of the parameter or buffer that it is, or "".
        sums_to_one: the dimension over which a softmax was taken.
    """

    shape: tuple[int, ...]
    units: tuple[Index, ...]
    known: Tensor
    entries: Tensor
    name: str = ""
    sums_to_one: int | None = None

    def full(self, *dims: int) -> tuple[Tensor, Tensor]:
        """Known flags and entries, expanded along dimensions."""
        return spread(self.known, self.shape, dims), spread(self.entries, self.shape, dims)

    def along(self, dim: int) -> tuple[Flags, Tensor]:
        """Whether the entries at each index of a dimension are one known number, and that number or 0."""
        dim %= len(self.shape)
        others = [d for d in range(len(self.shape)) if d != dim]
        known, entries = self.full(dim)
        shape = torch.broadcast_shapes(known.shape, entries.shape)
        known = known.expand(shape).permute(dim, *others).reshape(self.shape[dim], -1)
        entries = entries.expand(shape).permute(dim, *others).reshape(self.shape[dim], -1)
        if not known.shape[1]:
            return np.zeros(self.shape[dim], dtype=bool), torch.zeros(self.shape[dim], dtype=torch.float64)
        one = known.all(1) & (entries == entries[:, :1]).all(1)
        constants = torch.where(one, entries[:, 0].double(), 0.0)
        return one.numpy(), constants


def spread(x: Tensor, shape: Sequence[int], dims: Sequence[int]) -> Tensor:
    """A tensor that broadcasts to a shape, expanded to it along some dimensions."""
    return x.expand([shape[d] if d in dims else n for d, n in enumerate(x.shape)])


def constant(x: Tensor) -> Tensor:
    """A tensor's entries for the analysis: on the CPU, in float64 where they are floating-point."""
    x = x.detach().cpu()
    x = x.to_dense() if x.layout is not torch.strided else x
    return x.double() if x.is_floating_point() else x


@dataclass
class Flow:
    """The state of a walk through a graph.

    Attributes:
        classes: the units.
        values: what is known of each node.
        modules: the module of each name.
        uses: how often each parameter or buffer is read, over all its names.
        names: the tensors' first names by any name.
        edits: places where the code may name a size: (module, dimensions of the node, kind).
    """

    classes: UnitClasses
    modules: dict[str, torch.nn.Module]
    values: dict[Node, Any] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    edits: list[tuple[str, Index, str]] = field(default_factory=list)

    def layer(self, node: Node) -> str:
        """The name of the module that a node belongs to, as the model's user knows it."""
        stack = list(node.meta.get("nn_module_stack", {}).values())
        return str(stack[-1][0]) if stack else ""

    def called(self, node: Node) -> str:
        """Words for a node: its module, or its operation."""
        name, op = self.layer(node), str(node.target).removeprefix("aten.").split(".")[0].strip("_")
        module = self.modules.get(name)
        leaf = module is not None and not any(True for _ in module.children())
        return repr(name) if name and leaf else f"{op} in {name!r}" if name else f"{op}"

    def unknown(self, node: Node, units: Sequence[Index]) -> Value:
        """A value of which no entry is known."""
        shape = shape_of(node)
        one = [1] * len(shape)
        return Value(shape, tuple(units), torch.zeros(one, dtype=torch.bool), torch.zeros(one, dtype=torch.float64))

    def unknown_like(self, x: Value) -> Value:
        """A value with the units of another, of which no entry is known."""
        one = torch.zeros([1] * len(x.shape))
        return Value(x.shape, x.units, one.bool(), one.double())

    def fresh(self, shape: Sequence[int], why: str) -> list[Index]:
        """Pinned units for each dimension."""
        return [self.classes.new(n, why) for n in shape]


def shape_of(node: Node) -> tuple[int, ...]:
    """A node's shape on the example."""
    return tuple(int(n) for n in node.meta["val"].shape)


def raised_vector(v: Tensor, dim: int, ndim: int) -> Tensor:
    """A vector along one dimension of a tensor."""
    return v.reshape([-1 if d == dim else 1 for d in range(ndim)])


def by_channel(units: Sequence[Index], dim: int, known: Any, entries: Tensor, shape: Any) -> Value:
    """A value whose entries differ along one dimension alone; those that are not finite count as unknown."""
    known = torch.as_tensor(known) & entries.isfinite()
    n = len(shape)
    return Value(
        tuple(shape),
        tuple(units),
        raised_vector(known, dim, n),
        raised_vector(torch.where(known, entries, 0.0), dim, n),
    )
