"""A copy of a model, of which units are cut out in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module, Parameter

from torchreg.functional.torch_private import ConvBase, NormBase, TransposedConvBase
from torchreg.selection.effective_weights import used
from torchreg.training.compaction.classes import KeptClasses, Read, needed
from torchreg.training.compaction.graph import UnitGraph


def held_tensors(model: Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name."""
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    return {**dict(parameters), **dict(buffers)}


def remove_units(model: Module, graph: UnitGraph, solution: KeptClasses) -> bool:
    """Cut out of a copy what is not kept; whether a constant was added to a bias.

    Args:
        model: a copy of the model that the graph is of; its tensors change in place, so that shared ones stay shared.
        graph: its units.
        solution: which of them stay.
    """
    modules, tensors = dict(model.named_modules(remove_duplicate=False)), held_tensors(model)
    before = {name: _sizes(module) for name, module in modules.items()}
    folded = False
    for read in graph.classes.reads:
        if read.rescaled:
            folded |= _rescale(modules[read.module], read, solution)
        elif read.weight is not None:
            folded |= _fold(modules.get(read.module), tensors, read, solution)
    for name, dims in graph.tensors.items():
        _shrink(tensors[name], [solution.stays(units).nonzero()[0].tolist() for units in dims])
    for name, module in modules.items():
        _resize(module, before[name])
    return folded


def _shrink(tensor: Tensor, indices: Iterable[list[int]]) -> None:
    rest = tensor.data
    for d, index in enumerate(indices):
        if len(index) != rest.shape[d]:
            rest = rest.index_select(d, torch.tensor(index, dtype=torch.long, device=rest.device))
    if rest.shape != tensor.shape:
        order = [f for f in (torch.channels_last, torch.channels_last_3d) if _has_format(tensor, f)]
        tensor.data = rest.contiguous(memory_format=order[0]) if order else rest
        tensor.grad = None


def _has_format(tensor: Tensor, order: torch.memory_format) -> bool:
    return tensor.dim() == (4 if order is torch.channels_last else 5) and (
        not tensor.is_contiguous() and tensor.is_contiguous(memory_format=order)
    )


def fold(read: Read, solution: KeptClasses) -> Tensor | None:
    """What removed units add to each row that a layer keeps, in float64; None where that is nothing."""
    rows = slice(None) if read.rows is None else solution.stays(read.rows)
    gone = torch.from_numpy(~solution.stays(read.units) & read.nonzero[rows].any(0))
    if read.weight is None or not bool((read.constants[gone] != 0).any()):
        return None
    weight = read.weight if read.rows is None else read.weight[torch.from_numpy(solution.stays(read.rows))]
    return weight[:, gone] @ read.constants[gone]


def _fold(module: Any, tensors: dict[str, Tensor], read: Read, solution: KeptClasses) -> bool:
    delta = fold(read, solution)
    if delta is None or read.rows is None:
        return False
    full = torch.zeros(len(read.rows), dtype=torch.float64)
    full[torch.from_numpy(solution.stays(read.rows))] = delta
    if read.bias:
        bias = tensors[read.bias].data
        bias.copy_((bias.double().cpu() + full).to(bias))
    else:
        weight = module.weight
        kept = full[torch.from_numpy(solution.stays(read.rows))]
        module.bias = Parameter(kept.to(weight), requires_grad=weight.requires_grad)
    return True


def _rescale(norm: Any, read: Read, solution: KeptClasses) -> bool:
    """The same root mean square of fewer units: constants move into eps, the number into the scale."""
    stays = torch.from_numpy(solution.stays(read.units))
    n, m = len(stays), int(stays.sum())
    if n == m:
        return False
    weight, eps = norm.weight.data, norm.eps
    eps = torch.finfo(weight.dtype).eps if eps is None else eps
    norm.eps = (eps + float(read.constants[~stays].square().sum()) / n) * n / m
    weight.copy_((weight.double() * (n / m) ** 0.5).to(weight))
    return True


def _sizes(module: Module) -> tuple[int, ...]:
    """The shape of a layer's weight as it is used, () where it has none."""
    if isinstance(module, NormBase) and module.running_mean is not None:
        return tuple(module.running_mean.shape)
    if isinstance(module, nn.RNNBase):
        return tuple(module.get_parameter("weight_ih_l0").shape)
    known = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU, ConvBase, NormBase)
    if not isinstance(module, known):
        return ()
    if "weight" not in getattr(module, "parametrizations", {}) and getattr(module, "weight", None) is None:
        return ()  # to ask a parametrized layer for its weight may move its buffers
    return tuple(used(module, "weight").shape)


def _resize(module: Module, before: tuple[int, ...]) -> None:
    """Bring a layer's notes of its sizes up to its tensors."""
    after = _sizes(module)
    if after == before:
        return
    new: dict[str, object] = {}
    if isinstance(module, nn.Linear):
        new = {"out_features": after[0], "in_features": after[1]}
    elif isinstance(module, nn.Embedding):
        new = {"num_embeddings": after[0], "embedding_dim": after[1]}
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        new = {"normalized_shape": after}
    elif isinstance(module, nn.GroupNorm):
        new = {"num_channels": after[0], "num_groups": module.num_groups * after[0] // before[0]}
    elif isinstance(module, nn.RNNBase):
        new = {"input_size": after[1]}
    elif isinstance(module, nn.PReLU):
        new = {"num_parameters": after[0]}
    elif isinstance(module, NormBase):
        new = {"num_features": after[0]}
    elif isinstance(module, ConvBase):
        grouped = module.groups if module.groups == 1 else module.groups * after[0] // before[0]
        inner, outer = after[1] * grouped, after[0]
        ins, outs = (outer, inner) if isinstance(module, TransposedConvBase) else (inner, outer)
        new = {"in_channels": ins, "out_channels": outs, "groups": grouped}
    for name, value in new.items():
        setattr(module, name, value)


def exact_in_training(graph: UnitGraph, solution: KeptClasses) -> bool | None:
    """Whether the units that go have the same constant outputs in training mode; None where that is not known."""
    if graph.trained is None:
        return None
    evaluated: dict[str, list[Read]] = {}
    for read in graph.classes.reads:
        evaluated.setdefault(read.weight_name or read.layer, []).append(read)
    for read in graph.trained:
        if (needed(read, solution) & ~solution.stays(read.units)).any():
            return False
        twins = evaluated.get(read.weight_name or read.layer, [])
        if twins and not _alike(fold(twins.pop(0), solution), fold(read, solution)):
            return False
    return True


def _alike(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.allclose(a, b, rtol=1e-12, atol=1e-300)
