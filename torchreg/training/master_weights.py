"""float32 masters of half-precision parameters: the optimizer steps them, the parameters are their rounding."""

from __future__ import annotations

import warnings
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.functional.dtensor import here
from torchreg.training.term import Term

_KEY = "master"  # the entry that ours adds to a parameter's state
_HALF = (torch.bfloat16, torch.float16)
_BUCKET = 1 << 23  # entries; temporaries take 17 bytes for each
_TYPICAL = 0.05  # size of a weight, for the number in the warning


class Masters:
    """Lends an optimizer float32 copies of its half-precision parameters, for the time of a step.

    Between steps the optimizer holds the parameters themselves, so schedulers, clipping and checkpoints see nothing
    else. Each master lies in its parameter's state, in float32 like the rest of it, once the optimizer has made that.

    An interrupt may come between any two lines. So what is lent is noted before it is exchanged, taking back can be
    done again from wherever it stopped, and is done again where an interrupt came into it.
    """

    def __init__(self, base: Optimizer) -> None:
        self._base = base
        self._lent: list[tuple[Tensor, Tensor]] = []
        self._new: list[Tensor] = []  # masters that had no state when they were lent

    def step(self, both: Callable[[Callable[[], Any] | None], Any], closure: Callable[[], Any] | None) -> Any:
        """Both halves of a step on the masters, then their rounding to the parameters."""

        def wide() -> Any:
            result = both(self._within(closure))
            self._round()
            return result

        return self.during(wide)

    def during(self, run: Callable[[], Any], *, untouched: bool = False) -> Any:
        """Run while the optimizer's half-precision parameters are their masters, with the gradients as they are now.

        Those without a gradient are left, since nobody steps them, but where a state is loaded: ``untouched``.
        """
        try:
            try:
                self._lend(untouched=untouched)
                return run()
            except BaseException:
                self._drop_begun()
                raise
            finally:
                self._take_back()
        finally:
            self._take_back()

    def _within(self, closure: Callable[[], Any] | None) -> Callable[[], Any] | None:
        """The closure, for which the optimizer holds the parameters themselves again."""
        if closure is None:
            return None

        def evaluated() -> Any:
            self._take_back()
            result = closure()
            self._lend()
            return result

        return evaluated

    @torch.no_grad()
    def _round(self) -> None:
        """After a step, round the masters to their parameters and keep them with the state that it has made."""
        stepped = [(p, master) for p, master in self._lent if master.grad is not None]
        _copy([p for p, _ in stepped], [master for _, master in stepped])
        for _, master in stepped:
            self._base.state[master][_KEY] = master

    def _lend(self, *, untouched: bool = False) -> None:
        self._take_back()
        state = self._base.state
        halves = [p for group in self._base.param_groups for p in group["params"] if p.dtype in _HALF]
        halves = [p for p in halves if p.grad is not None or (untouched and p.requires_grad)]
        pairs: list[tuple[Tensor, Tensor]] = []
        for part in _buckets(halves):
            pairs += zip(part, _masters(part, [state.get(p, {}) for p in part]), strict=True)
        self._new = [] if untouched else [master for p, master in pairs if not state.get(p)]
        self._lent = pairs
        self._exchange(pairs)

    def _take_back(self) -> None:
        self._exchange([(master, p) for p, master in self._lent])
        for _, master in self._lent:
            master.grad = None
        self._lent = []

    def _drop_begun(self) -> None:
        """Forget states that a step has begun and not finished: half of one is worse than none."""
        for master in self._new:
            self._base.state.pop(master, None)

    def _exchange(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Put the second of each pair where the first is: among the parameters, and as a key of the state."""
        state, now = self._base.state, {id(before): after for before, after in pairs}
        for group in self._base.param_groups:
            group["params"] = [now.get(id(p), p) for p in group["params"]]
        for before, after in pairs:
            if before in state:
                state[after] = state[before]
                del state[before]


@torch.no_grad()
def _masters(halves: list[Tensor], states: list[MutableMapping[str, Any]]) -> list[Tensor]:
    """The parameters in float32: as their masters have them, but for entries that others have changed since."""
    kept = [k for k, state in enumerate(states) if _KEY in state]
    fresh = [k for k, state in enumerate(states) if _KEY not in state]
    new = dict(zip(fresh, _cast([halves[k] for k in fresh], [torch.float32] * len(fresh)), strict=True))
    masters = [new[k] if k in new else state[_KEY] for k, state in enumerate(states)]
    _follow([here(masters[k]) for k in kept], [here(halves[k]) for k in kept])
    for state in (states[k] for k in fresh):
        made = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.dtype in _HALF}  # by Adagrad, at once
        state.update({k: v.float() for k, v in made.items()})
    given = [k for k, p in enumerate(halves) if p.grad is not None and p.grad.layout is torch.strided]
    wide = _cast([halves[k].grad for k in given], [torch.float32] * len(given))  # type: ignore[misc]
    grads = dict(zip(given, wide, strict=True))
    for k, (p, master) in enumerate(zip(halves, masters, strict=True)):
        master.grad = grads[k] if k in grads else None if p.grad is None else p.grad.float()
    return masters


def _follow(masters: list[Tensor], halves: list[Tensor]) -> None:
    """Take over the entries of parameters that are no longer their masters' rounding, in place.

    In place, so that a captured step finds them. On a device those of one dtype go as one, in a handful of launches.
    """
    kinds: dict[Any, list[int]] = {}
    for k, p in enumerate(halves):
        kinds.setdefault(k if p.device.type == "cpu" else (p.device, p.dtype), []).append(k)
    for at in kinds.values():
        ours, theirs = [masters[k] for k in at], [halves[k] for k in at]
        master, half = (torch.cat([t.reshape(-1) for t in ts]) if len(at) > 1 else ts[0] for ts in (ours, theirs))
        now = torch.where(master.to(half.dtype) == half, master, half.float())
        parts = now.split([t.numel() for t in ours]) if len(at) > 1 else [now]
        torch._foreach_copy_(ours, [x.view(t.shape) for x, t in zip(parts, ours, strict=True)])


def _buckets(halves: list[Tensor]) -> list[list[Tensor]]:
    """Parameters in lists of so many entries that temporaries of all of them do little harm."""
    filled: list[list[Tensor]] = []
    room = 0
    for p in halves:
        if not filled or p.numel() > room:
            filled, room = [*filled, []], max(_BUCKET, p.numel())
        filled[-1].append(p)
        room -= p.numel()
    return filled


def _cast(tensors: list[Tensor], dtypes: list[torch.dtype]) -> list[Tensor]:
    """The tensors in other dtypes, as new tensors, in one launch."""
    made = [torch.empty_like(t, dtype=dtype) for t, dtype in zip(tensors, dtypes, strict=True)]
    _copy(made, tensors)
    return made


def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_([here(t) for t in to], [here(t) for t in source])


def warn_of_half(terms: list[Term]) -> None:
    """Say that steps below half an ulp are lost, if a penalised parameter is of half precision."""
    half = {name: p.dtype for term in terms for name, p in term.parameters.items() if p.dtype in _HALF}
    if half:
        dtype = next(iter(half.values()))
        lost = torch.finfo(dtype).eps * 2.0**-6  # half the distance of neighbours around 0.05
        warnings.warn(
            f"{list(half)[:3]}, {len(half)} in all, of {dtype}: a step below half the distance to the next number, "
            f"{lost:.2g} at a weight of {_TYPICAL:g}, changes nothing, so that lr * alpha may never act. Use "
            "ProxOptimizer(..., masters=True), or float32 parameters under autocast.",
            stacklevel=4,
        )
