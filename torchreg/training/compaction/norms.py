"""Units through norms, reductions and shares, which take several units together or leave them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import Node

from torchreg.training.compaction.classes import Index, Read
from torchreg.training.compaction.rules import unknown
from torchreg.training.compaction.shapes import Rule
from torchreg.training.compaction.values import Flow, Value, by_channel, shape_of


def batch_norm(
    flow: Flow, node: Node, x: Value, w: Value | None, b: Value | None, mean: Any, var: Any, *args: Any
) -> list[Any]:
    """The operation that returns statistics too; without running ones, flags stand in their place."""
    running = "no_training" in str(node.target) and isinstance(mean, Value)
    kept, spread = (mean, var) if isinstance(mean, Value) else (None, None)
    return [
        _normalised(flow, x, w, b, kept, spread, args[-1] if running else None),
        *_statistics(flow, node, x.units[1]),
    ]


def _normalised(
    flow: Flow, x: Value, w: Value | None, b: Value | None, mean: Value | None, var: Value | None, eps: float | None
) -> Value:
    """The same affine function for all entries of a channel.

    With the batch's own statistics, where no eps is given, a constant becomes the bias.
    """
    units = x.units[1]
    for t in (w, b, mean, var):
        if t is not None:
            flow.classes.join(units, t.units[0])
    known, constants = x.along(1)
    n = torch.ones(x.shape[1], dtype=torch.float64)
    scale, shift = (w.entries if w is not None else n), (b.entries if b is not None else 0 * n)
    entries = shift
    if eps is not None and mean is not None and var is not None:
        entries = (constants - mean.entries) / (var.entries + eps).sqrt() * scale + shift
    dead = (scale == 0).numpy() & np.ones(len(units), dtype=bool)
    return by_channel(x.units, 1, known | dead, torch.where(torch.from_numpy(dead), shift, entries), x.shape)


def whole_batch_norm(
    flow: Flow,
    node: Node,
    x: Value,
    w: Any,
    b: Any,
    mean: Any,
    var: Any,
    training: bool,
    _: float,
    eps: float,
    *__: Any,
) -> Value:
    """The operation before it is taken apart, which decides by an argument whose statistics it takes."""
    return _normalised(flow, x, w, b, mean, var, None if training or mean is None else eps)


def instance_norm(
    flow: Flow,
    node: Node,
    x: Value,
    w: Any,
    b: Any,
    mean: Any,
    var: Any,
    own: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Value:
    """Statistics of each channel of each sample, or in evaluation mode running ones."""
    known, constants = x.along(1)
    one = torch.ones(x.shape[1], dtype=torch.float64)
    for t in (w, b, mean, var):
        if isinstance(t, Value):
            flow.classes.join(x.units[1], t.units[0])
    entries = b.entries if b is not None else 0 * one
    if not own:
        scale = w.entries if w is not None else one
        entries = (constants - mean.entries) / (var.entries + eps).sqrt() * scale + entries
    return by_channel(x.units, 1, known, entries, x.shape)


def _statistics(flow: Flow, node: Node, units: Index) -> list[Any]:
    """What else an operation returns: of no use in evaluation mode; buffers that it has updated, in training."""
    rest = []
    for made in node.meta["val"][1:]:
        shape = tuple(made.shape)
        one = torch.zeros([1] * len(shape))
        follows = (units,) if shape == (len(units),) else tuple(flow.fresh(shape, "is a statistic"))
        rest.append(Value(shape, follows, one.bool(), one.double()))
    return rest


def layer_norm(
    flow: Flow, node: Node, x: Value, sizes: Sequence[int], w: Value | None = None, b: Value | None = None, *_: Any
) -> Value:
    """Mean and variance are taken over all units, so that none can go."""
    for back in range(1, len(sizes) + 1):
        for t in (w, b):
            if t is not None:
                flow.classes.join(x.units[-back], t.units[-back])
        flow.classes.pin(x.units[-back], f"enters the mean and variance of {flow.called(node)}")
    zero = Value(x.shape, x.units, torch.zeros_like(x.known), torch.zeros_like(x.entries))
    if w is None:
        return zero
    dead = (w.known & (w.entries == 0)).reshape([1] * (len(x.shape) - len(w.shape)) + list(w.entries.shape))
    entries = torch.zeros_like(w.entries) if b is None else b.entries
    return Value(x.shape, x.units, dead, torch.where(dead, entries.reshape(dead.shape), 0.0))


def rms_norm(flow: Flow, node: Node, x: Value, sizes: Sequence[int], w: Value | None = None, eps: Any = None) -> Value:
    """A constant unit adds its square to the mean of squares, which eps can stand for."""
    module = flow.modules.get(flow.layer(node))
    own = isinstance(module, nn.RMSNorm) and w is not None and bool(w.name) and flow.uses[w.name] == 1
    if len(sizes) != 1 or w is None or not own:
        return layer_norm(flow, node, x, sizes, w)
    flow.classes.join(x.units[-1], w.units[0])
    known, constants = x.along(-1)
    k = len(known)
    reader = Read(flow.called(node), x.units[-1], None, np.ones((1, k), dtype=bool), known, constants, rescaled=True)
    reader.module = flow.layer(node)
    flow.classes.reads.append(reader)
    dead = (known & (constants.numpy() == 0)) | (w.entries == 0).numpy()
    return by_channel(x.units, len(x.shape) - 1, dead, torch.zeros(k, dtype=torch.float64), x.shape)


def group_norm(
    flow: Flow, node: Node, x: Value, groups: int, w: Value | None = None, b: Value | None = None, *_: Any
) -> Value:
    """Mean and variance are taken over a group of channels, which goes as a whole."""
    units = x.units[1]
    for t in (w, b):
        if t is not None:
            flow.classes.join(units, t.units[0])
    if w is None and groups > 1:
        flow.classes.pin(units, f"is counted by {flow.called(node)}, which has no weights")
    if groups == 1:
        flow.classes.pin(units, f"enters the mean and variance of {flow.called(node)}")
    cells = units.reshape(groups, -1)
    for k in range(1, cells.shape[1]):
        flow.classes.join(cells[:, 0], cells[:, k])
    known, constants = x.along(1)
    by_group = constants.reshape(groups, -1)
    same = known.reshape(groups, -1).all(1) & (by_group == by_group[:, :1]).all(1).numpy()
    shift = torch.zeros(len(units), dtype=torch.float64) if b is None else b.entries
    dead = np.repeat(same, cells.shape[1])
    dead = dead | (w.entries == 0).numpy() if w is not None else dead
    return by_channel(x.units, 1, dead, shift, x.shape)


def reduction(flow: Flow, node: Node, x: Value, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
    """Sums, means and extremes over dimensions, whose units all count."""
    made_of = node.meta["val"]
    if isinstance(made_of, (list, tuple)) or (dims is not None and not isinstance(dims, (int, list, tuple))):
        return unknown(flow, node, x)
    given = range(len(x.shape)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % len(x.shape) for d in given} if x.shape else set()
    total = ".sum." in str(node.target)
    for d in gone:
        if total and not flow.classes.fixed(x.units[d]):
            _added_up(flow, node, x, d)
        elif not total:
            flow.classes.pin(x.units[d], f"is one of those that {flow.called(node)} goes over")
    shape = shape_of(node)
    kept = len(shape) == len(x.shape)
    units = tuple(flow.classes.new(1) if d in gone else u for d, u in enumerate(x.units) if kept or d not in gone)
    if {"mean", "amax", "amin"}.isdisjoint(str(node.target).split(".")) and not total:
        return flow.unknown(node, units)
    known, entries = x.full(*gone)
    wide = torch.broadcast_shapes(known.shape, entries.shape)
    order = sorted(gone)
    known = known.expand(wide).all(order, keepdim=kept) if order else known
    if total:  # the number of what is added up may be another for other inputs, so that only 0 stays what it is
        known = known & (entries.expand(wide) == 0).all(order, keepdim=kept) if order else known
    reduce = torch.sum if total else torch.amax if ".amax" in str(node.target) else torch.amin
    reduce = torch.mean if ".mean" in str(node.target) else reduce
    entries = reduce(entries.expand(wide).double(), order, keepdim=kept) if order else entries.double()
    return Value(shape, units, known, torch.where(known, entries, 0.0))


def _added_up(flow: Flow, node: Node, x: Value, dim: int) -> None:
    uniform, constants = x.along(dim)
    k, zero = len(uniform), uniform & (constants.numpy() == 0)
    read_by = Read(flow.called(node), x.units[dim], None, np.ones((1, k), dtype=bool), zero, 0 * constants)
    flow.classes.reads.append(read_by)


def softmax(flow: Flow, node: Node, x: Value, dim: int, *_: Any) -> Value:
    """Shares over a dimension, all of whose units count."""
    flow.classes.pin(x.units[dim], f"is one of those that {flow.called(node)} goes over")
    found = flow.unknown(node, x.units)
    over = dim % len(x.shape) if "softmax" in str(node.target) and "log" not in str(node.target) else None
    return Value(found.shape, found.units, found.known, found.entries, sums_to_one=over)


def dropout(flow: Flow, node: Node, x: Value, p: float, training: bool) -> Value:
    """A dropout keeps zeros constant in training, and no other value; those that it shifts it does not."""
    if not training or p == 0.0:
        return x
    known = x.known & (x.entries == 0) & ("alpha" not in str(node.target))
    return Value(x.shape, x.units, known, torch.zeros_like(x.entries))


def native_dropout(flow: Flow, node: Node, x: Value, p: float, training: bool = True) -> list[Value]:
    """Dropout that returns its mask."""
    return [dropout(flow, node, x, p, training), flow.unknown_like(x)]


_BATCH = ["_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "_native_batch_norm_legit_functional"]
_OVER = [
    "sum",
    "mean",
    "amax",
    "amin",
    "max",
    "min",
    "argmax",
    "argmin",
    "any",
    "all",
    "var",
    "std",
    "logsumexp",
    "prod",
]
NORMS: dict[str, Rule] = {
    **dict.fromkeys(_BATCH, batch_norm),
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "batch_norm": whole_batch_norm,
    "native_dropout": native_dropout,
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), dropout),
    **dict.fromkeys(_OVER, reduction),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum"), softmax),
}
