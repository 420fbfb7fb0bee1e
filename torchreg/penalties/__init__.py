"""Penalties: frozen functions of one tensor, with value, proximal map and what follows from them."""

from torchreg.penalties.alpha import NoConjugate, NoExactProx
from torchreg.penalties.base import Penalty, ProxForm
from torchreg.penalties.by_name import by_name
from torchreg.penalties.cardinality import NM, TopK
from torchreg.penalties.combinators import NonNegative, Towards
from torchreg.penalties.concave import L0, MCP, SCAD, LHalf, LogSum, LTwoThirds
from torchreg.penalties.constraints import Box, L1Ball, Simplex
from torchreg.penalties.differences import TotalVariation
from torchreg.penalties.grouped import Group
from torchreg.penalties.norm_constraints import L2Ball, MaxNorm, UnitNorm
from torchreg.penalties.order_norms import SLOPE, LInf
from torchreg.penalties.separable import L1, L1L2, L2, Separable
from torchreg.penalties.spectral import Nuclear, Orthogonality, Rank, Spectral
from torchreg.penalties.structure import GroupForm, L1Form
from torchreg.penalties.sum import Sum
from torchreg.penalties.weighted import Weighted

__all__ = [
    "L0",
    "L1",
    "L1L2",
    "L2",
    "MCP",
    "NM",
    "SCAD",
    "SLOPE",
    "Box",
    "Group",
    "GroupForm",
    "L1Ball",
    "L1Form",
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
    "ProxForm",
    "Rank",
    "Separable",
    "Simplex",
    "Spectral",
    "Sum",
    "TopK",
    "TotalVariation",
    "Towards",
    "UnitNorm",
    "Weighted",
    "by_name",
]
