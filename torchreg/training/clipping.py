"""Clipping of gradients that the proximal step knows of, so that it does not move the minimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import clip_grad_norm_ as clip_by_norm_
from torch.optim import Optimizer

from torchreg.functional.dtensor import is_memory_of, memory_of, whole
from torchreg.functional.shrinkage import Scalar
from torchreg.training.cuda_graphs import is_capturing
from torchreg.training.step_rules import StepRule
from torchreg.training.term_part import Owner

_KEY = "_clipped_by"  # the attribute of an optimizer from one clipping to the next, or until gradients are cleared
_TAKEN = "_taken_clipping"  # the attribute of who has scaled a proximal step by it
_SLACK = 1e-6  # torch adds it to the norm


@dataclass(frozen=True)
class _Clipped:
    """The factor that gradients were multiplied by, and which they were."""

    factor: Tensor
    grad: StorageWeakRef | None
    version: int


def clip_grad_norm_(
    optimizer: Any,
    max_norm: float,
    norm_type: float = 2.0,
    *,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Clip the norm of an optimizer's gradients, and scale the penalty of its next step alike.

    ``torch.nn.utils.clip_grad_norm_`` of all its parameters, which multiplies the gradients by
    ``c = min(1, max_norm / norm)``. The proximal step that follows takes the effective step ``c t``: a step on
    ``c * (loss + penalty)``, whose fixed point is the minimiser of loss + penalty. After torch's own function
    it is a step on ``c * loss + penalty``, which solves the problem of a penalty 1 / c times as strong
    wherever the norm at the solution exceeds ``max_norm``; the gradient of ``L1(alpha)`` at k non-zero weights
    has norm ``alpha sqrt(k)`` there.

    With momentum and moments the gradients' movement is spread over later steps, their share of the penalty
    is taken at once; the sums are equal. Under Adam a steady ``c`` cancels in the update, but not in
    ``t = lr / sqrt(v)``.

    Args:
        optimizer: a `ProxOptimizer`, one that `attach_to` was given, or a trainer's wrapper of one (with
            ``.optimizer``). Call this in place of torch's function, between ``backward()`` and ``step()``,
            after ``scaler.unscale_(optimizer)`` if there is a GradScaler.
        max_norm: the largest norm, over all parameters of the optimizer together.
        norm_type: of which p-norm; ``float("inf")`` for the largest entry.
        error_if_nonfinite: whether to raise where the norm is NaN or inf.
        foreach: as of torch's function.

    Returns:
        The norm before, a 0-d tensor; nothing waits for the device.

    Raises:
        TypeError: if it is no optimizer and wraps none.
        RuntimeError: where ``error_if_nonfinite`` and the norm is not finite.

    Notes:
        Clipping by value has no factor. It leaves the minimiser where it is as long as the value is at least
        the slope of the penalty at zero (``alpha`` for L1); below it no gradient can hold a weight from zero.
        ``metric="decoupled"`` is left alone, since there nothing is known of the update. Where steps are compiled
        and not each of them is clipped, clear the gradients with the optimizer's ``zero_grad``.

    Example:
        >>> import torch
        >>> from torchreg import L1, ProxOptimizer, attach, clip_grad_norm_
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> opt = ProxOptimizer(torch.optim.SGD([w], lr=0.5), attach(L1(1.0), {"w": w}))
        >>> w.grad = torch.tensor([-3.0, 4.0])
        >>> clip_grad_norm_(opt, 1.0)  # all of it by 1 / 5
        tensor(5.)
        >>> opt.step()
        >>> w  # 1 + 0.5 (3 - 1) / 5 and 1 - 0.5 (4 + 1) / 5
        Parameter containing:
        tensor([1.2000, 0.5000], requires_grad=True)
    """
    base = _base(optimizer)
    params = [p for group in base.param_groups for p in group["params"] if p.grad is not None]
    grad = params[0].grad if params else None
    if grad is None:
        return torch.zeros(())
    before = vars(base).get(_KEY)
    again = before is not None and is_memory_of(before.grad, grad) and before.version == grad._version
    norm = clip_by_norm_(params, max_norm, norm_type, error_if_nonfinite, foreach)
    factor = (max_norm / (whole(norm) + _SLACK)).clamp(max=1.0).nan_to_num(1.0)  # a scaler may skip this step
    factor = factor * before.factor if before is not None and again else factor
    setattr(base, _KEY, _Clipped(factor, memory_of(grad), grad._version))
    return norm


def forget_clipping(base: Optimizer) -> None:
    """Gradients were cleared: what was told of them is void."""
    vars(base).pop(_KEY, None)


def is_told(base: Optimizer) -> bool:
    """Whether the gradients of the coming step were clipped by `clip_grad_norm_`."""
    return vars(base).get(_KEY) is not None


def clipped_by(owner: Owner) -> Scalar:
    """The factor for the effective steps of the coming proximal step, since the gradients were multiplied by it."""
    clipped = getattr(owner.base, _KEY, None)
    if clipped is None or owner.metric == "decoupled" or getattr(owner, _TAKEN, None) is clipped:
        return 1.0
    on_host = clipped.factor.device.type == "cpu" and not (torch.compiler.is_compiling() or is_capturing())
    return float(clipped.factor) if on_host else clipped.factor


def as_clipped(rule: StepRule, owner: Owner) -> StepRule:
    """The rule, with steps multiplied by what the gradients of this step were; each stepper is told once.

    Several may step one optimizer: what `attach_to` has put on it, and a `ProxOptimizer` around it.
    """
    factor = clipped_by(owner)
    if isinstance(factor, float) and factor == 1.0:
        return rule
    setattr(owner, _TAKEN, getattr(owner.base, _KEY))

    def steps(group: Mapping[str, Any], states: Sequence[Mapping[str, Any]], params: Sequence[Tensor]) -> list[Scalar]:
        found = rule.steps(group, states, params)
        return [t * _at(factor, p) for t, p in zip(found, params, strict=True)]

    return replace(rule, steps=steps)


def _at(factor: Scalar, p: Tensor) -> Scalar:
    return factor.to(p.device, non_blocking=True) if isinstance(factor, Tensor) else factor


def _base(optimizer: Any) -> Optimizer:
    """The optimizer that is stepped, inside a `ProxOptimizer` and a trainer's wrappers."""
    inner = optimizer
    while inner is not None:
        if hasattr(inner, "base") and hasattr(inner, "terms"):
            return inner.base
        if isinstance(inner, Optimizer) and not hasattr(inner, "optimizer"):
            return inner
        inner = getattr(inner, "optimizer", None)
    raise TypeError(
        f"clip_grad_norm_ needs the optimizer, got {type(optimizer).__name__}; write "
        "torchreg.clip_grad_norm_(optimizer, 1.0), which clips all of its parameters."
    )
