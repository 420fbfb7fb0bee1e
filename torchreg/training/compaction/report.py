"""What became of each layer of a model from which units were removed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import Module

from torchreg.text_table import text_table
from torchreg.training.compaction.classes import KeptClasses, Read
from torchreg.training.compaction.cost import Cost, counted
from torchreg.training.compaction.graph import UnitGraph
from torchreg.training.compaction.modules import UnitCount
from torchreg.training.compaction.removal import held_tensors


@dataclass(frozen=True)
class CompactedLayer:
    """A parameter of a layer before and after.

    Attributes:
        name: name of the parameter.
        before: its shape.
        after: its shape now.
        left: which of its zeros stay, and why; "" if none.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    left: str = ""


@dataclass(frozen=True)
class CompactReport:
    """What `compact` removed; prints as a table.

    Attributes:
        layers: the layers' weights that changed, or whose zeros stay.
        parameters: numbers of entries before and after.
        flops: floating-point operations of one forward pass before and after, None where they cannot be counted.
        exact_in_training: whether training mode computes the same function too (without dropout), None if unknown.
        traced: whether the smaller model is a ``torch.fx.GraphModule``, since the code itself names sizes.
        left: why the whole model, or parts of it, stayed as they are.
        modules: recurrent, attention and transformer layers, and how many units each had and has.
        renamed: attributes that hold a size and were changed with it, by their names in the model.
        cost: latency and memory of both models, None where nothing was measured.
    """

    layers: tuple[CompactedLayer, ...]
    parameters: tuple[int, int]
    flops: tuple[int, int] | None
    exact_in_training: bool | None
    traced: bool = False
    left: tuple[str, ...] = ()
    modules: tuple[UnitCount, ...] = ()
    renamed: tuple[str, ...] = ()
    cost: Cost | None = None

    def __repr__(self) -> str:
        rows: list[tuple[str, ...]] = [(c.name, _shape(c.before), _shape(c.after), c.left) for c in self.layers]
        if self.cost is None:
            rows.append(("parameters", *(f"{n:,}" for n in self.parameters), ""))
        if self.cost is None and self.flops is not None:
            rows.append(("FLOPs", *(f"{n:,}" for n in self.flops), ""))
        lines = [text_table(("name", "before", "after", "zeros left"), rows)] if rows else []
        lines += [f"Left: {why}." for why in self.left]
        lines += [f"{count}" for count in self.modules]
        lines += [f"Sizes in attributes, changed too: {', '.join(self.renamed)}."] if self.renamed else []
        if self.exact_in_training is False:
            lines.append("Training mode: another function, since constants differ there (batch statistics, dropout).")
        if self.traced:
            lines.append("The model is a torch.fx.GraphModule: its code itself names sizes, which were replaced.")
        return "\n".join([*lines, *([] if self.cost is None else [repr(self.cost)])])


def _shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def count_parameters(model: Module) -> int:
    """Entries of a model's parameters, each once."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: Module, arguments: Any) -> int | None:
    """Floating-point operations of matrix products and convolutions in a forward pass, None where it cannot be run."""
    try:
        with torch.no_grad():
            return counted(lambda: model(*arguments[0], **arguments[1]))[0]
    except Exception:  # the counter refuses some shapes
        return None


def layer_changes(before: Module, after: Module, graph: UnitGraph, solution: KeptClasses) -> tuple[CompactedLayer, ...]:
    """The weights whose shapes changed, and those with zero rows or columns that stay."""
    old, new = held_tensors(before), held_tensors(after)
    reads = {read.weight_name or read.module: read for read in graph.classes.reads if read.rows is not None}
    changes = []
    for name in graph.tensors:
        if name not in new or old[name].dim() < 2:
            continue
        computed = reads.get(name.partition(".parametrizations.")[0]) or reads.get(name.rpartition(".")[0])
        left = _zeros_left(reads.get(name, computed), solution)
        sizes = tuple(old[name].shape), tuple(new[name].shape)
        if sizes[0] != sizes[1] or left:
            changes.append(CompactedLayer(name, *sizes, left))
    return tuple(changes)


def _zeros_left(read: Read | None, solution: KeptClasses) -> str:
    if read is None or read.rows is None:
        return ""
    rows, units = solution.stays(read.rows), solution.stays(read.units)
    inside = read.nonzero & rows[:, None] & units[None, :]
    zero_rows, zero_columns = read.rows[rows & ~inside.any(1)], read.units[units & ~inside.any(0)]
    found = [_reasons(zero_rows, "row", solution), _reasons(zero_columns, "column", solution)]
    return "; ".join(text for text in found if text)


def _reasons(units: Any, what: str, solution: KeptClasses) -> str:
    if not len(units):
        return ""
    counts = Counter(solution.reason(unit) for unit in np.asarray(units).tolist())
    why = ", ".join(f"{reason}" + (f" ({n})" if len(counts) > 1 else "") for reason, n in counts.most_common(3))
    return f"{len(units)} zero {what}{'s' if len(units) > 1 else ''}: {why}"
