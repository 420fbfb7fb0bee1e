"""Information criteria: what a fit loses on its own rows, and a price for each degree of freedom."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchreg.linear.path_result import Path

Criterion = Literal["aic", "bic", "ebic"]


def information(path: Path, df: Tensor, kind: Criterion, gamma: float) -> Tensor:
    """The criterion of each point of a path, (a,), for degrees of freedom df, (a,): see `Path.criterion`.

    Raises:
        ValueError: if ``kind`` or ``gamma`` is not allowed, or the datafit is no likelihood.
    """
    if kind not in ("aic", "bic", "ebic"):
        raise ValueError(f"criterion takes 'aic', 'bic' or 'ebic', got {kind!r}.")
    if not 0.0 <= gamma < math.inf:
        raise ValueError(f"gamma must be a finite number >= 0, got {gamma!r}; 1.0 is the usual one.")
    outputs = path.intercepts[0].numel()
    price = 2.0 * df if kind == "aic" else math.log(path.n_weighted) * df
    if kind == "ebic":
        price = price + 2.0 * gamma * _log_binomial(path.n_features * outputs, df)
    return _deviance(path, outputs) + price


def _deviance(path: Path, outputs: int) -> Tensor:
    """Minus twice the log likelihood, but for what is the same at each point."""
    n, datafit = path.n_weighted, path.datafit
    if datafit.quadratic:
        return n * outputs * (2.0 * path.losses / outputs).log()
    if not datafit.likelihood:
        raise ValueError(
            f"{datafit} is no likelihood, so no information criterion is defined; choose alpha with fit_cv. If it is "
            "a negative log likelihood of your own, set `likelihood = True` in its class."
        )
    return 2.0 * n * path.losses


def _log_binomial(size: int, df: Tensor) -> Tensor:
    return math.lgamma(size + 1) - torch.lgamma(df + 1) - torch.lgamma(size - df + 1)
