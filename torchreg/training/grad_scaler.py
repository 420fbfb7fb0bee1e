"""A step that torch.amp.GradScaler skips on the device: nothing moves, and the host does not wait to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.functional.shrinkage import Scalar, shared
from torchreg.training.step_rules import StepRule


def unless_skipped(rule: StepRule, optimizer: Optimizer) -> StepRule:
    """The rule, with steps of 0 where the scaler has found inf or NaN: there every prox is the identity.

    A fused optimizer takes ``found_inf`` from GradScaler and decides on the device. ``where`` rather than a
    product: before its first step Adam's metric is 0 / 0.
    """
    found = getattr(optimizer, "found_inf", None)
    if found is None:
        return rule

    def steps(group: Mapping[str, Any], states: Sequence[Mapping[str, Any]], params: Sequence[Tensor]) -> list[Scalar]:
        reached = rule.steps(group, states, params)
        skipped = found.to(params[0].device, non_blocking=True) > 0  # a bucket's tensors lie on one device
        one = shared(reached)
        if one is not None:
            return [_kept(one, skipped)] * len(reached)
        return [_kept(t, skipped) for t in reached]

    return replace(rule, steps=steps)


def _kept(step: Scalar, skipped: Tensor) -> Tensor:
    if isinstance(step, Tensor):
        return torch.where(skipped, step.new_zeros(()), step)
    exact = torch.float32 if skipped.device.type == "mps" else torch.float64  # as precise as the number was
    return torch.where(skipped, 0.0, torch.full((), step, dtype=exact, device=skipped.device))
