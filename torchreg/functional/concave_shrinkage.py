"""Elementwise proximal maps of concave penalties, for every step, and the values that belong to them.

As the maps of `torchreg.functional.shrinkage` each is the identity at step 0, keeps NaN where it is and returns +0.0,
never -0.0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchreg.functional.shrinkage import Scalar, filled, hard, scaled, soft

_STEEP = 1e-18  # the least inverse slope; its square is a float32 number


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
    # one formula without a choice, which takes a CPU several times as long as arithmetic: beyond gamma * strength the
    # line outgrows |w|, and from step = gamma on it is so steep that it does so wherever it begins
    size = w.abs()
    begins = scaled(strength, torch.minimum(step, torch.sqrt(gamma * step.clamp(min=gamma))))
    line = (size - begins).clamp(min=0.0) / (1.0 - step / gamma).clamp(min=_STEEP)
    return torch.copysign(torch.minimum(size, line), w) + 0.0


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


def mcp_slope(w: Tensor, strength: Scalar, gamma: float) -> Tensor:
    """The derivative of `mcp_value` at ``w >= 0``, from the right at 0."""
    return (strength - w / gamma).clamp(min=0.0)


def scad_slope(w: Tensor, strength: Scalar, gamma: float) -> Tensor:
    """The derivative of `scad_value` at ``w >= 0``, from the right at 0."""
    return ((gamma * strength - w) / (gamma - 1.0)).clamp(min=0.0).clamp(max=strength)


def half(w: Tensor, threshold: Scalar) -> Tensor:
    """Proximal map of ``threshold * sqrt|w|`` (Xu et al., IEEE TNNLS 23, 2012, theorem 1).

    Beyond ``|w| = 3/2 threshold^(2/3)`` it is the largest root of a cubic, by its cosine; `_settled` makes it exact.
    """
    c, size = filled(threshold, w), w.abs()
    kept = (size > 1.5 * c ** (2.0 / 3.0)) & (c > 0)
    safe = torch.where(kept, size, torch.ones_like(size))
    cut = torch.where(kept, c, torch.zeros_like(c))
    angle = torch.arccos((3.0 * cut ** (2.0 / 3.0) / safe) ** 1.5 / 4.0)
    root = safe * (2.0 / 3.0) * (1.0 + torch.cos((2.0 / 3.0) * (math.pi - angle)))
    return _signed(w, c, kept, _settled(root, safe, cut, 0.5))


_FLAT = 1e6  # of |w| / (2 threshold)^(3/4), from where on |w| is near enough to the root


def two_thirds(w: Tensor, threshold: Scalar) -> Tensor:
    """Proximal map of ``threshold * |w|^(2/3)`` (Cao, Sun and Xu, JVCIR 24, 2013, eq. 10).

    In units of ``(2 threshold)^(3/4)``, so that no power of a small threshold overflows.
    """
    c, size = filled(threshold, w), w.abs()
    unit = (2.0 * torch.where(c > 0, c, torch.ones_like(c))) ** 0.75
    kept = (size > (2.0 / 3.0) * 3.0**0.25 * unit) & (c > 0)
    scale = torch.where(kept, unit, torch.ones_like(unit))
    safe, cut = torch.where(kept, size, torch.ones_like(size)), torch.where(kept, c, torch.zeros_like(c))
    ratio = safe / scale
    near = torch.where(kept & (ratio < _FLAT), ratio, torch.ones_like(ratio))
    a = (2.0 / math.sqrt(3.0)) * torch.cosh(torch.arccosh(27.0 / 16.0 * near**2) / 3.0).sqrt()
    root = scale * ((a + (2.0 * near / a - a * a).sqrt()) / 2.0) ** 3
    return _signed(w, c, kept, _settled(torch.where(ratio < _FLAT, root, safe), safe, cut, 2.0 / 3.0))


def _settled(root: Tensor, size: Tensor, threshold: Tensor, power: float) -> Tensor:
    """The root of ``u = size - threshold * power * u^(power - 1)`` once more, from a root with rounding errors.

    Of these at most a third is left, and none where the threshold is small: what is taken off is right to the last
    digits, so that no weight grows, and steps far below a weight add up.
    """
    return size - threshold * power * root ** (power - 1.0)


def log_sum(w: Tensor, threshold: Scalar, eps: float) -> Tensor:
    """Proximal map of ``threshold * log(1 + |w| / eps)``: 0, or the larger root of a quadratic where that is better."""
    c, size = filled(threshold, w), w.abs()
    finite = torch.where(c < math.inf, c, torch.zeros_like(c))
    inside = (size + eps) ** 2 - 4.0 * finite
    real = inside > 0
    spread = torch.where(real, inside, torch.ones_like(inside)).sqrt()
    fall = 2.0 * finite / (size + eps + spread)  # from |w| to the root
    low = (size < eps) & (2.0 * fall > size)  # neither form of the root cancels where it stands
    root = torch.where(low, 2.0 * (size * eps - finite) / (eps - size + spread).abs(), size - fall)
    gain = finite * torch.log1p(root.clamp(min=0.0) / eps) + 0.5 * (fall * fall - size * size)
    better = (c <= eps * eps) | ~(gain >= 0)  # continuous up to eps^2; NaN is of an infinite w
    kept = real & (root > 0) & better & (c > 0) & (c < math.inf)
    return _signed(w, c, kept, root)


def _signed(w: Tensor, threshold: Tensor, kept: Tensor, root: Tensor) -> Tensor:
    """The root with w's sign where it is kept, else 0; w itself at threshold 0, and where it is NaN."""
    return torch.where((threshold == 0) | w.isnan(), w, torch.where(kept, root * w.sign(), torch.zeros_like(w)))
