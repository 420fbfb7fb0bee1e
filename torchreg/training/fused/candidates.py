"""What one compiled pass can step: parameter by parameter, with the reason where it cannot.

The rule is that nothing is fused which is not proven equal to the base's step and the proximal one: torch's own
optimizers without hooks, plain tensors in float32 or float64, penalties of entries and rows, the proximal step itself.

Nor is what does not gain. A call of compiled code takes the host about 0.1 ms for each parameter, the base's step and
the proximal one of many small parameters far less. CPU time of one thread, when every size was fused (bare fused base /
fused / unfused, ms, least of 60, a busy machine; no GPU has been measured):

    AdamW + L1      100 of 64 x 64   1.2 / 11 / 7.2     50 of 128 x 128   1.6 / 7.7 / 11
    AdamW + rows    100 of 16 x 16   0.9 / 17 / 36      50 of 128 x 128   1.7 / 20 / 40
    SGD + L1        10 of 512 x 512  2.3 / 6.0 / 5.1    6 of 1024 x 1024  5.6 / 10 / 11
    SGD + rows      10 of 512 x 512  1.4 / 7.7 / 4.6    4 of 2048 x 2048  14 / 47 / 36

So entries with a step each are fused from `_MANY` entries a parameter, with one step for all from `_MORE` times as many
(matrices of 768 x 768 pay in a large model, on 2 threads: 1.25 to 1.45 of the bare step, 1.5 to 1.9 unfused); rows with
a step for each entry always, with one step for all never.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer

from torchreg.functional.torch_private import has_global_step_hooks, has_modes
from torchreg.penalties import Penalty
from torchreg.training.cuda_graphs import is_capturing
from torchreg.training.effective_step import BoundedMetric, rule_for
from torchreg.training.fused.penalty_inputs import acts_on_entries
from torchreg.training.fused.row_inputs import acts_on_rows
from torchreg.training.fused.update import KNOWN, Update
from torchreg.training.fused.updates import update_for
from torchreg.training.param_positions import Slot

_DTYPES = (torch.float32, torch.float64)
_MANY = 1 << 14  # entries of a parameter from which one pass is faster than two steps
_MORE = 32  # times as many where the optimizer has one step for all entries: the proximal step is cheap there


@dataclass(frozen=True)
class Candidate:
    """A parameter that may be stepped by a compiled pass.

    Attributes:
        name: of the parameter in its term.
        param: the parameter, which has a gradient.
        state: the base's state of it.
        group: its param group.
        update: the base's update.
        penalty: its penalty, of entries or rows.
    """

    name: str
    param: Tensor
    state: MutableMapping[str, Any]
    group: Mapping[str, Any]
    update: Update
    penalty: Penalty


def candidates(owner: Any, unfused: list[tuple[str, str]]) -> Iterator[Candidate]:
    """The parameters that can be fused and gain by it; those that cannot join a list, by name and reason.

    The first step of a parameter, in which the base begins its state, is always the base's own.
    """
    for slot in owner.positions.slots:
        names = {id(p): name for name, p in slot.part.known.items()}
        group, why = owner.base.param_groups[slot.group], slot_reason(owner, slot)
        update = None if why else update_for(type(owner.base), group)
        least = _gains_from(owner, slot)
        for p in slot.parameters(owner.base):
            state = owner.base.state.get(p, {})
            if p.grad is None or p.numel() < least or (update is not None and not has_state(update, state)):
                continue
            if update is None or (reason := parameter_reason(p, update, state)):
                unfused.append((names.get(id(p), "a parameter"), why or reason))
            else:
                yield Candidate(names.get(id(p), "a parameter"), p, state, group, update, slot.part.penalty)


def _gains_from(owner: Any, slot: Slot) -> float:
    """The entries of a parameter from which a compiled pass is faster than two steps."""
    in_common = rule_for(owner.base, owner.metric).shape == "number"
    if acts_on_rows(slot.part.penalty):
        return inf if in_common else 1
    return _MANY * (_MORE if in_common else 1)


def runs_eagerly() -> bool:
    """Whether Python runs this step itself: within compiled or captured steps all is fused already."""
    return not (torch.compiler.is_compiling() or is_capturing())


def metric_of(owner: Any) -> Any:
    """An owner's metric without a bound."""
    return owner.metric.metric if isinstance(owner.metric, BoundedMetric) else owner.metric


def whole_reason(owner: Any) -> str:
    """Why no parameter of an optimizer can be fused, or ""."""
    base: Optimizer = owner.base
    if owner.masters:
        return "masters=True"
    if owner.mode != "prox":
        return f"mode={owner.mode!r}"
    if metric_of(owner) not in ("auto", "decoupled"):
        return "the metric is a function"
    if type(base) not in KNOWN:
        return f"the update of {type(base).__name__} is not known"
    if base._optimizer_step_pre_hooks or base._optimizer_step_post_hooks or has_global_step_hooks():
        return "the base has step hooks, attach_to's among them"
    if "step" in vars(base) and not hasattr(base.step, "_wrapped_by_lr_sched"):
        return "the base's step was replaced"
    if getattr(base, "found_inf", None) is not None or getattr(base, "grad_scale", None) is not None:
        return "GradScaler leaves unscaling and skipping to the base"
    if has_modes() or torch.is_inference_mode_enabled():
        return "a mode of torch is on, as a default device, counted operations, inference"
    return "several processes" if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else ""


def slot_reason(owner: Any, slot: Slot) -> str:
    """Why no parameter of a slot can be fused, or ""."""
    group = owner.base.param_groups[slot.group]
    terms = [term for term in owner.terms if any(part is slot.part for part in term.parts)]
    if any(term.control is not None or term.together is not None for term in terms):
        return "its term is controlled (frozen zeros, a target, joint groups)"
    if slot.part.lazy:
        return "it is attached with lazy=True"
    if not (acts_on_entries(slot.part.penalty) or acts_on_rows(slot.part.penalty)):
        return f"{type(slot.part.penalty).__name__} is no penalty of entries or convex one of rows, of torchreg's own"
    if group.get("capturable"):
        return "capturable=True"
    return next((f"{name} is a tensor" for name, x in group.items() if name != "params" and _holds_tensor(name, x)), "")


def _holds_tensor(name: str, option: Any) -> bool:
    """Whether an option of a group is a tensor, but for a learning rate that the host may read."""
    if name == "lr" and isinstance(option, Tensor):
        return option.device.type != "cpu" or option.numel() != 1
    return any(isinstance(x, Tensor) for x in (option if isinstance(option, (tuple, list)) else (option,)))


def parameter_reason(p: Tensor, update: Update, state: Mapping[str, Any]) -> str:
    """Why a parameter that has a gradient and a state cannot be fused, or ""."""
    grad = p.grad
    assert grad is not None
    kept = [state[key] for key in update.kept]
    if type(p) not in (Parameter, Tensor) or any(type(x) is not Tensor for x in (grad, *kept)):
        return "it is cut over processes, or of a class of its own"
    if p.dtype not in _DTYPES or any(x.dtype is not p.dtype for x in (grad, *kept)):
        return f"{p.dtype}" if p.dtype not in _DTYPES else "its gradient or its state has another dtype"
    if any(x.layout is not torch.strided or x.shape != p.shape for x in (p, grad, *kept)):
        return "its gradient is sparse, or its state that of another parameter"
    if any(not x.is_contiguous() or x.device != p.device for x in (p, grad, *kept)):
        return "it is not contiguous, or lies on several devices"
    if p.is_inference() or p.is_complex():
        return "it is an inference tensor"
    if not update.counts_anywhere and any(state[key].device.type != "cpu" for key in update.counters):
        return "its count of steps lies on the device"
    return ""


def has_state(update: Update, state: Mapping[str, Any]) -> bool:
    """Whether the base has begun a state; the first step of a parameter is always the base's own."""
    return all(isinstance(state.get(key), Tensor) for key in (*update.kept, *update.counters))
