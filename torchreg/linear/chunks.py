"""Least squares on data larger than memory: its second moments, from chunks of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchreg.linear.datafits import Quadratic
from torchreg.linear.design import Design
from torchreg.linear.gram_blocks import mirrored
from torchreg.linear.inputs import as_design
from torchreg.linear.moments import Moments
from torchreg.linear.rows import as_target, as_weights

Chunks: TypeAlias = Iterable[tuple[Any, Any]]


@dataclass(frozen=True)
class RowChunks:
    """Arrays, or memory maps of files, as an iterable of chunks of rows (X, y).

    The catch: a chunk is a view, so a memory map stays on disk until its rows are needed.

    Args:
        X: (n, p), of any library whose rows can be sliced.
        y: (n,) or (n, K).
        size: rows of a chunk; a few thousand keep the matrix products long.

    Example:
        >>> import numpy as np
        >>> chunks = RowChunks(np.eye(5), np.arange(5.0), size=2)
        >>> [len(y) for X, y in chunks]
        [2, 2, 1]
    """

    X: Any
    y: Any
    size: int = 8192

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"RowChunks needs size >= 1, got {self.size}.")
        if self.X.shape[0] != self.y.shape[0]:
            given = [self.X.shape[0], self.y.shape[0]]
            raise ValueError(f"Found input variables with inconsistent numbers of samples: {given}")

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for start in range(0, self.X.shape[0], self.size):
            yield self.X[start : start + self.size], self.y[start : start + self.size]


@dataclass(frozen=True)
class ChunkMoments:
    """Second moments of rows that were read chunk by chunk, divided by their number.

    Shapes:
        mean: (p,). y_mean: 0-d or (K,).

    Attributes:
        n: number of rows.
        mean: what was subtracted from the columns; zeros without centring.
        y_mean: what was subtracted from the target; zeros without centring.
        moments: of the centred, or the raw, columns and target.
    """

    n: int
    mean: Tensor
    y_mean: Tensor
    moments: Moments


def moments_of_chunks(
    chunks: Chunks, *, fit_intercept: bool = True, device: torch.device | str | None = None
) -> ChunkMoments:
    """Means and second moments by one pass over chunks of rows, each row weighing the same.

    ``gram = (1/n) sum_i (x_i - mean)(x_i - mean)'``, and so the cross products with y and the squares of y

    Each chunk is centred by its own mean, then merged, so no digits are lost to large means. The memory is
    that of one chunk and of two (p, p) matrices.

    Args:
        chunks: an iterable of pairs (X, y) that can be iterated again, like a list or `RowChunks`; each X is
            whatever `as_design` takes.
        fit_intercept: whether to centre.
        device: where to compute; None for where the first chunk is.

    Raises:
        TypeError: if ``chunks`` can be iterated once only, or holds no pairs.
        ValueError: if there is no row, chunks do not fit each other, or something is not finite.

    Source:
        Chan, Golub and LeVeque, American Statistician 37, 1983: merging of co-moments.

    Example:
        >>> import numpy as np
        >>> found = moments_of_chunks(RowChunks(np.array([[1.0], [3.0], [5.0]]), np.array([1.0, 2.0, 3.0]), size=2))
        >>> found.n, found.mean.tolist(), round(float(found.moments.gram), 9)
        (3, [3.0], 2.666666667)
    """
    _refuse_one_shot(chunks)
    total: ChunkMoments | None = None
    for pair in chunks:
        X, y = _pair(pair)  # noqa: N806
        design = as_design(X, device)
        device = design.device
        target = Quadratic().prepare(as_target(y, design))
        part = _of_one(design, target, fit_intercept)
        total = part if total is None else _merged(total, part)
    if total is None:
        raise ValueError("Found array with 0 sample(s): there is no chunk, while a minimum of 1 row is required.")
    gram, cross, energy = total.moments.gram, total.moments.cross, total.moments.energy
    scaled = Moments(mirrored(gram).div_(total.n), cross / total.n, energy / total.n)
    return ChunkMoments(total.n, total.mean, total.y_mean, scaled)


def _of_one(design: Design, y: Tensor, fit_intercept: bool) -> ChunkMoments:
    """The moments of one chunk, not divided by its number of rows."""
    n, weights = design.n, as_weights(None, design)
    mean, y_mean = torch.zeros(design.p, dtype=torch.float64, device=design.device), torch.zeros_like(y[0])
    if fit_intercept:
        design = design.standardised(weights, centre=True, scale=False)
        mean = mean if design.mean is None else design.mean
        y_mean = y.mean(0)
        y_mean = y_mean + (y - y_mean).mean(0)
    y = y - y_mean
    moments = Moments(design.gram(weights).mul_(n), design.transposed(y), y.square().sum())
    return ChunkMoments(n, mean, y_mean, moments)


def _merged(a: ChunkMoments, b: ChunkMoments) -> ChunkMoments:
    """The moments of both; the Gram matrix of ``a`` becomes that of the result."""
    if len(a.mean) != len(b.mean) or a.y_mean.shape != b.y_mean.shape:
        raise ValueError(
            f"Chunks must have the same columns and outputs, got {len(a.mean)} and {len(b.mean)} columns, "
            f"y of shape (n, {tuple(a.y_mean.shape)}) and (n, {tuple(b.y_mean.shape)})."
        )
    n, left, right = a.n + b.n, a.moments, b.moments
    step, y_step, factor = b.mean - a.mean, b.y_mean - a.y_mean, a.n * b.n / n
    jump = torch.outer(step, y_step) if y_step.dim() else step * y_step
    moments = Moments(
        left.gram.add_(right.gram).addr_(step, step, alpha=factor),
        left.cross + right.cross + factor * jump,
        left.energy + right.energy + factor * y_step.square().sum(),
    )
    return ChunkMoments(n, a.mean + step * (b.n / n), a.y_mean + y_step * (b.n / n), moments)


def _refuse_one_shot(chunks: Any) -> None:
    if not hasattr(chunks, "__iter__"):
        raise TypeError(f"chunks must be an iterable of pairs (X, y), got {type(chunks).__name__}.")
    if iter(chunks) is chunks:
        raise TypeError(
            f"chunks can be read only once ({type(chunks).__name__}); give something that starts anew each time, "
            "like a list, RowChunks(X, y) or an object whose __iter__ opens the data."
        )


def _pair(pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"Each chunk must be a pair (X, y), got {type(pair).__name__}.")
    return pair[0], pair[1]
