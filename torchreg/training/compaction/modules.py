"""Modules without their dead units, where that is exact whatever stands around them.

Recurrent layers lose hidden units (`torchreg.training.compaction.recurrent`), attention loses heads
(`torchreg.training.compaction.attention`), and encoder and decoder layers lose neurons of their feed-forward part.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module, functional

from torchreg.functional.reductions import wide
from torchreg.training.compaction.attention import ReducedAttention, linear, removable_heads
from torchreg.training.compaction.recurrent import ReducedRecurrent, evened, zero_units

_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
_TRANSFORMER = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_KINDS = (*_RECURRENT, nn.MultiheadAttention, *_TRANSFORMER)
_PLAIN = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
_ENTRYWISE = {
    functional.relu,
    functional.gelu,
    functional.silu,
    functional.elu,
    functional.selu,
    functional.mish,
    functional.leaky_relu,
    functional.relu6,
    functional.hardswish,
    functional.softplus,
}
_ENTRYWISE |= {torch.relu, torch.tanh, torch.sigmoid}
_ENTRYWISE_MODULES: tuple[type[Module], ...] = (
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.SELU,
    nn.Mish,
    nn.LeakyReLU,
    nn.ReLU6,
    nn.Hardswish,
)
_ENTRYWISE_MODULES += (nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Identity)
_HARMLESS: tuple[type[Module], ...] = (nn.Dropout, *_ENTRYWISE_MODULES)


@dataclass(frozen=True)
class UnitCount:
    """How many units of a module were removed, or why none was; prints as a line.

    Attributes:
        module: its name in the model, "" for the model itself.
        units: what was counted: "hidden units" (of all layers and directions), "heads" or "neurons".
        before: units before.
        after: units that stay.
        reason: why they stay where none was removed, else "".
    """

    module: str
    units: str
    before: int
    after: int
    reason: str = ""

    def __str__(self) -> str:
        told = f"{self.before} {self.units}"
        return f"{self.module or 'model'}: {told} " + (f"stay: {self.reason}" if self.reason else f"-> {self.after}")


def shrink_modules(model: Module) -> tuple[Module, tuple[UnitCount, ...]]:
    """A copy of a model whose recurrent, attention and transformer layers have no dead units, and what was removed.

    Exact whatever the model does with them: inputs and outputs keep their sizes. A recurrent module becomes a
    `ReducedRecurrent`, which writes zeros where units were, and attention a `ReducedAttention`, which returns no
    attention weights. States of recurrent layers have to start at zero. Left alone are modules with hooks or
    parametrizations, subclasses, and parameters that other modules share.

    Args:
        model: any module.

    Returns:
        The copy, and a `UnitCount` of each such module.

    Example:
        >>> import torch
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> with torch.no_grad():
        ...     _ = layer.linear1.weight[:12].zero_(), layer.self_attn.out_proj.weight[:, :4].zero_()
        >>> smaller, counts = shrink_modules(layer)
        >>> [str(count) for count in counts]
        ['model: 16 neurons -> 4', 'self_attn: 2 heads -> 1']
    """
    holder = nn.ModuleList([copied(model)])
    owners = Counter(id(p) for m in holder.modules() for p in m._parameters.values() if p is not None)
    counts, changed = [], {}
    found = [(name, module) for name, module in holder[0].named_modules() if isinstance(module, _KINDS)]
    for name, module in found:
        reason = _left_alone(module, owners)
        before = _size(module)
        new, after = (None, before) if reason else _reduced(module)
        if before == after:
            reason = reason or "none is dead whatever the input"
        elif new is not None:
            changed[id(module)] = new
        counts.append(UnitCount(name, _units(module), before, after, reason))
    for parent in list(holder.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in changed:
                setattr(parent, name, changed[id(child)])
    return holder[0], tuple(counts)


def copied(model: Module) -> Module:
    """A deep copy, of models too that hold computed tensors (masked weights), which torch does not copy."""
    held = [
        v
        for m in model.modules()
        for value in vars(m).values()
        for v in (value if isinstance(value, list) else [value])
    ]
    memo = {id(v): v.detach().clone() for v in held if isinstance(v, Tensor) and not v.is_leaf}
    return copy.deepcopy(model, memo)


def _units(module: Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        return "heads"
    return "neurons" if isinstance(module, _TRANSFORMER) else "hidden units"


def _size(module: Any) -> int:
    if isinstance(module, nn.MultiheadAttention):
        return module.num_heads
    if isinstance(module, _TRANSFORMER):
        return module.linear1.out_features
    return module.num_layers * module.hidden_size * (2 if module.bidirectional else 1)


def _reduced(module: Any) -> tuple[Module | None, int]:
    """What stands in the place of a module (None: itself, which was cut), and the units that stay."""
    if isinstance(module, _TRANSFORMER):
        _cut_neurons(module)
        return None, _size(module)
    if isinstance(module, nn.MultiheadAttention):
        keep = ~removable_heads(module)
        return (None if bool(keep.all()) else ReducedAttention(module, keep)), int(keep.sum())
    directions, least = 2 if module.bidirectional else 1, module.proj_size + 1
    keep = torch.cat([evened(rows, least) for rows in (~zero_units(module)).split(directions)])
    return (None if bool(keep.all()) else ReducedRecurrent(module, keep)), int(keep.sum())


def _left_alone(module: Any, owners: Counter[int]) -> str:
    """Why a module is not looked at, "" if it is."""
    parts = [module, *module.children()] if not isinstance(module, _TRANSFORMER) else _feed_forward(module)
    own = {*_KINDS, *_PLAIN}
    odd = [type(m).__name__ for m in (module, *parts) if m.__class__ not in own and not isinstance(m, _HARMLESS)]
    if odd:
        return f"{odd[0]} is not torch's own layer, or its weights are computed"
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in (module, *parts)):
        return "it has hooks (masks of torch.nn.utils.prune become permanent by prune.remove)"
    held = [p for m in parts for p in m._parameters.values() if p is not None]
    if any(owners[id(p)] > 1 for p in held):
        return "it shares parameters with another module"
    if any(p.is_meta for p in held):
        return "its weights have no values yet (meta device)"
    if isinstance(module, _TRANSFORMER) and not _entrywise(module.activation):
        return f"its activation {module.activation!r} is not known to act on each entry alone"
    return ""


def _feed_forward(layer: Any) -> list[Module]:
    activation = [layer.activation] if isinstance(layer.activation, Module) else []
    return [layer.linear1, layer.linear2, layer.dropout, *activation]


def _entrywise(activation: Any) -> bool:
    return type(activation) in _ENTRYWISE_MODULES or (callable(activation) and activation in _ENTRYWISE)


@torch.no_grad()
def _cut_neurons(layer: Any) -> None:
    """Remove neurons of a layer in place that are constant or that nobody reads, all but one at most.

    The constants go into the bias of the second projection.
    """
    first, second = layer.linear1, layer.linear2
    values = layer.activation(first.weight.new_zeros(len(first.weight)) if first.bias is None else first.bias.clone())
    constant = (first.weight == 0).all(1)
    if layer.dropout.p and layer.training:  # a constant that is dropped at random is none
        constant = constant & (values == 0)
    keep = ~(constant | (second.weight == 0).all(0))
    if bool(keep.all()):
        return
    if not bool(keep.any()):
        keep[0] = True
    held = torch.where(constant & ~keep, wide(values), 0.0)
    offset, bias = wide(second.weight) @ held, second.bias
    if bias is not None or bool(offset.any()):
        bias = (offset if bias is None else wide(bias) + offset).to(second.weight.dtype)
    cut = None if first.bias is None else first.bias[keep]
    layer.linear1 = linear(first.weight[keep], cut, first.weight, first.bias).train(first.training)
    layer.linear2 = linear(second.weight[:, keep], bias, second.weight, second.bias).train(second.training)
