"""What a step's rates and counters come to, as the 0-d tensors that compiled passes take.

Where counters lie on the host it reckons in double precision, as torch does, and sends the numbers once for all
parameters that share them. Where they lie on a device (of a base with ``fused=True`` there), the device reckons for all
parameters of a group at once, in double precision too, and nothing waits.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.shrinkage import Scalar
from torchreg.training.fused.candidates import Candidate, metric_of
from torchreg.training.fused.compiled_step import packed

Reckoned = tuple[Sequence[Tensor], tuple[Tensor, Tensor]]  # numbers, and the scale of a compiled pass


def reckon(owner: Any, stepped: Sequence[Candidate], factor: Scalar) -> list[Reckoned]:
    """Move the counters of all parameters, and give each what it takes; effective steps are multiplied by a factor."""
    metric = metric_of(owner)
    found: dict[int, Reckoned] = {}
    sent: dict[Hashable, Reckoned] = {}
    counted: dict[Hashable, list[Candidate]] = {}
    for at in stepped:
        shared = (at.update, id(at.group), at.param.dtype, at.param.device)
        if on_device(at):
            counted.setdefault(shared, []).append(at)
            continue
        counters = at.update.advance(at.group, at.state)
        key: Hashable = (*shared, counters)
        if key not in sent:
            numbers = at.update.numbers(at.group, *counters)
            rate = _rate(at, metric, numbers)
            sent[key] = packed(numbers, at.param.dtype, at.param.device), _scale(rate, factor, at.param.device)
        found[id(at)] = sent[key]
    for several in counted.values():
        found.update(zip(map(id, several), _on_device(several, metric, factor), strict=True))
    return [found[id(at)] for at in stepped]


def on_device(at: Candidate) -> bool:
    """Whether the base counts the steps of a parameter on a device."""
    return any(at.state[name].device.type != "cpu" for name in at.update.counters)


def _on_device(several: list[Candidate], metric: str, factor: Scalar) -> list[Reckoned]:
    first, counts = several[0], [at.state["step"] for at in several]
    torch._foreach_add_(counts, 1)
    dtype, device = first.param.dtype, first.param.device
    numbers = first.update.numbers(first.group, torch.stack(counts).double())
    sent = iter(packed([x for x in numbers if not isinstance(x, Tensor)], dtype, device))
    columns = [x.to(dtype).unbind() if isinstance(x, Tensor) else [next(sent)] * len(several) for x in numbers]
    scale = _scale(_rate(first, metric, numbers), factor, device)
    return [(row, scale) for row in zip(*columns, strict=True)]


def _rate(at: Candidate, metric: str, numbers: Sequence[Any]) -> float:
    return float(at.group["lr"]) if metric == "decoupled" else float(numbers[0])


def _scale(rate: float, factor: Scalar, device: torch.device) -> tuple[Tensor, Tensor]:
    if isinstance(factor, Tensor):
        (common,) = packed([rate], torch.float64, device)
        return common, factor.to(device, torch.float64, non_blocking=True)
    common, one = packed([rate, factor], torch.float64, device)
    return common, one
