"""Steps of entries that have met no gradient, where a penalty compares them with others.

In a group such an entry takes the step of those of its group that have met one. Alone it has the plain step ``lr``
(`torchreg.training.step_rules`). Within a group that is small beside the steps of the others, and would hold the whole
group from zero: a neuron with one dead input, for ever. With the harmonic mean of the others' steps it shrinks as they
do. The minimiser is the same for every step > 0, since its gradient is 0.

Where a penalty keeps the entries that cost most to zero (TopK), the plain step would rank it above the others, whose
steps are larger. It costs the loss nothing: its step is infinite, and it goes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.groups import Groups
from torchreg.functional.reductions import asks_freely
from torchreg.functional.shrinkage import Scalar
from torchreg.penalties import Penalty
from torchreg.penalties.cardinality import ranks
from torchreg.penalties.one_step import takes_one_step
from torchreg.training.step_rules import ParamGroup, State, StepRule


def marked(rule: StepRule, penalty: Penalty) -> StepRule:
    """The rule, with a minus before the steps of entries without a gradient, where the penalty acts on many at once."""
    if ranks(penalty):
        return ranked(rule)
    if penalty.groups is None and not takes_one_step(penalty):
        return rule
    return _told(rule, _negated)


def ranked(rule: StepRule) -> StepRule:
    """The rule, with infinite steps for entries without a gradient, for who compares ``w^2 / step``."""
    return _told(rule, _endless)


def _told(rule: StepRule, tell: Callable[[Scalar, Tensor], Scalar]) -> StepRule:
    unmet = rule.unmet
    if unmet is None:
        return rule

    def steps(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
        found = rule.steps(group, states, params)
        return [tell(t, unmet(group, state)) for t, state in zip(found, states, strict=True)]

    return replace(rule, steps=steps)


def prox_(penalty: Penalty, tensors: Sequence[Tensor], steps: Sequence[Scalar]) -> None:
    """The penalty's proximal map in place, at the steps of a `marked` rule."""
    penalty.prox_(tensors, [settled(penalty, p, t) for p, t in zip(tensors, steps, strict=True)])


def _negated(step: Scalar, unmet: Tensor) -> Scalar:
    return torch.where(unmet, -step, step) if isinstance(step, Tensor) and _may(unmet) else step


def _endless(step: Scalar, unmet: Tensor) -> Scalar:
    return torch.where(unmet & (step > 0), torch.inf, step)  # a step of 0 lets nothing move


def _may(holds: Tensor) -> bool:
    """Whether something may hold of an entry: the host asks where that is free, on the CPU."""
    return torch.compiler.is_compiling() or holds.device.type != "cpu" or bool(holds.any())


def settled(penalty: Penalty, p: Tensor, step: Any, *, stacked: bool = False) -> Any:
    """A step of a `marked` rule with a step for the entries that have met no gradient: that of their group.

    Args:
        penalty: whose groups are meant.
        p: the parameter, or one for each of many models, stacked along dimension 0.
        step: of p's shape, else it is given back as it is.
        stacked: whether dimension 0 numbers models, each with groups of its own.
    """
    by = penalty.groups
    if by is None or not isinstance(step, Tensor) or step.shape != p.shape or not step.numel():
        return step
    if asks_freely(step) and bool(step.amin() >= 0):
        return step
    return torch.vmap(partial(_of_group, by))(step) if stacked else _of_group(by, step)


def _of_group(by: Groups, step: Tensor) -> Tensor:
    """The steps, those below 0 replaced by the harmonic mean of the others of their group."""
    alone = step < 0
    inverse = by.sum(torch.where(alone, 0.0, 1.0 / step))
    mean = by.expand(by.sum((~alone).to(step.dtype)) / inverse, step)  # 0 / 0 in a group that has met nothing
    return torch.where(alone, torch.where(mean.isnan(), -step, mean), step)
