"""What an optimizer's update divides the gradient by, parameter by parameter.

A proximal step has the right fixed point only in the metric of the optimizer's own step: with the
steady update ``-t * gradient``, element by element, the threshold must be ``t * alpha``. This
module knows ``t`` for torch's optimizers. Source: Yun, Lozano and Yang, "Adaptive proximal gradient
methods for structured neural networks" (ProxGen), NeurIPS 2021; the formulas are read off
torch.optim's update rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from torchreg.shrinkage import Scalar, multiply_
from torchreg.sums import wide, widened

ParamGroup = Mapping[str, Any]
State = Mapping[str, Any]
StepFunction = Callable[[ParamGroup, State, Tensor], Scalar]
Metric = Literal["auto", "decoupled"] | StepFunction
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


_RULES: dict[type[Optimizer], StepRule] = {}


def effective_step(optimizer: Optimizer, metric: Metric = "auto") -> dict[Tensor, Scalar]:
    """The effective step of each parameter that the optimizer has stepped and that still has its gradient.

    ``t`` is the factor in the optimizer's steady update ``-t * gradient``: for Adam
    ``lr / (sqrt(v / (1 - beta2^k)) + eps)``, for SGD with momentum
    ``lr (1 - dampening) / (1 - momentum)``.

    Args:
        optimizer: a torch optimizer; its exact class decides.
        metric: "auto" for the class's own rule, "decoupled" for the learning rate, or a function
            ``(group, state, parameter) -> float | Tensor``.

    Returns:
        dict from parameter to a number or a tensor of the parameter's shape.

    Raises:
        ValueError: if no rule is known for this class of optimizer.

    Example:
        >>> import torch
        >>> from torchreg import effective_step
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> p.grad = torch.ones(2)
        >>> sgd = torch.optim.SGD([p], lr=0.1, momentum=0.9)
        >>> sgd.step()
        >>> round(effective_step(sgd)[p], 6)
        1.0
    """
    rule = rule_for(optimizer, metric)
    found: dict[Tensor, Scalar] = {}
    for group in optimizer.param_groups:
        stepped = [
            p for p in group["params"] if p.grad is not None and (rule.shape == "number" or optimizer.state.get(p))
        ]
        states = [optimizer.state.get(p, {}) for p in stepped]
        with torch.no_grad():
            found.update(zip(stepped, rule.steps(group, states, stepped) if stepped else [], strict=True))
    return found


def register_effective_step(kind: type[Optimizer]) -> Callable[[StepFunction], StepFunction]:
    """Teach torchreg the effective step of an optimizer class: a decorator.

    The function takes (param group, the parameter's state, the parameter), after the optimizer's
    step, and returns a number or a tensor that broadcasts with the parameter.

    Raises:
        TypeError: if ``kind`` is not an optimizer class.

    Example:
        >>> import torch
        >>> from torchreg import register_effective_step
        >>> class MySGD(torch.optim.SGD):
        ...     pass
        >>> @register_effective_step(MySGD)
        ... def step_of_my_sgd(group, state, parameter):
        ...     return group["lr"]
    """
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise TypeError(f"register_effective_step needs a subclass of torch.optim.Optimizer, got {kind!r}.")

    def register(function: StepFunction) -> StepFunction:
        _RULES[kind] = _one_by_one(function)
        return function

    return register


def rule_for(optimizer: Optimizer, metric: Metric) -> StepRule:
    """The rule that a metric means for an optimizer.

    Raises:
        ValueError: if the metric is "auto" and the class unknown, or is no metric at all.
    """
    if metric == "decoupled":
        return StepRule(lambda group, states, params: [group["lr"]] * len(params), "number")
    if callable(metric):
        return _one_by_one(metric)
    if metric != "auto":
        raise ValueError(f"metric must be 'auto', 'decoupled' or a function (group, state, p) -> step, got {metric!r}.")
    kind = type(optimizer)
    if kind not in _RULES:
        raise ValueError(
            f"No effective step is known for {kind.__name__}; known are {sorted(k.__name__ for k in _RULES)}. Use "
            "metric='decoupled' (threshold lr * alpha), metric=function (group, state, p) -> step, or "
            f"@register_effective_step({kind.__name__})."
        )
    return _RULES[kind]


def _one_by_one(function: StepFunction) -> StepRule:
    def steps(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
        return [_checked(function, function(group, s, p), p) for s, p in zip(states, params, strict=True)]

    return StepRule(steps, "tensor")


def _checked(function: StepFunction, step: Any, p: Tensor) -> Scalar:
    """A step that a user's function gave, refused if it is no step for this parameter."""
    name = getattr(function, "__name__", repr(function))
    if isinstance(step, Tensor):
        trailing = zip(reversed(step.shape), reversed(p.shape), strict=False)
        if step.numel() != 1 and (step.dim() > p.dim() or any(s not in (1, size) for s, size in trailing)):
            raise ValueError(
                f"The metric {name} gave a step of shape {tuple(step.shape)} for a parameter of shape "
                f"{tuple(p.shape)}; give a number, or a tensor that broadcasts to the parameter."
            )
        return step
    if isinstance(step, bool) or not isinstance(step, Real) or not float(step) >= 0:
        raise ValueError(f"The metric {name} must give a number >= 0 or a tensor as step, got {step!r}.")
    return float(step)


def _known(kind: type[Optimizer], shape: Shape = "entry") -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        _RULES[kind] = StepRule(function, shape)
        return function

    return register


def _per_count(states: Sequence[State], formula: Callable[[Any], Any]) -> list[Any]:
    """A formula of each step counter: numbers where counters lie on the CPU, tensors on a device, so nothing waits."""
    counts, compiling = [s["step"] for s in states], torch.compiler.is_compiling()
    if not compiling and all(isinstance(k, Tensor) and k.device.type == "cpu" for k in counts):
        return [formula(k) for k in torch.stack(counts).tolist()]
    if compiling or len({k.device for k in counts}) > 1:
        return [formula(wide(k)) for k in counts]  # 1 - 0.999 ** 1 in float32 is off by 1e-5
    return list(formula(wide(torch.stack(counts))).unbind())


def _over(scales: Sequence[Any], below: list[Tensor]) -> list[Scalar]:
    """``scale / tensor`` for each, in place."""
    if len(below) == 1:  # one pass over memory instead of two
        scale = torch.as_tensor(scales[0], dtype=below[0].dtype)
        return [torch.div(scale, below[0], out=below[0])]
    torch._foreach_reciprocal_(below)
    multiply_(below, scales)
    return list(below)


def _roots(second: Sequence[Tensor], offsets: Sequence[Any]) -> list[Tensor]:
    """``sqrt(v) + offset`` for each, in new tensors of at least float32."""
    if len(second) == 1 and second[0].device.type == "cpu" and not torch.compiler.is_compiling():
        below = [torch.pow(widened(second[0]), -0.5).reciprocal_()]  # measured: 0.6 of the time of torch.sqrt
    else:
        below = list(torch._foreach_sqrt([widened(v) for v in second]))
    torch._foreach_add_(below, list(offsets))
    return below


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
    second = [s["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"] for s in states]
    unbias = _per_count(states, lambda k: (1.0 - group["betas"][1] ** k) ** 0.5)
    if isinstance(unbias[0], Tensor):  # each is a launch of its own, so they come in once
        below = list(torch._foreach_sqrt([widened(v) for v in second]))
        torch._foreach_div_(below, unbias)
        torch._foreach_add_(below, group["eps"])
        return _over([group["lr"]] * len(states), below)
    below = _roots(second, [group["eps"] * u for u in unbias])
    return _over([group["lr"] * u for u in unbias], below)


@_known(NAdam)
def _nadam(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    """Adam's step, times what the growing momentum's weights on a steady gradient add up to."""
    steps = _adam(group, states, params)

    def momentum(count: Any) -> Any:
        return group["betas"][0] * (1.0 - 0.5 * 0.96 ** (count * group["momentum_decay"]))

    torch._foreach_mul_(steps, _per_count(states, lambda k: 1.0 + momentum(k + 1.0) - momentum(k)))
    return steps


@_known(RAdam)
def _radam(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del params
    scales = _per_count(states, lambda k: group["lr"] * _rectification(k, group["betas"][1]))
    ready = _per_count(states, lambda k: _rectification(k, group["betas"][1]) > 0)
    adapted = _over(scales, _roots([s["exp_avg_sq"] for s in states], [group["eps"]] * len(states)))
    return [_either(now, t, group["lr"]) for now, t in zip(ready, adapted, strict=True)]


def _rectification(count: Any, decay: float) -> Any:
    """The factor of RAdam's adapted step at this count, 0 where it does not adapt yet (Liu et al., ICLR 2020)."""
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


@_known(RMSprop)
def _rmsprop(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del params
    second = [widened(s["square_avg"]) for s in states]
    if group["centered"]:
        mean = [widened(s["grad_avg"]) for s in states]
        second = list(torch._foreach_addcmul(second, mean, mean, value=-1))
        torch._foreach_clamp_min_(second, 0.0)  # rounding can make a variance negative
    below = _roots(second, [group["eps"]] * len(states))
    return _over([group["lr"] / (1.0 - group["momentum"])] * len(states), below)


@_known(Adagrad)
def _adagrad(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del params
    scales = [group["lr"]] * len(states)
    if group["lr_decay"]:
        scales = _per_count(states, lambda k: group["lr"] / (1.0 + (k - 1.0) * group["lr_decay"]))
    return _over(scales, _roots([s["sum"] for s in states], [group["eps"]] * len(states)))


@_known(Adamax)
def _adamax(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
    del params
    below = list(torch._foreach_add([widened(s["exp_inf"]) for s in states], 0.0))
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
