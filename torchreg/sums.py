"""Sums over many entries: accurate in float32, quick on CPU, differentiable.

On CPU a temporary as large as the weights costs more than the sum itself, and torch's norms lose
accuracy over many float32 entries. So a sum that needs no gradient runs over pieces that stay in
cache, and the pieces are added in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PIECE = 1 << 20  # entries; measured: shorter pieces pay for dispatch, longer ones leave the cache
_ROW = 1024  # entries over which a float32 norm is still exact to 1e-6


def widened(w: Tensor) -> Tensor:
    """``w`` in at least float32, after refusing what has no real gradient.

    Raises:
        TypeError: if ``w`` is complex, integer or boolean.
    """
    if not w.is_floating_point():
        raise TypeError(
            f"A penalty acts on real floating-point tensors, got {w.dtype}; "
            "convert the tensor, or penalise torch.view_as_real(w) if it is complex."
        )
    return w.to(wide_dtype(w))


def wide_dtype(w: Tensor) -> torch.dtype:
    """The dtype of `widened`: that of ``w``, but float32 for half precision."""
    return torch.float32 if w.dtype in (torch.bfloat16, torch.float16) else w.dtype


def total(phi: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """``phi(w).sum()`` for an elementwise ``phi``, a 0-d tensor of at least float32."""
    if _differentiates(w) or not _splits(w):
        return phi(widened(w)).sum()
    return _gather((phi(widened(c)).sum() for c in w.view(-1).split(PIECE)), w)


def absolute_sum(w: Tensor) -> Tensor:
    """``sum |w|``; on CPU at little more than the price of reading ``w`` once."""
    if _differentiates(w) or not _splits(w) or w.dtype not in (torch.float32, torch.float64):
        return total(torch.abs, w)
    room = torch.empty(PIECE, dtype=w.dtype)
    return _gather((torch.abs(c, out=room[: c.numel()]).sum() for c in w.view(-1).split(PIECE)), w)


def square_sum(w: Tensor) -> Tensor:
    """``sum w^2``; on CPU at the price of reading ``w`` once."""
    if _differentiates(w) or not _splits(w) or w.numel() % _ROW:
        return total(torch.square, w)
    return torch.linalg.vector_norm(widened(w).view(-1, _ROW), dim=1).double().square().sum().to(wide_dtype(w))


def _differentiates(w: Tensor) -> bool:
    return torch.is_grad_enabled() and w.requires_grad


def _splits(w: Tensor) -> bool:
    return w.device.type == "cpu" and w.numel() > PIECE and w.is_contiguous() and not torch.compiler.is_compiling()


def _gather(sums: object, w: Tensor) -> Tensor:
    parts = [part.double() for part in sums]  # type: ignore[attr-defined]
    return torch.stack(parts).sum().to(wide_dtype(w))
