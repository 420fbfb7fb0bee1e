"""Ridge regression without each row in turn, for many alphas, from one eigendecomposition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.linear.designs.base import Design

_ENTRIES = 2**24  # of a dense block (p, rows) while the rows' products are formed
_RANK = 1e-12  # relative size below which a direction of the unpenalised columns counts as none


@dataclass(frozen=True)
class Smoother:
    """What all alphas share: the weighted residuals of a ridge fit are a spectral function of alpha.

    With ``z = sqrt(s) y`` the residuals are ``base z - sum_r vectors_r (vectors_r' z) / (values_r + alpha)`` where the
    features are fewer than the rows (``thin``), else ``sum_r vectors_r (vectors_r' z) alpha / (values_r + alpha)``.
    """

    values: Tensor
    vectors: Tensor
    free: Tensor
    thin: bool

    def residuals(self, z: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """Residuals (n,) or (n, K) of the fit to all rows, and 1 - leverage of each row, (n,)."""
        shrunk = (1.0 if self.thin else alpha) / (self.values + alpha)
        inner = self.vectors.T @ z
        part = self.vectors @ (shrunk[:, None] * inner if z.dim() == 2 else shrunk * inner)
        share = self.vectors.square() @ shrunk
        if not self.thin:
            return part, share
        rest = z - self.free @ (self.free.T @ z) - part
        return rest, 1.0 - self.free.square().sum(1) - share


def smoother(design: Design, weights: Tensor, factors: Tensor | None, *, fit_intercept: bool) -> Smoother:
    """The smoother of a design with row weights s, (n,), and feature weights, (p,), of which inf drops a feature."""
    root = weights.sqrt()
    factors = torch.ones(design.p, dtype=torch.float64, device=root.device) if factors is None else factors
    kept = (factors > 0) & factors.isfinite()
    scale = torch.where(kept, factors, 1.0).rsqrt() * kept
    free = _unpenalised(design, root, (factors == 0).nonzero()[:, 0], fit_intercept=fit_intercept)
    if int(kept.sum()) < design.n:
        return _thin(design, root, scale, free)
    return _wide(design, root, scale, free)


def _unpenalised(design: Design, root: Tensor, columns: Tensor, *, fit_intercept: bool) -> Tensor:
    """An orthonormal basis (n, k) of the columns that no alpha shrinks, times sqrt(s)."""
    parts = [root[:, None]] if fit_intercept else []
    if len(columns):
        chosen = torch.zeros(design.p, len(columns), dtype=torch.float64, device=root.device)
        chosen[columns, torch.arange(len(columns), device=root.device)] = 1.0
        parts.append(root[:, None] * design.times(chosen))
    if not parts:
        return root.new_zeros(len(root), 0)
    left, sizes, _ = torch.linalg.svd(torch.cat(parts, 1), full_matrices=False)
    return left[:, sizes > _RANK * sizes[0]]


def _thin(design: Design, root: Tensor, scale: Tensor, free: Tensor) -> Smoother:
    """From the features' products, (p, p)."""
    kept = scale > 0
    products = (scale[:, None] * design.gram(root.square()) * scale)[kept][:, kept]
    shared = (scale[:, None] * design.transposed(root[:, None] * free))[kept]
    values, basis = torch.linalg.eigh(products - shared @ shared.T)
    spread = torch.zeros(design.p, basis.shape[1], dtype=torch.float64, device=root.device)
    spread[kept] = scale[kept][:, None] * basis
    vectors = root[:, None] * design.times(spread) - free @ (shared.T @ basis)
    return Smoother(values.clamp(min=0.0), vectors, free, thin=True)


def _wide(design: Design, root: Tensor, scale: Tensor, free: Tensor) -> Smoother:
    """From the rows' products, (n, n); the unpenalised directions are made its largest and left out."""
    n, squares = len(root), scale.square()[:, None]
    rows = torch.diag(root).split(max(1, _ENTRIES // max(design.p, 1)), 1)
    products = root[:, None] * torch.cat([design.times(squares * design.transposed(some)) for some in rows], 1)
    products = products - free @ (free.T @ products)
    products = products - (products @ free) @ free.T
    above = 2.0 * products.diagonal().sum() + 1.0
    values, vectors = torch.linalg.eigh((products + products.T) / 2.0 + above * free @ free.T)
    rest = n - free.shape[1]
    return Smoother(values[:rest].clamp(min=0.0), vectors[:, :rest], free, thin=False)


def left_out(smooth: Smoother, y: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """``sqrt(s_i)`` times what each row's target exceeds its prediction without it by, of y's shape."""
    root = weights.sqrt()
    z = root[:, None] * y if y.dim() == 2 else root * y
    residual, rest = smooth.residuals(z, alpha)
    return residual / (rest[:, None] if y.dim() == 2 else rest)
