"""Units through element-wise functions, tables, and operations that are not known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from torchreg.functional.torch_private import tree_map
from torchreg.training.compaction.classes import Index, Read
from torchreg.training.compaction.shapes import Rule, note_edit, split
from torchreg.training.compaction.values import Flow, Value, shape_of


def elementwise(flow: Flow, node: Node, *args: Any, **kwargs: Any) -> Value:
    """A function of every entry, or of entries of several tensors that are broadcast."""
    shape = shape_of(node)
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Value)]
    units = tuple(broadcast_units(flow, tensors, shape, d) for d in range(len(shape)))
    known = torch.ones([1] * len(shape), dtype=torch.bool)
    for t in tensors:
        known = known & raised(t.known, shape)
    zero = torch.zeros_like(known)
    if str(node.target).startswith("aten.mul."):
        for t in tensors:
            zero = zero | raised(t.known & (t.entries == 0), shape)
        scalars = [a for a in args if isinstance(a, (int, float))]
        zero = zero | any(a == 0 for a in scalars)
    if not (known.any() or zero.any()):
        return flow.unknown(node, units)
    entries = evaluated(node, args, kwargs)
    if entries is None:
        return flow.unknown(node, units)
    known = (known | zero) & entries.isfinite()
    return Value(shape, units, known, torch.where(known, entries, torch.zeros_like(entries)))


def evaluated(node: Node, args: Any, kwargs: Any) -> Tensor | None:
    """The operation on the known entries, None where it cannot be run on them."""
    given = tree_map(lambda a: a.entries if isinstance(a, Value) else a, (args, kwargs))
    try:
        made = node.target(*given[0], **given[1])  # type: ignore[operator]
    except Exception:  # an operation may refuse the shapes, types or device of the analysis
        return None
    return made if isinstance(made, Tensor) else None


def raised(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor with as many dimensions as a shape that it broadcasts to."""
    return t.reshape([1] * (len(shape) - t.dim()) + list(t.shape))


def broadcast_units(flow: Flow, tensors: Sequence[Value], shape: tuple[int, ...], d: int) -> Index:
    """The units of a dimension of the result, joined over all tensors that have it."""
    back = len(shape) - d
    with_it = [t.units[-back] for t in tensors if len(t.shape) >= back and t.shape[-back] == shape[d]]
    for other in with_it[1:]:
        flow.classes.join(with_it[0], other)
    return with_it[0] if with_it else flow.classes.new(shape[d], "is of a fixed size")


def unknown(flow: Flow, node: Node, *args: Any, **kwargs: Any) -> Any:
    """An operation of which nothing is known: all units that it reads stay."""
    why = f"is read by {flow.called(node)}, through which units are not followed"
    tensors: list[Value] = []
    tree_map(lambda a: tensors.append(a) if isinstance(a, Value) else None, (args, kwargs))
    for t in tensors:
        for units in t.units:
            flow.classes.pin(units, why)
    made = node.meta.get("val")
    if isinstance(made, (list, tuple)):
        return [_unknown_of(flow, m, why) if isinstance(m, Tensor) else m for m in made]
    if not isinstance(made, Tensor):
        return made
    found = _unknown_of(flow, made, why)
    if tensors and all(bool(t.known.all()) for t in tensors):
        entries = evaluated(node, args, kwargs)
        if entries is not None and tuple(entries.shape) == found.shape:
            return Value(found.shape, found.units, torch.ones([1] * entries.dim(), dtype=torch.bool), entries)
    return found


def _unknown_of(flow: Flow, made: Tensor, why: str) -> Value:
    shape = tuple(int(n) for n in made.shape)
    one = torch.zeros([1] * len(shape))
    return Value(shape, tuple(flow.fresh(shape, why)), one.bool(), one.double())


def embedding(flow: Flow, node: Node, w: Value, index: Value, *_: Any) -> Value:
    """Rows of a table: their entries are units, the rows stay."""
    flow.classes.pin(w.units[0], f"is an entry that {flow.called(node)} looks up")
    uniform, constants = w.along(1)
    lead = [1] * len(index.shape)
    known = torch.from_numpy(uniform).reshape([*lead, -1])
    return Value(shape_of(node), (*index.units, w.units[1]), known, constants.reshape([*lead, -1]))


def weight_norm(flow: Flow, node: Node, v: Value, g: Value, dim: int = 0) -> Any:
    """``g v / ||v||``, row by row: a column of v can go where it is zero, and leaves the length as it is."""
    if dim != 0 or len(v.shape) < 2 or not v.name or not g.known.all():
        return unknown(flow, node, v, g, dim)
    flow.classes.join(v.units[0], g.units[0])
    nonzero, k = (v.entries != 0).flatten(2).any(2) if len(v.shape) > 2 else v.entries != 0, v.shape[1]
    never, none = np.zeros(k, dtype=bool), torch.zeros(k, dtype=torch.float64)
    words = f"the length that {flow.called(node)} divides by"
    flow.classes.reads.append(Read(words, v.units[1], v.units[0], nonzero.numpy(), never, none))
    entries = evaluated(node, (v, g, dim), {})
    assert entries is not None
    return Value(v.shape, v.units, torch.ones([1] * entries.dim(), dtype=torch.bool), entries)


def made(flow: Flow, node: Node, *args: Any, **kwargs: Any) -> Value:
    """A tensor that the code makes with a size of its own."""
    units = tuple(flow.fresh(shape_of(node), f"is of a size that the code sets ({flow.called(node)})"))
    entries = evaluated(node, args, {k: v for k, v in kwargs.items() if k != "device"})
    if entries is None or math.prod(entries.shape) == 0 or _random(node):
        return flow.unknown(node, units)
    entries = entries.double() if entries.is_floating_point() else entries
    return Value(shape_of(node), units, torch.ones([1] * entries.dim(), dtype=torch.bool), entries)


def _random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def like(flow: Flow, node: Node, x: Value, *_: Any, **__: Any) -> Value:
    """Noise, or a constant, for every entry of a tensor."""
    found = flow.unknown_like(x)
    name = str(node.target).removeprefix("aten.").split("_")[0]
    if name not in ("zeros", "ones"):
        return found
    entries = torch.full_like(found.entries, float(name == "ones"))
    return Value(x.shape, x.units, torch.ones_like(found.known), entries)


def new(flow: Flow, node: Node, x: Value, *_: Any, **__: Any) -> Value:
    """A tensor whose sizes are, or may be, those of another (as the noise of a dropout of whole channels)."""
    shape = shape_of(node)
    alike = [len(x.shape) == len(shape) and x.shape[d] == n != 1 for d, n in enumerate(shape)]
    why = f"is of a size that the code sets ({flow.called(node)})"
    units = [
        x.units[d] if same else flow.classes.new(n, why) for d, (n, same) in enumerate(zip(shape, alike, strict=True))
    ]
    note_edit(flow, node, [u for u, same in zip(units, alike, strict=True) if same])
    return flow.unknown(node, units)


def glu(flow: Flow, node: Node, x: Value, dim: int = -1) -> Value:
    """``a * sigmoid(b)`` of the halves a and b."""
    a, b = split(flow, node, x, x.shape[dim] // 2, dim)
    zero = a.known & (a.entries == 0)
    known = (a.known & b.known) | zero
    return Value(a.shape, a.units, known, torch.where(known, a.entries * b.entries.sigmoid(), 0.0))


_LIKE = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "bernoulli")
RULES: dict[str, Rule] = {
    "embedding": embedding,
    "glu": glu,
    **dict.fromkeys(_LIKE, like),
    **dict.fromkeys(("new_empty", "new_zeros", "new_ones", "new_full"), new),
    "_weight_norm": weight_norm,
    **dict.fromkeys(("hardswish", "_prelu_kernel", "log_sigmoid"), elementwise),
    **dict.fromkeys(("zeros", "ones", "full", "arange", "scalar_tensor", "eye", "linspace"), made),
}
