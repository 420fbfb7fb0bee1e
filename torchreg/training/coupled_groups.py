"""Groups of weights over several tensors: all that makes a unit, which `compact` removes once they are zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module, Parameter

from torchreg.functional.dtensor import is_cut
from torchreg.functional.groups import labels
from torchreg.penalties import Group, Separable
from torchreg.text_table import text_table
from torchreg.training.compaction.compact import as_arguments, checked
from torchreg.training.compaction.graph import UnitGraph, unit_graph
from torchreg.training.compaction.modules import copied
from torchreg.training.joint_groups import JointGroups, flat
from torchreg.training.model_names import ModelNames
from torchreg.training.term import Term
from torchreg.training.term_part import Part


@dataclass(frozen=True, eq=False, repr=False)
class CoupledGroups:
    """Which entries of a model's parameters belong to the same unit; prints as a table.

    Attributes:
        model: the model.
        index: for each parameter the number of every entry's group, of its shape; `count` for entries without one.
        count: how many groups there are.
        layers: the numbers of the groups of each layer all of whose units have one. A net that loses all of them is
            dead, so a `TargetSparsity` leaves one of each, as `compact` does.
    """

    model: Module
    index: Mapping[str, Tensor]
    count: int
    layers: tuple[tuple[int, ...], ...] = ()

    @property
    def _labels(self) -> Tensor:
        return torch.cat([index.reshape(-1) for index in self.index.values()])

    @property
    def sizes(self) -> Tensor:
        """Entries of each group, (groups,)."""
        return torch.bincount(self._labels, minlength=self.count + 1)[: self.count]

    def norms(self) -> Tensor:
        """The Euclidean norm of each group as the model is now, (groups,); differentiable."""
        held = flat(list(self.parameters.values()))
        return labels(self._labels.to(held.device)).norms(held)[: self.count]

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters that have groups, by name."""
        return {name: self.model.get_parameter(name) for name in self.index}

    def attach(self, penalty: Separable) -> Term:
        """Bind a penalty of the norms of the groups to the model, as ``attach(Group(penalty, by=...), ...)`` does.

        Its value is ``sum_g phi(||w_g||)`` with strength ``alpha * sqrt(entries of g)``, over all tensors together. As
        a proximal step, groups vanish whole, exactly in the metric of the base optimizer.

        Args:
            penalty: a separable penalty of the norm, such as ``L1(1e-3)`` or ``MCP(1e-3)``.

        Raises:
            TypeError: if the penalty is not separable.
            ValueError: if parameters are cut over processes or lie on several devices.
        """
        named: dict[str, Tensor] = dict(self.parameters)
        if len({p.device for p in named.values()}) > 1 or any(is_cut(p) for p in named.values()):
            raise ValueError(
                "Coupled groups need all parameters whole and on one device; use Group(L1(alpha), by=rows) on the "
                "layers of a model that is spread."
            )
        factors = torch.cat([self.sizes.double().sqrt(), torch.zeros(1, dtype=torch.float64)])
        parts = [Part(_alone(penalty, self.index[name].to(p.device), factors), {name: p}) for name, p in named.items()]
        device, index = next(iter(named.values())).device, self._labels
        joint = Group(penalty, labels(index.to(device)), factors[: int(index.max()) + 1].to(device))
        JointGroups(joint, parts, self.count, self.layers)
        return Term(parts, ModelNames(self.model, named))

    def __repr__(self) -> str:
        rows = [
            (name, str(tuple(index.shape)), str(len(index[index < self.count].unique())))
            for name, index in self.index.items()
        ]
        return text_table(("name", "shape", "groups"), [*rows, ("total", "", str(self.count))])


def _alone(penalty: Separable, index: Tensor, factors: Tensor) -> Group:
    """The penalty of one tensor's share of the groups, by which its zeros are counted."""
    own, place = index.unique(return_inverse=True)
    return Group(penalty, labels(place), factors.to(index.device)[own])


def coupled(model: Module, example_inputs: Any) -> CoupledGroups:
    """Groups of all weights that make a unit: its row, bias and norm entries in every layer that adds to it.

    A unit of a hidden layer has its row of weights, its bias and the entries of norms that follow; where layers are
    added up (residual sums), the rows of all of them; of attention, the rows of queries, keys and values of a head.
    The columns that read it belong to it where they are in no such row (those of an output layer, or of one before a
    layer norm). Each entry is in one group at most. Units that cannot be removed, as those of the model's output or of
    frozen weights, make no group. What a penalty of these groups sets to zero, `compact` removes.

    Args:
        model: the model; its weights do not matter.
        example_inputs: what its forward pass takes, as for `compact`.

    Returns:
        A `CoupledGroups`; its `attach` binds a penalty.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if the forward pass cannot be taken by ``torch.export``, or no unit can be removed.

    Example:
        >>> import torch
        >>> from torchreg import L1, ProxOptimizer, coupled
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> groups = coupled(model, torch.randn(2, 4))
        >>> groups
        name      shape   groups
        0.weight  (8, 4)  8
        0.bias    (8,)    8
        2.weight  (2, 8)  8
        total             8
        >>> optimizer = ProxOptimizer(torch.optim.SGD(model.parameters(), 0.1), groups.attach(L1(0.01)))
    """
    model = checked(model)
    try:
        graph = unit_graph(copied(model), as_arguments(example_inputs))
    except Exception as error:
        raise ValueError(
            f"coupled cannot follow the forward pass of {type(model).__name__} ({type(error).__name__}: "
            f"{str(error)[:160]}); give groups by hand: Group(L1(alpha), by=rows)."
        ) from error
    trained = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    numbers = _numbered(graph, [name for name, moves in trained.items() if not moves])
    index = {}
    for name, dims in graph.tensors.items():
        if trained.get(name, False) and dims and (found := _entries(name, graph, numbers)) is not None:
            index[name] = found
    if not index:
        raise ValueError(f"No unit of {type(model).__name__} can be removed, so that there are no groups.")
    count = len(set(numbers.values()))
    index = {n: torch.where(i < 0, count, i) for n, i in index.items()}
    return CoupledGroups(
        model, index, count, _layers(graph, numbers, set(torch.cat([i.unique() for i in index.values()]).tolist()))
    )


def _layers(graph: UnitGraph, numbers: dict[int, int], present: set[int]) -> tuple[tuple[int, ...], ...]:
    """The groups of every dimension that could lose all of its indices, without those that have another's."""
    found = {
        frozenset(numbers.get(graph.classes.find(int(u)), -1) for u in d) for d in graph.classes.dimensions.values()
    }
    found = {layer for layer in found if layer and layer <= present}
    return tuple(sorted(tuple(sorted(layer)) for layer in found if not any(other < layer for other in found)))


def _numbered(graph: UnitGraph, frozen: Sequence[str]) -> dict[int, int]:
    """The number of the group of every class of units that can go, in the order of the parameters.

    What a frozen matrix, kernel or table adds to cannot become zero.
    """
    classes = graph.classes
    for cells, factors in classes.grids:
        free = [d for d, factor in enumerate(factors) if not classes.fixed(factor)]
        for d in free[1:]:
            classes.pin(factors[d], "is one of several dimensions of a grid")
        if free:
            shape = [-1 if d == free[0] else 1 for d in range(len(factors))]
            classes.join(cells.reshape(-1), np.broadcast_to(factors[free[0]].reshape(shape), cells.shape).reshape(-1))
        else:
            classes.pin(cells.reshape(-1), "is part of a grid of fixed size")
    rows = {read.weight_name: () if read.rows is None else (read.rows,) for read in classes.reads}
    for name in (n for n in frozen if len(graph.tensors.get(n, ())) > 1):
        for units in rows.get(name, graph.tensors[name]):
            classes.pin(units, "is what frozen weights make")
    roots = dict.fromkeys(classes.find(int(u)) for dims in graph.tensors.values() for units in dims for u in units)
    return {root: k for k, root in enumerate(r for r in roots if r not in classes.pinned)}


def _entries(name: str, graph: UnitGraph, numbers: dict[int, int]) -> Tensor | None:
    """The number of each entry's group, -1 for none; None if no entry has one."""
    dims = graph.tensors[name]
    row = next((r.rows for r in graph.classes.reads if r.weight_name == name and r.rows is not None), dims[0])
    order = sorted(range(len(dims)), key=lambda d: dims[d] is not row)  # rows first
    found = torch.full([len(units) for units in dims], -1)
    for d in order[::-1]:
        own = torch.tensor([numbers.get(graph.classes.find(int(u)), -1) for u in dims[d]])
        own = own.reshape([-1 if k == d else 1 for k in range(len(dims))]).expand(found.shape)
        found = torch.where(own >= 0, own, found)
    return found if bool((found >= 0).any()) else None
