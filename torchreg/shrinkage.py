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

Scalar = float | Tensor


def filled(value: Scalar, like: Tensor) -> Tensor:
    """``value`` as a tensor of like's dtype, made on its device, so that nothing waits for a copy."""
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=like.dtype, device=like.device)


def scaled(strength: Scalar, step: Scalar) -> Scalar:
    """``strength * step`` with 0 * inf = 0: a zero step or a zero strength shrinks nothing."""
    if isinstance(step, Tensor) and not isinstance(strength, Tensor) and math.isfinite(strength):
        return strength * step if strength else 0.0  # a positive number makes no 0 * inf
    if isinstance(strength, Tensor) or isinstance(step, Tensor):
        return torch.nan_to_num(strength * step, nan=0.0, posinf=math.inf)  # type: ignore[arg-type]
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
    endless = torch.isinf(step) & (ridge > 0)
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


def firm(w: Tensor, strength: Scalar, gamma: float, step: Scalar) -> Tensor:
    """Proximal map of MCP (Zhang, Annals of Statistics 38, 2010, eq. 2.1 for its penalty).

    For ``step < gamma`` it is firm thresholding (Gao and Bruce, Statistica Sinica 7, 1997); from
    ``step = gamma`` on the problem is concave inside, and the minimiser is the hard threshold at
    ``strength * sqrt(gamma * step)``.
    """
    if not isinstance(step, Tensor):
        if step < gamma:
            return _firm_small(w, strength, gamma, step)
        return hard(w, scaled(strength, math.sqrt(gamma * step)))
    small = step < gamma
    cut = scaled(strength, torch.sqrt(gamma * torch.where(small, torch.full_like(step, gamma), step)))
    inner = torch.where(small, step, torch.zeros_like(step))
    return torch.where(small, _firm_small(w, strength, gamma, inner), hard(w, cut))


def _firm_small(w: Tensor, strength: Scalar, gamma: float, step: Scalar) -> Tensor:
    shrunk = soft(w, scaled(strength, step)) / (1.0 - step / gamma)
    return torch.where(w.abs() > gamma * strength, w, shrunk)


def scad(w: Tensor, strength: Scalar, gamma: float, step: Scalar) -> Tensor:
    """Proximal map of SCAD (Fan and Li, JASA 96, 2001, eq. 2.8 for step 1), for every step.

    From ``step = gamma - 1`` on, the objective is concave between ``strength`` and
    ``gamma * strength``, so the minimiser is the better of the two ends.
    """
    if not isinstance(strength, Tensor) and strength == 0:
        return w
    if not isinstance(step, Tensor):
        small_step = step < gamma - 1.0
        return (_scad_small if small_step else _scad_large)(w, strength, gamma, step)
    small = step < gamma - 1.0
    inner = torch.where(small, step, torch.zeros_like(step))
    outer = torch.where(small, torch.full_like(step, gamma), step)
    return torch.where(small, _scad_small(w, strength, gamma, inner), _scad_large(w, strength, gamma, outer))


def _scad_small(w: Tensor, strength: Scalar, gamma: float, step: Scalar) -> Tensor:
    size, threshold = w.abs(), scaled(strength, step)
    middle = soft(w, threshold * (gamma / (gamma - 1.0))) / (1.0 - step / (gamma - 1.0))
    inner = torch.where(size > strength + threshold, middle, soft(w, threshold))
    return torch.where(size > gamma * strength, w, inner)


def _scad_large(w: Tensor, strength: Scalar, gamma: float, step: Scalar) -> Tensor:
    near = soft(w, scaled(strength, step))
    near = near - soft(near, strength)  # clip to [-strength, strength]
    edge = gamma * strength
    far = torch.where(w.abs() <= edge, torch.sign(w) * edge, w)  # keeps a NaN
    cost_near = scad_value(near, strength, gamma) + (near - w) ** 2 / (2.0 * step)
    cost_far = scad_value(far, strength, gamma) + (far - w) ** 2 / (2.0 * step)
    better = cost_far < cost_near
    return torch.where(better | (strength == 0) if isinstance(strength, Tensor) else better, far, near)


def scad_value(w: Tensor, strength: Scalar, gamma: float) -> Tensor:
    """SCAD's value per entry: linear, then quadratic, then constant (Fan and Li 2001, eq. 2.7)."""
    size = w.abs()
    rising = size.clamp(max=strength)
    bending = (size - strength).clamp(min=0.0)
    width = (gamma - 1.0) * strength
    bending = bending - (bending - width).clamp(min=0.0)
    return strength * (rising + bending) - bending**2 / (2.0 * (gamma - 1.0))


def mcp_value(w: Tensor, strength: Scalar, gamma: float) -> Tensor:
    """MCP's value per entry: ``strength |w| - w^2 / (2 gamma)`` up to ``gamma * strength``, then flat."""
    size = w.abs()
    size = size - (size - gamma * strength).clamp(min=0.0)
    return strength * size - size**2 / (2.0 * gamma)


def half(w: Tensor, threshold: Scalar) -> Tensor:
    """Proximal map of ``threshold * sqrt|w|`` (Xu et al., IEEE TNNLS 23, 2012, theorem 1).

    Beyond ``|w| = 3/2 threshold^(2/3)`` it is the largest root of a cubic, by its cosine.
    """
    c, size = filled(threshold, w), w.abs()
    kept = (size > 1.5 * c ** (2.0 / 3.0)) & (c > 0)
    safe = torch.where(kept, size, torch.ones_like(size))
    angle = torch.arccos(torch.where(kept, c, torch.zeros_like(c)) / 4.0 * (safe / 3.0) ** -1.5)
    root = safe * (2.0 / 3.0) * (1.0 + torch.cos((2.0 / 3.0) * (math.pi - angle)))
    return _signed(w, c, kept, root)


_FLAT = 1e6  # of |w| / (2 threshold)^(3/4), from where on two terms of a series are exact in float64


def two_thirds(w: Tensor, threshold: Scalar) -> Tensor:
    """Proximal map of ``threshold * |w|^(2/3)`` (Cao, Sun and Xu, JVCIR 24, 2013, eq. 10).

    In units of ``(2 threshold)^(3/4)``, so that no power of a small threshold overflows.
    """
    c, size = filled(threshold, w), w.abs()
    unit = (2.0 * torch.where(c > 0, c, torch.ones_like(c))) ** 0.75
    kept = (size > (2.0 / 3.0) * 3.0**0.25 * unit) & (c > 0)
    scale = torch.where(kept, unit, torch.ones_like(unit))
    ratio = torch.where(kept, size, torch.ones_like(size)) / scale
    near = torch.where(kept & (ratio < _FLAT), ratio, torch.ones_like(ratio))
    a = (2.0 / math.sqrt(3.0)) * torch.cosh(torch.arccosh(27.0 / 16.0 * near**2) / 3.0).sqrt()
    root = scale * ((a + (2.0 * near / a - a * a).sqrt()) / 2.0) ** 3
    far = scale * (ratio - ratio ** (-1.0 / 3.0) / 3.0)
    return _signed(w, c, kept, torch.where(ratio < _FLAT, root, far))


def log_sum(w: Tensor, threshold: Scalar, eps: float) -> Tensor:
    """Proximal map of ``threshold * log(1 + |w| / eps)``: 0, or the larger root of a quadratic where that is better."""
    c, size = filled(threshold, w), w.abs()
    finite = torch.where(c < math.inf, c, torch.zeros_like(c))
    inside = (size + eps) ** 2 - 4.0 * finite
    real = inside > 0
    spread = torch.where(real, inside, torch.ones_like(inside)).sqrt()
    fall = (
        2.0 * finite / (size + eps + spread)
    )  # from |w| to the root; neither form of the root cancels where it stands
    root = torch.where(size < eps, 2.0 * (size * eps - finite) / (eps - size + spread).abs(), size - fall)
    gain = finite * torch.log1p(root.clamp(min=0.0) / eps) + 0.5 * (fall * fall - size * size)
    better = (c <= eps * eps) | ~(gain >= 0)  # continuous up to eps^2; NaN is of an infinite w
    kept = real & (root > 0) & better & (c > 0) & (c < math.inf)
    return _signed(w, c, kept, root)


def _signed(w: Tensor, threshold: Tensor, kept: Tensor, root: Tensor) -> Tensor:
    """The root with w's sign where it is kept, else 0; w itself at threshold 0, and where it is NaN."""
    return torch.where((threshold == 0) | w.isnan(), w, torch.where(kept, root * w.sign(), torch.zeros_like(w)))


_softshrink: Any = torch._C._nn.softshrink  # torch.nn.functional's has no out=
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
        _softshrink(w, threshold, out=w).add_(0.0)
        return
    flat = w.view(-1)
    clean = _clean_length(flat)
    if clean:
        _softshrink(flat[:clean], threshold, out=flat[:clean])
    if clean < flat.numel():
        _softshrink(flat[clean:], threshold, out=flat[clean:]).add_(0.0)


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
