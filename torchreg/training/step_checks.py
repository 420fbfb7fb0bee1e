"""What may have changed since terms were attached, looked at before a step moves anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.functional.dtensor import is_cut
from torchreg.penalties import Penalty
from torchreg.penalties.alpha import check_values
from torchreg.training.cuda_graphs import is_capturing
from torchreg.training.param_positions import Slot
from torchreg.training.term_part import Part
from torchreg.training.validation import refuse_groups, refuse_state

_EVERY = 100  # steps from one look at a strength on a device to the next


class StepChecks:
    """Options of groups, shapes of parameters, and strengths that are tensors.

    A strength on the host is read at each step. One on a CUDA device is copied at every 100th step and read once the
    copy has come, so the host never waits: there the error comes up to 100 steps late.

    Args:
        slots: where the parameters stand that have just been found to fit their penalties.
        base: the optimizer.
    """

    def __init__(self, slots: Sequence[Slot], base: Optimizer) -> None:
        self._shapes = {(id(slot.part), slot.group): [p.shape for p in slot.parameters(base)] for slot in slots}
        self._alphas: dict[int, tuple[Penalty, list[Tensor]]] = {}
        self._asked: list[tuple[Part, Tensor, Any]] = []
        self._steps = 0

    def before(self, slots: Sequence[Slot], base: Optimizer) -> None:
        """Raise ValueError, naming the group or the parameter, where a step would not be what it should be."""
        refuse_groups("Parameter group", base.param_groups)
        if torch.compiler.is_compiling() or is_capturing():
            return
        self._answered()
        for slot in slots:
            self._shapes_of(slot, base)
            self._strengths_of(slot.part)
        self._steps += 1

    def _shapes_of(self, slot: Slot, base: Optimizer) -> None:
        key, tensors = (id(slot.part), slot.group), slot.parameters(base)
        shapes = [p.shape for p in tensors]
        if self._shapes.get(key) == shapes:
            return
        for p in tensors:
            if not is_cut(p):
                _refuse_misfit(slot.part, p)
                refuse_state(_name_of(slot.part, p), p, base)
        self._shapes[key] = shapes

    def _strengths_of(self, part: Part) -> None:
        penalty, alphas = self._alphas.get(id(part), (None, []))
        if penalty is not part.penalty:
            alphas = list({id(a): a for a in tensor_alphas(part.penalty)}.values())
            self._alphas[id(part)] = part.penalty, alphas
        for alpha in alphas:
            if alpha.device.type == "cpu":
                refuse_strength(part, alpha.detach())
            elif alpha.device.type == "cuda" and self._steps % _EVERY == 0:
                self._ask(part, alpha.detach())

    def _ask(self, part: Part, alpha: Tensor) -> None:
        host = torch.empty((), dtype=alpha.dtype, device="cpu", pin_memory=True).copy_(alpha, non_blocking=True)
        come = torch.cuda.Event()
        come.record(torch.cuda.current_stream(alpha.device))
        self._asked.append((part, host, come))

    def _answered(self) -> None:
        """Look at what has come of what was asked for."""
        come = [asked for asked in self._asked if asked[2].query()] if self._asked else []
        if come:
            self._asked = [asked for asked in self._asked if all(asked is not c for c in come)]
        for part, host, _ in come:
            refuse_strength(part, host)


def tensor_alphas(penalty: Penalty) -> Iterator[Tensor]:
    """The strengths of a penalty, and of those inside it, that are tensors and may have changed since attach."""
    for field in vars(penalty).values():
        for inner in field if isinstance(field, tuple) else (field,):
            if isinstance(inner, Penalty):
                yield from tensor_alphas(inner)
    if isinstance(alpha := vars(penalty).get("alpha"), Tensor):
        yield alpha


def refuse_strength(part: Part, alpha: Tensor) -> None:
    """Raise ValueError, naming a parameter, where a strength has become negative, NaN or infinite."""
    try:
        check_values("The penalty", alpha)
    except ValueError as error:
        name = next(iter(part.parameters))
        raise ValueError(
            f"The strength of {name!r} has changed since it was attached. {error} Clamp it after each change, "
            "alpha.clamp_(min=0.0), or learn its logarithm."
        ) from None


def _name_of(part: Part, p: Tensor) -> str:
    return next((name for name, own in part.parameters.items() if own is p), "a parameter")


def _refuse_misfit(part: Part, p: Tensor) -> None:
    try:
        part.penalty.check(p)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"Parameter {_name_of(part, p)!r} has shape {tuple(p.shape)} now, and its penalty does not fit: {error} "
            "Nothing was stepped; attach a penalty for the new shape."
        ) from None
