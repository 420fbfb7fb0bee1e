"""Small parameters of one kind in one pass: calls cost more than their work, and copies in cache nearly nothing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.training.fused.compiled_step import Step

_SMALL = 1 << 15  # entries up to which a call costs more than the work
_BUCKET = 1 << 20  # entries of one bucket, whose copies stay in a CPU's cache


@dataclass(frozen=True)
class Pass:
    """One call of a compiled step.

    Attributes:
        kind: equal for calls that differ in ``tensors`` alone, so that they can be one.
        step: the compiled step.
        written: flat views of the parameter and of what is kept, in the order of the step's arguments.
        grad: a flat view of the gradient.
        numbers: 0-d tensors, as the step takes them.
        scale: likewise.
        inputs: of the penalty; flat views of the parameter's length, or 0-d.
    """

    kind: Hashable
    step: Step
    written: Sequence[Tensor]
    grad: Tensor
    numbers: Sequence[Tensor]
    scale: tuple[Tensor, Tensor]
    inputs: Sequence[Tensor]

    def run(self) -> None:
        """Step in place."""
        p, *kept = self.written
        self.step(p, self.grad, kept, self.numbers, self.scale, self.inputs)


def run_all(passes: Iterable[Pass]) -> None:
    """Step all in place: large ones each by itself, small ones of one kind together."""
    buckets: dict[Hashable, list[Pass]] = {}
    room: dict[Hashable, int] = {}
    for one in passes:
        size = one.grad.numel()
        if size > _SMALL or any(x.dim() for x in one.inputs):
            one.run()
            continue
        if room.get(one.kind, 0) + size > _BUCKET:
            _run_joined(buckets.pop(one.kind))
            room[one.kind] = 0
        buckets.setdefault(one.kind, []).append(one)
        room[one.kind] = room.get(one.kind, 0) + size
    for bucket in buckets.values():
        _run_joined(bucket)


def _run_joined(bucket: list[Pass]) -> None:
    first = bucket[0]
    if len(bucket) == 1:
        first.run()
        return
    sizes = [one.grad.numel() for one in bucket]
    written = [torch.cat([one.written[k] for one in bucket]) for k in range(len(first.written))]
    grad = torch.cat([one.grad for one in bucket])
    first.step(written[0], grad, written[1:], first.numbers, first.scale, first.inputs)
    own = [x for k in range(len(written)) for x in (one.written[k] for one in bucket)]
    torch._foreach_copy_(own, [x for joined in written for x in joined.split(sizes)])
