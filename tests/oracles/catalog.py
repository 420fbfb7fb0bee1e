"""The one list of penalties that every law is tested on; a new penalty adds its lines here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg import (
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
    Groups,
    L1Ball,
    L2Ball,
    LHalf,
    LInf,
    LogSum,
    LTwoThirds,
    MaxNorm,
    NonNegative,
    Nuclear,
    Orthogonality,
    Penalty,
    Rank,
    Separable,
    Simplex,
    Spectral,
    TopK,
    TotalVariation,
    Towards,
    UnitNorm,
    Weighted,
    blocks,
    columns,
    filters,
    heads,
    labels,
    rows,
    transposed_filters,
    whole,
)
from torchreg.functional.reductions import widened
from torchreg.functional.shrinkage import filled
from torchreg.penalties.one_step import takes_one_step

Scalar = float | Tensor


@dataclass(frozen=True, eq=False, repr=False)
class OwnLogSum(Separable):
    """A user's own separable penalty: ``alpha * log(1 + |w| / eps)``, not convex."""

    alpha: Scalar
    eps: float = 0.5

    def phi(self, x: Tensor) -> Tensor:
        return self.alpha * torch.log1p(x.abs() / self.eps)

    def shrink(self, x: Tensor, step: Scalar) -> Tensor:
        pull, size = _pull(self.alpha, step, x), x.abs()
        inside = (size + self.eps) ** 2 - 4.0 * pull
        root = torch.where(inside > 0, inside, 1.0).sqrt()
        root = ((size - self.eps) + root) / 2.0
        gain = pull * torch.log1p(root.clamp(min=0.0) / self.eps) + (root * root / 2.0 - root * size)
        kept = torch.where((inside > 0) & (root > 0) & (gain < 0), root * x.sign(), 0.0)
        return torch.where((pull == 0) | x.isnan(), x, kept) + 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Pinball(Penalty):
    """A user's own penalty in two methods: positive weights cost twice what negative ones do."""

    alpha: Scalar

    def value(self, w: Tensor) -> Tensor:
        x = widened(w)
        return self.alpha * (1.5 * x.abs() + 0.5 * x).sum()

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        x = widened(w)
        pull = _pull(self.alpha, step, x)
        return (x - x.clamp(min=-pull, max=2.0 * pull)).to(w.dtype) + 0.0


def _pull(alpha: Scalar, step: Scalar, x: Tensor) -> Tensor:
    size = alpha * step
    size = size if isinstance(size, Tensor) else min(size, torch.finfo(x.dtype).max)
    return torch.nan_to_num(filled(size, x).to(x.dtype), nan=0.0, posinf=math.inf)


@dataclass(frozen=True)
class Case:
    """A penalty, the shape it is tested on, and what is known of it without asking it.

    Attributes:
        entry: it acts on each entry alone.
        convex: it is convex.
        conjugate: its conjugate is known.
        spares: some entries have weight 0, so no alpha sends all to zero.
        slope: it has a kink at its centre, so that a finite alpha gives zero.
        constraint: it is 0 or infinite, and has no strength.
        smooth: it has a gradient where no entry is at its centre.
        form: solvers know it exactly, if it is convex, and not by its prox alone.
        inside: a point that fulfils a constraint, if 0 does not.
        coupled: its entries, or groups, are compared, so that one decides over others.
    """

    id: str
    make: Callable[[], Penalty]
    shape: tuple[int, ...] = (9,)
    entry: bool = False
    convex: bool = True
    conjugate: bool = True
    spares: bool = False
    slope: bool = True
    constraint: bool = False
    smooth: bool = True
    form: bool = True
    inside: Callable[[], Tensor] | None = None
    coupled: bool = False

    @property
    def centre(self) -> Tensor:
        """Where the penalty is zero."""
        if self.inside is not None:
            return self.inside()
        return getattr(self.make(), "reference", torch.zeros(self.shape, dtype=torch.float64))

    @property
    def metric(self) -> bool:
        """Whether its prox takes a step per entry."""
        return not takes_one_step(self.make())

    def step(self, t: Tensor) -> Tensor:
        """A step per entry, or the first one, where its prox takes no more."""
        return t if self.metric or not t.numel() else t.reshape(-1)[0]


def _entry(name: str, make: Callable[[], Penalty], **flags: bool) -> Case:
    return Case(name, make, entry=True, **flags)


def _rows(name: str, make: Callable[[], Penalty], **flags: bool) -> Case:
    return Case(name, make, shape=(5, 3), **flags)


def _one_hot(by: Groups, radius: float) -> Callable[[], Tensor]:
    """The radius at the first entry of each group of 5 x 3 entries, and 0 elsewhere."""
    places = torch.arange(15.0, dtype=torch.float64).reshape(5, 3)
    first = by.expand(by.extreme(places, largest=False), places)
    return lambda: radius * (places == first).double()


_CONCAVE = {"convex": False, "conjugate": False}
_FLAT = {"slope": False}
_ORDER = {"smooth": False, "form": False}
_BOUND = {"slope": False, "constraint": True, **_ORDER}
INF = math.inf
MASK = torch.tensor([0.0, INF, 1.0, 0.5, 2.0, 0.0, INF, 1.0, 3.0], dtype=torch.float64)
SOFT_MASK = torch.tensor([0.2, 3.0, 1.0, 0.5, 2.0, 0.7, 4.0, 1.0, 3.0], dtype=torch.float64)
GROUP_MASK = torch.tensor([0.0, 1.0, INF, 0.5, 2.0], dtype=torch.float64)
REFERENCE = torch.tensor([0.5, -1.0, 0.0, 2.0, 0.1, -0.2, 1.5, -3.0, 0.7], dtype=torch.float64)
REFERENCE_ROWS = torch.linspace(-1.0, 2.0, 15, dtype=torch.float64).reshape(5, 3)
ENTRY_LABELS = torch.tensor([[0, 1, 2], [1, 1, 0], [2, 0, 1], [4, 4, 2], [0, 4, 2]])  # group 3 is empty
SLICE_LABELS = torch.tensor([0, 0, 2, 1, 2])
FALLING = torch.linspace(3.0, 0.0, 15, dtype=torch.float64)

PLAIN = [
    _entry("L1", lambda: L1(0.4)),
    _entry("L2", lambda: L2(0.4), **_FLAT),
    _entry("L1L2", lambda: L1L2(0.6, 0.4)),
    _entry("L1L2 ratio 1", lambda: L1L2(0.6, 1.0)),
    _entry("L1L2 ratio 0", lambda: L1L2(0.6, 0.0), **_FLAT),
    _entry("L0", lambda: L0(0.3), **_CONCAVE, **_FLAT),
    _entry("MCP", lambda: MCP(0.4, gamma=2.5), **_CONCAVE),
    _entry("SCAD", lambda: SCAD(0.4, gamma=3.2), **_CONCAVE),
    _entry("LHalf", lambda: LHalf(0.3), **_CONCAVE, **_FLAT),
    _entry("LTwoThirds", lambda: LTwoThirds(0.3), **_CONCAVE, **_FLAT),
    _entry("LogSum", lambda: LogSum(0.3, eps=0.5), **_CONCAVE),
    _entry("own Separable", lambda: OwnLogSum(0.3), **_CONCAVE),
    _entry("own Penalty", lambda: Pinball(0.4), conjugate=False),
]
WEIGHTED = [
    _entry("Weighted L1", lambda: Weighted(L1(0.4), SOFT_MASK)),
    _entry("Weighted L1 by a number", lambda: Weighted(L1(0.4), 1.7)),
    _entry("Weighted L1 with 0 and inf", lambda: Weighted(L1(0.4), MASK), spares=True),
    _entry("Weighted L2 with 0 and inf", lambda: Weighted(L2(0.4), MASK), spares=True, **_FLAT),
    _entry("Weighted L1L2 with 0 and inf", lambda: Weighted(L1L2(0.6, 0.4), MASK), spares=True),
    _entry("Weighted L0 with 0 and inf", lambda: Weighted(L0(0.3), MASK), spares=True, **_CONCAVE, **_FLAT),
    _entry("Weighted MCP with 0 and inf", lambda: Weighted(MCP(0.4, 2.5), MASK), spares=True, **_CONCAVE),
    _entry("Weighted SCAD with 0 and inf", lambda: Weighted(SCAD(0.4, 3.2), MASK), spares=True, **_CONCAVE),
    _entry("Weighted own", lambda: Weighted(OwnLogSum(0.3), MASK), spares=True, **_CONCAVE),
]
CONSTRAINED = [
    _entry("NonNegative L1", lambda: NonNegative(L1(0.4))),
    _entry("NonNegative L2", lambda: NonNegative(L2(0.4)), **_FLAT),
    _entry("NonNegative MCP", lambda: NonNegative(MCP(0.4, 2.5)), **_CONCAVE),
    _entry("NonNegative Weighted", lambda: NonNegative(Weighted(L1(0.4), MASK)), spares=True),
    _entry("NonNegative L1 + L2", lambda: NonNegative(L1(0.6)) + L2(0.4)),
    _entry("NonNegative of L1 + L2", lambda: NonNegative(L1(0.6) + L2(0.4))),
    _rows("NonNegative Group", lambda: NonNegative(Group(L1(0.4), by=rows))),
    _rows("NonNegative Group MCP", lambda: NonNegative(Group(MCP(0.4, 2.5), by=rows)), **_CONCAVE),
    _rows("NonNegative sparse group", lambda: NonNegative(Group(L1(0.7), by=rows) + L1(0.3))),
    _rows("NonNegative Group + L1", lambda: NonNegative(Group(L1(0.7), by=rows)) + L1(0.3)),
]
GROUPED = [
    _rows("Group rows", lambda: Group(L1(0.4), by=rows)),
    _rows("Group rows, weights 1", lambda: Group(L1(0.4), by=rows, weights=1.0)),
    _rows("Group rows, weights 0 and inf", lambda: Group(L1(0.4), by=rows, weights=GROUP_MASK), spares=True),
    _rows("Group columns", lambda: Group(L1(0.3), by=columns)),
    Case("Group filters", lambda: Group(L1(0.4), by=filters), shape=(4, 2, 3)),
    Case("Group filters, transposed", lambda: Group(L1(0.4), by=transposed_filters(2)), shape=(4, 3, 2)),
    _rows("Group labels of entries", lambda: Group(L1(0.4), by=labels(ENTRY_LABELS))),
    _rows("Group labels of slices", lambda: Group(L1(0.3), by=labels(SLICE_LABELS))),
    Case("Group heads", lambda: Group(L1(0.4), by=heads(2)), shape=(4, 3)),
    Case("Group heads, fused", lambda: Group(L1(0.4), by=heads(2, fused=3)), shape=(12, 2)),
    Case("Group heads in columns", lambda: Group(L1(0.4), by=heads(2, dim=1)), shape=(3, 4)),
    Case("Group blocks of rows", lambda: Group(L1L2(0.6, 0.4), by=blocks(2)), shape=(4, 3)),
    Case("Group tiles", lambda: Group(L1(0.4), by=blocks(2, 2)), shape=(4, 6)),
    Case("Group tiles of a row", lambda: Group(L1(0.4), by=blocks(1, 3), weights=1.0), shape=(4, 6)),
    _rows("Group whole", lambda: Group(L1(0.3), by=whole)),
    _rows("Group L1L2", lambda: Group(L1L2(0.6, 0.4), by=rows)),
    _rows("Group L2", lambda: Group(L2(0.4), by=rows), **_FLAT),
    _rows("Group MCP", lambda: Group(MCP(0.4, 2.5), by=rows), **_CONCAVE),
    _rows("Group MCP labels", lambda: Group(MCP(0.4, 2.5), by=labels(ENTRY_LABELS)), **_CONCAVE),
    _rows("Group MCP columns", lambda: Group(MCP(0.4, 2.5), by=columns, weights=1.0), **_CONCAVE),
    _rows("Group SCAD", lambda: Group(SCAD(0.4, 3.2), by=rows, weights=1.0), **_CONCAVE),
    _rows("Group L0", lambda: Group(L0(0.3), by=rows), **_CONCAVE, **_FLAT),
    _rows("Group own", lambda: Group(OwnLogSum(0.3), by=rows, weights=1.0), **_CONCAVE),
    *[
        _rows(
            f"Group {inner.__name__}, weights 0 and inf", lambda i=inner: Group(i(0.4), rows, weights=GROUP_MASK), **f
        )
        for inner, f in [
            (L1L2, {"spares": True}),
            (L2, {"spares": True, **_FLAT}),
            (MCP, {"spares": True, **_CONCAVE}),
            (SCAD, {"spares": True, **_CONCAVE}),
            (L0, {"spares": True, **_CONCAVE, **_FLAT}),
        ]
    ],
]
MOVED = [
    _entry("Towards L1", lambda: Towards(L1(0.4), REFERENCE)),
    _entry("Towards L2", lambda: Towards(L2(0.4), REFERENCE), **_FLAT),
    _entry("Towards MCP", lambda: Towards(MCP(0.4, 2.5), REFERENCE), **_CONCAVE),
    _entry("Towards Weighted", lambda: Towards(Weighted(L1(0.4), MASK), REFERENCE), spares=True),
    _rows("Towards Group", lambda: Towards(Group(L1(0.4), by=rows), REFERENCE_ROWS)),
    _rows("Towards sparse group", lambda: Towards(Group(L1(0.7), by=rows) + L1(0.3), REFERENCE_ROWS)),
]
SUMS = [
    _entry("L1 + L2", lambda: L1(0.6) + L2(0.4)),
    _entry("L1 + L2 at half the strength", lambda: (L1(1.0) + L2(0.7)).with_alpha(0.5)),
    _entry("L2 + L2", lambda: L2(0.4) + L2(0.6), **_FLAT),
    _entry("MCP + L2", lambda: MCP(0.4, 2.5) + L2(0.6), **_CONCAVE),
    _entry("Weighted L1 + Weighted L2", lambda: Weighted(L1(0.4), SOFT_MASK) + Weighted(L2(0.6), SOFT_MASK.flip(0))),
    _entry("L1 + L2 on some entries", lambda: L1(0.4) + Weighted(L2(0.6), torch.where(MASK.isinf(), 1.0, MASK))),
    _rows("Group + L1", lambda: Group(L1(0.7), by=rows) + L1(0.3)),
    _rows("L1 + Group", lambda: L1(0.3) + Group(L1(0.7), by=rows)),
    _rows("Group + L1 + L2", lambda: Group(L1(0.5), by=rows) + L1(0.2) + L2(0.3)),
    _rows("Group + Weighted L1", lambda: Group(L1(0.7), by=rows) + Weighted(L1(0.3), GROUP_MASK[:, None])),
    _rows("Group + NonNegative L1", lambda: Group(L1(0.7), by=rows) + NonNegative(L1(0.3))),
    _rows("Group MCP + L1", lambda: Group(MCP(0.7, 2.5), by=rows) + L1(0.3), **_CONCAVE),
    _rows("Group L1L2 + L1", lambda: Group(L1L2(0.6, 0.4), by=rows) + L1(0.4)),
]
ORDERED = [
    _rows("LInf", lambda: LInf(0.9), **_ORDER),
    _rows("LInf rows", lambda: LInf(0.5, by=rows), **_ORDER),
    _rows("LInf columns", lambda: LInf(0.5, by=columns), **_ORDER),
    _rows("LInf labels of entries", lambda: LInf(0.5, by=labels(ENTRY_LABELS)), **_ORDER),
    Case("LInf filters", lambda: LInf(0.5, by=filters), shape=(4, 2, 3), **_ORDER),
    _rows("SLOPE", lambda: SLOPE(0.2), **_ORDER),
    _rows("SLOPE of own weights", lambda: SLOPE(0.3, FALLING), **_ORDER),
    _rows("SLOPE of a single weight", lambda: SLOPE(0.9, (FALLING > 2.9).double()), **_ORDER),
    _rows("NonNegative LInf", lambda: NonNegative(LInf(0.5, by=rows)), conjugate=False, **_ORDER),
    _rows("NonNegative SLOPE", lambda: NonNegative(SLOPE(0.2)), conjugate=False, **_ORDER),
    _rows("SLOPE + L2", lambda: SLOPE(0.2) + L2(0.8), conjugate=False, **_ORDER),
    _rows("Towards SLOPE", lambda: Towards(SLOPE(0.2), REFERENCE_ROWS), **_ORDER),
]
BOUNDED = [
    _entry("Box", lambda: Box(-1.0, 0.7), **_BOUND),
    _entry("Box, one-sided", lambda: Box(-INF, 0.7), **_BOUND),
    _entry("Box of tensors", lambda: Box(-SOFT_MASK, MASK), **_BOUND),
    _rows("Simplex", lambda: Simplex(1.3), inside=_one_hot(whole, 1.3), **_BOUND),
    _rows("Simplex rows", lambda: Simplex(by=rows), inside=_one_hot(rows, 1.0), **_BOUND),
    _rows("L1Ball", lambda: L1Ball(2.5), **_BOUND),
    _rows("L1Ball columns", lambda: L1Ball(2.5, by=columns), **_BOUND),
    _rows("L1Ball labels of entries", lambda: L1Ball(1.5, by=labels(ENTRY_LABELS)), **_BOUND),
    _rows("L2Ball", lambda: L2Ball(2.5), **_BOUND),
    _rows("MaxNorm", lambda: MaxNorm(1.5), **_BOUND),
    _rows("MaxNorm labels of slices", lambda: MaxNorm(1.5, by=labels(SLICE_LABELS)), **_BOUND),
    _rows("UnitNorm", UnitNorm, inside=_one_hot(rows, 1.0), **{**_BOUND, **_CONCAVE}),
    _rows(
        "UnitNorm labels of entries",
        lambda: UnitNorm(by=labels(ENTRY_LABELS)),
        inside=_one_hot(labels(ENTRY_LABELS), 1.0),
        **{**_BOUND, **_CONCAVE},
    ),
    _rows("NonNegative L1Ball", lambda: NonNegative(L1Ball(2.5)), **{**_BOUND, "conjugate": False}),
    _rows("NonNegative MaxNorm", lambda: NonNegative(MaxNorm(1.5)), **{**_BOUND, "conjugate": False}),
    _rows("Towards L2Ball", lambda: Towards(L2Ball(1.5), REFERENCE_ROWS), **_BOUND),
]
BOUNDED_SUMS = [
    _rows("L1 + L2Ball", lambda: L1(1.0) + L2Ball(2.5), conjugate=False, **_ORDER),
    _rows("MaxNorm + L1", lambda: MaxNorm(1.5) + L1(1.0), conjugate=False, **_ORDER),
]
_COUNT = {**_CONCAVE, **_FLAT, "constraint": True, "coupled": True}
COUNTED = [
    Case("TopK", lambda: TopK(4), **_COUNT),
    Case("TopK of a share", lambda: TopK(0.4), shape=(5, 3), **_COUNT),
    Case("NM", lambda: NM(1, 3), shape=(4, 6), **_COUNT),
    Case("NM of kernels", lambda: NM(1, 2), shape=(3, 4, 2), **_COUNT),
    _rows("Group TopK", lambda: Group(TopK(2), by=rows), **_COUNT),
    _rows("Group TopK columns", lambda: Group(TopK(0.4), by=columns), **_COUNT),
    _rows("Group TopK labels", lambda: Group(TopK(2), by=labels(ENTRY_LABELS)), **_COUNT),
    Case("Group NM", lambda: Group(NM(1, 2), by=rows), shape=(4, 3), **_COUNT),
    Case("NonNegative TopK", lambda: NonNegative(TopK(4)), **_COUNT),
    Case("Towards TopK", lambda: Towards(TopK(4), REFERENCE), **_COUNT),
    Case("TopK + L2", lambda: TopK(4) + L2(1.0), coupled=True, **_CONCAVE, **_FLAT),
    _rows("Group TopK + L1", lambda: Group(TopK(2), by=rows) + L1(1.0), coupled=True, **_CONCAVE),
]
MATRICES = [
    _rows("Nuclear", lambda: Nuclear(0.4), **_ORDER),
    Case("Nuclear of filters", lambda: Nuclear(0.5), shape=(4, 2, 3), **_ORDER),
    _rows("Nuclear + L2", lambda: Nuclear(0.6) + L2(0.4), conjugate=False, **_ORDER),
    _rows("Towards Nuclear", lambda: Towards(Nuclear(0.4), REFERENCE_ROWS), **_ORDER),
]
_FUSED = {"conjugate": False, **_ORDER}
NEIGHBOURS = [
    Case("TotalVariation", lambda: TotalVariation(0.4), **_FLAT, **_FUSED),
    _rows("TotalVariation along rows", lambda: TotalVariation(0.4, dim=1), **_FLAT, **_FUSED),
    _rows("TotalVariation along dim 0", lambda: TotalVariation(0.4, dim=0), **_FLAT, **_FUSED),
    _rows("TotalVariation + L2", lambda: TotalVariation(0.6) + L2(0.4), **_FLAT, **_FUSED),
    _rows("Towards TotalVariation", lambda: Towards(TotalVariation(0.4), REFERENCE_ROWS), **_FLAT, **_FUSED),
    Case("fused lasso", lambda: TotalVariation(0.7) + L1(0.3), **_FUSED),
    _rows("L1L2 + TotalVariation", lambda: L1L2(0.3, 0.5) + TotalVariation(0.7, dim=0), **_FUSED),
    _rows(
        "TotalVariation + NonNegative L1",
        lambda: TotalVariation(0.7) + NonNegative(L1(0.3)),
        **_FUSED,
    ),
]
RANKS = [
    _rows("Rank", lambda: Rank(1), **{**_BOUND, **_CONCAVE}),
    Case("Rank of filters", lambda: Rank(2), shape=(4, 2, 3), **{**_BOUND, **_CONCAVE}),
    _rows("Rank 0", lambda: Rank(0), **{**_BOUND, **_CONCAVE}),
]
WITHOUT_PROX = [Spectral(0.4), Spectral(0.4, power=2), Orthogonality(0.4)]
UNCENTRED = [_entry("Towards L1 + L2", lambda: Towards(L1(0.4), REFERENCE) + L2(0.6))]  # never zero
CATALOG = [
    *[*PLAIN, *WEIGHTED, *CONSTRAINED, *GROUPED, *MOVED, *SUMS],
    *[*ORDERED, *BOUNDED, *BOUNDED_SUMS, *COUNTED, *MATRICES, *NEIGHBOURS, *RANKS],
]
