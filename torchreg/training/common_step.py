"""One step for all entries of a tensor, where its penalty's proximal map takes no more (`prox_steps` "tensor").

Adam's step is another one for each entry, and for a nuclear norm no proximal map is known in that metric. Then
1. before the base's step the weights ``w`` are copied;
2. the base makes ``z = w - t u`` with the effective steps ``t``;
3. the common step is ``s = 1 / sqrt(mean(1 / t^2))``: for Adam ``lr / sqrt(mean v)``, as of Adam-mini;
4. the weights become ``prox(w - s u, s)``, where ``s u = s / t (w - z)``.
A fixed point ``w = prox(w - s g, s)`` is a minimiser of loss + penalty for any s, as it is not of ``prox(z, s)``.
Entries that have met no gradient have no metric: they neither enter the mean nor are moved anew.

Source: a metric that is constant over what the penalty couples: Zhang et al., ICLR 2025 (Adam-mini); Melchior, Joseph
and Moolekamp, arXiv 1910.10094, section 2, on why the metrics of both halves must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.functional.dtensor import Cut, here, is_cut, whole
from torchreg.functional.reductions import wide, widened
from torchreg.functional.shrinkage import Scalar
from torchreg.penalties import Penalty
from torchreg.penalties.one_step import takes_one_step
from torchreg.training.group_steps import marked
from torchreg.training.param_positions import Slot
from torchreg.training.sharded_step import Place, part_of_step, whole_step
from torchreg.training.step_rules import StepRule

Copies = list[list[Tensor]]  # for each slot, the weights from before the base's step, or nothing


def is_common(penalty: Penalty, rule: StepRule) -> bool:
    """Whether a penalty takes one step for a tensor, and the optimizer has one for each entry."""
    return rule.shape != "number" and takes_one_step(penalty)


def copies_for(slots: Sequence[Slot], base: Optimizer, rule: StepRule) -> Copies:
    """Copies of the weights that `step_in_common` will need, to be made before the base's step."""
    with torch.no_grad():
        return [
            [p.detach().clone() for p in slot.parameters(base)] if is_common(slot.part.penalty, rule) else []
            for slot in slots
        ]


def copied(places: list[Place], slot: Slot, base: Optimizer, copies: list[Tensor]) -> list[tuple[Place, Tensor]]:
    """Each place with its weights from before the base's step.

    Raises:
        RuntimeError: if none were kept, since the proximal step was not taken by `step`.
    """
    now = slot.parameters(base)
    if places and len(copies) != len(now):
        raise RuntimeError(
            f"{slot.part.penalty} takes one step for a tensor and {type(base).__name__} has one for each entry, so the "
            "weights from before its step are needed, and they were not kept: call opt.step(), which makes both halves."
        )
    before = {id(p): copy for p, copy in zip(now, copies, strict=False)}
    return [(place, before[id(place[0])]) for place in places]


def step_in_common(
    places: Sequence[tuple[Place, Tensor]], group: Mapping[str, Any], penalty: Penalty, rule: StepRule
) -> None:
    """Take the base's step anew with the common step of each tensor, and then the proximal one, in place."""
    rule = marked(rule, penalty)
    for (p, state), before in places:
        if not is_cut(p):
            _step(p, before, rule.steps(group, [state], [p])[0], penalty)
            continue
        cut, full = Cut(p), whole(p)
        _step(full, whole(before), whole_step(cut, part_of_step(p, state, group, rule)), penalty)
        here(p).copy_(cut.part(full))


def _step(p: Tensor, before: Tensor, step: Scalar, penalty: Penalty) -> None:
    if isinstance(step, Tensor) and step.numel() > 1:
        moved, step = anew(p, before, step)
        p.copy_(moved)
    penalty.prox_([p], [step])


def anew(p: Tensor, before: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Where the common step leads from ``before``, and that step."""
    step = step.broadcast_to(p.shape)
    one, w = common(step), widened(before)
    ratio = torch.where(step > 0, one / step, 1.0).to(w.dtype)
    return w + ratio * (widened(p) - w), one


def common(step: Tensor) -> Tensor:
    """The common step of a tensor, 0-d; a minus marks steps of entries that have met no gradient."""
    t = wide(step)
    met = t > 0
    inverse = torch.where(met, 1.0 / torch.where(met, t, 1.0), 0.0)
    mean = (inverse.square().sum() / met.sum()).clamp(min=torch.finfo(t.dtype).tiny)
    alone = t.abs().amax() if t.numel() else t.sum()
    return torch.where(met.any(), mean.rsqrt(), alone)
