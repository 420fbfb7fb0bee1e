"""How many weights, and how many groups of them, are exactly zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from torchreg.functional.dtensor import Cut, here, is_cut, whole
from torchreg.functional.groups import Groups
from torchreg.selection.layers import layer_weights
from torchreg.text_table import text_table
from torchreg.training.parameter_names import qualified
from torchreg.training.term import Term
from torchreg.training.units import units_of


@dataclass(frozen=True)
class Sparsity:
    """Counts of exact zeros, in all and for each parameter; prints as a table.

    Attributes:
        name: "total", or the parameter's name.
        zeros: entries that equal zero, -0.0 included.
        total: entries.
        zero_groups: groups whose entries are all zero, None where the penalty has no groups. Of `coupled` groups each
            counts once, in the total.
        groups: groups, None likewise.
        parameters: the counts of each parameter, empty for a parameter's own.
    """

    name: str
    zeros: int
    total: int
    zero_groups: int | None = None
    groups: int | None = None
    parameters: tuple[Sparsity, ...] = ()

    @property
    def fraction(self) -> float:
        """Share of zeros, 0.0 for no entries."""
        return self.zeros / self.total if self.total else 0.0

    def metrics(self) -> dict[str, float | dict[str, float]]:
        """The shares of zeros for an ablation's row: ``sparsity`` in all, ``layers`` by parameter.

        With groups also ``group_sparsity``, the share of groups that are zero.

        Example:
            >>> import torch
            >>> sparsity({"w": torch.tensor([0.0, 1.0, -0.0, 2.0])}).metrics()
            {'sparsity': 0.5, 'layers': {'w': 0.5}}
        """
        shares: dict[str, float | dict[str, float]] = {"sparsity": self.fraction}
        if self.groups:
            shares["group_sparsity"] = (self.zero_groups or 0) / self.groups
        return {**shares, "layers": {line.name: line.fraction for line in self.parameters}}

    def __repr__(self) -> str:
        lines = [*self.parameters, self]
        grouped = self.groups is not None
        head = ("name", "zeros", "total", "fraction") + (("zero groups", "groups") if grouped else ())
        return text_table(head, [line._cells(grouped) for line in lines])

    def _cells(self, grouped: bool) -> tuple[str, ...]:
        cells = (self.name, str(self.zeros), str(self.total), f"{self.fraction:.4f}")
        counts = ("-", "-") if self.groups is None else (str(self.zero_groups), str(self.groups))
        return cells + (counts if grouped else ())


def sparsity(*targets: Module | Term | Mapping[str, Tensor]) -> Sparsity:
    """Count exact zeros: ``w == 0``, never a tolerance.

    Args:
        targets: modules, terms, or dicts of named tensors, sparse ones too. A module's are the weights of its layers
            as they are used, frozen or not: what a mask of ``torch.nn.utils.prune`` or a parametrization makes of the
            parameters. A term's are the parameters that it penalises. A name that several targets use is followed by
            the position of its target: "weight (0)", "weight (1)".

    Returns:
        A `Sparsity`; terms with a group penalty also count groups. Of tensors that are cut over processes
        (FSDP2) it counts all parts, so every process must call it.

    Raises:
        TypeError: if a target is something else.
        ValueError: if a module has no weights, or they have no values yet (lazy modules, the meta device).

    Example:
        >>> import torch
        >>> from torchreg import sparsity
        >>> sparsity({"w": torch.tensor([0.0, 1.0, -0.0, 2.0])})
        name   zeros  total  fraction
        w      2      4      0.5000
        total  2      4      0.5000
    """
    named = [(str(k), *line) for k, target in enumerate(targets) for line in _named(target)]
    names = qualified([name for _, name, _, _ in named], [place for place, *_ in named])
    counted = tuple(_count(name, w, groups) for name, (_, _, w, groups) in zip(names, named, strict=True))
    grouped = [(c.zero_groups or 0, c.groups) for c in counted if c.groups is not None]
    grouped += [_together(target) for target in targets if isinstance(target, Term) and target.together is not None]
    return Sparsity(
        "total",
        sum(c.zeros for c in counted),
        sum(c.total for c in counted),
        sum(zeros for zeros, _ in grouped) if grouped else None,
        sum(number for _, number in grouped) if grouped else None,
        counted,
    )


def _named(target: Module | Term | Mapping[str, Tensor]) -> list[tuple[str, Tensor, Groups | None]]:
    if isinstance(target, Term):
        alone = target.together is None
        listed = ((part, *named) for part in target.parts for named in part.parameters.items())
        return [(name, p, part.penalty.groups if alone else None) for part, name, p in listed]
    if isinstance(target, (Module, Mapping)):
        named = layer_weights(target) if isinstance(target, Module) else target
        if isinstance(target, Module) and not named:
            raise ValueError(
                f"{type(target).__name__} has no weights of layers to count; give sparsity a dict of tensors, "
                "matching(model, pattern), or name the weights of a layer of your own, register_weights(type, name)."
            )
        if odd := [f"{type(w).__name__} for {name!r}" for name, w in named.items() if not isinstance(w, Tensor)]:
            raise TypeError(f"sparsity counts zeros of torch tensors, got {odd[0]}; use torch.as_tensor(w).")
        return [(name, w, None) for name, w in named.items()]
    raise TypeError(f"sparsity takes modules, terms and dicts of tensors, got {type(target).__name__}.")


def _together(term: Term) -> tuple[int, int]:
    """How many of the groups over all of a term's parameters are zero, and how many there are."""
    (units,) = units_of(term)
    return int(units.zeros(units.parameters)), units.number


def _count(name: str, w: Tensor, groups: Groups | None) -> Sparsity:
    w = w.detach()
    if w.is_meta:
        raise ValueError(f"{name!r} lies on the meta device, where no entry is known; load the weights, then count.")
    if w.layout is not torch.strided:
        w = w.coalesce() if w.layout is torch.sparse_coo else w
        return Sparsity(name, w.numel() - int((w.values() != 0).sum()), w.numel())
    if groups is None:
        zeros = (here(w) == 0).sum()
        return Sparsity(name, int(Cut(w).sum(zeros) if is_cut(w) else zeros), w.numel())
    w = whole(w)
    alive = groups.sum((w != 0).float())
    there = groups.sum(torch.ones_like(w, dtype=torch.float32)) > 0  # a label that no entry bears is no group
    return Sparsity(name, int((w == 0).sum()), w.numel(), int(((alive == 0) & there).sum()), int(there.sum()))
