"""The compiled pass: an optimizer's update and the proximal map of its penalty, entry by entry, in one kernel.

All tensors come in as flat views of one length, which is a symbol to the compiler, and all that moves from step to step
as 0-d tensors: one graph serves every size, rate, strength and count. It reads the parameter, its gradient and its
state once and writes the parameter and the state once.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchreg.training.fused.penalty_inputs import PenaltyInputs
from torchreg.training.fused.update import Pace, Update

_TRIAL = 1 << 20  # entries of the first call, by which the compiler decides how to cut the work
_MOST = 64  # kinds that are compiled in a process: each takes seconds, and keeps its code
_SLACK = 4.0  # roundings by which the compiled pass may differ from the same formulas in torch's own operators
_FEW = 1e-3  # share of entries that may differ by more: of those at a jump of the proximal map

_OPTIONS: Any = {"realize_reads_threshold": 12}  # so that rows are not written out once more between their sums

Step = Callable[..., None]


@dataclass(frozen=True)
class Kind:
    """All that chooses the code of a pass.

    Attributes:
        update: of the optimizer.
        penalty: the kind of its `PenaltyInputs`.
        metric: "auto" for the optimizer's own, "decoupled" for one step for all entries.
        most: the bound of the effective steps, None without one.
        dtype: of the parameter.
        device: where it lies.
        settings: of torch, at which the compiler would compile anew.
    """

    update: Update
    penalty: Any
    metric: str
    most: float | None
    dtype: torch.dtype
    device: torch.device
    settings: tuple[Any, ...]


def settings(device: torch.device) -> tuple[Any, ...]:
    """What torch's compiled code is bound to, so that each step is compiled in its trial and never later."""
    autocast = tuple(torch.is_autocast_enabled(kind) for kind in {"cpu", device.type})
    return torch.get_num_threads(), torch.get_default_dtype(), autocast, torch.are_deterministic_algorithms_enabled()


_STEPS: dict[Kind, Step | None] = {}
_is_compiled = torch.compiler.is_compiling


def step_of(kind: Kind, penalty: PenaltyInputs, numbers: Sequence[float]) -> Step | None:
    """The compiled pass ``(parameter, gradient, kept, numbers, scale, penalty's inputs)``, in place, outside autograd.

    ``scale`` is the common step or the learning rate, and what the effective steps are multiplied by. It is compiled
    and tried at its first use, on tensors of its own; None where there is no compiler, or where it does not give what
    torch's own operators give.
    """
    if kind not in _STEPS and len(_STEPS) < _MOST:
        _STEPS[kind] = _proven(kind, penalty, numbers)
    return _STEPS.get(kind)


def packed(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Numbers as 0-d tensors on a device, which the host sends without waiting."""
    sent = torch.tensor(values, dtype=dtype, device="cpu")
    return (sent if device.type == "cpu" else sent.to(device, non_blocking=True)).unbind()


def _proven(kind: Kind, penalty: PenaltyInputs, numbers: Sequence[float]) -> Step | None:
    plain, in_python = _plain(kind, penalty), []

    def noted(*given: Any) -> None:
        if not _is_compiled():
            in_python.append(True)
        plain(*given)

    given, wanted = (_trial(kind, penalty, numbers) for _ in range(2))
    plain(*wanted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, of which nobody asked
            # not fullgraph=True: torch then raises, after the step, where a later setting makes it run as Python
            compiled: Step = torch.compile(_of_its_own(noted), dynamic=True, options=_OPTIONS)
            compiled(*given)
    except Exception:  # whatever a compiler that is missing or broken raises: the unfused step is there
        return None
    pairs = zip((given[0], *given[2]), (wanted[0], *wanted[2]), strict=True)
    return compiled if not in_python and all(_alike(x, y) for x, y in pairs) else None


def _plain(kind: Kind, penalty: PenaltyInputs) -> Step:
    """The pass in torch's own operators."""
    move, own, most = kind.update.move, kind.metric == "auto", kind.most
    prox, rows = penalty.map, penalty.rows

    def step(
        p: Tensor,
        g: Tensor,
        kept: Sequence[Tensor],
        numbers: Sequence[Tensor],
        scale: tuple[Tensor, Tensor],
        inputs: Sequence[Tensor],
    ) -> None:
        (rate, factor), (moved, now, pace) = scale, move(p, g, kept, numbers)
        if not own or pace is None:
            rate = rate if most is None else rate.clamp(max=most)
            pace = Pace(rate, torch.ones_like(p), torch.ones_like(p)) if rows else None
        if rows and pace is not None:
            steps = pace.inverses(most, factor)
        else:
            steps = (rate if pace is None else pace.steps(most)) * factor
        p.copy_(prox(inputs, moved, steps))
        for x, new in zip(kept, now, strict=True):
            x.copy_(new)

    return step


def _of_its_own(function: Any) -> Any:
    """A copy with code of its own: the compiler counts what it has compiled by the code, and stops at some number."""
    code = function.__code__.replace(co_name=f"step_{len(_STEPS)}")
    return types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)


def _trial(kind: Kind, penalty: PenaltyInputs, numbers: Sequence[float]) -> tuple[Any, ...]:
    """Arguments of a step: entries of many sizes, a third of them 0, as where no gradient was met."""
    shape = (_TRIAL // 2048 or 2, 2048) if penalty.rows else (_TRIAL,)

    def entries(frequency: float, size: float = 0.1, like: tuple[int, ...] = shape) -> Tensor:
        angle = torch.arange(torch.Size(like).numel(), dtype=torch.float32, device=kind.device).reshape(like)
        wave = (angle * frequency).sin()
        return wave.mul_(wave > -0.5).mul_(size).to(kind.dtype)

    kept = [entries(0.3 + 0.1 * k).square_() for k in range(len(kind.update.kept))]
    own = (shape[0], 1) if penalty.rows else shape
    inputs = [
        entries(0.7, like=own).abs_().to(x.dtype) if isinstance(x, Tensor) and x.dim() else x
        for x in inputs_of(penalty, kind.device)
    ]
    scale = packed([numbers[0], 1.0], torch.float64, kind.device)
    return entries(0.1), entries(0.2, 0.01), kept, packed(numbers, kind.dtype, kind.device), scale, inputs


def inputs_of(penalty: PenaltyInputs, device: torch.device) -> list[Tensor]:
    """A penalty's inputs as tensors on the device of a pass; strengths that are numbers keep their precision."""
    strengths = [x for x in penalty.inputs if not isinstance(x, Tensor)]
    sent = iter(packed(strengths, torch.float64, device))
    return [x if isinstance(x, Tensor) else next(sent) for x in penalty.inputs]


def _alike(x: Tensor, y: Tensor) -> bool:
    """Whether two results differ by roundings, but for a few entries where one decides between two values."""
    far = (x - y).abs() > _SLACK * torch.finfo(x.dtype).eps * y.abs().amax()
    return bool((far | (x.isnan() != y.isnan())).sum() <= _FEW * x.numel())
