"""Units through reshapes: dimensions that are cut into grids and grids that are flattened."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from torchreg.training.compaction.classes import Index
from torchreg.training.compaction.shapes import Rule, note_edit
from torchreg.training.compaction.values import Flow, Value, shape_of, spread


def reshape(flow: Flow, node: Node, x: Value, *_: Any) -> Value:
    """Split every dimension into the common factors of both shapes, then merge."""
    shape = shape_of(node)
    blocks = _blocks(x.shape, shape)
    units: list[Index] = []
    for ins, outs in blocks:
        units += _regroup(flow, node, [x.units[d] for d in ins], [shape[d] for d in outs])
    note_edit(flow, node, units)
    known, entries = (_reshaped(t, x.shape, shape, blocks) for t in (x.known, x.entries))
    return Value(shape, tuple(units), known, entries)


def _reshaped(t: Tensor, old: Sequence[int], new: Sequence[int], blocks: list[tuple[list[int], list[int]]]) -> Tensor:
    """A tensor that broadcasts to the old shape, reshaped to one that broadcasts to the new."""
    uneven = [any(t.shape[d] != 1 for d in ins) for ins, _ in blocks]
    dims = [d for (ins, _), wide in zip(blocks, uneven, strict=True) if wide for d in ins]
    sizes = [new[d] if wide else 1 for (_, outs), wide in zip(blocks, uneven, strict=True) for d in outs]
    return spread(t, old, dims).reshape(sizes)


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions with the same number of entries in both shapes."""
    if 0 in old:
        return [(list(range(len(old))), list(range(len(new))))]
    blocks, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        first, then = (i, j)
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (a := math.prod(old[first:i])) != (b := math.prod(new[then:j])):
            i, j = (i + 1, j) if a < b else (i, j + 1)
        blocks.append((list(range(first, i)), list(range(then, j))))
    return blocks


def _regroup(flow: Flow, node: Node, ins: list[Index], shape: list[int]) -> list[Index]:
    """Units of reshaped dimensions."""
    classes, old = flow.classes, [len(u) for u in ins]
    if [n for n in old if n != 1] == [n for n in shape if n != 1]:
        wide = iter([u for u in ins if len(u) != 1])
        return [next(wide) if n != 1 else classes.new(1) for n in shape]
    steps = _common_steps(old, shape)
    if all(classes.fixed(u) for u in ins) or steps is None:
        why = next((classes.why(u) for u in ins if len(u) != 1), "is of a fixed size")
        if steps is None:
            why = f"is mixed with others by {flow.called(node)}"
            for u in ins:
                classes.pin(u, why)
        return flow.fresh(shape, why)
    fine = [part for u, sizes in zip(ins, _factors(old, steps), strict=True) for part in _parts(flow, u, sizes)]
    merged = []
    for sizes in _factors(shape, steps):
        merged.append(_merged(flow, fine[: len(sizes)]) if sizes else classes.new(1))
        fine = fine[len(sizes) :]
    return merged


def _common_steps(old: list[int], new: list[int]) -> list[int] | None:
    """Suffix products of both shapes, in order; None where one does not divide the next."""
    found = sorted({math.prod(shape[d:]) for shape in (old, new) for d in range(len(shape) + 1)})
    if found[0] == 0 or any(b % a for a, b in itertools.pairwise(found)):
        return None
    return found


def _factors(shape: list[int], steps: list[int]) -> list[list[int]]:
    """The common factors of each dimension of a shape."""
    factors, size = [], 1
    for n in shape[::-1]:
        inner = [step for step in steps if size <= step <= size * n]
        factors.append([b // a for a, b in itertools.pairwise(inner)][::-1])
        size *= n
    return factors[::-1]


def _parts(flow: Flow, units: Index, sizes: list[int]) -> list[Index]:
    """The dimensions of a grid that a dimension is cut into."""
    if not sizes:
        return []
    if len(sizes) == 1:
        return [units]
    cells = units.reshape(sizes)
    for d in range(len(sizes)):  # merged before from one dimension that was repeated
        first = np.moveaxis(cells, d, 0).reshape(sizes[d], -1)[:, 0]
        if (cells == first.reshape([-1 if k == d else 1 for k in range(len(sizes))])).all():
            return [first if k == d else flow.classes.new(n, "is of a fixed size") for k, n in enumerate(sizes)]
    if flow.classes.fixed(units):
        return flow.fresh(sizes, flow.classes.why(units))
    factors = [flow.classes.new(n) for n in sizes]
    flow.classes.grid(units, factors)
    return factors


def _merged(flow: Flow, factors: list[Index]) -> Index:
    """The dimension that a grid is flattened to."""
    free = [k for k, f in enumerate(factors) if not flow.classes.fixed(f)]
    sizes = [len(f) for f in factors]
    if len(factors) == 1:
        return factors[0]
    if len(free) == 1:
        shape = [-1 if k == free[0] else 1 for k in range(len(sizes))]
        return np.broadcast_to(factors[free[0]].reshape(shape), sizes).reshape(-1).copy()
    if not free:
        return flow.classes.new(int(np.prod(sizes)), flow.classes.why(factors[0]))
    flat = flow.classes.new(int(np.prod(sizes)))
    flow.classes.grid(flat, factors)
    return flat


RESHAPES: dict[str, Rule] = dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten"), reshape)
