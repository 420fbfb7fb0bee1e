"""Information criteria: what a fit loses on its own rows, and a price for each degree of freedom."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from torchreg.linear.datafits.base import Datafit

Criterion = Literal["aic", "bic", "ebic"]


def information(
    losses: Tensor,
    df: Tensor,
    datafit: Datafit,
    kind: Criterion,
    gamma: float,
    *,
    rows: int,
    features: int,
    outputs: int,
) -> Tensor:
    """The criterion of each point of a path, (a,): see `Path.criterion`.

    Args:
        losses: the mean loss at each point, (a,).
        df: degrees of freedom of each, (a,).
        datafit: whose likelihood counts.
        kind: "aic", "bic" or "ebic".
        gamma: of ebic.
        rows: those with a weight.
        features: columns of X.
        outputs: columns of y.

    Raises:
        ValueError: if ``kind`` or ``gamma`` is not allowed, or the datafit is no likelihood.
    """
    if kind not in ("aic", "bic", "ebic"):
        raise ValueError(f"criterion takes 'aic', 'bic' or 'ebic', got {kind!r}.")
    if not 0.0 <= gamma < math.inf:
        raise ValueError(f"gamma must be a finite number >= 0, got {gamma!r}; 1.0 is the usual one.")
    price = 2.0 * df if kind == "aic" else math.log(rows) * df
    if kind == "ebic":
        price = price + 2.0 * gamma * _log_binomial(features * outputs, df)
    if datafit.quadratic:  # minus twice the log likelihood, but for what is the same at each point
        return rows * outputs * (2.0 * losses / outputs).log() + price
    if not datafit.likelihood:
        raise ValueError(
            f"{datafit} is no likelihood, so no information criterion is defined; choose alpha with fit_cv. If it is "
            "a negative log likelihood of your own, set `likelihood = True` in its class."
        )
    return 2.0 * rows * losses + price


def _log_binomial(size: int, df: Tensor) -> Tensor:
    return math.lgamma(size + 1) - torch.lgamma(df + 1) - torch.lgamma(size - df + 1)
