"""The proximal half of a training step: bucket by bucket, in pieces that stay in cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.functional.blocking import ENTRIES
from torchreg.functional.dtensor import is_cut
from torchreg.penalties import Penalty
from torchreg.training.common_step import Copies, copied, is_common, step_in_common
from torchreg.training.group_steps import marked, prox_
from torchreg.training.lazy_rows import lazily
from torchreg.training.one_shape import alike, is_stacked, step_stacked
from torchreg.training.param_positions import Slot
from torchreg.training.sharded_step import Place, plain_places
from torchreg.training.step_rules import StepRule

_SMALL = 1 << 15  # entries up to which launches cost a CPU more than the work
_BUCKET = 1 << 20  # entries of one bucket of small tensors, whose temporaries stay in a CPU's cache
_DEVICE_BUCKET = 1 << 24  # on an accelerator, where a launch costs as much as a million entries: temporaries of 64 MiB


def prox_step(
    base: Optimizer, slots: Sequence[Slot], rule: StepRule, foreach: bool | None, before: Copies | None = None
) -> None:
    """Apply each part's proximal map to what the base has just stepped; ``before`` is what `copies_for` gave then."""
    with torch.no_grad():  # not as a decorator: torch.compile looks into functions that name torch, and fuses all this
        for slot, copies in zip(slots, before or [[] for _ in slots], strict=True):
            _step_slot(base, slot, rule, foreach, copies)


def _step_slot(base: Optimizer, slot: Slot, rule: StepRule, foreach: bool | None, copies: list[Tensor]) -> None:
    group = base.param_groups[slot.group]
    stepped = [p for p in slot.parameters(base) if p.grad is not None]
    if rule.shape == "entry":
        stepped = [p for p in stepped if p in base.state]  # without state it was never stepped
    places: list[Place] = [(p, base.state.get(p, {})) for p in stepped]
    if is_common(slot.part.penalty, rule):
        step_in_common(copied(places, slot, base, copies), group, slot.part.penalty, rule)
        return
    if slot.part.lazy:
        places, rule = lazily(places, group, slot.part.penalty, rule)
    rule = marked(rule, slot.part.penalty)
    if any(is_cut(p) for p, _ in places):
        places = plain_places(places, group, slot.part.penalty, rule)
    for bucket in _buckets([place for place in places if _joins(place[0], foreach)]):
        _step_bucket(bucket, group, slot.part.penalty, rule, stacks=not slot.part.lazy)
    for p, state in places:
        if not _joins(p, foreach):
            _step_alone(p, state, group, slot.part.penalty, rule)


def _step_bucket(
    bucket: list[Place], group: Mapping[str, Any], penalty: Penalty, rule: StepRule, *, stacks: bool
) -> None:
    stacks = stacks and is_stacked(penalty, rule, bucket[0][0])
    for places in alike(bucket) if stacks else [bucket]:
        if stacks and len(places) > 1 and places[0][0].numel():
            step_stacked(places, group, penalty, rule)
        else:
            tensors = [p for p, _ in places]
            prox_(penalty, tensors, rule.steps(group, [state for _, state in places], tensors))


def _joins(p: Tensor, foreach: bool | None) -> bool:
    """Whether a tensor is stepped whole, in a bucket with others."""
    small = p.numel() <= _SMALL or p.device.type != "cpu" or torch.compiler.is_compiling()
    return small if foreach is None else foreach


def _buckets(places: Sequence[Place]) -> list[list[Place]]:
    """Places of tensors of one device and dtype, so many that temporaries stay small."""
    if torch.compiler.is_compiling():
        return [[place] for place in places]  # the compiler then fuses all that is done to one tensor
    sizes = [p.numel() for p, _ in places]
    largest = max(sizes, default=0)
    filled: list[list[Place]] = []
    open_at: dict[tuple[torch.device, torch.dtype], int] = {}
    left: dict[tuple[torch.device, torch.dtype], int] = {}
    for place, size in zip(places, sizes, strict=True):
        kind = (place[0].device, place[0].dtype)
        if left.get(kind, -1) < size:
            room = _BUCKET if kind[0].type == "cpu" else _DEVICE_BUCKET
            open_at[kind], left[kind] = len(filled), max(room, largest)
            filled.append([])
        filled[open_at[kind]].append(place)
        left[kind] -= size
    return filled


def _step_alone(
    p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], penalty: Penalty, rule: StepRule
) -> None:
    for x, part_of_state in _pieces(p, state, penalty, rule):
        prox_(penalty, [x], rule.steps(group, [part_of_state], [x]))


def _pieces(
    p: Tensor, state: Mapping[str, Any], penalty: Penalty, rule: StepRule
) -> Iterable[tuple[Tensor, Mapping[str, Any]]]:
    """Views of a parameter on which its step acts alone, each with that part of the state."""
    shaped = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == p.shape and p.dim()}
    contiguous = p.is_contiguous() and all(v.is_contiguous() for v in shaped.values())
    large = p.device.type == "cpu" and p.numel() > ENTRIES and not torch.compiler.is_compiling()
    if not large or rule.shape != "entry" or penalty.grain == "tensor" or not contiguous:
        return [(p, state)]
    if penalty.grain == "row":
        size = max(1, ENTRIES * p.shape[0] // p.numel())
        views = {k: v.split(size) for k, v in {"": p, **shaped}.items()}
    else:
        views = {k: v.view(-1).split(ENTRIES) for k, v in {"": p, **shaped}.items()}
    parts = ({**state, **{k: views[k][i] for k in shaped}} for i in range(len(views[""])))
    return zip(views[""], parts, strict=True)
