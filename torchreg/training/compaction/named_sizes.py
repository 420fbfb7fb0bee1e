"""Sizes that a model's code names: attributes such as a number of heads, and numbers in the code itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import Module

from torchreg.training.compaction.classes import KeptClasses, UnitClasses
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


def changed_sizes(graph: UnitGraph, solution: KeptClasses) -> dict[str, Sizes]:
    """The sizes that changed and that the code of a module may name, by module."""
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


def connected(places: Iterable[str], graph: UnitGraph, solution: KeptClasses) -> list[set[str]]:
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


class NamedSizes:
    """Attributes of a model that equal an old size, to be set to the new where the code needs it.

    Args:
        model: a copy, changed in place.
        sizes: by module.
    """

    def __init__(self, model: Module, sizes: dict[str, Sizes]) -> None:
        self._found = [
            (module, path, name, value, _replaced(value, known.new), dict.fromkeys(known.kept, -1))
            for path, known in sizes.items()
            for module in [model.get_submodule(path)]
            for name, value in vars(module).items()
            if not name.startswith("_") and _replaced(value, known.new) != value
        ]
        self.changed: tuple[str, ...] = ()

    def fit(self, works: Callable[[], str]) -> str:
        """Set the fewest attributes with which the model works; "" then, else why it does not with none.

        Tried are none, those whose size is named nowhere else in their module, all, and some by name. Of a choice that
        works each name is given back that it works without, since it may mean something else of the same size.

        Args:
            works: says what is wrong with the model as it is, "" for nothing.
        """
        names = sorted({name for _, _, name, *_ in self._found})
        several = (set(c) for n in range(len(names) - 1, 0, -1) for c in itertools.combinations(names, n))
        tries = itertools.chain(
            [(set[str](), False), (set(names), True), (set(names), False)], ((c, False) for c in several)
        )
        first = ""
        for chosen, only_sure in itertools.islice(tries, _MOST if names else 1):
            why = self._tried(chosen, only_sure, works)
            if not why:
                for name in sorted(chosen):
                    chosen = chosen if self._tried(chosen - {name}, only_sure, works) else chosen - {name}
                self._set(chosen, only_sure)
                return ""
            first = first or why
        return first

    def _tried(self, chosen: set[str], only_sure: bool, works: Callable[[], str]) -> str:
        self._set(chosen, only_sure)
        return works()

    def _set(self, chosen: set[str], only_sure: bool) -> None:
        changed = []
        for module, path, name, old, new, kept in self._found:
            now = name in chosen and (not only_sure or _replaced(old, kept) == old)
            setattr(module, name, new if now else old)
            changed += [f"{path}.{name}".lstrip(".")] if now else []
        self.changed = tuple(changed)


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
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, twin in traced[1].named_modules(remove_duplicate=False):
        twin.training = modules[name].training if name in modules else model.training
    return traced[1] if changed else None
