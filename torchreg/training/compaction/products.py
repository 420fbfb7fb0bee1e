"""Units through products: layers with weights, products of computed tensors, attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from torchreg.training.compaction.classes import Flags, Index, Read
from torchreg.training.compaction.rules import broadcast_units, raised, unknown
from torchreg.training.compaction.shapes import Rule
from torchreg.training.compaction.values import Flow, Value, shape_of

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # their forward adds a bias if there is one


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
    batch = [broadcast_units(flow, [_batch(a), _batch(b)], shape[:-2], d) for d in range(len(shape) - 2)]
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
    shape = shape_of(node)
    known, entries = (raised(t.unsqueeze(-2), shape) for t in _mean_over(v, len(v.shape) - 2))
    return Value(shape, units, known, entries)


def _mean_over(v: Value, dim: int) -> tuple[Tensor, Tensor]:
    """Where entries are one known number along a dimension, and that number; without the dimension."""
    known, entries = v.full(dim)
    wide = torch.broadcast_shapes(known.shape, entries.shape)
    known, entries = known.expand(wide), entries.expand(wide)
    first = entries.select(dim, 0)
    one = known.all(dim) & (entries == first.unsqueeze(dim)).all(dim)
    return one, torch.where(one, first, 0.0)


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
    batch = [broadcast_units(flow, [_batch(t) for t in (q, k, v)], shape[:-2], d) for d in range(len(shape) - 2)]
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


def recurrent(flow: Flow, node: Node, x: Value, *args: Any) -> Any:
    """Columns of the input weights of the first layer; all else of a recurrent layer stays as it is."""
    lists = [a for a in args if isinstance(a, list) and a and isinstance(a[0], Value)]
    weights = [w for w in lists[-1] if len(w.shape) == 2 and w.shape[1] == x.shape[-1]] if lists else []
    names = [w for w in weights if ".weight_ih_l0" in f".{w.name}"]
    module = flow.modules.get(flow.layer(node))
    biases = {b.name: b for b in lists[-1]} if lists else {}
    if not names or not isinstance(module, nn.RNNBase):
        return unknown(flow, node, x, *args)
    uniform, constants = x.along(-1)
    why = f"is read by {flow.called(node)}, through which units are not followed"
    for w in names:
        flow.classes.join(x.units[-1], w.units[1])
        flow.classes.pin(w.units[0], why)
        bias = biases.get(w.name.replace("weight_ih", "bias_ih"))
        where = bias_for(flow, node, w, bias)
        read(flow, node, x.units[-1], w.units[0], w.entries != 0, uniform, constants, w.entries, where, w.name)
    rest = [[t for t in a if t not in names] if isinstance(a, list) else a for a in args]
    return unknown(flow, node, *rest)


def einsum(flow: Flow, node: Node, equation: str, operands: list[Value], **_: Any) -> Value:
    """A product of two tensors by letters; a letter is a dimension, over all tensors that have it."""
    sides = equation.replace(" ", "").replace(",", "->").split("->")
    if len(sides) != 3 or "." in equation or any(len(set(side)) < len(side) for side in sides):
        return unknown(flow, node, operands)
    (left, right, out), (a, b) = sides, operands
    over = [letter for letter in dict.fromkeys(left + right) if letter not in out]
    if len(over) != 1 or over[0] not in left or over[0] not in right:
        return unknown(flow, node, operands)
    k = over[0]
    if left[-1] == k and len(right) == 2 and out == left[:-1] + right.replace(k, ""):
        return _product(flow, node, a, b if right[1] == k else _flipped(b), None, bias_slot=False)
    units = dict(zip(left, a.units, strict=True))
    for letter, its in zip(right, b.units, strict=True):
        flow.classes.join(units.setdefault(letter, its), its)
    zero = _zero(a, left.index(k)) | _zero(b, right.index(k))
    width = len(zero)
    none = torch.zeros(width, dtype=torch.float64)
    flow.classes.reads.append(Read(flow.called(node), units[k], None, np.ones((1, width), dtype=bool), zero, none))
    found = flow.unknown(node, [units[letter] for letter in out])
    if a.sums_to_one != left.index(k) or not set(right) - {k} <= set(out):
        return found
    mean = _mean_over(b, right.index(k))
    rest = right.replace(k, "")
    order = [rest.index(letter) for letter in out if letter in rest]
    sizes = [letter in rest for letter in out]
    known, entries = (_placed(t.permute(order), sizes) for t in mean)
    return Value(found.shape, found.units, known, entries)


def _placed(t: Tensor, there: list[bool]) -> Tensor:
    """A tensor with new dimensions of size 1 where it has none."""
    sizes = iter(t.shape)
    return t.reshape([next(sizes) if has else 1 for has in there])


PRODUCTS: dict[str, Rule] = {
    "linear": linear,
    "addmm": addmm,
    "matmul": matmul,
    "mm": matmul,
    "bmm": matmul,
    "einsum": einsum,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), recurrent),
    "scaled_dot_product_attention": attention,
}
