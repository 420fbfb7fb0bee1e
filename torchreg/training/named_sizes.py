"""Sizes that a model's code names: attributes such as a number of heads, and numbers in the code itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.nn import Module

from torchreg.training.unit_classes import Solution
from torchreg.training.unit_graph import UnitGraph
from torchreg.training.unit_removal import copied

Sizes = dict[str, dict[int, int]]
_MOST = 32  # combinations of attributes that are tried


def changed_sizes(graph: UnitGraph, solution: Solution) -> Sizes:
    """For each module whose code may name sizes, the old sizes with the new."""
    sizes: Sizes = {}
    for path, units, _ in graph.edits:
        old, new = len(units), int(solution.stays(units).sum())
        if old != new:
            known = sizes.setdefault(path, {})
            known[old] = new if known.get(old, new) == new else -1  # one number, two meanings: left alone
    kept = {path: {old: new for old, new in known.items() if new > 0} for path, known in sizes.items()}
    return {path: known for path, known in kept.items() if known}


def renamed(model: Module, sizes: Sizes) -> Iterator[None]:
    """Set attributes of a model that equal an old size to the new, in every combination by name; the last one stays.

    Args:
        model: a copy, changed in place.
        sizes: by module.
    """
    found = [
        (module, name, value, _replaced(value, known))
        for path, known in sizes.items()
        for module in [model.get_submodule(path)]
        for name, value in vars(module).items()
        if not name.startswith("_") and _replaced(value, known) != value
    ]
    names = sorted({name for _, name, _, _ in found})
    several = (set(c) for n in range(len(names) - 1, 0, -1) for c in itertools.combinations(names, n))
    for chosen in itertools.islice(itertools.chain([set[str](), set(names)], several), _MOST):
        for module, name, old, new in found:
            setattr(module, name, new if name in chosen else old)
        yield
        if not names:
            return


def _replaced(value: Any, known: dict[int, int]) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return known.get(value, value)
    if type(value) in (list, tuple, torch.Size):
        return type(value)(_replaced(v, known) for v in value)
    return value


def with_literals(model: Module, sizes: Sizes) -> Module | None:
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
        given = tuple(_replaced(list(a) if isinstance(a, (list, tuple)) else a, known) for a in rest)
        changed |= given != tuple(rest)
        node.args = (first, *given)
    traced[1].recompile()
    for module, twin in zip(model.modules(), traced[1].modules(), strict=False):
        twin.training = module.training
    return traced[1] if changed else None
