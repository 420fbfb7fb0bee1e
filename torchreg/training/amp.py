"""A step that torch.amp.GradScaler skips on the device: nothing moves, and the host does not wait to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.shrinkage import Scalar
from torchreg.training.step_rules import StepRule


class OfBase:
    """An attribute that lives on the wrapped optimizer: read, set and deleted there.

    So GradScaler, which lends ``grad_scale`` and ``found_inf`` to the optimizer that it is given, lends them to the
    one that uses them.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, wrapper: Any, owner: type) -> Any:
        return self if wrapper is None else getattr(wrapper.base, self._name)

    def __set__(self, wrapper: Any, value: Any) -> None:
        setattr(wrapper.base, self._name, value)

    def __delete__(self, wrapper: Any) -> None:
        delattr(wrapper.base, self._name)


def unless_skipped(rule: StepRule, optimizer: Optimizer) -> StepRule:
    """The rule, with steps of 0 where the scaler has found inf or NaN: there every prox is the identity.

    A fused optimizer takes ``found_inf`` from GradScaler and decides on the device. ``where`` rather than a
    product: before its first step Adam's metric is 0 / 0.
    """
    found = getattr(optimizer, "found_inf", None)
    if found is None:
        return rule

    def steps(group: Mapping[str, Any], states: Sequence[Mapping[str, Any]], params: Sequence[Tensor]) -> list[Scalar]:
        return [_kept(t, found, p) for t, p in zip(rule.steps(group, states, params), params, strict=True)]

    return replace(rule, steps=steps)


def _kept(step: Scalar, found: Tensor, p: Tensor) -> Tensor:
    skipped = found.to(p.device, non_blocking=True) > 0
    if isinstance(step, Tensor):
        return torch.where(skipped, torch.zeros_like(step), step)
    exact = torch.float32 if p.device.type == "mps" else torch.float64  # as precise as the number was
    return torch.where(skipped, 0.0, torch.full((), step, dtype=exact, device=p.device))
