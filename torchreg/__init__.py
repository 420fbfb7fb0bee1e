"""torchreg: regularisation for PyTorch, in the loss or as a proximal step of any optimizer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torchreg.ablation import Ablation, ablate, ablate_batched
from torchreg.functional.groups import Groups, columns, filters, labels, rows, whole
from torchreg.functional.output_channels import transposed_filters
from torchreg.functional.unit_groups import blocks, heads
from torchreg.penalties import (
    L0,
    L1,
    L1L2,
    L2,
    MCP,
    NM,
    SCAD,
    SLOPE,
    Box,
    Group,
    L1Ball,
    L2Ball,
    LHalf,
    LInf,
    LogSum,
    LTwoThirds,
    MaxNorm,
    NoConjugate,
    NoExactProx,
    NonNegative,
    Nuclear,
    Orthogonality,
    Penalty,
    Rank,
    Separable,
    Simplex,
    Spectral,
    Sum,
    TopK,
    TotalVariation,
    Towards,
    UnitNorm,
    Weighted,
)
from torchreg.release import installed_version
from torchreg.selection.selectors import matching, of_type, weights
from torchreg.selection.weight_rules import register_weights
from torchreg.training import (
    ActivityTerm,
    Attachment,
    PenaltyScheduler,
    ProxOptimizer,
    Sparsity,
    TargetSparsity,
    Term,
    alpha_max,
    at_most,
    attach,
    attach_activity,
    attach_to,
    clip_grad_norm_,
    compact,
    copy_zeros,
    coupled,
    effective_step,
    freeze_zeros,
    penalty_metrics,
    register_effective_step,
    schedules,
    sparsity,
    thaw,
    to_sparse,
    violation,
)

__version__ = installed_version()
__all__ = [
    "L0",
    "L1",
    "L1L2",
    "L2",
    "MCP",
    "NM",
    "SCAD",
    "SLOPE",
    "Ablation",
    "ActivityTerm",
    "Attachment",
    "Box",
    "Group",
    "Groups",
    "L1Ball",
    "L2Ball",
    "LHalf",
    "LInf",
    "LTwoThirds",
    "LogSum",
    "MaxNorm",
    "NoConjugate",
    "NoExactProx",
    "NonNegative",
    "Nuclear",
    "Orthogonality",
    "Penalty",
    "PenaltyScheduler",
    "ProxOptimizer",
    "Rank",
    "Separable",
    "Simplex",
    "Sparsity",
    "Spectral",
    "Sum",
    "TargetSparsity",
    "Term",
    "TopK",
    "TotalVariation",
    "Towards",
    "UnitNorm",
    "Weighted",
    "__version__",
    "ablate",
    "ablate_batched",
    "alpha_max",
    "at_most",
    "attach",
    "attach_activity",
    "attach_to",
    "blocks",
    "clip_grad_norm_",
    "columns",
    "compact",
    "copy_zeros",
    "coupled",
    "effective_step",
    "filters",
    "freeze_zeros",
    "heads",
    "labels",
    "matching",
    "of_type",
    "penalty_metrics",
    "register_effective_step",
    "register_weights",
    "rows",
    "schedules",
    "sparsity",
    "thaw",
    "to_sparse",
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
