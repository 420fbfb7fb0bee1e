"""The formulas of the effective step, read off the update rules of torch.optim.

An entry that has met no gradient has no metric: Adam's ``lr / (sqrt(v) + eps)`` would be ``lr / eps`` where v is 0,
although the update itself is zero there. Its step is the plain ``lr``, as of an optimizer without a metric. The fixed
point is the same for every step > 0: under a zero gradient the minimiser is that of the penalty alone. (In float32 v is
0 too where all gradients were below 1e-22; they move an entry by less than 1e-14 lr.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, SparseAdam

from torchreg.functional.reductions import asks_freely, wide, widened
from torchreg.functional.shrinkage import Scalar, multiply_

ParamGroup = Mapping[str, Any]
State = Mapping[str, Any]
Shape = Literal["number", "entry", "tensor"]


@dataclass(frozen=True)
class StepRule:
    """How to compute effective steps of many parameters of one group at once.

    Attributes:
        steps: (group, states, parameters) -> one step per parameter, in new tensors.
        shape: "number" if a step is one number for a tensor, "entry" if each entry of a step
            depends on that entry of the state alone (so a large parameter can be taken in
            pieces), else "tensor".
        unmet: (group, state) -> which entries have met no gradient, None where the step does not depend on it.
    """

    steps: Callable[[ParamGroup, Sequence[State], Sequence[Tensor]], list[Scalar]]
    shape: Shape
    unmet: Callable[[ParamGroup, State], Tensor] | None = None


def _is_zero(x: Tensor) -> Tensor:
    """Where ``x >= 0`` is 0; one False where the host sees at a tenth of the price that it is nowhere."""
    if x.numel() and asks_freely(x) and bool(x.amin() > 0):
        return torch.zeros((), dtype=torch.bool)
    return x == 0


_FEW = 4  # tensors of one shape that are stacked for a number each: it takes three launches and a copy of them

RULES: dict[type[Optimizer], StepRule] = {}


def _known(
    kind: type[Optimizer],
    shape: Shape = "entry",
    unmet: Callable[[ParamGroup, State], Tensor] | None = None,
) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        RULES[kind] = StepRule(function, shape, unmet)
        return function

    return register


def _per_count(states: Sequence[State], formula: Callable[[Any], Any]) -> list[Any]:
    """A formula of each step counter: numbers where counters lie on the CPU, tensors on a device, so nothing waits."""
    counts = [s["step"] for s in states]
    if all(isinstance(k, int) for k in counts):  # SparseAdam's
        return [formula(k) for k in counts]
    if torch.compiler.is_compiling():
        # as precise as the state and no more, since the kernel reckons it for each entry
        return [formula(wide(k) if _is_wide(state) else k) for k, state in zip(counts, states, strict=True)]
    if all(isinstance(k, Tensor) and k.device.type == "cpu" for k in counts):
        return [formula(k) for k in torch.stack(counts).tolist()]
    if len({k.device for k in counts}) > 1:
        return [formula(wide(k)) for k in counts]
    return list(formula(wide(torch.stack(counts))).unbind())


def _is_wide(state: State) -> bool:
    return any(isinstance(x, Tensor) and x.dtype is torch.float64 for x in state.values())


def _unbias(count: Any, decay: Any) -> Any:
    """``1 - decay^count``; in float32 that is off by 1e-5 at the first counts, and expm1 is not."""
    narrow = isinstance(count, Tensor) and count.dtype is not torch.float64
    if narrow and not isinstance(decay, Tensor) and decay > 0.0:
        return -torch.expm1(count * math.log(decay))
    return 1.0 - decay**count


def _over(scales: Sequence[Any], below: list[Tensor]) -> list[Scalar]:
    """``scale / tensor`` for each, in place."""
    if len(below) == 1:  # one pass over memory instead of two
        scale = torch.as_tensor(scales[0], dtype=below[0].dtype)
        return [torch.div(scale, below[0], out=below[0])]
    torch._foreach_reciprocal_(below)
    multiply_(below, scales)
    return list(below)


def _adapted(
    scales: Sequence[Any],
    second: Sequence[Tensor],
    offsets: Sequence[Any],
    fills: Sequence[Any],
    met: Sequence[Tensor] | None = None,
    unbias: Sequence[Tensor] | None = None,
) -> list[Scalar]:
    """``scale / (sqrt(v) / unbias + offset)`` for each, in new tensors; where it met nothing with ``fill`` as the root.

    There ``met`` is 0; it is v itself unless v can vanish under a gradient.
    """
    below = list(torch._foreach_sqrt([widened(v) for v in second]))
    if unbias is not None:
        below = _divided(below, unbias)
    offsets, fills = _near(offsets, below[0]), _near(fills, below[0])
    _fill_unmet(below, met or below, fills)
    torch._foreach_add_(below, list(offsets))
    return _over(scales, below)


def _divided(tensors: list[Tensor], by: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor over its own number on the device, those of one shape together: a list of numbers goes one by one."""
    found, shapes = list(tensors), [x.shape for x in tensors]
    for shape in dict.fromkeys(shapes):
        at = [k for k, other in enumerate(shapes) if other == shape]
        if len(at) < _FEW or not all(tensors[k].is_contiguous() for k in at):
            torch._foreach_div_([tensors[k] for k in at], _near([by[k] for k in at], tensors[at[0]]))
            continue
        stack = torch.stack([tensors[k] for k in at])
        numbers = torch.stack([by[k] for k in at]).to(stack.dtype)
        parts = stack.div_(numbers.reshape(-1, *[1] * len(shape))).unbind()
        for k, part in zip(at, parts, strict=True):
            found[k] = part
    return found


def _near(values: Sequence[Any], like: Tensor) -> list[Any]:
    """Values for a step of like's dtype, to which a number or a 0-d tensor would be rounded anyway."""
    return [v.to(like.dtype) if isinstance(v, Tensor) and v.dim() else v for v in values]


def _fill_unmet(below: list[Tensor], met: Sequence[Tensor], fills: Sequence[Any]) -> None:
    """Write ``fill`` into each tensor where ``met``, which is >= 0, is 0; a NaN stays."""
    numbers = not any(isinstance(fill, Tensor) for fill in fills)
    if len(below) == 1 and met is below and numbers:
        torch.threshold_(below[0], 0.0, fills[0])
    elif len(below) == 1:
        below[0] = torch.where(met[0] == 0, fills[0], below[0])
    else:
        missing = list(torch._foreach_pow(0.0, list(met)))  # 1 at 0, else 0
        if numbers:
            torch._foreach_addcmul_(below, missing, missing, list(fills))
        else:
            torch._foreach_mul_(missing, list(fills))
            torch._foreach_add_(below, missing)


@_known(SGD, "number")
def _sgd(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del states
    kept = 1.0 - group["dampening"] if group["momentum"] else 1.0  # torch dampens momentum alone
    step = group["lr"] * kept / (1.0 - group["momentum"])
    return [step] * len(params)


def _second(group: ParamGroup, state: State) -> Tensor:
    return state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]


@_known(Adam, unmet=lambda group, state: _is_zero(_second(group, state)))
@_known(AdamW, unmet=lambda group, state: _is_zero(_second(group, state)))
def _adam(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    lr, eps, many = group["lr"], group["eps"], len(params)
    second = [_second(group, s) for s in states]
    unbias = _per_count(states, lambda k: _unbias(k, group["betas"][1]) ** 0.5)
    if isinstance(unbias[0], Tensor) and not torch.compiler.is_compiling():
        # each is a launch of its own, so they come in once
        return _adapted([lr] * many, second, [eps] * many, [1.0 - eps] * many, unbias=unbias)
    return _adapted([lr * u for u in unbias], second, [eps * u for u in unbias], [u - eps * u for u in unbias])


@_known(SparseAdam, unmet=lambda group, state: _is_zero(state["exp_avg_sq"]))
def _sparse_adam(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    """Adam's step, of the rows that it steps; eps stands outside the correction of the bias."""
    lr, eps = group["lr"], group["eps"]
    unbias = _per_count(states, lambda k: _unbias(k, group["betas"][1]) ** 0.5)
    second = [s["exp_avg_sq"] for s in states]
    return _adapted([lr * u for u in unbias], second, [eps] * len(params), [u - eps for u in unbias])


@_known(NAdam, unmet=lambda group, state: _is_zero(state["exp_avg_sq"]))
def _nadam(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    """Adam's step, times what the growing momentum's weights on a steady gradient add up to."""
    steps = _adam(group, states, params)

    def momentum(count: Any) -> Any:
        return group["betas"][0] * (1.0 - 0.5 * 0.96 ** (count * group["momentum_decay"]))

    torch._foreach_mul_(steps, _per_count(states, lambda k: 1.0 + momentum(k + 1.0) - momentum(k)))
    return steps


@_known(RAdam, unmet=lambda group, state: _is_zero(state["exp_avg_sq"]))
def _radam(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    lr, eps, decay = group["lr"], group["eps"], group["betas"][1]
    scales = _per_count(states, lambda k: lr * _rectification(k, decay))
    fills = _per_count(states, lambda k: _rectification(k, decay) - eps)
    ready = _per_count(states, lambda k: _rectification(k, decay) > 0)
    adapted = _adapted(scales, [s["exp_avg_sq"] for s in states], [eps] * len(params), fills)
    return [_either(now, t, lr) for now, t in zip(ready, adapted, strict=True)]


def _rectification(count: Any, decay: float) -> Any:
    """The factor of RAdam's adapted step at this count, 0 where it does not adapt yet (Liu et al., ICLR 2020)."""
    count = wide(count) if isinstance(count, Tensor) else count  # float32 cancels here
    longest = 2.0 / (1.0 - decay) - 1.0
    unbias = 1.0 - decay**count
    length = longest - 2.0 * count * (1.0 - unbias) / unbias
    ready = length > 5.0
    length = _either(ready, length, 6.0)
    spread = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
    return (spread * unbias) ** 0.5 * ready


def _either(condition: Any, yes: Any, no: Any) -> Any:
    """``yes`` where the condition holds, else ``no``, for numbers and for tensors on a device."""
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


@_known(RMSprop, unmet=lambda group, state: _is_zero(state["square_avg"]))
def _rmsprop(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del params
    squares = second = [widened(s["square_avg"]) for s in states]
    if group["centered"]:
        mean = [widened(s["grad_avg"]) for s in states]
        second = list(torch._foreach_addcmul(squares, mean, mean, value=-1))
        torch._foreach_clamp_min_(second, 0.0)  # rounding can make a variance negative
    many, eps = len(states), group["eps"]
    met = squares if group["centered"] else None
    return _adapted([group["lr"] / (1.0 - group["momentum"])] * many, second, [eps] * many, [1.0 - eps] * many, met)


@_known(Adagrad, unmet=lambda group, state: _is_zero(state["sum"]))
def _adagrad(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    many, eps, rates = len(params), group["eps"], [group["lr"]] * len(params)
    if group["lr_decay"]:
        rates = _per_count(states, lambda k: group["lr"] / (1.0 + (k - 1.0) * group["lr_decay"]))
    return _adapted(rates, [s["sum"] for s in states], [eps] * many, [1.0 - eps] * many)


def _least(group: ParamGroup, state: State) -> float:
    """What Adamax's norm is at most where no gradient was met: torch adds eps to the size of each."""
    return group["eps"] * (1.0 + 4.0 * torch.finfo(state["exp_inf"].dtype).eps)


@_known(Adamax, unmet=lambda group, state: state["exp_inf"] <= _least(group, state))
def _adamax(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del params
    below = list(torch._foreach_add([widened(s["exp_inf"]) for s in states], 0.0))
    met = list(torch._foreach_sub(below, _least(group, states[0])))
    torch._foreach_clamp_min_(met, 0.0)
    _fill_unmet(below, met, [1.0] * len(states))
    return _over([group["lr"]] * len(states), below)


@_known(Adadelta)
def _adadelta(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del params
    eps = group["rho"] * group["eps"]  # acc_delta was updated after its use: solved for at a steady gradient
    above = torch._foreach_add([widened(s["acc_delta"]) for s in states], eps)
    below = torch._foreach_add([widened(s["square_avg"]) for s in states], eps)
    ratio = list(torch._foreach_div(above, below))
    torch._foreach_sqrt_(ratio)
    multiply_(ratio, [group["lr"]] * len(states))
    return list(ratio)
