"""Sizes that a model's code names: attributes such as a number of heads, and numbers in the code itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import Module

from torchreg.training.compaction.classes import Solution, UnitClasses
from torchreg.training.compaction.graph import UnitGraph
from torchreg.training.compaction.modules import copied

_MOST = 32  # combinations of attributes that are tried


@dataclass
class Sizes:
    """Old sizes with the new ones, for the code of one module.

    Attributes:
        new: of each size that changed to one other.
        kept: sizes that some dimensions still have.
    """

    new: dict[int, int] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)


def changed_sizes(graph: UnitGraph, solution: Solution) -> dict[str, Sizes]:
    """For each module whose code may name sizes that changed, which."""
    sizes: dict[str, Sizes] = {}
    unclear: set[tuple[str, int]] = set()
    for path, units, _ in graph.edits:
        known, old, new = sizes.setdefault(path, Sizes()), len(units), int(solution.stays(units).sum())
        if old == new or not new:
            known.kept.add(old)
        elif known.new.setdefault(old, new) != new:
            unclear.add((path, old))
    for path, old in unclear:
        del sizes[path].new[old]
    return {path: known for path, known in sizes.items() if known.new or (path in {place for place, _ in unclear})}


def connected(places: Iterable[str], graph: UnitGraph, solution: Solution) -> list[set[str]]:
    """Modules by whether units that go connect them; their sizes change together or not at all."""
    classes = UnitClasses()
    classes.new(len(solution.root))
    for flat, factors in graph.classes.grids:
        together = solution.root[np.concatenate([flat.reshape(-1), *factors])]
        classes.join(np.full_like(together, together[0]), together)
    found: dict[int, set[str]] = {}
    for place in places:
        touched = {place}
        units = [u[~solution.stays(u)] for path, u, _ in graph.edits if path == place]
        for root in {classes.find(int(r)) for u in units for r in solution.root[u]}:
            touched |= found.get(root, set())
            found[root] = touched
        for root in [root for root, group in found.items() if group & touched]:
            found[root] = touched
    return [set(group) for group in {frozenset(group) for group in found.values()}]


def renamed(model: Module, sizes: dict[str, Sizes]) -> Iterator[None]:
    """Set attributes of a model that equal an old size to the new, in several combinations; the last one stays.

    First none, then those whose size is named nowhere else in their module, then all, then others by name.

    Args:
        model: a copy, changed in place.
        sizes: by module.
    """
    found = [
        (module, name, value, _replaced(value, known.new), _replaced(value, dict.fromkeys(known.kept, -1)) == value)
        for path, known in sizes.items()
        for module in [model.get_submodule(path)]
        for name, value in vars(module).items()
        if not name.startswith("_") and _replaced(value, known.new) != value
    ]
    names = sorted({name for _, name, *_ in found})
    several = (set(c) for n in range(len(names) - 1, 0, -1) for c in itertools.combinations(names, n))
    tries = itertools.chain(
        [(set[str](), False), (set(names), True), (set(names), False)], ((c, False) for c in several)
    )
    for chosen, only_sure in itertools.islice(tries, _MOST if names else 1):
        for module, name, old, new, sure in found:
            setattr(module, name, new if name in chosen and (sure or not only_sure) else old)
        yield


def _replaced(value: Any, known: dict[int, int]) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return known.get(value, value)
    if type(value) in (list, tuple, torch.Size):
        return type(value)(_replaced(v, known) for v in value)
    return value


def with_literals(model: Module, sizes: dict[str, Sizes]) -> Module | None:
    """The model as a traced module, in whose code numbers that name old sizes are replaced; None where it cannot be.

    Args:
        model: a copy of which units are removed.
        sizes: by module.
    """
    try:
        traced = [fx.symbolic_trace(copied(model).train(mode)) for mode in (True, False)]
    except Exception:  # a condition on the data, or arguments that are no tensors
        return None
    if traced[0].code != traced[1].code:
        return None  # its mode would be fixed
    changed = False
    for node in traced[1].graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        known = sizes.get(str(stack[-1][0]) if stack else "")
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if not known or name not in ("view", "reshape", "unflatten", "split", "expand", "repeat"):
            continue
        first, *rest = node.args
        given = tuple(_replaced(list(a) if isinstance(a, (list, tuple)) else a, known.new) for a in rest)
        changed |= given != tuple(rest)
        node.args = (first, *given)
    traced[1].recompile()
    for module, twin in zip(model.modules(), traced[1].modules(), strict=False):
        twin.training = module.training
    return traced[1] if changed else None
