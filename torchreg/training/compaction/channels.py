"""Units through layers over positions, which leave channels apart: convolutions, pooling, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from torchreg.training.compaction.classes import Index
from torchreg.training.compaction.products import bias_for, read
from torchreg.training.compaction.rules import unknown
from torchreg.training.compaction.shapes import Rule
from torchreg.training.compaction.values import Flow, Value, by_channel, raised_vector, shape_of


def convolution(
    flow: Flow,
    node: Node,
    x: Value,
    w: Value,
    b: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """Filters read channels; each makes a channel of its own."""
    return _convolve(flow, node, x, w, b, padded=_any(padding), groups=groups, swapped=False)


def transposed(
    flow: Flow,
    node: Node,
    x: Value,
    w: Value,
    b: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """Its borders and strides see fewer positions than others do: only zeros can be left out."""
    return _convolve(flow, node, x, w, b, padded=True, groups=groups, swapped=True)


def _any(padding: Any) -> bool:
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)


def _convolve(
    flow: Flow, node: Node, x: Value, w: Value, b: Value | None, *, padded: bool, groups: int, swapped: bool
) -> Value:
    shape, classes, spatial = shape_of(node), flow.classes, len(w.shape) - 2
    sure, weights = w.full(*range(len(w.shape)))
    if not sure.all():
        return unknown(flow, node, x, w, b)
    dim = len(x.shape) - spatial - 1
    for d in range(dim + 1, len(x.shape)):
        classes.pin(x.units[d], f"is a position of {flow.called(node)}")
    for kernel in w.units[2:]:
        classes.pin(kernel, f"is a position of {flow.called(node)}")
    ins, outs = (0, 1) if swapped else (1, 0)
    summed = (weights.transpose(0, 1) if swapped else weights).flatten(2)
    nonzero, total = (summed != 0).any(2), summed.sum(2)
    uniform, constants = x.along(dim)
    clean = uniform & (constants.numpy() == 0) if padded else uniform
    if groups == 1:
        classes.join(x.units[dim], w.units[ins])
        channels = w.units[outs]
        if b is not None:
            classes.join(b.units[0], channels)
        why = ("padding leaves fewer of it at the border", "", "") if padded else bias_for(flow, node, w, b)
        read(flow, node, x.units[dim], channels, nonzero, uniform, constants, total, why, w.name)
    else:
        nonzero, total = _block_diagonal(nonzero, groups, swapped), _block_diagonal(total, groups, swapped)
        channels = _grouped(flow, node, x.units[dim], w, b, groups=groups, swapped=swapped)
    units = (*x.units[:dim], channels, *flow.fresh(shape[dim + 1 :], f"is a position of {flow.called(node)}"))
    known = ((~torch.from_numpy(clean)).double() @ nonzero.double().T) == 0
    entries = total @ torch.where(torch.from_numpy(clean), constants, 0.0)
    if b is not None:
        known, entries = known & b.known.expand(b.shape), entries + b.entries
    return by_channel(units, dim, known, entries, shape)


def _block_diagonal(w: Tensor, groups: int, swapped: bool) -> Tensor:
    """Weights (outputs, inputs) of all groups in one matrix; w has one group's inputs (outputs, if swapped)."""
    if swapped:  # (outputs of a group, all inputs)
        return torch.block_diag(*w.chunk(groups, 1)).to(w.dtype)
    return torch.block_diag(*w.chunk(groups, 0)).to(w.dtype)


def _grouped(flow: Flow, node: Node, ins: Index, w: Value, b: Value | None, *, groups: int, swapped: bool) -> Index:
    """Channels of a grouped convolution: all of a group go, or none."""
    classes, slices = flow.classes, w.units[0]
    within = w.units[1]
    classes.pin(within, f"is a channel within the groups of {flow.called(node)}, of which only whole ones can go")
    inputs = ins.reshape(groups, -1)
    if swapped:
        classes.join(ins, slices)
        channels = classes.new(groups * len(within)) if b is None else b.units[0]
    else:
        channels = slices
        if b is not None:
            classes.join(b.units[0], channels)
    outputs = channels.reshape(groups, -1)
    for grid in (inputs, outputs):
        for k in range(grid.shape[1]):
            classes.join(inputs[:, 0], grid[:, k])
    return channels


def pool(flow: Flow, node: Node, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Means and maxima over positions leave channels apart."""
    name = str(node.target)
    made_of = node.meta["val"]
    several = isinstance(made_of, (list, tuple))
    shape = tuple(int(n) for n in (made_of[0] if several else made_of).shape)
    spatial = next(d for d in (1, 2, 3) if f"{d}d" in name)
    dim = len(x.shape) - spatial
    for d in range(dim, len(x.shape)):
        flow.classes.pin(x.units[d], f"is a position of {flow.called(node)}")
    units = (*x.units[:dim], *flow.fresh(shape[dim:], f"is a position of {flow.called(node)}"))
    known, constants = x.along(dim - 1)
    if ".avg_pool" in name and (_any(args[2] if len(args) > 2 else 0) or len(args) > 3):
        known = known & (constants.numpy() == 0)
    out = by_channel(units, dim - 1, known, constants, shape)
    return [out, flow.unknown_like(out)] if several else out


def pad(flow: Flow, node: Node, x: Value, sizes: Sequence[int], mode: Any = "constant", value: Any = None) -> Value:
    """Padding leaves constant what equals the filling."""
    shape, units = shape_of(node), list(x.units)
    known, entries = x.known, x.entries
    for d in range(len(shape)):
        back = len(shape) - 1 - d
        if 2 * back + 1 < len(sizes) and any(sizes[2 * back : 2 * back + 2]):
            flow.classes.pin(units[d], f"is padded by {flow.called(node)}")
            units[d] = flow.classes.new(shape[d], f"is padded by {flow.called(node)}")
            if known.shape[d] != 1 or entries.shape[d] != 1:
                known, entries = torch.zeros([1] * len(shape)).bool(), torch.zeros([1] * len(shape)).double()
    if mode == "constant" or not isinstance(mode, str):
        filled = mode if isinstance(mode, (int, float)) else value or 0.0
        known = known & (entries == filled)
    return Value(shape, tuple(units), known, torch.where(known, entries, 0.0))


def prelu(flow: Flow, node: Node, x: Value, w: Value) -> Value:
    """``max(0, x) + w min(0, x)`` with a slope for all channels or for each."""
    dim = min(1, len(x.shape) - 1)
    if len(w.units[0]) > 1:
        flow.classes.join(x.units[dim], w.units[0])
    raised = Value(
        tuple(-1 if d == dim else 1 for d in range(len(x.shape))),
        x.units,
        x.known,
        raised_vector(w.entries, dim, len(x.shape)),
    )
    entries = torch.where(x.entries > 0, x.entries, raised.entries * x.entries)
    return Value(x.shape, x.units, x.known, torch.where(x.known, entries, 0.0))


_POOLS = [f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)]
_POOLS += [f"max_pool{d}d_with_indices" for d in (1, 2, 3)] + [
    f"upsample_{kind}"
    for kind in ("nearest1d", "nearest2d", "nearest3d", "bilinear2d", "bicubic2d", "linear1d", "trilinear3d")
]
CHANNELS: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed),
    **dict.fromkeys(_POOLS, pool),
    "pad": pad,
    "constant_pad_nd": pad,
    "prelu": prelu,
}
