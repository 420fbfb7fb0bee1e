"""Least squares on data larger than memory: its second moments, from chunks of rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchreg.linear.data.validation import as_target, check_total, given_weights
from torchreg.linear.datafits import Quadratic
from torchreg.linear.designs.gram_blocks import mirrored
from torchreg.linear.designs.inputs import as_design
from torchreg.linear.designs.structure import check_structure
from torchreg.linear.intercept import mean_of

Chunk: TypeAlias = tuple[Any, Any] | tuple[Any, Any, Any]
Chunks: TypeAlias = Iterable[Chunk]


@dataclass(frozen=True)
class RowChunks:
    """Arrays, or memory maps of files, as an iterable of chunks of rows.

    Chunks are pairs ``(X, y)``, or triples ``(X, y, sample_weight)`` where there are weights.

    The catch: a chunk is a view, so a memory map stays on disk until its rows are needed.

    Args:
        X: (n, p), of any library whose rows can be sliced.
        y: (n,) or (n, K).
        sample_weight: >= 0, (n,); None where all rows weigh the same.
        size: rows of a chunk; a few thousand keep the matrix products long.

    Raises:
        ValueError: if the numbers of rows differ, or ``size`` is no whole number >= 1.
        TypeError: if rows cannot be sliced, as of a list of lists or a scipy matrix in coordinate format.

    Source:
        Chan, Golub and LeVeque, American Statistician 37, 1983 (moments of chunks, put together).

    Example:
        >>> import numpy as np
        >>> chunks = RowChunks(np.eye(5), np.arange(5.0), size=2)
        >>> [len(y) for X, y in chunks]
        [2, 2, 1]
    """

    X: Any
    y: Any
    _: KW_ONLY
    sample_weight: Any = None
    size: int = 8192

    def __post_init__(self) -> None:
        if not isinstance(self.size, Integral) or self.size < 1:
            raise ValueError(f"RowChunks needs size >= 1, a whole number, got {self.size!r}.")
        check_structure(self.X)  # before rows are cut out by pointers that scipy trusts
        lengths = [_rows_of(part) for part in self._parts]
        if len(set(lengths)) > 1:
            raise ValueError(f"Found input variables with inconsistent numbers of samples: {lengths}")

    def __iter__(self) -> Iterator[Chunk]:
        for start in range(0, self.X.shape[0], self.size):
            yield tuple(part[start : start + self.size] for part in self._parts)

    @property
    def _parts(self) -> tuple[Any, ...]:
        return (self.X, self.y) if self.sample_weight is None else (self.X, self.y, self.sample_weight)


@dataclass(frozen=True)
class ChunkMoments:
    """Weighted means of rows that were read chunk by chunk, and their second moments about these means.

    A mean is the sum of an origin and an offset: where it is huge, their difference has digits that it has not itself.

    Shapes:
        origin, offset, mean: (p,). y_origin, y_offset, y_mean, energy: 0-d or (K,).
        gram: (p, p). cross: (p,) or (p, K).

    Attributes:
        n: number of rows. total: sum of their weights.
        origin, offset: of the columns' means. y_origin, y_offset: of the target's.
        gram, cross, energy: mean products of centred columns, of these with the centred target, and its mean square.
    """

    n: int
    total: float
    origin: Tensor
    y_origin: Tensor
    offset: Tensor
    y_offset: Tensor
    gram: Tensor
    cross: Tensor
    energy: Tensor

    @property
    def mean(self) -> Tensor:
        """The means of the columns."""
        return self.origin + self.offset

    @property
    def y_mean(self) -> Tensor:
        """The mean of the target."""
        return self.y_origin + self.y_offset


def _rows_of(part: Any) -> int:
    """The number of rows of an array that can be cut into chunks."""
    try:
        part[:0]
        return int(part.shape[0])
    except (AttributeError, TypeError):
        raise TypeError(
            f"RowChunks takes arrays whose rows can be sliced, got {type(part).__name__}; use numpy.asarray, or "
            "X.tocsr() of a scipy matrix."
        ) from None


def are_chunks(X: Any, y: Any) -> bool:  # noqa: N803
    """Whether X stands for chunks of rows: `RowChunks`, or anything but an array where there is no target."""
    return isinstance(X, RowChunks) or (y is None and not hasattr(X, "shape"))


def refuse_chunks(X: Any, y: Any) -> None:  # noqa: N803
    """Refuse chunks of rows where one array is needed.

    Raises:
        ValueError: if X stands for chunks.
    """
    if are_chunks(X, y):
        raise ValueError(
            f"X is {type(X).__name__} and y {type(y).__name__}, but this fit requires y to be passed, and X as one "
            "array that holds all rows; fit_path alone takes chunks of rows."
        )


def moments_of_chunks(chunks: Chunks, *, device: torch.device | str | None = None) -> ChunkMoments:
    """Weighted means and second moments by one pass over chunks of rows.

    ``gram = (1 / sum s_i) sum_i s_i (x_i - mean)(x_i - mean)'``, and so the products with y and the squares of y

    Each chunk is centred by its own mean, then merged, so no digits are lost to large means. The memory is
    that of one chunk and of two (p, p) matrices.

    Args:
        chunks: pairs (X, y) or triples (X, y, sample_weight), the weights 1 where they are left out, in an iterable
            that can be iterated again, like a list or `RowChunks`; each X is whatever `as_design` takes.
        device: where to compute; None for where the first chunk is.

    Raises:
        TypeError: if ``chunks`` can be iterated once only, or holds neither pairs nor triples.
        ValueError: if there is no row, all weights are zero, chunks do not fit each other, or something is not finite.

    Source:
        Chan, Golub and LeVeque, American Statistician 37, 1983: merging of co-moments.

    Example:
        >>> import numpy as np
        >>> found = moments_of_chunks(RowChunks(np.array([[1.0], [3.0], [5.0]]), np.array([1.0, 2.0, 3.0]), size=2))
        >>> found.n, found.mean.tolist(), round(float(found.gram), 9)
        (3, [3.0], 2.666666667)
    """
    found: ChunkMoments | None = None
    for chunk in _opened(chunks):
        part = _of_one(chunk, device)
        device = part.gram.device
        found = part if found is None else _merged(found, part)
    if found is None:
        raise ValueError("Found array with 0 sample(s): there is no chunk, or it was read before; 1 row is required.")
    _check(found)
    mirrored(found.gram)
    return found


def _check(found: ChunkMoments) -> None:
    check_total(found.total)
    if not math.isfinite(found.total + float(found.gram.diagonal().sum() + found.energy.sum())):
        raise ValueError("Weights, or squares of X or y, add up to more than float64 holds; divide them by a number.")


def _of_one(chunk: Any, device: torch.device | str | None) -> ChunkMoments:
    """The moments of one chunk."""
    X, y, given = _parts(chunk)  # noqa: N806
    design = as_design(X, device)
    target = Quadratic().prepare(as_target(y, design))
    weights = given_weights(given, design.n, design.device)
    total = float(weights.sum())
    weights = weights / total if total > 0.0 else weights
    design = design.standardised(weights, centre=True, scale=False)
    assert design.mean is not None
    y_mean = mean_of(target, weights)
    rest = target - y_mean
    y_offset = mean_of(rest, weights)
    rest = rest - y_offset
    weighted = weights[:, None] * rest if rest.dim() == 2 else weights * rest
    return ChunkMoments(
        design.n, total, design.mean, y_mean, design.transposed(weights), y_offset,
        design.gram(weights), design.transposed(weighted), (weighted * rest).sum(0),
    )  # fmt: skip


def _merged(a: ChunkMoments, b: ChunkMoments) -> ChunkMoments:
    """The moments of both; the Gram matrix of ``a`` becomes that of the result."""
    if len(a.origin) != len(b.origin) or a.y_origin.shape != b.y_origin.shape:
        raise ValueError(
            f"Chunks must have the same columns and outputs, got {len(a.origin)} and {len(b.origin)} columns, "
            f"y of shape {('n', *a.y_origin.shape)} and {('n', *b.y_origin.shape)}."
        )
    if a.total == 0.0:
        return replace(b, n=a.n + b.n)
    total = a.total + b.total
    share = b.total / total
    both = share * (1.0 - share)
    step, y_step = (b.origin - a.origin) + (b.offset - a.offset), (b.y_origin - a.y_origin) + (b.y_offset - a.y_offset)
    jump = torch.outer(step, y_step) if y_step.dim() else step * y_step
    return ChunkMoments(
        a.n + b.n, total, a.origin, a.y_origin, a.offset + share * step, a.y_offset + share * y_step,
        gram=a.gram.lerp_(b.gram, share).addr_(step, step, alpha=both),
        cross=a.cross.lerp(b.cross, share) + both * jump,
        energy=a.energy.lerp(b.energy, share) + both * y_step.square(),
    )  # fmt: skip


def _opened(chunks: Any) -> Iterator[Any]:
    """An iterator over chunks that could be had again."""
    if not hasattr(chunks, "__iter__"):
        raise TypeError(f"Chunks of rows must be an iterable of pairs (X, y), got {type(chunks).__name__}.")
    opened = iter(chunks)
    if opened is chunks:
        raise TypeError(
            f"Chunks of rows can be read only once here ({type(chunks).__name__}); give something that starts anew "
            "each time, like a list, RowChunks(X, y) or an object whose __iter__ opens the data."
        )
    return opened


def _parts(chunk: Any) -> tuple[Any, Any, Any]:
    if not isinstance(chunk, (tuple, list)) or len(chunk) not in (2, 3):
        raise TypeError(f"Each chunk must be a pair (X, y) or a triple (X, y, weights), got {type(chunk).__name__}.")
    return chunk[0], chunk[1], chunk[2] if len(chunk) == 3 else None
