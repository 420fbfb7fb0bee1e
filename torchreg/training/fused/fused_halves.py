"""Both halves of a step, where some parameters take them in one compiled pass and the others one after the other.

1. the closure is called, if there is one, as torch's optimizers do first;
2. the parameters that a compiled pass can step are found, and what is not compiled yet is compiled and tried;
3. their gradients are taken away while the base and the proximal step deal with the others, and put back;
4. their counters are moved as the base moves them, and each is stepped in one pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchreg.training.clipping import clipped_by
from torchreg.training.control import controlled
from torchreg.training.effective_step import BoundedMetric
from torchreg.training.fused.candidates import Candidate, candidates, whole_reason
from torchreg.training.fused.compiled_step import Kind, Step, inputs_of, packed, step_of
from torchreg.training.fused.penalty_inputs import PenaltyInputs, penalty_inputs

_AT = {"step": 10.0, "mu_product": 0.5}  # counters at which a pass is tried


@dataclass(frozen=True)
class _Pass:
    """A parameter with the compiled pass that steps it; its gradient is kept here while the base steps the others."""

    at: Candidate
    grad: Tensor
    step: Step
    inputs: list[Tensor]


class FusedHalves:
    """The step of a `ProxOptimizer` with ``fused=True``, which says once what it cannot fuse."""

    def __init__(self) -> None:
        self._told = False

    def step(self, owner: Any, closure: Callable[[], Any] | None) -> Any:
        """Both halves; returns what the base's step returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        owner.positions.refuse_sparse()
        with torch.no_grad():
            passes = self._passes(owner)
            factor = clipped_by(owner)  # before the others take it
        for own in passes:
            own.at.param.grad = None
        try:
            owner.base.step()
            owner.prox()
        finally:
            for own in passes:
                own.at.param.grad = own.grad
        with torch.no_grad():
            _run(owner, passes, factor)
        return loss

    def _passes(self, owner: Any) -> list[_Pass]:
        passes: list[_Pass] = []
        unfused: list[tuple[str, str]] = []
        if reason := whole_reason(owner):
            unfused.append(("all parameters", reason))
        else:
            found = candidates(owner, unfused)
            passes = [own for at in found if (own := _pass_of(owner, at, unfused)) is not None]
        if unfused and not self._told:
            self._told = True
            _tell(unfused)
        return passes


def _pass_of(owner: Any, at: Candidate, unfused: list[tuple[str, str]]) -> _Pass | None:
    grad, penalty = at.param.grad, penalty_inputs(at.penalty, at.param.shape)
    if penalty is None or grad is None:
        unfused.append((at.name, "a tensor of its penalty is not of its shape, or not contiguous"))
        return None
    step = step_of(_kind_of(owner, at, penalty), penalty, _numbers(at, [_AT[key] for key in at.update.counters]))
    if step is None:
        unfused.append((at.name, "torch.compile has no working compiler here, or its result differs"))
        return None
    return _Pass(at, grad, step, inputs_of(penalty, at.param.device))


def _kind_of(owner: Any, at: Candidate, penalty: PenaltyInputs) -> Kind:
    bounded = isinstance(owner.metric, BoundedMetric)
    metric = owner.metric.metric if bounded else owner.metric
    most = owner.metric.most if bounded else None
    return Kind(at.update, penalty.kind, metric, most, at.param.dtype, at.param.device)


def _numbers(at: Candidate, counters: Any) -> tuple[float, ...]:
    return at.update.numbers(at.group, *counters)


def _run(owner: Any, passes: list[_Pass], factor: Tensor | float) -> None:
    """Move the counters and step the parameters; what the host reckons is sent once for all that share it."""
    sent: dict[Any, tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]] = {}
    for own in passes:
        at, p = own.at, own.at.param
        state = owner.base.state[p] if controlled(owner) else at.state
        counters = at.update.advance(at.group, state)
        key = (at.update, id(at.group), counters, p.dtype, p.device)
        if key not in sent:
            sent[key] = _sent(owner, at, counters, factor)
        numbers, scale = sent[key]
        kept = [state[name].view(-1) for name in at.update.kept]
        own.step(p.detach().view(-1), own.grad.detach().view(-1), kept, numbers, scale, own.inputs)


def _sent(
    owner: Any, at: Candidate, counters: tuple[float, ...], factor: Tensor | float
) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    numbers, device = _numbers(at, counters), at.param.device
    metric = owner.metric.metric if isinstance(owner.metric, BoundedMetric) else owner.metric
    rate = float(at.group["lr"]) if metric == "decoupled" else numbers[0]
    common, one = packed([rate, 1.0 if isinstance(factor, Tensor) else factor], torch.float64, device)
    if isinstance(factor, Tensor):
        one = factor.to(device, torch.float64, non_blocking=True)
    return packed(numbers, at.param.dtype, device), (common, one)


def _tell(unfused: list[tuple[str, str]]) -> None:
    reasons: dict[str, list[str]] = {}
    for name, reason in unfused:
        reasons.setdefault(reason, []).append(name)
    listed = "; ".join(
        f"{names[0]} and {len(names) - 1} more: {why}" if len(names) > 1 else f"{names[0]}: {why}"
        for why, names in reasons.items()
    )
    warnings.warn(
        f"fused=True: some of the penalised parameters take the base's step and the proximal one after the other, as "
        f"with fused=False. {listed}. The result is the same; fused=False says nothing of it.",
        stacklevel=10,
    )
