"""Chunks of rows as an engine sees them: their second moments, and a few rows that have the same ones.

The rows serve what asks for rows and is not worth a way of its own: the null model, and certificates of penalties
that proximal gradient solves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchreg.linear.chunks import ChunkMoments, Chunks, moments_of_chunks
from torchreg.linear.datafits import Datafit
from torchreg.linear.designs.base import as_scale, deviation, divided
from torchreg.linear.designs.dense import Dense
from torchreg.linear.designs.gram_blocks import mirrored
from torchreg.linear.frame import Coordinates, Frame
from torchreg.linear.moments import Moments
from torchreg.linear.problem import Problem
from torchreg.linear.solvers.linear_algebra import safe_cholesky

_ROUNDING = 1e-15  # of the product of two norms: a mean product so small may be that of constants
_PIVOT = 1e-7  # least diagonal entry of the factor of a matrix with ones on its diagonal: the root of its rounding


def framed_chunks(
    chunks: Chunks, y: Any, datafit: Datafit, sample_weight: Any, offset: Any, fit_intercept: bool,
    standardize: bool, device: torch.device | str | None,
) -> Frame:  # fmt: skip
    """Read all chunks once; centre and scale their moments as `framed` does rows.

    Raises:
        TypeError: as `moments_of_chunks`.
        ValueError: as `moments_of_chunks`; also if the datafit is not quadratic, or a target, weights or an offset come
            beside the chunks.
    """
    _refuse(chunks, y, datafit, sample_weight, offset)
    found = moments_of_chunks(chunks, device=device)
    spread = deviation(found.mean, found.gram.diagonal())
    seen = _without_rounding(found, spread)
    if not fit_intercept:
        seen = _about_zero(seen)
    scale = as_scale(spread) if standardize else None
    gram, cross = seen.gram, seen.cross
    if scale is not None:
        gram, cross = mirrored(gram.div_(scale[:, None]).div_(scale)), divided(cross, scale)
    rows, target = _rows(gram, cross, seen.energy)
    design, weights = Dense(rows), target.new_full((len(rows),), 1.0 / len(rows))
    mean, shift = (seen.mean, seen.y_mean) if fit_intercept else (None, None)
    return Frame(
        seen.n, design, target, weights, None, fit_intercept, standardize,
        Problem(design, target, weights, None, datafit, fit_intercept=False),
        Coordinates(mean, scale, shift), Moments(gram, cross, seen.energy.sum(), detached=True),
    )  # fmt: skip


def _refuse(chunks: Any, y: Any, datafit: Datafit, sample_weight: Any, offset: Any) -> None:
    if not datafit.quadratic:
        raise ValueError(
            f"Chunks of rows are fitted with the datafit Quadratic alone, got {datafit}, which needs all rows at each "
            "step; give X and y as arrays that hold all of them."
        )
    if y is not None:
        raise ValueError(f"Chunks of rows (X, y) hold the target; pass y=None, got {type(y).__name__}.")
    if sample_weight is not None:
        raise ValueError(
            "Weights of chunks of rows come with them; leave sample_weight out and give RowChunks(X, y, "
            "sample_weight=...) or triples (X, y, sample_weight)."
        )
    if offset is not None:
        raise ValueError("Chunks of rows take no offset; subtract it from the y of each chunk, which is the same.")


def _without_rounding(found: ChunkMoments, spread: Tensor) -> ChunkMoments:
    """Exact zeros for constant columns, a constant target, and products with it that are rounding."""
    constant = spread == 0.0
    gram, energy = found.gram, torch.where(deviation(found.y_mean, found.energy) > 0.0, found.energy, 0.0)
    if bool(constant.any()):
        gram[constant], gram[:, constant] = 0.0, 0.0
    size = torch.where(constant, torch.inf, _ROUNDING * (found.mean.square() + gram.diagonal()).sqrt())
    least = size[:, None] * energy.sqrt() if energy.dim() else size * energy.sqrt()
    held = (energy > 0.0) & (found.cross.abs() > least)
    return replace(found, cross=torch.where(held, found.cross, 0.0), energy=energy)


def _about_zero(found: ChunkMoments) -> ChunkMoments:
    """The moments of columns and target that are not centred."""
    mean, y_mean = found.mean, found.y_mean
    return replace(
        found,
        gram=found.gram.addr_(mean, mean),
        cross=found.cross + (torch.outer(mean, y_mean) if y_mean.dim() else mean * y_mean),
        energy=found.energy + y_mean.square(),
    )


def _rows(gram: Tensor, cross: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and a target whose mean products these are, (p + 1, p) and (p + 1,) or (p + 1, K).

    The last row is what no column explains of the target. All columns but those of zeros are scaled to norm 1 before.
    """
    p, size = len(gram), gram.diagonal().sqrt()
    unit = as_scale(size)
    rows = gram.new_zeros(p + 1, p)
    square = torch.div(gram, unit[:, None], out=rows[:p]).div_(unit).fill_diagonal_(1.0)
    factor = safe_cholesky(square, least=_PIVOT, growth=10.0)[0].T
    table = divided(cross, unit).reshape(p, -1)
    explained = torch.linalg.solve_triangular(factor.T, table, upper=False)
    left = (energy.reshape(-1) - explained.square().sum(0)).clamp(min=0.0).sqrt()
    torch.mul(factor, size, out=rows[:p])
    target = torch.cat([explained, left[None]]).reshape(p + 1, *cross.shape[1:])
    return rows.mul_((p + 1) ** 0.5), target.mul_((p + 1) ** 0.5)
