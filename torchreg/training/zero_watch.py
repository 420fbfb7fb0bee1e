"""Notices where something else undoes the zeros of the proximal step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.functional.dtensor import is_cut
from torchreg.training.clip_watch import ClipWatch
from torchreg.training.cuda_graphs import is_capturing
from torchreg.training.param_positions import Slot
from torchreg.training.step_checks import StepChecks

_LOOKS = 200  # reads of the device in all, each only where weights were written to between two steps
_SAMPLE = 4096  # entries that are looked at
_LOST = 0.5  # share of the zeros whose loss is no accident
_TIMES = 2  # losses that are no accident: weights may be loaded or reset once


class Watch:
    """Watches a sample of the largest parameter of the first part, through the counter by which autograd counts writes.

    While nobody writes to it between steps nothing is read. A write through ``p.data`` is not counted by torch, and
    not seen; nor are parameters that are cut over processes looked at.
    """

    def __init__(self, slots: Sequence[Slot], base: Optimizer) -> None:
        self._writes: int | None = None  # after our last step
        self._zeros: Tensor | None = None  # then, once there was a write by another
        self._shape = torch.Size()  # of the parameter then
        self._looks, self._losses = _LOOKS, 0
        self._checks, self._clips = StepChecks(slots, base), ClipWatch()
        self._told = False
        self._slots: Sequence[Slot] = ()
        self._position = 0  # of the watched parameter in its group

    def before(self, slots: Sequence[Slot], base: Optimizer) -> None:
        """Before a step: is all as it was attached, are there weights of an average, were zeros undone since?"""
        self._checks.before(slots, base)
        if not self._told and any("weight_sum" in group for group in base.param_groups):  # schedulefree's
            self._told = True
            _warn_of_average(base)
        p = self._watched(slots, base)
        if p is not None:
            self._clips.before(base)
        if p is None or not self._looks or self._writes is None or p._version == self._writes:
            return
        if self._zeros is None or p.shape != self._shape:
            self._shape = p.shape
            self._zeros = p.new_zeros(())  # from now on they are counted after each step
            return
        self._looks -= 1
        kept = int(self._zeros)
        self._losses += int(_zeros(p)) < _LOST * kept
        if self._losses >= _TIMES:
            self._looks = 0
            _warn_of_writes()

    def after(self, slots: Sequence[Slot], base: Optimizer) -> None:
        """After a step."""
        p = self._watched(slots, base)
        if p is not None and self._looks:
            self._writes = p._version
            if self._zeros is not None:
                self._zeros, self._shape = _zeros(p), p.shape

    def _watched(self, slots: Sequence[Slot], base: Optimizer) -> Tensor | None:
        """The parameter to watch, None where it cannot be."""
        if torch.compiler.is_compiling() or is_capturing() or not slots:
            return None
        present = base.param_groups[slots[0].group]["params"]
        if slots is not self._slots:  # parameters have moved
            self._slots, self._writes, self._zeros = slots, None, None
            self._position = max(slots[0].positions, key=lambda k: present[k].numel())
        p = present[self._position]
        return None if is_cut(p) or p.is_inference() else p


def _zeros(p: Tensor) -> Tensor:
    sample = p.detach().view(-1)[:_SAMPLE] if p.is_contiguous() else p.detach()[:1]
    return (sample == 0).sum()


def _warn_of_average(optimizer: Optimizer) -> None:
    warnings.warn(
        f"Schedule-Free (here on {type(optimizer).__name__}) evaluates an average of the iterates, in which the zeros "
        "of the proximal step are lost. Use a plain optimizer with a falling learning rate.",
        stacklevel=5,
    )


def _warn_of_writes() -> None:
    warnings.warn(
        "Weights that the proximal step had set to zero were no longer zero before the next step: something else "
        "writes to them, such as Lookahead around this optimizer. Wrap the other way round, "
        "ProxOptimizer(Lookahead(...), metric=...), or keep the zeros of the last step with copy_zeros.",
        stacklevel=5,
    )
