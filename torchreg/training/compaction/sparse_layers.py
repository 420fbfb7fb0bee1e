"""Linear layers that compute with the non-zero entries of their weights alone, where that is faster on this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from torchreg.text_table import text_table
from torchreg.training.compaction.cost import as_they_were, caller, device_of, medians_in_turns
from torchreg.training.compaction.modules import copied
from torchreg.training.compaction.sparse_linear import SparseLinear, is_two_of_four

_FASTER = 0.95  # of the dense time: what differs by less may be noise


@dataclass(frozen=True)
class LayerTimes:
    """What was measured of one Linear layer.

    Attributes:
        name: the layer, "" for the model itself.
        shape: of its weight.
        zeros: share of the weight's entries that are zero.
        rows: input rows at which it was measured, 0 if it was not.
        seconds: medians by layout: "dense", "CSR", "2:4", those that this machine can compute.
        chosen: the layout that the result has.
        reason: why it was not measured, or why a layout is missing; "" if all is said.
    """

    name: str
    shape: tuple[int, int]
    zeros: float
    rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    chosen: str = "dense"
    reason: str = ""


@dataclass(frozen=True)
class SparseReport:
    """What `to_sparse` measured, layer by layer; prints as a table.

    Attributes:
        layers: the model's Linear layers in order.
        device: where they were measured.
    """

    layers: tuple[LayerTimes, ...]
    device: str

    def __repr__(self) -> str:
        head = (f"layer ({self.device})", "shape", "zeros", "rows", "dense", "CSR", "2:4", "chosen", "why")
        rows = []
        for line in self.layers:
            times = (f"{line.seconds[k] * 1e6:.1f} us" if k in line.seconds else "-" for k in ("dense", "CSR", "2:4"))
            shape = f"{line.shape[0]} x {line.shape[1]}"
            name = line.name or "model"
            rows.append((name, shape, f"{line.zeros:.4f}", str(line.rows or "-"), *times, line.chosen, line.reason))
        return text_table(head, rows)


def to_sparse(model: Module, example_inputs: Any = None, *, repeats: int = 20) -> tuple[Module, SparseReport]:
    """A copy of a model for inference, whose Linear layers are sparse where a measurement here says that it is faster.

    Each Linear layer with zeros is timed as it is, with its weight in compressed rows (CSR), and on CUDA as 2:4
    semi-structured where the weight has that pattern, in turns, at as many input rows as it meets at the example
    inputs. The fastest stays, a sparse one only if it is 5 % faster. Outputs are the same up to the order of summation.

    The result is for inference on this machine: sparse weights are not trained (biases and inputs still have
    gradients), and other devices, batches or numbers of threads may favour another layout. Its state_dict is that of
    the dense model, so each loads the other's; a loaded weight may have other zeros.

    Args:
        model: any module, on the device where it will run.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments; None measures every layer at
            one input row.
        repeats: measurements of each candidate.

    Returns:
        The copy, and a `SparseReport`.

    Raises:
        TypeError: if the model is no module.

    Example:
        >>> import torch
        >>> from torchreg import to_sparse
        >>> model = torch.nn.Linear(4, 2)
        >>> smaller, report = to_sparse(model, torch.ones(3, 4))
        >>> report.layers[0].chosen, report.layers[0].reason
        ('dense', 'no entry is zero')
    """
    if not isinstance(model, Module):
        raise TypeError(f"to_sparse needs a torch.nn.Module, got {type(model).__name__}.")
    holder = nn.ModuleList([copied(model)])
    linear = {name: m for name, m in holder[0].named_modules() if isinstance(m, nn.Linear)}
    readers = {id(m) for parent in holder.modules() if _reads_weights(parent) for m in parent.modules()}
    reasons = {name: _left(m, readers) for name, m in linear.items()}
    device = device_of(example_inputs, model)
    with as_they_were(holder[0]):
        rows = _rows(holder[0], {n: m for n, m in linear.items() if not reasons[n]}, example_inputs)
        lines, changed = [], {}
        for name, layer in linear.items():
            reason = reasons[name] or ("" if rows[name] else "it did not run at the example inputs")
            line, new = (
                (_line(name, layer, reason=reason), None) if reason else _fastest(name, layer, rows[name], repeats)
            )
            lines.append(line)
            if new is not None:
                changed[id(layer)] = new
    for parent in list(holder.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in changed:
                setattr(parent, name, changed[id(child)].train(child.training))
    return holder[0], SparseReport(tuple(lines), str(device))


def _reads_weights(module: Module) -> bool:
    """Whether a module computes with the weights of Linear layers in it, beside calling them."""
    attention = nn.MultiheadAttention
    fused = isinstance(module, nn.TransformerEncoderLayer) and isinstance(module.self_attn, attention)
    return fused or isinstance(module, attention)


def _left(layer: nn.Linear, readers: set[int]) -> str:
    """Why a layer is left as it is without a measurement, "" if it is measured."""
    if id(layer) in readers:
        return "the layer around it computes with its weight itself"
    if type(layer) is not nn.Linear:
        return f"{type(layer).__name__} is not torch's own layer, or its weight is computed"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "it has hooks (masks of torch.nn.utils.prune become permanent by prune.remove)"
    if layer.weight.is_meta or not layer.weight.numel():
        return "its weight has no values"
    if layer.weight.layout is not torch.strided or type(layer.weight.data) is not Tensor:
        return "its weight is no plain tensor"
    return "" if bool((layer.weight == 0).any()) else "no entry is zero"


def _rows(model: Module, layers: dict[str, nn.Linear], example_inputs: Any) -> dict[str, int]:
    """How many input rows each layer meets in one forward pass, the most of its calls."""
    if example_inputs is None:
        return dict.fromkeys(layers, 1)
    rows = dict.fromkeys(layers, 0)

    def note(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            given = args[0] if args else kwargs["input"]
            rows[name] = max(rows[name], given.numel() // max(module.in_features, 1))

        return hook

    hooks = [layer.register_forward_pre_hook(note(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        caller(model, example_inputs)()
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def _line(name: str, layer: nn.Linear, **found: Any) -> LayerTimes:
    weight = layer.weight.detach()
    known = not weight.is_meta and weight.numel() and weight.layout is torch.strided
    zeros = int((weight == 0).sum()) / weight.numel() if known else 0.0
    return LayerTimes(name, (layer.out_features, layer.in_features), zeros, **found)


def _fastest(name: str, layer: nn.Linear, rows: int, repeats: int) -> tuple[LayerTimes, Module | None]:
    """The line of a layer, and the sparse layer that is faster than it, None where none is."""
    device, generator = layer.weight.device, torch.Generator().manual_seed(0)
    x = torch.randn(rows, layer.in_features, generator=generator).to(device, layer.weight.dtype)
    made: dict[str, Module] = {"dense": layer}
    told = ""
    for layout in ("CSR", "2:4") if device.type == "cuda" and is_two_of_four(layer.weight) else ("CSR",):
        try:
            candidate = SparseLinear(layer, layout)
            if not _close(candidate(x), layer(x)):
                raise RuntimeError("its result differs")
            made[layout] = candidate
        except (RuntimeError, NotImplementedError, ValueError) as error:
            told = f"no {layout} here: {str(error).splitlines()[0][:80]}"
    calls = [functools.partial(candidate, x) for candidate in made.values()]
    seconds = dict(zip(made, medians_in_turns(calls, repeats, device), strict=True)) if len(made) > 1 else {}
    best = min(seconds, key=lambda layout: seconds[layout], default="dense")
    if seconds and seconds[best] > _FASTER * seconds["dense"]:
        best = "dense"
    found = {"rows": rows, "seconds": seconds, "chosen": best, "reason": told}
    return _line(name, layer, **found), None if best == "dense" else made[best]


def _close(one: Tensor, other: Tensor) -> bool:
    scale = other.float().norm()
    return bool((one.float() - other.float()).norm() <= torch.finfo(one.dtype).eps ** 0.5 * scale)
