"""Elementwise proximal maps, as pure functions.

Each map solves ``argmin_u phi(u) + (u - w)^2 / (2 step)`` entry by entry. ``step`` and the
strengths are floats or tensors that broadcast with ``w``. Every map is the identity at step 0,
keeps NaN where it is, divides by nothing that can be zero and returns +0.0, never -0.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from torchreg.functional.torch_private import softshrink

Scalar = float | Tensor


def filled(value: Scalar, like: Tensor) -> Tensor:
    """``value`` as a tensor of like's dtype, inf beyond its range, made on its device, so that nothing waits."""
    if isinstance(value, Tensor):
        return value
    within = abs(value) <= torch.finfo(like.dtype).max
    return torch.full((), value if within else math.copysign(math.inf, value), dtype=like.dtype, device=like.device)


def scaled(strength: Scalar, step: Scalar) -> Scalar:
    """``strength * step`` with 0 * inf = 0: a zero step or a zero strength shrinks nothing."""
    if isinstance(step, Tensor) and not isinstance(strength, Tensor) and math.isfinite(strength):
        return strength * step if strength else 0.0  # a positive number makes no 0 * inf
    if isinstance(strength, Tensor) or isinstance(step, Tensor):
        product: Tensor = strength * step  # type: ignore[assignment]
        if torch.compiler.is_compiling():  # which makes nan_to_num one entry after another on a CPU
            return torch.where(product == product, product, 0.0)
        return torch.nan_to_num(product, nan=0.0, posinf=math.inf)
    return strength * step if strength and step else 0.0


def shared(values: Sequence[Scalar]) -> Scalar | None:
    """The number, or the 0-d tensor, that all values are; None if they differ."""
    first = values[0]
    if isinstance(first, Tensor):
        return first if not first.dim() and all(v is first for v in values) else None
    return first if all(not isinstance(v, Tensor) and v == first for v in values) else None


def multiply_(tensors: list[Tensor], factors: Sequence[Scalar]) -> None:
    """Each tensor times its factor in place; a shared 0-d tensor goes alone, as CUDA takes lists of them one by one."""
    one = shared(factors)
    alone = isinstance(one, Tensor) and _alike(tensors)
    torch._foreach_mul_(tensors, one.to(tensors[0].dtype) if alone else list(factors))  # type: ignore


def _alike(tensors: Sequence[Tensor]) -> bool:
    return all(w.dtype == tensors[0].dtype for w in tensors)


def scaled_many(strength: Scalar, steps: Sequence[Scalar]) -> list[Any]:
    """`scaled` for each step, in a launch or two where they are tensors."""
    one, tensors = shared(steps), [s for s in steps if isinstance(s, Tensor)]
    if one is not None:
        return [scaled(strength, one)] * len(steps)
    if len(tensors) < len(steps) or (not isinstance(strength, Tensor) and not strength):
        return [scaled(strength, s) for s in steps]
    if isinstance(strength, Tensor):
        tensors = list(torch._foreach_clamp_max(tensors, torch.finfo(tensors[0].dtype).max))  # so that 0 * inf is 0
    return list(torch._foreach_mul(tensors, strength))


def moves(step: Scalar) -> bool | Tensor:
    """Where a proximal step changes anything: ``step > 0``."""
    return step > 0 if isinstance(step, Tensor) else bool(step > 0)


def ridge_step(step: Scalar, ridge: Scalar) -> tuple[Scalar, Scalar]:
    """What the quadratic ``ridge * w^2`` leaves of a proximal step.

    ``prox_{f + ridge w^2}(w, step) = prox_f(factor * w, rest)`` with
    ``factor = 1 / (1 + 2 ridge step)`` and ``rest = step * factor``, in any diagonal metric.

    Returns:
        The pair (factor, rest). At an infinite step ``rest`` is ``1 / (2 ridge)``.
    """
    curvature = scaled(2.0 * ridge, step)
    factor = 1.0 / (1.0 + curvature)
    if not (isinstance(step, Tensor) or isinstance(ridge, Tensor)):
        return factor, (step * factor if math.isfinite(step) or not ridge else 0.5 / ridge)
    known = step if isinstance(step, Tensor) else ridge
    step, ridge = filled(step, known), filled(ridge, known)  # type: ignore[arg-type]
    endless = (step == math.inf) & (ridge > 0)
    limit = 0.5 / torch.where(endless, ridge, torch.ones_like(ridge))
    return factor, torch.where(endless, limit, torch.where(endless, torch.zeros_like(step), step) * factor)


def ridge_steps(steps: Sequence[Scalar], ridge: Scalar) -> tuple[list[Any], list[Any]]:
    """`ridge_step` for each step, in a handful of launches where they are tensors."""
    one = shared(steps)
    if one is not None or not all(isinstance(s, Tensor) for s in steps):
        pairs = [ridge_step(s, ridge) for s in (steps if one is None else steps[:1])]
        pairs = pairs * (len(steps) // len(pairs))
        return [factor for factor, _ in pairs], [rest for _, rest in pairs]
    finite = torch._foreach_clamp_max(cast(list[Tensor], list(steps)), 1e18)  # so that there is no 0 * inf
    factors = list(torch._foreach_mul(finite, 2.0 * ridge))
    torch._foreach_add_(factors, 1.0)
    torch._foreach_reciprocal_(factors)
    return factors, list(torch._foreach_mul(finite, factors))


def soft(w: Tensor, threshold: Scalar) -> Tensor:
    """Soft thresholding, ``sign(w) * max(|w| - threshold, 0)``.

    Written ``w - clip(w, -threshold, threshold)``, which needs no division and gives +0.0.
    """
    if not isinstance(threshold, Tensor):
        threshold = min(threshold, torch.finfo(w.dtype).max)  # torch refuses a number beyond it
    return w - torch.clamp(w, min=-threshold, max=threshold) + 0.0  # type: ignore[arg-type]


def hard(w: Tensor, threshold: Scalar) -> Tensor:
    """Hard thresholding: ``w`` where ``|w| > threshold``, else 0."""
    return torch.where(w.abs() <= threshold, torch.zeros_like(w), w)


_GRAIN = 32768  # torch's least share of a CPU thread
_LANES = 64  # entries; a multiple of every vector register's width


def soft_(w: Tensor, threshold: Scalar) -> None:
    """`soft` in place, outside autograd; a number as threshold takes one pass over memory.

    torch's softshrink kernel writes -0.0 in its scalar loops, which run where a thread's share is
    no multiple of the vector width; those entries are mended by adding +0.0.
    """
    if isinstance(threshold, Tensor):
        clipped = -threshold
        w.sub_(
            torch.clamp(w, min=clipped, max=threshold, out=clipped)
            if clipped.shape == w.shape
            else w - soft(w, threshold)
        )
        return
    if threshold == 0.0 or not w.numel():
        return
    if threshold > torch.finfo(w.dtype).max or torch.compiler.is_compiling():
        w.copy_(soft(w, threshold))
        return
    if not w.is_contiguous():
        softshrink(w, threshold, out=w).add_(0.0)
        return
    flat = w.view(-1)
    clean = _clean_length(flat)
    if clean:
        softshrink(flat[:clean], threshold, out=flat[:clean])
    if clean < flat.numel():
        softshrink(flat[clean:], threshold, out=flat[clean:]).add_(0.0)


def _clean_length(flat: Tensor) -> int:
    """How many leading entries the softshrink kernel handles by vectors alone."""
    if flat.device.type != "cpu":
        return flat.numel()
    threads = torch.get_num_threads()
    enough = flat.numel() >= threads * _GRAIN
    return flat.numel() - flat.numel() % (threads * _LANES) if enough else 0


def soft_many_(tensors: list[Tensor], thresholds: Sequence[Any]) -> None:
    """`soft` in place on many tensors with a handful of launches, outside autograd."""
    if all(not isinstance(t, Tensor) for t in thresholds):
        clipped = list(torch._foreach_clamp_max(tensors, list(thresholds)))
        torch._foreach_clamp_min_(clipped, [-t for t in thresholds])
    elif isinstance(one := shared(thresholds), Tensor) and tensors[0].device.type != "cpu" and _alike(tensors):
        sizes = list(torch._foreach_abs(tensors))  # more passes, but there is no clamp by one tensor for all
        torch._foreach_add_(
            sizes, one.to(sizes[0].dtype), alpha=-1
        )  # without alpha torch takes it for a number, and reads it
        torch._foreach_clamp_min_(sizes, 0.0)
        torch._foreach_sign_(tensors)
        torch._foreach_mul_(tensors, sizes)
        torch._foreach_add_(tensors, 0.0)
        return
    else:
        bounds = [filled(t, w) for w, t in zip(tensors, thresholds, strict=True)]
        clipped = list(torch._foreach_clamp_max(tensors, bounds))
        torch._foreach_clamp_min_(clipped, torch._foreach_neg(bounds))
    torch._foreach_sub_(tensors, clipped)
