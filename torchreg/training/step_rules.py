"""The formulas of the effective step, read off the update rules of torch.optim.

An entry that has met no gradient has no metric: Adam's ``lr / (sqrt(v) + eps)`` would be ``lr / eps`` where v is 0,
although the update itself is zero there. Its step is the plain ``lr``, as of an optimizer without a metric. The fixed
point is the same for every step > 0: under a zero gradient the minimiser is that of the penalty alone. (In float32 v is
0 too where all gradients were below 1e-22; they move an entry by less than 1e-14 lr.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, SparseAdam

from torchreg.shrinkage import Scalar
from torchreg.sums import widened

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
    """

    steps: Callable[[ParamGroup, Sequence[State], Sequence[Tensor]], list[Scalar]]
    shape: Shape


RULES: dict[type[Optimizer], StepRule] = {}


def _known(kind: type[Optimizer], shape: Shape = "entry") -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        RULES[kind] = StepRule(function, shape)
        return function

    return register


def _counts(states: Sequence[State]) -> list[Any]:
    """Step counters: numbers where they lie on the CPU, tensors on a device, so nothing waits."""
    counts = [s["step"] for s in states]
    on_cpu = all(isinstance(k, Tensor) and k.device.type == "cpu" for k in counts)
    if on_cpu and not torch.compiler.is_compiling():
        return torch.stack(counts).tolist()
    return counts


def _over(scales: Sequence[Any], below: list[Tensor]) -> list[Scalar]:
    """``scale / tensor`` for each, in place."""
    if len(below) == 1:  # one pass over memory instead of two
        scale = torch.as_tensor(scales[0], dtype=below[0].dtype)
        return [torch.div(scale, below[0], out=below[0])]
    torch._foreach_reciprocal_(below)
    torch._foreach_mul_(below, list(scales))
    return list(below)


def _adapted(
    rates: Sequence[Any],
    units: Sequence[Any],
    second: Sequence[Tensor],
    offsets: Sequence[Any],
    met: Sequence[Tensor] | None = None,
) -> list[Scalar]:
    """``rate * unit / (sqrt(v) + offset)`` for each, in new tensors, and ``rate`` where no gradient was met.

    There ``met`` is 0; it is v itself unless v can vanish under a gradient.
    """
    if len(second) == 1 and second[0].device.type == "cpu" and not torch.compiler.is_compiling():
        below = [torch.pow(widened(second[0]), -0.5).reciprocal_()]  # measured: 0.6 of the time of torch.sqrt
    else:
        below = list(torch._foreach_sqrt([widened(v) for v in second]))
    _fill_unmet(below, met or below, [u - offset for u, offset in zip(units, offsets, strict=True)])
    torch._foreach_add_(below, list(offsets))
    return _over([rate * unit for rate, unit in zip(rates, units, strict=True)], below)


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


@_known(Adam)
@_known(AdamW)
def _adam(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del params
    moment, eps = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq", group["eps"]
    unbias = [(1.0 - group["betas"][1] ** k) ** 0.5 for k in _counts(states)]
    second = [s[moment] for s in states]
    return _adapted([group["lr"]] * len(states), unbias, second, [eps * u for u in unbias])


@_known(SparseAdam)
def _sparse_adam(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    """Adam's step, of the rows that it steps; eps stands outside the correction of the bias."""
    del params
    unbias, eps = [(1.0 - group["betas"][1] ** k) ** 0.5 for k in _counts(states)], [group["eps"]] * len(states)
    return _adapted([group["lr"]] * len(states), unbias, [s["exp_avg_sq"] for s in states], eps)


@_known(NAdam)
def _nadam(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    """Adam's step, times what the growing momentum's weights on a steady gradient add up to."""
    steps = _adam(group, states, params)

    def momentum(count: Any) -> Any:
        return group["betas"][0] * (1.0 - 0.5 * 0.96 ** (count * group["momentum_decay"]))

    torch._foreach_mul_(steps, [1.0 + momentum(k + 1.0) - momentum(k) for k in _counts(states)])
    return steps


@_known(RAdam)
def _radam(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del params
    rectified = [_rectification(k, group["betas"][1]) for k in _counts(states)]
    units, second, eps = [u for _, u in rectified], [s["exp_avg_sq"] for s in states], group["eps"]
    adapted = _adapted([group["lr"]] * len(states), units, second, [eps] * len(states))
    return [_either(ready, t, group["lr"]) for (ready, _), t in zip(rectified, adapted, strict=True)]


def _rectification(count: Any, decay: float) -> tuple[Any, Any]:
    """Whether RAdam adapts at this count, and the factor of its adapted step (Liu et al., ICLR 2020)."""
    count = count.double() if isinstance(count, Tensor) else count  # float32 cancels here
    longest = 2.0 / (1.0 - decay) - 1.0
    unbias = 1.0 - decay**count
    length = longest - 2.0 * count * (1.0 - unbias) / unbias
    ready = length > 5.0
    length = _either(ready, length, 6.0)
    spread = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
    return ready, (spread * unbias) ** 0.5


def _either(condition: Any, yes: Any, no: Any) -> Any:
    """``yes`` where the condition holds, else ``no``, for numbers and for tensors on a device."""
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


@_known(RMSprop)
def _rmsprop(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del params
    squares = second = [widened(s["square_avg"]) for s in states]
    if group["centered"]:
        mean = [widened(s["grad_avg"]) for s in states]
        second = list(torch._foreach_addcmul(squares, mean, mean, value=-1))
        torch._foreach_clamp_min_(second, 0.0)  # rounding can make a variance negative
    rates, eps = [group["lr"] / (1.0 - group["momentum"])] * len(states), group["eps"]
    met = squares if group["centered"] else None
    return _adapted(rates, [1.0] * len(states), second, [eps] * len(states), met)


@_known(Adagrad)
def _adagrad(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del params
    rates, eps = [group["lr"] / (1.0 + (k - 1.0) * group["lr_decay"]) for k in _counts(states)], group["eps"]
    return _adapted(rates, [1.0] * len(states), [s["sum"] for s in states], [eps] * len(states))


@_known(Adamax)
def _adamax(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del params
    below = [widened(s["exp_inf"]) + 0.0 for s in states]
    rounding = 1.0 + 4.0 * torch.finfo(states[0]["exp_inf"].dtype).eps
    met = list(torch._foreach_sub(below, group["eps"] * rounding))  # torch adds eps to the size of each gradient
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
    torch._foreach_mul_(ratio, [group["lr"]] * len(states))
    return list(ratio)
