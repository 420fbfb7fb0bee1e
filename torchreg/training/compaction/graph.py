"""The units of a model, followed through its forward pass.

The pass is taken by ``torch.export`` and brought to functional ATen operations. ``torch.fx.symbolic_trace`` would keep
calls of plain layers, but it stops at the first ``if`` on a shape or an argument and at keyword arguments of most
published models; an exported graph has one name for each operation however it was called, in-place writes resolved,
and parametrizations, masks and hooks written out as operations on parameters. Only the analysis uses the graph.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.nn import Module

from torchreg.functional.torch_private import tree_leaves, tree_map
from torchreg.training.compaction.channels import CHANNELS
from torchreg.training.compaction.classes import Index, Read, UnitClasses
from torchreg.training.compaction.norms import NORMS
from torchreg.training.compaction.products import PRODUCTS
from torchreg.training.compaction.reshapes import RESHAPES
from torchreg.training.compaction.rules import RULES, elementwise, unknown
from torchreg.training.compaction.shapes import SHAPES, Rule
from torchreg.training.compaction.values import Flow, Value, constant

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_RULES: dict[str, Rule] = {**SHAPES, **RESHAPES, **RULES, **PRODUCTS, **CHANNELS, **NORMS}


@dataclass(eq=False)
class UnitGraph:
    """The units of a model's tensors, and what reads them.

    Attributes:
        classes: the units.
        tensors: units of each dimension of the parameters and buffers that the forward pass uses, by first name.
        edits: dimensions whose sizes the code may name: module, units, words for the operation.
        trained: what reads units in training, None where the forward pass could not be taken in training mode.
    """

    classes: UnitClasses
    tensors: dict[str, tuple[Index, ...]]
    edits: list[tuple[str, Index, str]]
    trained: list[Read] | None


def unit_graph(model: Module, arguments: Arguments) -> UnitGraph:
    """Follow the units of a model in evaluation mode, and see that training mode agrees.

    Args:
        model: a copy, whose mode may be changed.
        arguments: positional and keyword arguments of its forward pass.

    Raises:
        Exception: whatever ``torch.export`` raises where it cannot take the forward pass.
    """
    first = first_names(model)
    classes, tensors = UnitClasses(), dict[str, tuple[Index, ...]]()
    flow = _walk(model.eval(), arguments, classes, tensors, first)
    evaluated, edits = classes.reads, flow.edits
    classes.reads = []
    try:
        _walk(model.train(), arguments, classes, tensors, first)
        trained: list[Read] | None = classes.reads
    except Exception:  # a model may be one for evaluation alone
        trained = None
    known = {_key(read) for read in evaluated}
    classes.reads = evaluated + [read for read in trained or [] if _key(read) not in known]
    model.eval()
    return UnitGraph(classes, tensors, edits, trained)


def _key(read: Read) -> str:
    return read.weight_name or read.layer


def first_names(model: Module) -> dict[str, str]:
    """The first name of the tensor that each name of a parameter or buffer has."""
    once: dict[int, str] = {}
    names = {}
    for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in named:
            names[name] = once.setdefault(id(tensor), name)
    return names


def _walk(
    model: Module,
    arguments: Arguments,
    classes: UnitClasses,
    tensors: dict[str, tuple[Index, ...]],
    first: Mapping[str, str],
) -> Flow:
    with _plain_attention(), _silence(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, arguments[0], arguments[1], strict=False)
        if not all(_known(node) for node in program.graph.nodes):
            program = program.run_decompositions({})  # slow, and mostly of no use
    flow = Flow(classes, dict(model.named_modules(remove_duplicate=False)))
    inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    nodes = list(program.graph.nodes)
    for node in nodes:
        spec = inputs.get(node.name)
        if node.op == "placeholder" and spec is not None and spec.target in first:
            name = first[spec.target]
            flow.uses[name] = flow.uses.get(name, 0) + len(node.users)
    for node in nodes:
        if node.op == "placeholder":
            spec = inputs[node.name]
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in first:
                flow.values[node] = _held(flow, first[spec.target], held[spec.target], tensors)
            else:
                flow.values[node] = _given(flow, node, program.constants.get(spec.target))
        elif node.op == "call_function":
            flow.values[node] = _called(flow, node)
            for value in tree_leaves(flow.values[node]):
                if isinstance(value, Value):
                    _note(classes, value)
        elif node.op == "output":
            _returned(flow, node, program.graph_signature.output_specs, tensors, first)
    return flow


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention is to be taken as operations, not as the one kernel for evaluation."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


@contextmanager
def _silence() -> Iterator[None]:
    """An export that fails writes its graph to the log; its exception says enough."""
    was = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(was)


def _note(classes: UnitClasses, value: Value) -> None:
    for units in value.units:
        if len(units) > 1:
            classes.note(units)


def _held(flow: Flow, name: str, tensor: Tensor, tensors: dict[str, tuple[Index, ...]]) -> Value:
    """A parameter or buffer: its entries are known, and so is what they belong to."""
    if name not in tensors:
        tensors[name] = tuple(flow.classes.new(n) for n in tensor.shape)
    entries = constant(tensor)
    value = Value(tuple(tensor.shape), tensors[name], torch.ones([1] * entries.dim(), dtype=torch.bool), entries, name)
    _note(flow.classes, value)
    return value


def _given(flow: Flow, node: Node, tensor: Any) -> Any:
    """An input of the model, or a tensor that the code holds."""
    made = node.meta.get("val")
    if not isinstance(made, Tensor):
        return made
    why = "is of a size of the model's input" if tensor is None else "is of the size of a tensor that the code holds"
    value = flow.unknown(node, flow.fresh(made.shape, why))
    if not isinstance(tensor, Tensor):
        return value
    entries = constant(tensor)
    return Value(value.shape, value.units, torch.ones([1] * entries.dim(), dtype=torch.bool), entries)


def _known(node: Node) -> bool:
    """Whether there is a rule for an operation as it stands; one in place may write only to a count."""
    if node.op != "call_function" or node.target is operator.getitem:
        return True
    name = _name(node)
    if name.endswith("_"):
        written = node.args[0]
        return isinstance(written, Node) and written.op == "placeholder" and written.meta["val"].numel() == 1
    return name.startswith("_assert") or name in _RULES or _pointwise(node.target)


def _name(node: Node) -> str:
    """The name of an ATen operation, "" of another."""
    schema = getattr(node.target, "_schema", None)
    space, _, name = schema.name.partition("::") if schema is not None else ("", "", "")
    return name if space == "aten" else ""


def _called(flow: Flow, node: Node) -> Any:
    args, kwargs = tree_map(lambda a: flow.values.get(a) if isinstance(a, Node) else a, (node.args, node.kwargs))
    if node.target is operator.getitem:
        return args[0][args[1]]
    name = _name(node)
    if name.startswith("_assert"):
        return None
    rule = _RULES.get(name)
    if rule is None and _pointwise(node.target):
        rule = elementwise
    if rule is not None and isinstance(node.meta.get("val"), (Tensor, list, tuple)):
        try:
            return rule(flow, node, *args, **kwargs)
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
            pass  # an overload with arguments of its own
    return unknown(flow, node, *args, **kwargs)


def _pointwise(target: Any) -> bool:
    """Whether an operation acts entry by entry; not every overload is tagged."""
    packet = getattr(target, "overloadpacket", None)
    tags = [getattr(packet, name).tags for name in packet.overloads()] if packet is not None else []
    return any(torch.Tag.pointwise in tagged for tagged in tags)


def _returned(
    flow: Flow, node: Node, specs: Any, tensors: dict[str, tuple[Index, ...]], first: Mapping[str, str]
) -> None:
    """Outputs of the model keep all of their units; a buffer that is written keeps its own."""
    for leaf, spec in zip(tree_leaves(node.args[0]), specs, strict=True):
        value = flow.values.get(leaf) if isinstance(leaf, Node) else None
        if not isinstance(value, Value):
            continue
        held = tensors.get(first.get(spec.target or "", ""))
        if spec.kind is OutputKind.BUFFER_MUTATION and held is not None:
            for mine, its in zip(value.units, held, strict=True):
                flow.classes.join(mine, its)
        else:
            for units in value.units:
                flow.classes.pin(units, "is returned by the model")
