"""The door: arrays of any library become a validated design on one device."""

from __future__ import annotations

from typing import Any

import torch

from torchreg.linear.dense import Dense
from torchreg.linear.design import Design


def as_design(X: Any, device: torch.device | str | None = None) -> Design:  # noqa: N803
    """The design that reads ``X`` where it lies.

    Args:
        X: numpy array or torch tensor, (n, p).
        device: where to compute; None for where X is.
    """
    return Dense(torch.as_tensor(X).detach().to(device))
