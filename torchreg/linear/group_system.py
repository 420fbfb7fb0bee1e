"""A growing least-squares problem over whole groups: what Newton's method asks of it."""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.linear.group_model import Model, dense_direction
from torchreg.linear.group_strengths import Strengths, dual_scale, penalty_gap
from torchreg.linear.growing_gram import GrowingGram
from torchreg.linear.partition import Even, Partition, partition

ROUNDING = 1e-15  # relative: less is not told from zero
_TINY = 1e-300


class GroupSystem:
    """``w' G w / 2 - cross' w`` over entries: a column's coefficient for one output; a group has whole columns.

    Args:
        device: where to compute.
        outputs: K, coefficients of each column.
        limit: no more columns than this will ever come.
        energy: the target's sum of squares.

    Attributes:
        parts: the groups of the entries.
        gram, quick: G in double and in single precision.
        cross, diagonal: the linear part and the diagonal of G, shaped.
        bound: at least the largest eigenvalue of each group's block of G, shaped.
    """

    def __init__(self, device: torch.device, outputs: int, limit: int, energy: float) -> None:
        self.outputs, self.energy = outputs, energy
        self.gram = GrowingGram(device, outputs, limit)
        self.quick = GrowingGram(device, outputs, limit, torch.float32)
        self._labels = torch.zeros(0, dtype=torch.long, device=device)
        self.parts: Partition = Even(self._labels, 0)
        self.cross = self.diagonal = self.bound = self._steepest = self.gram.matrix.new_zeros(0)

    def append(self, block: Tensor, cross: Tensor, sizes: Tensor) -> None:
        """New groups.

        Args:
            block: products of their columns with all columns, old and new, (size + k, k).
            cross: their entries of the linear part, (k * outputs,).
            sizes: how many columns each has.
        """
        new = block[len(self.gram.matrix) :]
        self.gram.append(block)
        self.quick.append(block.to(torch.float32))
        rows = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
        sums = torch.where(rows[:, None] == rows, new.abs(), 0.0).sum(1)
        bound = sums.new_zeros(len(sizes)).scatter_reduce_(0, rows, sums, "amax")
        self._steepest = torch.cat([self._steepest, bound])
        self._labels = torch.cat([self._labels, rows.repeat_interleave(self.outputs) + len(self.parts)])
        self.parts = partition(self._labels)
        diagonal = new.diagonal().repeat_interleave(self.outputs)
        self.cross = self.parts.shaped(torch.cat([self.cross.view(-1), cross]))
        self.diagonal = self.parts.shaped(torch.cat([self.diagonal.view(-1), diagonal]))
        least = (self._steepest.max() * ROUNDING).clamp(min=_TINY)
        self.bound = self.parts.column(self._steepest.maximum(least))

    def entries_gram(self, entries: Tensor) -> Tensor:
        """The matrix of the entries of some whole groups, (m, m)."""
        rows = self.rows(entries)
        gram = self.gram.block(rows, rows)
        if self.outputs == 1:
            return gram
        return torch.kron(gram, torch.eye(self.outputs, dtype=gram.dtype, device=gram.device))

    def rows(self, entries: Tensor) -> Tensor:
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
        explained, pull = (w * self.cross).sum(), (w * g).sum()
        if strengths.signed or strengths.ridge is not None or strengths.free is not None:
            scale = dual_scale(strengths, g)
            rest = penalty_gap(strengths, w, scale * g)
        else:
            scale = (strengths.l1 / self.parts.norms(g)).min().clamp(max=1.0)
            rest = (strengths.l1 * norms).sum() - scale * pull
        if strengths.free is not None:
            slope = self.parts.norms(strengths.left(g))
            rest = rest + (strengths.free * slope * (norms + slope / self.bound)).sum()
        squares = (self.energy - explained - pull).clamp(min=0.0)
        return abs(float(0.5 * (1.0 - scale).square() * squares + rest))

    def exact_direction(self, strengths: Strengths, at: Model, groups: Tensor) -> Tensor | None:
        """Newton's direction in some groups by factorisation; None where the matrix is not positive definite."""
        entries, parts = self.parts.entries(groups), self.parts.part(groups)

        def column(v: Tensor) -> Tensor:
            return parts.column(v.view(-1).index_select(0, groups))

        def shaped(v: Tensor) -> Tensor:
            return parts.shaped(v.expand_as(at.slope).reshape(-1).index_select(0, entries))

        few = Model(shaped(at.unit), column(at.stiffness), column(at.shift), shaped(at.free), shaped(at.slope))
        way = dense_direction(self.entries_gram(entries), strengths.part(groups, entries, parts), few)
        if way is None:
            return None
        return torch.zeros_like(at.slope).view(-1).index_copy_(0, entries, way.view(-1)).view(at.slope.shape)
