"""The proximal step of parameters that are cut over processes: on the part that lies here, or on the whole.

A penalty of entries, or of rows where no row is cut, needs the part alone. For any other the parameter is gathered,
with its step where that differs between entries, and every process keeps its part of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchreg.functional.dtensor import Cut, here, is_cut, whole
from torchreg.functional.shrinkage import Scalar
from torchreg.penalties import Penalty
from torchreg.training.group_steps import prox_
from torchreg.training.step_rules import StepRule

Place = tuple[Tensor, Mapping[str, Any]]  # a parameter and its state


def plain_places(places: list[Place], group: Mapping[str, Any], penalty: Penalty, rule: StepRule) -> list[Place]:
    """The places as plain tensors; those whose part the penalty or the rule cannot take as it is are stepped here."""
    plain: list[Place] = []
    for p, state in places:
        if not is_cut(p):
            plain.append((p, state))
        elif penalty.part(Cut(p)) is penalty and rule.shape != "tensor":
            plain.append((here(p), part_of_state(state)))
        else:
            _step(p, state, group, penalty, rule)
    return plain


def part_of_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an optimizer's state that lie here."""
    return {key: here(value) if isinstance(value, Tensor) else value for key, value in state.items()}


def part_of_step(p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], rule: StepRule) -> Scalar:
    """The effective step of the part that lies here; a user's own rule is given the whole parameter."""
    if rule.shape == "tensor":
        step = rule.steps(group, [state], [p])[0]
        return here(step) if isinstance(step, Tensor) else step
    return rule.steps(group, [part_of_state(state)], [here(p)])[0]


def whole_step(cut: Cut, step: Scalar) -> Scalar:
    """The effective step of the whole of which a part's is given."""
    return cut.gathered(step) if isinstance(step, Tensor) and step.dim() else step


def _step(p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], penalty: Penalty, rule: StepRule) -> None:
    cut, step = Cut(p), part_of_step(p, state, group, rule)
    part = penalty.part(cut)
    if part is not None:
        prox_(part, [here(p)], [step])
        return
    full = whole(p)
    prox_(penalty, [full], [whole_step(cut, step)])
    here(p).copy_(cut.part(full))
