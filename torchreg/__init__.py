"""torchreg: regularisation for PyTorch, in the loss or as a proximal step of any optimizer."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from torchreg import schedules
from torchreg.ablation import Ablation, ablate
from torchreg.groups import Groups, columns, filters, labels, rows, whole
from torchreg.output_channels import transposed_filters
from torchreg.penalties import (
    L0,
    L1,
    L1L2,
    L2,
    MCP,
    SCAD,
    Group,
    LHalf,
    LogSum,
    LTwoThirds,
    NoConjugate,
    NoExactProx,
    NonNegative,
    Penalty,
    Separable,
    Sum,
    Towards,
    Weighted,
)
from torchreg.select import matching, of_type, weights
from torchreg.training import (
    Attachment,
    PenaltyScheduler,
    ProxOptimizer,
    Sparsity,
    Term,
    alpha_max,
    at_most,
    attach,
    attach_to,
    clip_grad_norm_,
    compact,
    copy_zeros,
    coupled,
    effective_step,
    penalty_metrics,
    register_effective_step,
    sparsity,
    violation,
)
from torchreg.weight_rules import register_weights

__version__ = version("torchreg-penalty")
__all__ = [
    "L0",
    "L1",
    "L1L2",
    "L2",
    "MCP",
    "SCAD",
    "Ablation",
    "Attachment",
    "Group",
    "Groups",
    "LHalf",
    "LTwoThirds",
    "LogSum",
    "NoConjugate",
    "NoExactProx",
    "NonNegative",
    "Penalty",
    "PenaltyScheduler",
    "ProxOptimizer",
    "Separable",
    "Sparsity",
    "Sum",
    "Term",
    "Towards",
    "Weighted",
    "__version__",
    "ablate",
    "alpha_max",
    "at_most",
    "attach",
    "attach_to",
    "clip_grad_norm_",
    "columns",
    "compact",
    "copy_zeros",
    "coupled",
    "effective_step",
    "filters",
    "labels",
    "matching",
    "of_type",
    "penalty_metrics",
    "register_effective_step",
    "register_weights",
    "rows",
    "schedules",
    "sparsity",
    "transposed_filters",
    "violation",
    "weights",
    "whole",
]
_ROOMS = ("ablation", "linear", "plots", "report")  # imported when they are first named


def __dir__() -> list[str]:
    """The public names and the packages beside them."""
    return sorted([*__all__, *_ROOMS])


if not TYPE_CHECKING:  # a type checker is to know the names above alone

    def __getattr__(name: str) -> Any:
        """A package by its name; of a name that is public in one of them, where it lives."""
        if name in _ROOMS:
            return import_module(f"torchreg.{name}")
        rooms = () if name.startswith("_") else ("plots",) if name.endswith("Display") else ("linear", "ablation")
        for room in rooms:
            if name in import_module(f"torchreg.{room}").__all__:
                raise ImportError(f"{name} lives in torchreg.{room}: from torchreg.{room} import {name}")
        raise AttributeError(f"module 'torchreg' has no attribute {name!r}")
