"""The effective step of an optimizer: what its update multiplies the gradient by, parameter by parameter.

A proximal step has the right fixed point only in the metric of the optimizer's own step: with the
steady update ``-t * gradient``, element by element, the threshold must be ``t * alpha``. Source: Yun,
Lozano and Yang, "Adaptive proximal gradient methods for structured neural networks" (ProxGen), NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.functional.shrinkage import Scalar
from torchreg.training.relative_rules import check_rate, known_rule
from torchreg.training.step_rules import RULES, ParamGroup, State, StepRule

StepFunction = Callable[[ParamGroup, State, Tensor], Scalar]


@dataclass(frozen=True)
class BoundedMetric:
    """A metric whose steps are bounded from above; made by `at_most`."""

    most: float
    metric: Literal["auto"] | StepFunction = "auto"


Metric = Literal["auto", "decoupled"] | StepFunction | BoundedMetric


def effective_step(optimizer: Optimizer, metric: Metric = "auto") -> dict[Tensor, Scalar]:
    """The effective step of each parameter that the optimizer has stepped and that still has its gradient.

    ``t`` is the factor in the optimizer's steady update ``-t * gradient``: for Adam
    ``lr / (sqrt(v / (1 - beta2^k)) + eps)``, for SGD with momentum
    ``lr (1 - dampening) / (1 - momentum)``. An entry that has met no gradient but zeros has the step of the
    optimizer without its metric, ``lr`` for Adam.

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


def at_most(step: float, metric: Literal["auto"] | StepFunction = "auto") -> BoundedMetric:
    """A metric with a bound: ``ProxOptimizer(base, term, metric=at_most(4 * lr / alpha))``.

    The effective step becomes ``min(t, step)``. Adam's ``t = lr / sqrt(v)`` is large where gradients are small or long
    ago: after k steps without one, v has fallen by ``beta2^k``. There the threshold ``t * alpha`` may take a weight to
    zero at once that meets a gradient again later: while the weight of a loss still rises, say, or in layers that are
    dropped for long. With a bound of ``c lr / alpha`` it takes ``c lr`` a step at most, c times as much as Adam moves.

    The minimiser stays: where a weight is not zero at it, the gradient is alpha in size, so that ``t = lr / alpha``,
    below the bound for c > 1; and any step > 0 holds a zero. For a group, L1L2 or L2, whose slope at an entry can be
    smaller than alpha, the bound must be as much larger; it no longer acts as lr falls to 0.

    Other remedies: ``amsgrad=True``, which does not forget; a `lazy` term for embeddings (`attach`).

    Args:
        step: the bound, > 0.
        metric: "auto" or a function (group, state, parameter) -> step, as of `ProxOptimizer`.

    Raises:
        ValueError: if ``step`` is not positive.
        TypeError: if ``metric`` is neither "auto" nor a function.

    Example:
        >>> import torch
        >>> from torchreg import L1, ProxOptimizer, at_most, attach
        >>> w = torch.nn.Parameter(torch.tensor([0.5]))
        >>> opt = ProxOptimizer(torch.optim.Adam([w], lr=0.01), attach(L1(0.1), {"w": w}), metric=at_most(0.4))
        >>> w.grad = torch.tensor([1e-12])  # Adam's own step is 0.01 / 1e-8
        >>> opt.step()
        >>> w
        Parameter containing:
        tensor([0.4600], requires_grad=True)
    """
    if not step > 0:
        raise ValueError(f"at_most needs a step > 0, got {step!r}; 4 * lr / alpha, say.")
    if metric != "auto" and not callable(metric):
        raise TypeError(f"at_most bounds metric='auto' or a function (group, state, p) -> step, got {metric!r}.")
    return BoundedMetric(float(step), metric)


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
        RULES[kind] = _one_by_one(function)
        return function

    return register


def rule_for(optimizer: Optimizer, metric: Metric) -> StepRule:
    """The rule that a metric means for an optimizer.

    Raises:
        ValueError: if the metric is "auto" and the class unknown, or is no metric at all.
    """
    if isinstance(metric, BoundedMetric):
        return _bounded(rule_for(optimizer, metric.metric), metric.most)
    if metric == "decoupled":
        return StepRule(lambda group, states, params: [group["lr"]] * len(params), "number")
    if callable(metric):
        return _one_by_one(metric)
    if metric != "auto":
        raise ValueError(f"metric must be 'auto', 'decoupled' or a function (group, state, p) -> step, got {metric!r}.")
    kind = type(optimizer)
    rule = known_rule(kind)
    if rule is None:
        raise ValueError(
            f"No effective step is known for {kind.__name__}; known are {sorted(k.__name__ for k in RULES)}. Use "
            "metric='decoupled' (threshold lr * alpha), metric=function (group, state, p) -> step, or "
            f"@register_effective_step({kind.__name__})."
        )
    return rule


def check_metric(optimizer: Optimizer, metric: Metric) -> None:
    """Raise ValueError, or warn, where a metric does not fit an optimizer."""
    rule_for(optimizer, metric)
    check_rate(optimizer, metric.metric if isinstance(metric, BoundedMetric) else metric)


def _bounded(rule: StepRule, most: float) -> StepRule:
    def steps(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
        found = rule.steps(group, states, params)
        tensors = [t for t in found if isinstance(t, Tensor)]
        if len(tensors) == len(found):
            return list(torch._foreach_clamp_max(tensors, most))
        return [t.clamp(max=most) if isinstance(t, Tensor) else min(t, most) for t in found]

    return replace(rule, steps=steps)


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
