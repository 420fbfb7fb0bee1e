"""torchreg: regularisation for PyTorch. One Penalty object for training loops, fits and ablations."""

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
