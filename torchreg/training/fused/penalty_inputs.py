"""A penalty of entries as a function of its numbers and tensors, so that none of them is baked into compiled code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.shrinkage import Scalar
from torchreg.penalties import Penalty
from torchreg.penalties.one_step import inner_penalties, parts_of

_OWN = "torchreg.penalties."  # where the penalties are defined whose maps are known to compile
_NUMBERS = ("alpha", "weights")  # fields that move, or differ from layer to layer; all others are part of the code
Build = Callable[[Sequence[Tensor]], Any]


@dataclass(frozen=True, eq=False)
class PenaltyInputs:
    """What a penalty's map needs beside the weights.

    Attributes:
        kind: equal for penalties that differ in these inputs alone.
        map: (inputs, weights, effective steps) -> the proximal map; of rows it takes one over the steps, with a minus
            where an entry has met no gradient.
        inputs: strengths, and tensors: flat views of the parameter's length, or one entry for each row.
        rows: how many rows a view of the parameter has on which it acts, 0 for a flat view.
    """

    kind: Any
    map: Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]
    inputs: list[Scalar]
    rows: int = 0


def acts_on_entries(penalty: Penalty) -> bool:
    """Whether this is one of the library's own penalties, or made of such, that takes each entry alone."""
    alone = all(part.grain == "entry" for part in parts_of(penalty) if not inner_penalties(part))
    return is_known(penalty) and alone and penalty.groups is None


def is_known(penalty: Penalty) -> bool:
    """Whether it is one of the library's own penalties, or made of such, with a map for a step per entry."""
    return all(type(part).__module__.startswith(_OWN) and part.prox_steps == "entry" for part in parts_of(penalty))


def penalty_inputs(penalty: Penalty, shape: torch.Size) -> PenaltyInputs | None:
    """The inputs of a penalty that `acts_on_entries`; None where one of its tensors has no flat view like theirs."""
    held = [x for part in parts_of(penalty) for x in vars(part).values() if isinstance(x, Tensor)]
    if not all(x.dim() == 0 or (x.shape == shape and x.is_contiguous()) for x in held):
        return None
    inputs: list[Scalar] = []
    kind, build = _of_penalty(penalty, inputs, {})

    def shrunk(given: Sequence[Tensor], w: Tensor, steps: Tensor) -> Tensor:
        result: Tensor = build(given).prox(w, steps)
        return result

    return PenaltyInputs(kind, shrunk, inputs)


def _of_penalty(penalty: Penalty, inputs: list[Scalar], known: dict[int, Any]) -> tuple[Any, Build]:
    if id(penalty) in known:  # a sum holds its terms twice
        found: tuple[Any, Build] = known[id(penalty)]
        return found
    made = {name: _of_field(name, value, inputs, known) for name, value in vars(penalty).items()}
    builds = {name: build for name, (_, build) in made.items() if build is not None}
    bare = penalty.replaced(**dict.fromkeys(builds))  # compiled code lives on, and is to keep no tensors

    def build(given: Sequence[Tensor]) -> Penalty:
        return bare.replaced(**{name: make(given) for name, make in builds.items()})

    known[id(penalty)] = ((type(penalty), *((name, kind) for name, (kind, _) in made.items())), build)
    return known[id(penalty)]


def _of_field(name: str, value: Any, inputs: list[Scalar], known: dict[int, Any]) -> tuple[Any, Build | None]:
    """What a field is for the code, and how it is made of inputs; None for one that stays as it is."""
    if isinstance(value, Penalty):
        return _of_penalty(value, inputs, known)
    if isinstance(value, tuple):
        made = [_of_field(name, each, inputs, known) for each in value]
        builds = [build for _, build in made if build is not None]
        kind = tuple(each for each, _ in made)
        return (kind, None) if not builds else (kind, lambda given: tuple(build(given) for build in builds))
    if isinstance(value, Tensor) or (name in _NUMBERS and isinstance(value, (int, float))):
        place = len(inputs)
        inputs.append(value.detach().flatten() if isinstance(value, Tensor) and value.dim() else value)
        if not isinstance(value, Tensor):
            return "number", lambda given: given[place]
        return ("tensor", value.dtype, value.dim() > 0), lambda given: given[place]
    return value, None
