"""Notices gradients that are clipped without the proximal step's knowledge."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from torchreg.training.clipping import is_told

_FROM, _TIMES = 20, 10  # the steps that are looked at, once in a run: later ones cost nothing
_EQUAL = 1e-5  # relative spread of norms that are the same; torch's clipping leaves 1e-6 / norm
_OTHER = 1e-3  # relative change of entries between gradients that are not the same
_SAMPLE = 64  # entries


class ClipWatch:
    """Looks at the gradients of a few steps on the CPU: their norm does not change while they do, if it is clipped."""

    def __init__(self) -> None:
        self._step = 0
        self._norms: list[float] = []
        self._first: Tensor | None = None

    def before(self, base: Optimizer) -> None:
        """Before a step."""
        self._step += 1
        if not _FROM < self._step <= _FROM + _TIMES:
            return
        grads = [p.grad.detach() for group in base.param_groups for p in group["params"] if p.grad is not None]
        if is_told(base) or not grads or not all(type(g) is Tensor and _readable(g) for g in grads):
            self._step = _FROM + _TIMES  # nothing to tell
            return
        sample = grads[0].reshape(-1)[:_SAMPLE].abs()  # a sign that turns changes no norm
        self._first = sample if self._first is None else self._first
        if sample.shape != self._first.shape:  # layers that come and go: another gradient is the first
            self._step = _FROM + _TIMES
            return
        self._norms.append(float(get_total_norm(grads)))
        if len(self._norms) == _TIMES:
            moved, top = float((sample - self._first).abs().max()), max(self._norms)
            if moved > _OTHER * float(sample.abs().max()) and top - min(self._norms) <= _EQUAL * top:
                _warn(top)


def _readable(grad: Tensor) -> bool:
    return grad.device.type == "cpu" and grad.layout is torch.strided and grad.numel() > 0


def _warn(norm: float) -> None:
    warnings.warn(
        f"In {_TIMES} steps in a row the gradients changed but not their norm, {norm:.4g}: they are clipped there, and "
        "the penalty is not, so that it acts stronger than its alpha. Use torchreg.clip_grad_norm_(optimizer, "
        f"{norm:.4g}), which scales both, or a max_norm that is not reached.",
        stacklevel=6,
    )
