"""Both halves of a step, where some parameters take them in one compiled pass and the others one after the other.

1. the closure is called, if there is one, as torch's optimizers do first;
2. the parameters that a compiled pass can step are found, and what is not compiled yet is compiled and tried;
3. their gradients are taken away while the base and the proximal step deal with the others, and put back;
4. their counters are moved as the base moves them, and they are stepped, small ones together.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchreg.shrinkage import Scalar
from torchreg.training.clipping import clipped_by
from torchreg.training.control import controlled
from torchreg.training.effective_step import BoundedMetric
from torchreg.training.fused.candidates import Candidate, candidates, whole_reason
from torchreg.training.fused.compiled_step import Kind, Step, inputs_of, settings, step_of
from torchreg.training.fused.joined_passes import Pass, run_all
from torchreg.training.fused.penalty_inputs import PenaltyInputs, acts_on_entries, penalty_inputs
from torchreg.training.fused.row_inputs import row_inputs
from torchreg.training.fused.step_numbers import reckon

_AT = {"step": 10.0, "mu_product": 0.5}  # counters at which a pass is tried
_MISFIT = "a tensor of its penalty is not of its shape, or its groups are not its rows"
_NO_COMPILER = "torch.compile has no working compiler here, or its result differs"

_BLOCK = 1 << 18  # entries of the rows that are stepped at a time, so that loops over them find them in a CPU's cache

Made = tuple[Step, list[Tensor], int] | str  # a compiled step, its penalty's inputs and rows; or why there is none


@dataclass(frozen=True)
class _Ready:
    """A parameter with the compiled step that it takes; its gradient is kept here while the base steps the others."""

    at: Candidate
    grad: Tensor
    step: Step
    inputs: list[Tensor]
    rows: int


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
            run_all(_passes(owner, ready, factor))
        return loss

    def _ready(self, owner: Any) -> list[_Ready]:
        ready: list[_Ready] = []
        unfused: list[tuple[str, str]] = []
        made: dict[Hashable, Made] = {}
        if reason := whole_reason(owner):
            unfused.append(("all parameters", reason))
        for at in [] if reason else candidates(owner, unfused):
            found = _made(owner, at, made)
            if isinstance(found, str):
                unfused.append((at.name, found))
            elif at.param.grad is not None:
                ready.append(_Ready(at, at.param.grad, *found))
        ready = _apart(ready, unfused)
        if unfused and not self._told:
            self._told = True
            _tell(unfused)
        return ready


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
    return Kind(
        at.update, penalty.kind, _metric(owner), most, at.param.dtype, at.param.device, settings(at.param.device)
    )


def _metric(owner: Any) -> str:
    metric = owner.metric.metric if isinstance(owner.metric, BoundedMetric) else owner.metric
    return str(metric)


def _passes(owner: Any, ready: list[_Ready], factor: Scalar) -> Iterator[Pass]:
    """Move the counters, and give a pass for each parameter."""
    for one in ready:
        if controlled(owner):
            owner.base.state.setdefault(one.at.param, one.at.state)
    reckoned = reckon([one.at for one in ready], _metric(owner), factor)
    for one, (key, numbers, scale) in zip(ready, reckoned, strict=True):
        tensors = [one.at.param.detach(), *(one.at.state[name] for name in one.at.update.kept), one.grad.detach()]
        if not one.rows:
            *written, grad = [x.view(-1) for x in tensors]
            yield Pass((key, id(one.inputs)), one.step, written, grad, numbers, scale, one.inputs)
            continue
        level, *strengths = one.inputs
        many = _blocks(one.at.param, one.rows)
        for *written, grad, own in zip(
            *(x.view(one.rows, -1).tensor_split(many) for x in (*tensors, level)), strict=True
        ):
            yield Pass(key, one.step, written, grad, numbers, scale, [own, *strengths])


def _blocks(p: Tensor, rows: int) -> int:
    """Into how many blocks of at least two rows a parameter is cut; a device takes it whole."""
    return max(1, min(rows // 2, -(-p.numel() // _BLOCK))) if p.device.type == "cpu" else 1


def _apart(ready: list[_Ready], unfused: list[tuple[str, str]]) -> list[_Ready]:
    """Those whose parameter and state no other one has, since the order of steps matters there."""
    memory = [[x.data_ptr() for x in (r.at.param, *(r.at.state[k] for k in r.at.update.kept))] for r in ready]
    times = Counter(pointer for pointers in memory for pointer in pointers)
    shared = [any(times[pointer] > 1 for pointer in pointers) for pointers in memory]
    unfused += [(one.at.name, "it shares memory with another") for one, its in zip(ready, shared, strict=True) if its]
    return [one for one, its in zip(ready, shared, strict=True) if not its]


def _tell(unfused: list[tuple[str, str]]) -> None:
    reasons: dict[str, list[str]] = {}
    for name, reason in unfused:
        reasons.setdefault(reason, []).append(name)
    listed = "; ".join(
        f"{names[0]} and {len(names) - 1} more: {why}" if len(names) > 1 else f"{names[0]}: {why}"
        for why, names in reasons.items()
    )
    warnings.warn(
        "fused=True: these take the base's step and the proximal one after the other, as with fused=False, to the same "
        f"result. {listed}.",
        stacklevel=10,
    )
