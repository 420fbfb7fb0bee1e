"""Both halves of a step, where some parameters take them in one compiled pass and the others one after the other.

1. the closure is called, if there is one, as torch's optimizers do first;
2. the parameters that a compiled pass can step are found, and what is not compiled yet is compiled and tried;
3. their gradients are taken away while the base and the proximal step deal with the others, and put back;
4. their counters are moved as the base moves them, and they are stepped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.shrinkage import Scalar
from torchreg.training.clipping import clipped_by
from torchreg.training.control import controlled
from torchreg.training.effective_step import BoundedMetric
from torchreg.training.fused.candidates import Candidate, candidates, metric_of, runs_eagerly, whole_reason
from torchreg.training.fused.compiled_step import Kind, Step, inputs_of, settings, step_of
from torchreg.training.fused.penalty_inputs import PenaltyInputs, acts_on_entries, penalty_inputs
from torchreg.training.fused.row_inputs import row_inputs
from torchreg.training.fused.step_numbers import reckon

_AT = {"step": 10.0, "mu_product": 0.5}  # counters at which a pass is tried
_MISFIT = "a tensor of its penalty is not of its shape, or its groups are not its rows"
_NO_COMPILER = "torch.compile has no working compiler here, its result differs, or it has compiled too many kinds"
_SHARED = "it shares memory with its gradient, its state or another parameter"

_BLOCK = 1 << 19  # entries of the rows that are stepped at a time, so that loops over them find them in a CPU's cache

Made = tuple[Step, list[Tensor], int] | str  # a compiled step, its penalty's inputs and rows; or why there is none


@dataclass(frozen=True)
class _Ready:
    """A parameter with the compiled step that it takes; its gradient is kept here while the base steps the others."""

    at: Candidate
    grad: Tensor
    step: Step
    inputs: list[Tensor]
    rows: int

    @property
    def tensors(self) -> list[Tensor]:
        """The parameter, its gradient and what is kept of it."""
        return [self.at.param.detach(), self.grad.detach(), *(self.at.state[name] for name in self.at.update.kept)]


class FusedHalves:
    """The step of a `ProxOptimizer` with ``fused=True``, which says once what it cannot fuse."""

    def __init__(self) -> None:
        self._told = False

    def may(self, owner: Any) -> bool:
        """Whether any parameter can be fused: none is within compiled or captured steps, which are fused already."""
        if not runs_eagerly():
            return False
        reason = whole_reason(owner)
        self._tell([("all parameters", reason)] if reason else [])
        return not reason

    def step(self, owner: Any, closure: Callable[[], Any] | None) -> Any:
        """Both halves; returns what the base's step returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        owner.positions.refuse_sparse()
        with torch.no_grad():
            ready = self._ready(owner)
            factor = clipped_by(owner)  # before the others take it
        for one in ready:
            one.at.param.grad = None
        try:
            owner.base.step()
            owner.prox()
        finally:
            for one in ready:
                one.at.param.grad = one.grad
        with torch.no_grad():
            _step_all(owner, ready, factor)
        return loss

    def _ready(self, owner: Any) -> list[_Ready]:
        ready: list[_Ready] = []
        unfused: list[tuple[str, str]] = []
        made: dict[Hashable, Made] = {}
        for at in candidates(owner, unfused):
            found = _made(owner, at, made)
            if isinstance(found, str):
                unfused.append((at.name, found))
            elif at.param.grad is not None:
                ready.append(_Ready(at, at.param.grad, *found))
        shared = _shared([one.tensors for one in ready])
        unfused += [(ready[k].at.name, _SHARED) for k in shared]
        self._tell(unfused)
        return [one for k, one in enumerate(ready) if k not in shared]

    def _tell(self, unfused: list[tuple[str, str]]) -> None:
        if not unfused or self._told:
            return
        self._told = True
        reasons: dict[str, list[str]] = {}
        for name, reason in unfused:
            reasons.setdefault(reason, []).append(name)
        listed = "; ".join(
            f"{names[0]} and {len(names) - 1} more: {why}" if len(names) > 1 else f"{names[0]}: {why}"
            for why, names in reasons.items()
        )
        warnings.warn(
            "fused=True: these take the base's step and the proximal one after the other, as with fused=False, to the "
            f"same result. {listed}.",
            stacklevel=10,
        )


def _made(owner: Any, at: Candidate, made: dict[Hashable, Made]) -> Made:
    """The compiled step of a parameter and its penalty's inputs, made once for all that share them."""
    p = at.param
    alike = (id(at.penalty), at.update, id(at.group), p.dtype, p.device)
    known = made.get(alike) or made.get((alike, p.shape))
    if known is not None:
        return known
    alone = acts_on_entries(at.penalty)
    penalty = penalty_inputs(at.penalty, p.shape) if alone else row_inputs(at.penalty, p)
    if penalty is None:
        return made.setdefault((alike, p.shape), _MISFIT)
    numbers = at.update.numbers(at.group, *(_AT[key] for key in at.update.counters))
    step = step_of(_kind_of(owner, at, penalty), penalty, numbers)
    if step is None:
        return made.setdefault(alike, _NO_COMPILER)
    inputs = inputs_of(penalty, p.device)
    return made.setdefault((alike, p.shape) if any(x.dim() for x in inputs) else alike, (step, inputs, penalty.rows))


def _kind_of(owner: Any, at: Candidate, penalty: PenaltyInputs) -> Kind:
    most = owner.metric.most if isinstance(owner.metric, BoundedMetric) else None
    dtype, device = at.param.dtype, at.param.device
    return Kind(at.update, penalty.kind, metric_of(owner), most, dtype, device, settings(device))


def _step_all(owner: Any, ready: list[_Ready], factor: Scalar) -> None:
    """Move the counters, and step each parameter in place."""
    for one in ready:
        if controlled(owner):
            owner.base.state.setdefault(one.at.param, one.at.state)
    for one, (numbers, scale) in zip(ready, reckon(owner, [one.at for one in ready], factor), strict=True):
        if not one.rows:
            p, grad, *kept = (x.view(-1) for x in one.tensors)
            one.step(p, grad, kept, numbers, scale, one.inputs)
            continue
        level, *strengths = one.inputs
        views = (x.view(one.rows, -1).tensor_split(_blocks(one.at.param, one.rows)) for x in (*one.tensors, level))
        for p, grad, *kept, own in zip(*views, strict=True):
            one.step(p, grad, kept, numbers, scale, [own, *strengths])


def _blocks(p: Tensor, rows: int) -> int:
    """Into how many blocks of at least two rows a parameter is cut; a device takes it whole."""
    return max(1, min(rows // 2, -(-p.numel() // _BLOCK))) if p.device.type == "cpu" else 1


def _shared(tensors: list[list[Tensor]]) -> set[int]:
    """Which lists hold a tensor that overlaps another one of any list, since the order of steps matters there."""
    spans = sorted((x.data_ptr(), x.data_ptr() + x.nbytes, k) for k, several in enumerate(tensors) for x in several)
    found: set[int] = set()
    end = last = 0
    for start, stop, k in spans:
        if start < end:
            found |= {k, last}
        if stop > end:
            end, last = stop, k
    return found
