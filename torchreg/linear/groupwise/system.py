"""A growing least-squares problem over whole groups: what Newton's method asks of it."""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.linear.groupwise.growing_gram import FullGram, Gram, ThinGram
from torchreg.linear.groupwise.model import Model, dense_direction, same_group
from torchreg.linear.groupwise.partition import Partition, contiguous
from torchreg.linear.groupwise.strengths import Strengths, dual_scale, penalty_gap

ROUNDING = 1e-15  # relative: less is not told from zero
_TINY = 1e-300


class GroupSystem:
    """``w' G w / 2 - cross' w`` over entries: a column's coefficient for one output; a group has whole columns.

    Args:
        device: where to compute.
        outputs: K, coefficients of each column.
        width: columns of every group, None where they differ.
        limit: no more columns than this will ever come.
        energy: the target's sum of squares.
        thin: whether G comes as rows B with ``G = B B'``.

    Attributes:
        parts: the groups of the entries.
        gram, quick: G in double and in single precision.
        thin: as given.
        cross, diagonal: the linear part and the diagonal of G, shaped.
        bound: at least the largest eigenvalue of each group's block of G, shaped.
    """

    def __init__(
        self, device: torch.device, outputs: int, width: int | None, limit: int, energy: float, *, thin: bool
    ) -> None:
        self.outputs, self.energy, self._width = outputs, energy, None if width is None else width * outputs
        self.thin = thin
        self.gram: Gram = ThinGram(device, outputs) if thin else FullGram(device, outputs, limit)
        single = torch.float32
        self.quick: Gram = ThinGram(device, outputs, single) if thin else FullGram(device, outputs, limit, single)
        self._sizes = torch.zeros(0, dtype=torch.long, device=device)
        self.parts: Partition = contiguous(self._sizes, self._width)
        self.cross = self.diagonal = self.bound = self._steepest = torch.zeros(0, dtype=torch.float64, device=device)

    def append(self, piece: Tensor, cross: Tensor, sizes: Tensor) -> None:
        """New groups.

        Args:
            piece: products of their columns with all columns, old and new, (size + k, k), or their rows of B.
            cross: their entries of the linear part, (k * outputs,).
            sizes: how many columns each has.
        """
        new = self.gram.corner(piece)
        self.gram.append(piece)
        self.quick.append(piece.to(torch.float32))
        fresh = contiguous(sizes, None if self._width is None else self._width // self.outputs)
        bound = fresh.largest(fresh.shaped((new.abs() * same_group(fresh)).sum(1))).view(-1)
        self._steepest = torch.cat([self._steepest, bound])
        self._sizes = torch.cat([self._sizes, sizes * self.outputs])
        self.parts = contiguous(self._sizes, self._width)
        diagonal = new.diagonal().repeat_interleave(self.outputs)
        self.cross = self.parts.shaped(torch.cat([self.cross.view(-1), cross]))
        self.diagonal = self.parts.shaped(torch.cat([self.diagonal.view(-1), diagonal]))
        least = (self._steepest.max() * ROUNDING).clamp(min=_TINY)
        self.bound = self.parts.column(self._steepest.maximum(least))

    def aim(self, cross: Tensor, energy: float) -> None:
        """Another linear part, shaped, and sum of squares of the target."""
        self.cross, self.energy = cross, energy

    def entries_gram(self, entries: Tensor) -> Tensor:
        """The matrix of the entries of some whole groups, (m, m)."""
        gram = self.gram.some(self.columns(entries))
        if self.outputs == 1:
            return gram
        return torch.kron(gram, torch.eye(self.outputs, dtype=gram.dtype, device=gram.device))

    def columns(self, entries: Tensor) -> Tensor:
        """The columns of the data to which the entries of whole groups belong."""
        return entries[:: self.outputs] // self.outputs

    def gap(self, strengths: Strengths, w: Tensor, norms: Tensor, g: Tensor) -> float:
        """The duality gap over these groups; those without a penalty count by what they could still gain.

        Args:
            strengths: of the penalty.
            w: coefficients, shaped.
            norms: of their groups.
            g: correlations, shaped.
        """
        pull, explained = (w * g).sum(), (w * self.cross).sum()
        if strengths.signed or strengths.ridge is not None or strengths.free is not None:
            scale = dual_scale(strengths, g)
            price = penalty_gap(strengths, w, scale * g) + scale * pull
        else:
            scale = (strengths.l1 / self.parts.norms(g)).min()
            price = (strengths.l1 * norms).sum()
        if strengths.free is not None:
            slope = self.parts.norms(strengths.left(g))
            price = price + (strengths.free * slope * (norms + slope / self.bound)).sum()
        s, total, taken, fitted = torch.stack([scale, price, pull, explained]).tolist()
        s = min(s, 1.0)
        return 0.5 * (1.0 - s) ** 2 * max(self.energy - fitted - taken, 0.0) + abs(total - s * taken)

    def exact_direction(self, strengths: Strengths, at: Model, groups: Tensor) -> Tensor | None:
        """Newton's direction in some groups by factorisation; None where the matrix is not positive definite."""
        entries, parts = self.parts.entries(groups), self.parts.part(groups)

        def column(v: Tensor) -> Tensor:
            return parts.column(v.view(-1).index_select(0, groups))

        def shaped(v: Tensor) -> Tensor:
            return parts.shaped(v.expand_as(at.slope).reshape(-1).index_select(0, entries))

        few = Model(shaped(at.unit), column(at.stiffness), column(at.shift), shaped(at.free), shaped(at.slope))
        part = strengths.part(groups, entries, parts)
        way = dense_direction(self.entries_gram(entries), same_group(parts), part, few)
        if way is None:
            return None
        return torch.zeros_like(at.slope).view(-1).index_copy_(0, entries, way.view(-1)).view(at.slope.shape)
