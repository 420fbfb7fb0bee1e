"""The proximal step of parameters of one shape as one tensor, on a device, where launches cost more than the work.

They are stacked along a new first dimension, the state of each too. The effective steps of the stack are then those of
each, stacked, and the proximal map is that of one, mapped over the first dimension by `torch.vmap`. So a step of many
matrices takes as many launches as that of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchreg.penalties import L1, L1L2, L2, Penalty
from torchreg.penalties.one_step import parts_of
from torchreg.training.group_steps import settled
from torchreg.training.sharded_step import Place
from torchreg.training.step_rules import StepRule

_OWN = "torchreg.penalties."  # a penalty of the user's may look at values, which vmap refuses
_OF_MANY = (L1, L2, L1L2)  # take tensors of any shapes in a handful of launches


def is_stacked(penalty: Penalty, rule: StepRule, p: Tensor) -> bool:
    """Whether parameters like this one are stepped with others of their shape as one."""
    return rule.shape != "tensor" and type(penalty) not in _OF_MANY and _is_mapped(penalty, p)


def _is_mapped(penalty: Penalty, p: Tensor) -> bool:
    on_device = p.device.type != "cpu" and not torch.compiler.is_compiling()
    return on_device and all(type(x).__module__.startswith(_OWN) for x in parts_of(penalty))


def of_one_shape(tensors: Sequence[Tensor], penalties: Sequence[Penalty], others: Sequence[Any]) -> list[list[int]]:
    """Positions of tensors that can be stacked: of one shape and penalty, and one of what else has to be the same."""
    found: dict[Any, list[int]] = {}
    for k, (p, penalty, other) in enumerate(zip(tensors, penalties, others, strict=True)):
        alone = not p.numel() or not _is_mapped(penalty, p)
        found.setdefault(k if alone else (p.shape, p.dtype, p.device, id(penalty), other), []).append(k)
    return list(found.values())


def alike(places: Sequence[Place]) -> list[list[Place]]:
    """The places by what has to be one in a stack: shape, and the step counter where the host knows it."""
    found: dict[Any, list[Place]] = {}
    for p, state in places:
        found.setdefault((p.shape, p.dtype, p.device, _known_count(state, p)), []).append((p, state))
    return list(found.values())


def step_stacked(places: Sequence[Place], group: Mapping[str, Any], penalty: Penalty, rule: StepRule) -> None:
    """The proximal step of places that are `alike`, in place; the rule is `marked`."""
    tensors = [p for p, _ in places]
    stack = torch.stack(tensors)
    (step,) = rule.steps(group, [_Stack(places)], [stack])
    step = settled(penalty, stack, step, stacked=True)
    each = isinstance(step, Tensor) and step.shape == stack.shape and step.dim() > 0
    found = torch.vmap(penalty.prox, in_dims=(0, 0 if each else None))(stack, step)
    torch._foreach_copy_(tensors, list(found.unbind()))


class _Stack(Mapping[str, Any]):
    """The states of parameters of one shape as that of their stack, each entry made once it is asked for."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._made: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._made:
            self._made[key] = self._joined(key)
        return self._made[key]

    def _joined(self, key: str) -> Any:
        like, values = self._places[0][0], [state[key] for _, state in self._places]
        if not isinstance(values[0], Tensor) or values[0].device != like.device:
            return values[0]  # the same for all that are alike
        joined = torch.stack(values)
        return joined if values[0].shape == like.shape else joined.reshape(-1, *[1] * like.dim())

    def __iter__(self) -> Iterator[str]:
        return iter(self._places[0][1])

    def __len__(self) -> int:
        return len(self._places[0][1])


def _known_count(state: Mapping[str, Any], p: Tensor) -> float | None:
    count = state.get("step")
    on_device = isinstance(count, Tensor) and count.device == p.device
    return None if count is None or on_device else float(count)
