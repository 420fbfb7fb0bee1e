"""torchreg: regularisation for PyTorch, in the loss or as a proximal step of any optimizer."""

from importlib.metadata import version

from torchreg import schedules
from torchreg.ablation import Ablation, ablate
from torchreg.effective_steps import effective_step, register_effective_step
from torchreg.groups import Groups, columns, filters, labels, rows, whole
from torchreg.penalties import (
    L0,
    L1,
    L1L2,
    L2,
    MCP,
    SCAD,
    Group,
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
    attach,
    attach_to,
    copy_zeros,
    penalty_metrics,
    sparsity,
    violation,
)

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
    "attach",
    "attach_to",
    "columns",
    "copy_zeros",
    "effective_step",
    "filters",
    "labels",
    "matching",
    "of_type",
    "penalty_metrics",
    "register_effective_step",
    "rows",
    "schedules",
    "sparsity",
    "violation",
    "weights",
    "whole",
]
