"""What penalties without a kink have in common along a path: forced columns, and the shape of the ridge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchreg.penalties import L1Form

_SAME = 1e-12  # relative difference of shares that is rounding


@dataclass(frozen=True, eq=False)
class Pattern:
    """A ridge up to its strength: one decomposition serves all strengths of a pattern.

    Attributes:
        p: the number of all columns.
        kept: columns that may be other than zero, (m,); None for all.
        shares: of the strongest ridge, for each kept column, (m,), 0 for one without a ridge; None where all are 1.
    """

    p: int
    kept: Tensor | None
    shares: Tensor | None

    def fits(self, other: Pattern) -> bool:
        """Whether the same decomposition serves both."""
        return self is other or (_alike(self.kept, other.kept) and _alike(self.shares, other.shares))

    @property
    def count(self) -> int:
        """The number of kept columns."""
        return self.p if self.kept is None else len(self.kept)

    @property
    def ridged(self) -> Tensor | None:
        """Which kept columns have a ridge, (m,); None where all have."""
        ridged = None if self.shares is None else self.shares > 0.0
        return None if ridged is None or bool(ridged.all()) else ridged

    def free(self, like: Tensor) -> Tensor:
        """Numbers of the columns without a ridge beside others that have one, (k,), on the device of ``like``."""
        shares = like.new_ones(0) if self.shares is None else self.shares
        numbers = (shares == 0.0).nonzero().flatten()
        return numbers if self.kept is None else self.kept[numbers]

    def scales(self, like: Tensor) -> Tensor:
        """One over the share of each column, (p,); 0 without a ridge, and where the column is forced to zero."""
        ones = like.new_ones(self.count)
        scales = ones if self.shares is None else torch.where(self.shares > 0.0, 1.0 / self.shares, 0.0)
        return self.spread(scales)

    def ridge(self, strengths: Tensor) -> Tensor:
        """The ridge of each kept column for some strengths (r,), (m, r) or (1, r)."""
        return strengths[None] if self.shares is None else self.shares[:, None] * strengths

    def value(self, strengths: Tensor, w: Tensor) -> Tensor:
        """``sum_j ridge_j w_j^2 / 2`` for each of some strengths, (r,); ``w`` are the kept columns' coefficients."""
        root = w if self.shares is None else self.shares.sqrt()[:, None] * w
        return strengths * torch.linalg.vector_norm(root, dim=0).square() / 2.0

    def spread(self, rows: Tensor) -> Tensor:
        """What belongs to kept columns, (m, ...), with zeros for the others, (p, ...)."""
        if self.kept is None:
            return rows
        return rows.new_zeros(self.p, *rows.shape[1:]).index_copy_(0, self.kept, rows)

    def taken(self, columns: Tensor) -> Tensor:
        """The kept ones of all columns, (p, ...)."""
        return columns if self.kept is None else columns[self.kept]


def patterns_of(form: L1Form, coef: Tensor) -> list[tuple[Pattern, float]]:
    """Pattern and strongest ridge of each output; one pair if all have the same.

    Args:
        form: of a penalty without a kink.
        coef: of the shape, dtype and device of the coefficients, (p,) or (p, K).
    """
    if isinstance(form.l1, float) and form.l1 == 0.0 and isinstance(form.l2, float):
        return [(Pattern(len(coef), None, None), form.l2)]
    l1, l2 = (torch.as_tensor(part, dtype=coef.dtype, device=coef.device) for part in (form.l1, form.l2))
    if not (l1.dim() or l2.dim()):
        nothing = None if float(l1) == 0.0 else torch.empty(0, dtype=torch.int64, device=coef.device)
        return [(Pattern(len(coef), nothing, None), 0.0 if nothing is not None else float(l2))]
    tables = [part.expand(coef.shape).reshape(len(coef), -1) for part in (l1, l2)]
    shared = all(part.stride(1) == 0 or bool((part == part[:, :1]).all()) for part in tables)
    outputs = range(1 if shared else tables[0].shape[1])
    return [_pattern_of(tables[0][:, k], tables[1][:, k]) for k in outputs]


def _pattern_of(l1: Tensor, l2: Tensor) -> tuple[Pattern, float]:
    kept = None if bool((l1 == 0.0).all()) else (l1 == 0.0).nonzero().flatten()
    l2 = l2 if kept is None else l2[kept]
    top = float(l2.max()) if len(l2) else 0.0
    return Pattern(len(l1), kept, None if bool((l2 == top).all()) else l2 / top), top


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one is other:
        return one is other
    return one.shape == other.shape and bool(torch.allclose(one.double(), other.double(), rtol=_SAME, atol=0.0))
