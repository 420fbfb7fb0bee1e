"""Sums over many entries: accurate in float32, quick on CPU, differentiable.

On CPU a temporary as large as the weights costs more than the sum itself, and torch's norms lose
accuracy over many float32 entries. So a sum that needs no gradient runs over pieces that stay in
cache, and the pieces are added in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.blocking import LONG
from torchreg.functional.torch_private import in_transform

_FOR_COMPLEX = (
    "convert it to real: for its modulus add penalty(w.abs()) to the loss; for exact zeros keep real and imaginary "
    "parts in a parameter p of shape (n, 2), use torch.view_as_complex(p).view(shape), and attach Group(penalty, "
    "by=rows, weights=1.0) to p."
)
_ROW = 1024  # entries over which a float32 norm is still exact to 1e-6


def widened(w: Tensor) -> Tensor:
    """``w`` in at least float32, after `refuse_unreal`."""
    refuse_unreal(w)
    return w.to(wide_dtype(w))


def refuse_unreal(w: Tensor) -> None:
    """Raise TypeError if ``w`` is no tensor, or is complex, integer or boolean."""
    if not isinstance(w, Tensor):
        raise TypeError(f"A penalty acts on torch tensors, got {type(w).__name__}; use torch.as_tensor(w).")
    if not w.is_floating_point():
        remedy = _FOR_COMPLEX if w.is_complex() else "convert the tensor, w.float()."
        raise TypeError(f"A penalty acts on real floating-point tensors, got {w.dtype}; {remedy}")


def narrowed(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the dtype of ``like``; what underflows there becomes +0.0, never -0.0."""
    return x.to(like.dtype) + 0.0


def wide_dtype(w: Tensor) -> torch.dtype:
    """The dtype of `widened`: that of ``w``, but float32 for half precision."""
    return torch.float32 if w.dtype in (torch.bfloat16, torch.float16) else w.dtype


def wide(x: Tensor) -> Tensor:
    """``x`` in float64 where its device has it."""
    return x if x.device.type == "mps" else x.double()


def total(phi: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """``phi(w).sum()`` for an elementwise ``phi``, a 0-d tensor of at least float32."""
    if _differentiates(w) or not _splits(w):
        return phi(widened(w)).sum()
    return _gather((phi(widened(c)).sum() for c in w.view(-1).split(LONG)), w)


def absolute_sum(w: Tensor) -> Tensor:
    """``sum |w|``, a 0-d tensor; on CPU at little more than the price of reading ``w`` once."""
    if not _splits(w):
        return widened(w).abs().sum()
    return _large(w, torch.abs) if _differentiates(w) else _absolute_sum(w)


def square_sum(w: Tensor) -> Tensor:
    """``sum w^2``, a 0-d tensor; on CPU at the price of reading ``w`` once."""
    if not _splits(w):
        return widened(w).square().sum()
    return _large(w, torch.square) if _differentiates(w) else _square_sum(w)


class _LargeSum(torch.autograd.Function):
    """``sum |w|`` or ``sum w^2`` of a large tensor, without a temporary as large as it."""

    @staticmethod
    def forward(w: Tensor, phi: Callable[[Tensor], Tensor]) -> Tensor:
        return _absolute_sum(w) if phi is torch.abs else _square_sum(w)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        del output
        ctx.save_for_backward(inputs[0])
        ctx.phi = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (w,) = ctx.saved_tensors
        slope = w.sign() if ctx.phi is torch.abs else w
        factor = grad if ctx.phi is torch.abs else 2.0 * grad
        return (slope.to(wide_dtype(w)) * factor.to(wide_dtype(w))).to(w.dtype), None


_large: Any = _LargeSum.apply


def _absolute_sum(w: Tensor) -> Tensor:
    if w.dtype not in (torch.float32, torch.float64):
        return _gather((widened(c).abs().sum() for c in w.view(-1).split(LONG)), w)
    room = torch.empty(LONG, dtype=w.dtype)
    return _gather((torch.abs(c, out=room[: c.numel()]).sum() for c in w.view(-1).split(LONG)), w)


def _square_sum(w: Tensor) -> Tensor:
    if w.numel() % _ROW or w.dtype not in (torch.float32, torch.float64):
        return _gather((widened(c).square().sum() for c in w.view(-1).split(LONG)), w)
    return torch.linalg.vector_norm(w.view(-1, _ROW), dim=1).double().square().sum().to(wide_dtype(w))


def _differentiates(w: Tensor) -> bool:
    return torch.is_grad_enabled() and w.requires_grad


def _splits(w: Tensor) -> bool:
    return w.numel() > LONG and w.is_contiguous() and asks_freely(w)


def asks_freely(w: Tensor) -> bool:
    """Whether the host may look at values at no price: on the CPU, outside compiled code and transforms."""
    transformed = torch.compiler.is_compiling() or in_transform()
    return w.device.type == "cpu" and not transformed


def _gather(sums: Iterable[Tensor], w: Tensor) -> Tensor:
    return torch.stack([part.double() for part in sums]).sum().to(wide_dtype(w))
