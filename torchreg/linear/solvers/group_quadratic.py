"""A quadratic over whole groups of columns that grows: its Gram matrix, the gap with a penalty, bounds of curvature."""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.linear.groupwise.conditions import GroupTerms
from torchreg.linear.groupwise.partition import contiguous

ROUNDING = 1e-15  # relative: less is not told from zero
_TINY = 1e-300
_FACTORED, _FACTORED_THIN = 700, 300  # entries of the largest matrix to be factored: of more, iterations cost less
_FACTORED_ELSEWHERE = 4096  # where a launch costs more than a thousand multiplications
_FIRST_BUFFER, _GROWTH = 64, 1.5  # columns of the buffer of a Gram matrix


class Gram:
    """A symmetric matrix over columns that grows, and acts on coefficients of K outputs, those of a column together.

    Args:
        device: where it lies.
        outputs: K.
        thin: whether it comes as rows B with ``G = B B'``, and is never formed.
    """

    def __init__(self, device: torch.device, outputs: int, *, thin: bool) -> None:
        self._outputs, self._thin = outputs, thin
        self._matrix = self._buffer = torch.zeros(0, 0, dtype=torch.float64, device=device)
        self._single = self._matrix.float()

    def append(self, piece: Tensor) -> Tensor:
        """New columns, k of them, by their products with all, (size + k, k), or by their rows of B, (k, n).

        Returns:
            The products of the new columns with each other.
        """
        old, size = len(self._matrix), len(piece)
        if self._thin:
            self._matrix = torch.cat([self._matrix, piece]) if old else piece
            return piece @ piece.T
        if size > len(self._buffer):
            width = max(size, int(_GROWTH * old), _FIRST_BUFFER)
            self._buffer = self._buffer.new_empty(width, width)
            self._buffer[:old, :old] = self._matrix
        self._matrix = self._buffer[:size, :size]
        self._matrix[:, old:] = piece
        self._matrix[old:, :old] = piece[:old].T
        return piece[old:]

    def times(self, v: Tensor) -> Tensor:
        """The product with a vector, (size * K,), in its precision; half of the digits take half of the time."""
        matrix = self._matrix
        if v.dtype is torch.float32:
            if len(self._single) != len(matrix):
                self._single = matrix.float()
            matrix = self._single
        if self._outputs == 1:
            return torch.mv(matrix, torch.mv(matrix.T, v) if self._thin else v)
        table = v.view(-1, self._outputs).T
        return ((table @ matrix) @ matrix.T if self._thin else table @ matrix).T.reshape(-1)

    def block(self, entries: Tensor) -> Tensor:
        """The matrix of some entries of vectors, those of different outputs unrelated."""
        columns = entries if self._outputs == 1 else entries // self._outputs
        part = self._matrix.index_select(0, columns)
        block = part @ part.T if self._thin else part.index_select(1, columns)
        if self._outputs == 1:
            return block
        output = entries % self._outputs
        return block.mul_(output[:, None] == output)


class GroupQuadratic:
    """``w' G w / 2 - cross' w`` over entries: a column's coefficient for one output; a group has whole columns.

    Args:
        device: where to compute.
        outputs: K, coefficients of each column.
        width: columns of every group, None where they differ.
        energy: the target's sum of squares.
        thin: whether G comes as rows B with ``G = B B'``.

    Attributes:
        parts: the groups of the entries.
        gram: G.
        cross, diagonal: the linear part and the diagonal of G, (entries,).
        bound: at least the largest eigenvalue of each group's block of G, (groups,).
    """

    def __init__(self, device: torch.device, outputs: int, width: int | None, energy: float, *, thin: bool) -> None:
        self.energy, self.thin, self.gram = energy, thin, Gram(device, outputs, thin=thin)
        self._outputs, self._width = outputs, width
        self._sizes = torch.zeros(0, dtype=torch.long, device=device)
        self.parts = contiguous(self._sizes, width)
        self.cross = self.diagonal = self.bound = torch.zeros(0, dtype=torch.float64, device=device)
        self._factored = _FACTORED_ELSEWHERE
        if device.type == "cpu":
            self._factored = _FACTORED_THIN if thin else _FACTORED
        self._block: tuple[Tensor, Tensor, Tensor] | None = None

    def append(self, piece: Tensor, cross: Tensor, sizes: Tensor) -> None:
        """New groups.

        Args:
            piece: products of their columns with all columns, old and new, (size + k, k), or their rows of B.
            cross: their entries of the linear part, (k * K,).
            sizes: how many columns each has.
        """
        new, fresh = self.gram.append(piece), contiguous(sizes, self._width)
        bound = torch.cat([self.bound, fresh.largest((new.abs() * same_group(fresh.labels)).sum(1))])
        self.bound = bound.clamp_(min=_TINY).maximum(bound.max() * ROUNDING)
        self._sizes = torch.cat([self._sizes, sizes * self._outputs])
        self.parts = contiguous(self._sizes, None if self._width is None else self._width * self._outputs)
        self.cross = torch.cat([self.cross, cross])
        self.diagonal = torch.cat([self.diagonal, new.diagonal().repeat_interleave(self._outputs)])
        self._block = None

    def aim(self, cross: Tensor, energy: float) -> None:
        """Another linear part, and sum of squares of the target."""
        self.cross, self.energy = cross, energy

    def gap(self, penalty: GroupTerms, w: Tensor, g: Tensor) -> Tensor:
        """The duality gap over these groups, 0-d; those without a penalty count by what they could still gain."""
        scale = penalty.scale(g)
        gap = penalty.gap(w, scale * g)
        if penalty.unpenalised is not None:
            slope = penalty.reach(g)
            gap = gap + (penalty.unpenalised * slope * (self.parts.norms(w) + slope / self.bound)).sum()
        squares = (self.energy - torch.dot(w, self.cross + g)).clamp(min=0.0)
        return gap + 0.5 * (1.0 - scale).square() * squares

    def is_factored(self, entries: Tensor) -> bool:
        """Whether the matrix of some entries is small enough."""
        return len(entries) <= self._factored

    def block(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix of some entries, and `same_group` of them; kept until others are asked for."""
        if self._block is None or not torch.equal(self._block[0], entries):
            self._block = entries, self.gram.block(entries), same_group(self.parts.labels[entries])
        return self._block[1], self._block[2]


def same_group(labels: Tensor) -> Tensor:
    """1.0 where two entries are of one group, else 0, (entries, entries)."""
    return (labels[:, None] == labels).double()
