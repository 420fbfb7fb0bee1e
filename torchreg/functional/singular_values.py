"""Functions of a matrix's singular values, with gradients that repeated and vanishing singular values leave finite.

The derivative of ``U diag(f) V'`` along ``E`` is, with ``M = U' E V``,
``U (G . (M + M') / 2 + H . (M - M') / 2) V'`` and, for the part of ``E`` outside the span of the columns of U (of the
rows of V'), that part times ``f_i / s_i``. ``G_ij = (f_i - f_j) / (s_i - s_j)``, the slope of f where ``s_i = s_j``;
``H_ij = (f_i + f_j) / (s_i + s_j)``. Source: Lewis and Sendov, Set-Valued Analysis 13, 2005 (as Daleckii and Krein,
1965, for symmetric matrices).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def as_matrix(w: Tensor) -> Tensor:
    """A tensor of two or more dimensions as a matrix with the same rows: (dim 0, all others)."""
    return w.flatten(1)


def is_known(x: Tensor) -> Tensor:
    """Whether all entries are finite: of others no singular values exist, and LAPACK raises."""
    return x.isfinite().all()


def singular_values(x: Tensor) -> Tensor:
    """The singular values of a matrix, falling; NaN if an entry is not finite.

    Their gradient is ``u_i v_i'``, and 0 for those that are 0 to rounding, whose vectors are arbitrary.
    """
    known = is_known(x)
    s = torch.linalg.svdvals(torch.where(known, x, torch.zeros_like(x)))
    told = torch.where(s.detach() > smallest(x, s.detach()), s, s.detach())
    return torch.where(known, told, torch.nan)


def smallest(x: Tensor, s: Tensor, eps: float | None = None) -> Tensor:
    """The size below which a singular value is 0 to rounding, a 0-d tensor.

    As of `torch.linalg.matrix_rank`, ``max(shape) eps s_max``, but no more than ten times ``sqrt(min(shape)) eps
    s_max``: a decomposition's errors grow with the smaller side, and in an embedding's million rows the former would
    take a tenth of the largest singular value for 0.
    """
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return s.amax() * min(max(x.shape), 10.0 * math.sqrt(min(x.shape))) * eps


def shrunk(x: Tensor, threshold: Tensor) -> Tensor:
    """Singular value thresholding, ``U diag(max(s - threshold, 0)) V'``: exactly 0 from the largest one on.

    Written ``x - U diag(min(s, threshold)) V'``, whose rounding is that of what is taken off. A matrix with a NaN or
    an infinity stays as it is.

    Source:
        Cai, Candes and Shen, SIAM J. Optim. 20, 2010, theorem 2.1.
    """
    known = is_known(x)
    safe = torch.where(known, x, torch.zeros_like(x))
    with torch.no_grad():
        u, s, vt = torch.linalg.svd(safe, full_matrices=False)
        level = threshold.to(s.dtype)
        kept = (s > level).to(s.dtype)
        left = (safe - (u * torch.minimum(s, level)) @ vt) * (s.amax() > level)
    if torch.is_grad_enabled():
        moved = (threshold - threshold.detach()).nan_to_num(0.0).to(s.dtype)
        left = left + _along(safe - safe.detach(), u, s, vt, (s - level).clamp(min=0.0), kept) - moved * (u * kept) @ vt
    return torch.where(known & (level > 0), left, x)


def truncated(x: Tensor, rank: int) -> Tensor:
    """The nearest matrix of at most a rank: its largest singular values alone (Eckart and Young, 1936).

    A matrix of that rank to rounding stays as it is, and so does one with a NaN or an infinity.
    """
    known = is_known(x)
    safe = torch.where(known, x, torch.zeros_like(x))
    with torch.no_grad():
        u, s, vt = torch.linalg.svd(safe, full_matrices=False)
        kept = (torch.arange(s.shape[-1], device=s.device) < rank).to(s.dtype)
        dropped = s * (1.0 - kept)
        left = (u * (s * kept)) @ vt  # of that rank to the rounding of a product; a difference has that of s
        moves = known & (dropped.amax() > smallest(x, s))
    if torch.is_grad_enabled():
        left = left + _along(safe - safe.detach(), u, s, vt, s * kept, kept)
    return torch.where(moves, left, x)


def _along(change: Tensor, u: Tensor, s: Tensor, vt: Tensor, f: Tensor, slope: Tensor) -> Tensor:
    """The derivative of ``U diag(f) V'`` along a change of the matrix: linear in it, all else detached."""
    inner = u.mT @ change @ vt.mT
    apart, above = s[:, None] - s, s[:, None] + s
    tied = apart.abs() <= smallest(change, s)
    flat = (slope[:, None] + slope) / 2.0
    g = torch.where(tied, flat, (f[:, None] - f) / torch.where(tied, torch.ones_like(apart), apart))
    h = torch.where(above > 0, (f[:, None] + f) / torch.where(above > 0, above, torch.ones_like(above)), flat)
    within = u @ (g * (inner + inner.mT) / 2.0 + h * (inner - inner.mT) / 2.0) @ vt
    ratio = torch.where(s > 0, f / torch.where(s > 0, s, torch.ones_like(s)), slope)
    left, right = change @ vt.mT, u.mT @ change
    beside = ((left - u @ inner) * ratio) @ vt + (u * ratio) @ (right - inner @ vt)
    return within + beside
