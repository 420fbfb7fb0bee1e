"""float32 masters of half-precision parameters: the optimizer steps them, the parameters are their rounding."""

from __future__ import annotations

import warnings
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.training.term import Term

_KEY = "master"  # the entry that ours adds to a parameter's state
_HALF = (torch.bfloat16, torch.float16)
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
        for p, master in self._lent:
            if master.grad is not None:
                p.copy_(master)
                self._base.state[master][_KEY] = master

    def _lend(self, *, untouched: bool = False) -> None:
        self._take_back()
        state = self._base.state
        halves = [p for group in self._base.param_groups for p in group["params"] if p.dtype in _HALF]
        halves = [p for p in halves if p.grad is not None or (untouched and p.requires_grad)]
        pairs = [(p, _master(p, state.get(p, {}))) for p in halves]
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
def _master(p: Tensor, state: MutableMapping[str, Any]) -> Tensor:
    """The parameter in float32: as its master has it, but for entries that others have changed since."""
    master = state.get(_KEY)
    if master is None:
        master = p.detach().float()
        made = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.dtype in _HALF}  # by Adagrad, at once
        state.update({k: v.float() for k, v in made.items()})
    else:  # in place, so that a captured step finds it where it was
        master.copy_(torch.where(master.to(p.dtype) == p, master, p.float()))
    master.grad = None if p.grad is None else p.grad.float()
    return master


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
