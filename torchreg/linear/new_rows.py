"""New rows of the columns that a path was fitted to."""

from __future__ import annotations

from typing import Any

import torch

from torchreg.linear.designs.base import Design
from torchreg.linear.designs.inputs import as_design
from torchreg.linear.designs.tables import check_names, column_names


def new_rows(X: Any, device: torch.device, features: int, names: tuple[str, ...] | None) -> Design:  # noqa: N803
    """New rows, of as many columns as were fitted and, where both have names, of the same names in the same order.

    Raises:
        ValueError: if they are others.
    """
    check_names(names, column_names(X))
    design = as_design(X, device)
    check_width(features, design.p)
    return design


def check_width(fitted: int, given: int) -> None:
    """Refuse another number of columns than at the fit.

    Raises:
        ValueError: if it is another.
    """
    if given != fitted:
        raise ValueError(
            f"X has {given} features, but the fit is expecting {fitted} features as input; give the columns that "
            "it was fitted to, in their order."
        )
