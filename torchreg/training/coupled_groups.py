"""Groups of weights over several tensors: all that makes a unit, which `compact` removes once they are zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module, Parameter

from torchreg.groups import labels
from torchreg.parts import is_cut
from torchreg.penalties import Group, Separable
from torchreg.shrinkage import Scalar
from torchreg.sums import widened
from torchreg.text_table import text_table
from torchreg.training.compaction.compact import as_arguments, checked
from torchreg.training.compaction.graph import UnitGraph, unit_graph
from torchreg.training.compaction.modules import copied
from torchreg.training.control import Site
from torchreg.training.group_steps import marked, prox_
from torchreg.training.model_names import ModelNames
from torchreg.training.part_step import part_of_step
from torchreg.training.term import Term
from torchreg.training.term_part import Part


@dataclass(frozen=True, eq=False, repr=False)
class CoupledGroups:
    """Which entries of a model's parameters belong to the same unit; prints as a table.

    Attributes:
        model: the model.
        index: for each parameter the number of every entry's group, of its shape; `count` for entries without one.
        count: how many groups there are.
    """

    model: Module
    index: Mapping[str, Tensor]
    count: int

    @property
    def sizes(self) -> Tensor:
        """Entries of each group, (groups,)."""
        flat = torch.cat([index.reshape(-1) for index in self.index.values()])
        return torch.bincount(flat, minlength=self.count + 1)[: self.count]

    def norms(self) -> Tensor:
        """The Euclidean norm of each group as the model is now, (groups,); differentiable."""
        flat = torch.cat([index.reshape(-1) for index in self.index.values()])
        held = _flat(list(self.parameters.values()))
        return labels(flat.to(held.device)).norms(held)[: self.count]

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
        flat = torch.cat([index.reshape(-1) for index in self.index.values()])
        device = next(iter(named.values())).device
        joint = Group(penalty, labels(flat.to(device)), factors[: int(flat.max()) + 1].to(device))
        term = Term(parts, ModelNames(self.model, named))
        term.control = Together(joint, parts)
        return term

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


class Together:
    """The proximal step of groups over several tensors, in place of that of each tensor alone.

    Args:
        joint: the penalty of all parameters in one vector.
        parts: the parts of the term, one for each parameter, in that order.
    """

    def __init__(self, joint: Group, parts: list[Part]) -> None:
        self.joint, self.parts = joint, parts

    @property
    def penalty(self) -> Group:
        """The joint penalty with the term's present strength."""
        now = self.parts[0].penalty
        return self.joint if now.alpha is self.joint.alpha else self.joint.with_alpha(now.alpha)

    def value(self) -> Tensor:
        """The term's value, over all tensors together."""
        return self.penalty.value(_flat([p for part in self.parts for p in part.parameters.values()]))

    def check(self, term: Term, *, masters: bool) -> None:
        """Raise where parameters are cut over processes."""
        if any(is_cut(p) for p in term.parameters.values()):
            raise ValueError("Coupled groups cannot be stepped where parameters are cut over processes.")

    def before(self, sites: Sequence[Site]) -> None:
        """Nothing is done before the base's step."""

    def undo(self, sites: Sequence[Site]) -> None:
        """Nothing has been done that a failed step would leave."""

    def after(self, sites: Sequence[Site], shrink: Callable[[], None]) -> None:
        """Shrink all groups in one vector; a parameter that was not stepped counts, and stays."""
        found = {id(site.part): site for site in sites if getattr(site, "stepped", True)}
        tensors, steps = [], []
        for part in self.parts:
            site = found.get(id(part))
            tensors.append(next(iter(part.parameters.values())) if site is None else site.here)
            steps.append(0.0 if site is None else _step(site))
        if not found:
            return
        joined = _flat(tensors).detach()
        prox_(self.penalty, [joined], [_joined_steps(tensors, steps)])
        for part, new in zip(self.parts, joined.split([t.numel() for t in tensors]), strict=True):
            if id(part) in found:
                target = found[id(part)].here
                target.copy_(new.view(target.shape))


def _step(site: Site) -> Scalar:
    return part_of_step(site.param, site.state, site.group, marked(site.rule, site.part.penalty))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([widened(t).reshape(-1) for t in tensors])


def _joined_steps(tensors: Sequence[Tensor], steps: Sequence[Scalar]) -> Scalar:
    """One number where all have it, else a step for each entry."""
    first = steps[0]
    if not isinstance(first, Tensor) and all(not isinstance(t, Tensor) and t == first for t in steps):
        return first
    dtype = widened(tensors[0]).dtype
    filled = (torch.as_tensor(t, dtype=dtype, device=w.device) for t, w in zip(steps, tensors, strict=True))
    return torch.cat([t.broadcast_to(w.shape).reshape(-1) for t, w in zip(filled, tensors, strict=True)])


def coupled(model: Module, example_inputs: Any) -> CoupledGroups:
    """Groups of all weights that make a unit: its row, bias and norm entries in every layer that adds to it.

    A unit of a hidden layer has its row of weights, its bias and the entries of norms that follow; where layers are
    added up (residual sums), the rows of all of them; of attention, the rows of queries, keys and values of a head.
    The columns that read it belong to it where they are in no such row (those of an output layer, or of one before a
    layer norm). Each entry is in one group at most. Units that cannot be removed, as those of the model's output, make
    no group. What a penalty of these groups sets to zero, `compact` removes.

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
    numbers = _numbered(graph)
    index = {}
    for name, dims in graph.tensors.items():
        try:
            trained = model.get_parameter(name).requires_grad
        except AttributeError:  # a buffer
            continue
        if trained and dims and (found := _entries(name, graph, numbers)) is not None:
            index[name] = found
    if not index:
        raise ValueError(f"No unit of {type(model).__name__} can be removed, so that there are no groups.")
    count = len(set(numbers.values()))
    return CoupledGroups(model, {n: torch.where(i < 0, count, i) for n, i in index.items()}, count)


def _numbered(graph: UnitGraph) -> dict[int, int]:
    """The number of the group of every class of units that can go, in the order of the parameters."""
    classes = graph.classes
    for flat, factors in classes.grids:
        free = [d for d, factor in enumerate(factors) if not classes.fixed(factor)]
        for d in free[1:]:
            classes.pin(factors[d], "is one of several dimensions of a grid")
        if free:
            shape = [-1 if d == free[0] else 1 for d in range(len(factors))]
            classes.join(flat.reshape(-1), np.broadcast_to(factors[free[0]].reshape(shape), flat.shape).reshape(-1))
        else:
            classes.pin(flat.reshape(-1), "is part of a grid of fixed size")
    roots = dict.fromkeys(classes.find(int(u)) for dims in graph.tensors.values() for units in dims for u in units)
    return {root: k for k, root in enumerate(r for r in roots if r not in classes.pinned)}


def _entries(name: str, graph: UnitGraph, numbers: dict[int, int]) -> Tensor | None:
    """For every entry of a parameter the number of its group, -1 for none; None if no entry has one."""
    dims = graph.tensors[name]
    row = next((r.rows for r in graph.classes.reads if r.weight_name == name and r.rows is not None), dims[0])
    order = sorted(range(len(dims)), key=lambda d: dims[d] is not row)  # rows first
    found = torch.full([len(units) for units in dims], -1)
    for d in order[::-1]:
        own = torch.tensor([numbers.get(graph.classes.find(int(u)), -1) for u in dims[d]])
        own = own.reshape([-1 if k == d else 1 for k in range(len(dims))]).expand(found.shape)
        found = torch.where(own >= 0, own, found)
    return found if bool((found >= 0).any()) else None
