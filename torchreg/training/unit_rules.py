"""Units through operations that compute: element-wise functions, products with weights, convolutions, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_map

from torchreg.training.unit_classes import Flags, Index, Read
from torchreg.training.unit_shapes import Rule
from torchreg.training.unit_values import Flow, Value, shape_of

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # their forward adds a bias if there is one


def elementwise(flow: Flow, node: Node, *args: Any, **kwargs: Any) -> Value:
    """A function of every entry, or of entries of several tensors that are broadcast."""
    shape = shape_of(node)
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Value)]
    units = tuple(_broadcast_units(flow, tensors, shape, d) for d in range(len(shape)))
    known = torch.ones([1] * len(shape), dtype=torch.bool)
    for t in tensors:
        known = known & _raised(t.known, shape)
    zero = torch.zeros_like(known)
    if str(node.target).startswith("aten.mul."):
        for t in tensors:
            zero = zero | _raised(t.known & (t.entries == 0), shape)
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


def _raised(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    return t.reshape([1] * (len(shape) - t.dim()) + list(t.shape))


def _broadcast_units(flow: Flow, tensors: Sequence[Value], shape: tuple[int, ...], d: int) -> Index:
    """The units of a dimension of the result, joined over all tensors that have it."""
    back = len(shape) - d
    with_it = [t.units[-back] for t in tensors if len(t.shape) >= back and t.shape[-back] == shape[d]]
    for other in with_it[1:]:
        flow.classes.join(with_it[0], other)
    return with_it[0] if with_it else flow.classes.new(shape[d], "is of a fixed size")


def linear(flow: Flow, node: Node, x: Value, w: Value, b: Value | None = None) -> Value:
    """``x @ w.T + b``: reads units through columns, makes one for each row."""
    if len(w.shape) != 2:
        return unknown(flow, node, x, w, b)
    return _product(flow, node, x, w, b, bias_slot=True)


def addmm(flow: Flow, node: Node, b: Value, x: Value, w: Value, **kwargs: Any) -> Value:
    """``b + x @ w``, whose weights are (inputs, outputs)."""
    if kwargs or len(b.shape) != 1 or b.shape != w.shape[1:]:
        return unknown(flow, node, b, x, w)
    return _product(flow, node, x, _flipped(w), b, bias_slot=True)


def _flipped(w: Value) -> Value:
    return Value(w.shape[::-1], w.units[::-1], w.known.T, w.entries.T, w.name)


def _product(flow: Flow, node: Node, x: Value, w: Value, b: Value | None, *, bias_slot: bool) -> Value:
    classes = flow.classes
    classes.join(x.units[-1], w.units[1])
    if b is not None:
        classes.join(b.units[0], w.units[0])
    units = (*x.units[:-1], w.units[0])
    sure, weights = w.full(0, 1)
    nonzero = ~sure | (weights != 0)
    uniform, constants = x.along(-1)
    obstacle, bias, module = bias_for(flow, node, w, b) if bias_slot else ("its product has no bias", "", "")
    if not sure.all():
        obstacle = "its weights are computed from the input"
    read(flow, node, x.units[-1], w.units[0], nonzero, uniform, constants, weights, (obstacle, bias, module), w.name)
    known, entries = x.full(len(x.shape) - 1)
    varies = (~known).double() @ nonzero.double().T
    varies = varies + (~known | (entries != 0)).double() @ (~sure).double().T
    found = varies == 0
    total = torch.where(known, entries, 0.0).double() @ weights.double().T
    if b is not None:
        found = found & b.known.expand(b.shape)
        total = total + b.entries
    return Value(shape_of(node), units, found, torch.where(found, total, 0.0))


def read(
    flow: Flow,
    node: Node,
    units: Index,
    rows: Index | None,
    nonzero: Tensor,
    uniform: Flags,
    constants: Tensor,
    weight: Tensor,
    bias: tuple[str, str, str],
    weight_name: str,
) -> None:
    """Note that a layer reads units through its columns."""
    obstacle, name, module = bias
    zero = constants.numpy() == 0
    absorbs = uniform & zero if obstacle else uniform
    text = obstacle and f"their constant output cannot move into a bias: {obstacle}"
    text = text if bool((uniform & ~zero).any()) else ""
    flow.classes.reads.append(
        Read(
            flow.called(node), units, rows, nonzero.numpy(), absorbs, constants, weight, name, module, text, weight_name
        )
    )


def bias_for(flow: Flow, node: Node, w: Value, b: Value | None) -> tuple[str, str, str]:
    """Why constants cannot be added to a layer's bias or "", the bias's name, the module that may get one."""
    name = flow.layer(node)
    if b is not None:
        if not b.name:
            return "the bias is computed", "", name
        return ("the bias is used more than once" if flow.uses[b.name] > 1 else ""), b.name, name
    module = flow.modules.get(name)
    plain = module is not None and any(type(module).forward is kind.forward for kind in _PLAIN)
    if not plain or not w.name or getattr(module, "bias", 0) is not None:
        return "there is no bias", "", name
    return ("the weight is used more than once" if flow.uses[w.name] > 1 else ""), "", name


def matmul(flow: Flow, node: Node, a: Value, b: Value) -> Value:
    """A product of two tensors, either of which may be computed."""
    if len(a.shape) < 2 or len(b.shape) < 2:
        return unknown(flow, node, a, b)
    if len(b.shape) == 2:
        return _product(flow, node, a, _flipped(b), None, bias_slot=False)
    shape, classes = shape_of(node), flow.classes
    classes.join(a.units[-1], b.units[-2])
    batch = [_broadcast_units(flow, [_batch(a), _batch(b)], shape[:-2], d) for d in range(len(shape) - 2)]
    units = (*batch, a.units[-2], b.units[-1])
    left, right = (_zero(a, -1), _zero(b, -2))
    k = len(a.units[-1])
    classes.reads.append(
        Read(flow.called(node), a.units[-1], None, np.ones((1, k), dtype=bool), left | right, torch.zeros(k).double())
    )
    return _weighted_mean(flow, node, b, units) if a.sums_to_one == len(a.shape) - 1 else flow.unknown(node, units)


def _batch(x: Value) -> Value:
    return Value(x.shape[:-2], x.units[:-2], x.known, x.entries)


def _zero(x: Value, dim: int) -> Flags:
    uniform, constants = x.along(dim)
    found: Flags = uniform & (constants.numpy() == 0)
    return found


def _weighted_mean(flow: Flow, node: Node, v: Value, units: tuple[Index, ...]) -> Value:
    """Means of v over its second last dimension: constant where v is."""
    shape, dim = shape_of(node), len(v.shape) - 2
    known, entries = v.full(dim)
    wide = torch.broadcast_shapes(known.shape, entries.shape)
    known, entries = known.expand(wide), entries.expand(wide)
    one = known.all(dim, keepdim=True) & (entries == entries[..., :1, :]).all(dim, keepdim=True)
    return Value(shape, units, _raised(one, shape), _raised(torch.where(one, entries[..., :1, :], 0.0), shape))


def attention(
    flow: Flow,
    node: Node,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    p: float = 0.0,
    *_: Any,
    **named: Any,
) -> Value:
    """Scaled dot-product attention: heads are kept apart, widths of queries and keys set the scale."""
    if named.get("enable_gqa") and q.shape[-3] != k.shape[-3]:
        return unknown(flow, node, q, k, v, mask)
    shape, classes = shape_of(node), flow.classes
    classes.join(q.units[-1], k.units[-1])
    classes.join(k.units[-2], v.units[-2])
    classes.pin(q.units[-1], f"is a width of heads, which sets the scale of {flow.called(node)}")
    classes.pin(k.units[-2], f"is a position that {flow.called(node)} looks at")
    batch = [_broadcast_units(flow, [_batch(t) for t in (q, k, v)], shape[:-2], d) for d in range(len(shape) - 2)]
    if mask is not None:
        scores = (*batch, q.units[-2], k.units[-2])
        for d, (unit, n) in enumerate(zip(reversed(mask.units), reversed(mask.shape), strict=True)):
            if n == len(scores[-1 - d]):
                classes.join(scores[-1 - d], unit)
    mean = _weighted_mean(flow, node, v, (*batch, q.units[-2], v.units[-1]))
    if p == 0.0 and mask is None:
        return mean
    known = mean.known & (mean.entries == 0)  # where all is masked the result is 0
    return Value(mean.shape, mean.units, known, torch.zeros_like(mean.entries))


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
            return Value(found.shape, found.units, torch.ones_like(entries, dtype=torch.bool), entries)
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


def made(flow: Flow, node: Node, *args: Any, **kwargs: Any) -> Value:
    """A tensor that the code makes with a size of its own."""
    units = tuple(flow.fresh(shape_of(node), f"is of a size that the code sets ({flow.called(node)})"))
    entries = evaluated(node, args, {k: v for k, v in kwargs.items() if k != "device"})
    if entries is None or math.prod(entries.shape) == 0 or _random(node):
        return flow.unknown(node, units)
    entries = entries.double() if entries.is_floating_point() else entries
    return Value(shape_of(node), units, torch.ones_like(entries, dtype=torch.bool), entries)


def _random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


RULES: dict[str, Rule] = {
    "linear": linear,
    "addmm": addmm,
    "matmul": matmul,
    "mm": matmul,
    "bmm": matmul,
    "scaled_dot_product_attention": attention,
    "embedding": embedding,
    **dict.fromkeys(("zeros", "ones", "full", "arange", "scalar_tensor", "eye", "linspace"), made),
}
