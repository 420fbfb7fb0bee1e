"""Units through operations that move entries: reshapes, permutations, slices, concatenations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from torchreg.training.compaction.classes import Index
from torchreg.training.compaction.values import Flow, Value, shape_of

Rule = Callable[..., Any]
CUT = "is cut out by its index in {}"


def same(flow: Flow, node: Node, x: Value, *_: Any, **__: Any) -> Value:
    """A copy, a cast or a dropout that is off."""
    kind = node.meta["val"].dtype
    entries = x.entries.to(torch.float64 if kind.is_floating_point else kind)
    return Value(x.shape, x.units, x.known, entries, sums_to_one=x.sums_to_one)


def permute(flow: Flow, node: Node, x: Value, dims: Sequence[int]) -> Value:
    """Dimensions in another order."""
    order = [d % len(x.shape) for d in dims]
    units = tuple(x.units[d] for d in order)
    return Value(shape_of(node), units, x.known.permute(order), x.entries.permute(order))


def transpose(flow: Flow, node: Node, x: Value, a: int, b: int) -> Value:
    """Two dimensions change places."""
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return permute(flow, node, x, order)


def turned(flow: Flow, node: Node, x: Value) -> Value:
    """The transpose of a matrix."""
    return permute(flow, node, x, list(range(len(x.shape)))[::-1])


def unsqueeze(flow: Flow, node: Node, x: Value, dim: int) -> Value:
    """A new dimension of size 1."""
    dim %= len(x.shape) + 1
    units = (*x.units[:dim], flow.classes.new(1), *x.units[dim:])
    return Value(shape_of(node), units, x.known.unsqueeze(dim), x.entries.unsqueeze(dim))


def squeeze(flow: Flow, node: Node, x: Value, dims: int | Sequence[int] | None = None) -> Value:
    """Dimensions of size 1 go."""
    given = range(len(x.shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % len(x.shape) for d in given if x.shape[d] == 1}
    rest = [d for d in range(len(x.shape)) if d not in gone]
    shapes = [[t.shape[d] for d in rest] for t in (x.known, x.entries)]
    known, entries = x.known.reshape(shapes[0]), x.entries.reshape(shapes[1])
    return Value(shape_of(node), tuple(x.units[d] for d in rest), known, entries)


def expand(flow: Flow, node: Node, x: Value, sizes: Sequence[int], **_: Any) -> Value:
    """Dimensions of size 1 are repeated without a copy."""
    shape, more = shape_of(node), len(shape_of(node)) - len(x.shape)
    old = [None] * more + list(x.units)
    units = [
        unit if unit is not None and len(unit) == n else flow.classes.new(n, f"is expanded by {flow.called(node)}")
        for unit, n in zip(old, shape, strict=True)
    ]
    lead = (1,) * more
    return Value(shape, tuple(units), x.known.reshape(lead + x.known.shape), x.entries.reshape(lead + x.entries.shape))


def taken(flow: Flow, node: Node, x: Value, dim: int, index: slice) -> Value:
    """Indices start:end:step of a dimension."""
    dim %= len(x.shape)
    units = list(x.units)
    units[dim] = x.units[dim][index]
    known, entries = (
        t if t.shape[dim] == 1 else t.movedim(dim, 0)[index].movedim(0, dim) for t in (x.known, x.entries)
    )
    return Value(tuple(len(u) for u in units), tuple(units), known, entries)


def sliced(
    flow: Flow, node: Node, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    """A slice of a dimension, whose ends the code may name."""
    if len(x.units[dim][start:end:step]) < x.shape[dim] and (step != 1 or x.known.all()):
        flow.classes.pin(x.units[dim], CUT.format(flow.called(node)))  # a table may be cut to the example's length
    found = taken(flow, node, x, dim, slice(start, end, step))
    if len(found.units[dim]) != x.shape[dim]:
        note_edit(flow, node, [found.units[dim], x.units[dim][: start or 0]])
    return found


def select(flow: Flow, node: Node, x: Value, dim: int, index: int) -> Value:
    """One index of a dimension, which therefore keeps its places."""
    flow.classes.pin(x.units[dim], CUT.format(flow.called(node)))
    index %= x.shape[dim]
    one = taken(flow, node, x, dim, slice(index, index + 1))
    return squeeze(flow, node, one, dim)


def unbind(flow: Flow, node: Node, x: Value, dim: int = 0) -> list[Value]:
    """All indices of a dimension, each by its place."""
    flow.classes.pin(x.units[dim], CUT.format(flow.called(node)))
    rest = [n for d, n in enumerate(x.shape) if d != dim % len(x.shape)]
    parts = [taken(flow, node, x, dim, slice(k, k + 1)) for k in range(x.shape[dim])]
    return [_without(part, dim, rest) for part in parts]


def _without(x: Value, dim: int, shape: Sequence[int]) -> Value:
    dim %= len(x.shape)
    units = tuple(u for d, u in enumerate(x.units) if d != dim)
    return Value(tuple(shape), units, x.known.squeeze(dim), x.entries.squeeze(dim))


def split(flow: Flow, node: Node, x: Value, size: int, dim: int = 0) -> list[Value]:
    """Pieces of one size, which lose as many units as each other."""
    n = x.shape[dim]
    parts = [taken(flow, node, x, dim, slice(k, k + size)) for k in range(0, n, size)]
    if len(parts) > 1 and n % size:
        flow.classes.pin(x.units[dim], f"is cut into unequal pieces by {flow.called(node)}")
    elif len(parts) > 1:
        for part in parts[1:]:
            flow.classes.join(parts[0].units[dim], part.units[dim])
        note_edit(flow, node, [parts[0].units[dim]])
    return parts


def chunk(flow: Flow, node: Node, x: Value, count: int, dim: int = 0) -> list[Value]:
    """So many pieces of one size."""
    return split(flow, node, x, -(-x.shape[dim] // count), dim)


def split_with_sizes(flow: Flow, node: Node, x: Value, sizes: Sequence[int], dim: int = 0) -> list[Value]:
    """Pieces of given sizes."""
    ends = np.cumsum(sizes).tolist()
    parts = [taken(flow, node, x, dim, slice(end - n, end)) for end, n in zip(ends, sizes, strict=True)]
    note_edit(flow, node, [part.units[dim] for part in parts])
    return parts


def cat(flow: Flow, node: Node, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Units side by side."""
    shape = shape_of(node)
    tensors = [t for t in tensors if len(t.shape) == len(shape)]  # an old kind of empty tensor has one dimension
    dim %= len(shape)
    units = list(tensors[0].units)
    for other in tensors[1:]:
        for d, unit in enumerate(other.units):
            if d != dim:
                flow.classes.join(units[d], unit)
    units[dim] = np.concatenate([t.units[dim] for t in tensors])
    known = _joined([t.full(dim)[0] for t in tensors], dim)
    entries = _joined([t.full(dim)[1] for t in tensors], dim)
    return Value(shape, tuple(units), known, entries)


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    widest = [max(t.shape[d] for t in tensors) for d in range(tensors[0].dim())]
    return torch.cat([t.expand([n if d == dim else widest[d] for d, n in enumerate(t.shape)]) for t in tensors], dim)


def stack(flow: Flow, node: Node, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Tensors along a new dimension."""
    dim %= len(tensors[0].shape) + 1
    raised = []
    for t in tensors:
        units = (*t.units[:dim], flow.classes.new(1), *t.units[dim:])
        shape = (*t.shape[:dim], 1, *t.shape[dim:])
        raised.append(Value(shape, units, t.known.unsqueeze(dim), t.entries.unsqueeze(dim)))
    return cat(flow, node, raised, dim)


def note_edit(flow: Flow, node: Node, dims: list[Index]) -> None:
    """The code may name the sizes of these dimensions."""
    flow.edits.extend((flow.layer(node), dim, flow.called(node)) for dim in dims if len(dim) > 1)


def repeat(flow: Flow, node: Node, x: Value, times: Sequence[int]) -> Value:
    """Copies side by side."""
    shape, more = shape_of(node), len(times) - len(x.shape)
    old = [flow.classes.new(1) for _ in range(more)] + list(x.units)
    lead = (1,) * more
    units, reps = [], [n // len(u) if len(u) else 1 for n, u in zip(shape, old, strict=True)]
    for unit, n in zip(old, reps, strict=True):
        pinned = n > 1 and len(unit) == 1
        units.append(flow.classes.new(n, f"is repeated by {flow.called(node)}") if pinned else np.tile(unit, n))
    known, entries = (
        t.reshape(lead + t.shape).repeat([n if m > 1 else 1 for n, m in zip(reps, lead + t.shape, strict=True)])
        for t in (x.known, x.entries)
    )
    return Value(shape, tuple(units), known, entries)


SHAPES: dict[str, Rule] = {
    **dict.fromkeys(("clone", "alias", "detach", "contiguous", "_to_copy", "to", "lift_fresh_copy", "type_as"), same),
    "permute": permute,
    "transpose": transpose,
    "t": turned,
    "numpy_T": turned,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "expand": expand,
    "slice": sliced,
    "select": select,
    "unbind": unbind,
    "split": split,
    "chunk": chunk,
    "split_with_sizes": split_with_sizes,
    "cat": cat,
    "stack": stack,
    "repeat": repeat,
}
