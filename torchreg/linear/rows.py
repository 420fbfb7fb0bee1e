"""What belongs to the rows of X: targets, weights and offsets, validated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchreg.linear.design import Design


def as_target(y: Any, design: Design) -> Tensor:
    """The target on the design's device, of its own dtype, (n,) or (n, K)."""
    target = torch.as_tensor(y).detach().to(design.device)
    _same_length("y", target, design)
    return target


def as_weights(sample_weight: Any, design: Design) -> Tensor:
    """Weights that add up to 1, (n,), float64."""
    if sample_weight is None:
        return torch.full((design.n,), 1.0 / design.n, dtype=torch.float64, device=design.device)
    weights = torch.as_tensor(sample_weight).detach().to(design.device, torch.float64)
    if weights.dim() == 0:
        weights = weights.expand(design.n)
    if weights.dim() != 1:
        raise ValueError(f"Sample weights must be 1D array or scalar, got {weights.dim()}D array.")
    _same_length("sample_weight", weights, design)
    if not bool(weights.isfinite().all()) or bool((weights < 0).any()):
        raise ValueError("sample_weight must be finite and not negative; leave rows out by weight 0.")
    total = weights.sum()
    if not bool(total > 0):
        raise ValueError("sample_weight adds up to 0; give at least one row a positive weight.")
    return weights / total


def as_offset(offset: Any, design: Design, outputs: int | None) -> Tensor | None:
    """The offset of each row, (n,) or (n, K), float64."""
    if offset is None:
        return None
    lift = torch.as_tensor(offset).detach().to(design.device, torch.float64)
    shape = (design.n,) if outputs is None else (design.n, outputs)
    if lift.shape != shape:
        raise ValueError(f"offset must have shape {shape}, got {tuple(lift.shape)}.")
    if not bool(lift.isfinite().all()):
        raise ValueError("Input offset contains NaN or infinity.")
    return lift


def _same_length(name: str, rows: Tensor, design: Design) -> None:
    if rows.dim() == 0 or len(rows) != design.n:
        given = [design.n, len(rows) if rows.dim() else 0]
        raise ValueError(f"Found input variables with inconsistent numbers of samples: {given} (X, {name})")
