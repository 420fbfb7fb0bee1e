"""Groups that are units of a network: attention heads of a projection, and blocks of neighbouring entries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from torchreg.functional.groups import Groups

Factors = list[tuple[int, bool]]  # of one dimension: sizes, and whether the index there numbers groups


class _Split(Groups):
    """Groups by some of the factors into which the leading dimensions of a tensor are split."""

    @abstractmethod
    def factors(self, shape: Sequence[int]) -> list[Factors]:
        """The factors of each leading dimension, slowest first."""

    def _view(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """``x`` with a dimension for each factor, and the dimensions that number entries within a group."""
        split = [factor for dim in self.factors(x.shape) for factor in dim]
        rest = x.shape[len(self.factors(x.shape)) :]
        inside = [k for k, (_, numbers) in enumerate(split) if not numbers]
        return x.reshape([size for size, _ in split] + list(rest)), [
            *inside,
            *range(len(split), len(split) + len(rest)),
        ]

    def sum(self, x: Tensor) -> Tensor:
        view, inside = self._view(x)
        return (view.sum(inside) if inside else view).reshape(-1)

    def extreme(self, x: Tensor, *, largest: bool) -> Tensor:
        view, inside = self._view(x)
        if not inside:
            return view.reshape(-1)
        return (view.amax(inside) if largest else view.amin(inside)).reshape(-1)

    def expand(self, v: Tensor, like: Tensor) -> Tensor:
        # a dimension without groups stays 1, so that the result is no larger than it must be
        dims = [dim if any(numbers for _, numbers in dim) else [(1, False)] for dim in self.factors(like.shape)]
        split = [factor for dim in dims for factor in dim]
        wide = v.reshape([size if numbers else 1 for size, numbers in split]).expand([size for size, _ in split])
        return wide.reshape([_product([size for size, _ in dim]) for dim in dims] + [1] * (like.dim() - len(dims)))

    def count(self, w: Tensor) -> int:
        return _product([size for dim in self.factors(w.shape) for size, numbers in dim if numbers])


@dataclass(frozen=True, repr=False)
class heads(_Split):
    """Groups by attention head: the rows of a projection's weight, or its columns, that belong to one head.

    A weight (n * d, in) has n groups of d consecutive rows; its bias (n * d,) has n groups of d entries. With
    ``fused=3`` a weight (3 * n * d, in), the queries' rows before the keys' before the values' as in
    ``nn.MultiheadAttention.in_proj_weight``, has n groups too, each of the 3 * d rows of one head. A fused weight that
    keeps the rows of one head together (GPT-NeoX, BLOOM) needs no ``fused``. The output projection (out, n * d) has its
    heads in columns: ``dim=1``. Where keys and values have fewer heads than queries (grouped-query attention), give
    each projection the number of its own. Hidden units of a recurrent layer are the same thing, one row in each gate:
    ``heads(hidden_size, fused=4)`` for the weights and biases of an LSTM, ``fused=3`` for those of a GRU.

    Args:
        n: heads, at least 1.
        fused: how many projections stand below each other in the tensor: 1, or 3 for queries, keys and values.
        dim: 0 for heads in rows, 1 for heads in columns (of an output projection, or where weights are stored as
            (in, out), as GPT-2's are).

    Raises:
        ValueError: if a number is not allowed; at attach, if ``fused * n`` does not divide the dimension.

    Example:
        >>> import torch
        >>> from torchreg import L1, Group, heads
        >>> w = torch.tensor([[3.0], [4.0], [0.5], [0.5]])
        >>> Group(L1(1.0), by=heads(2), weights=1.0).prox(w, 1.0).flatten()
        tensor([2.4000, 3.2000, 0.0000, 0.0000])
    """

    n: int
    fused: int = 1
    dim: int = 0

    def __post_init__(self) -> None:
        _check_whole("heads", n=self.n, fused=self.fused)
        if isinstance(self.dim, bool) or self.dim not in (0, 1):
            raise ValueError(f"heads needs dim=0 (rows) or dim=1 (columns), got {self.dim!r}.")

    def factors(self, shape: Sequence[int]) -> list[Factors]:
        split = [(self.fused, False), (self.n, True), (shape[self.dim] // (self.fused * self.n), False)]
        return [split] if self.dim == 0 else [[(shape[0], False)], split]

    def check(self, w: Tensor) -> None:
        _check_dims(self, w, self.dim + 1)
        if w.shape[self.dim] % (self.fused * self.n):
            what = f"{self.n} heads" if self.fused == 1 else f"{self.fused} projections of {self.n} heads"
            raise ValueError(
                f"{self!r} does not fit shape {tuple(w.shape)}: {w.shape[self.dim]} {('rows', 'columns')[self.dim]} "
                f"are no multiple of {what}; give the layer's own number of heads."
            )

    def __repr__(self) -> str:
        options = [f"fused={self.fused}"] * (self.fused != 1) + [f"dim={self.dim}"] * (self.dim != 0)
        return f"heads({', '.join([str(self.n), *options])})"


@dataclass(frozen=True, repr=False)
class blocks(_Split):
    """Groups of neighbours: ``rows`` consecutive slices of dim 0, or tiles of them and of ``columns`` of dim 1.

    A weight (R, C) has R / rows groups, or (R / rows) * (C / columns) tiles, numbered row by row. Further dimensions,
    such as those of a convolution's kernel, belong to the tile whole.

    Args:
        rows: consecutive slices of dim 0 in a group, at least 1.
        columns: consecutive entries of dim 1 in a tile, at least 1; None for all of them.

    Raises:
        ValueError: if a number is not allowed; at attach, if it does not divide the tensor's dimension.

    Example:
        >>> import torch
        >>> from torchreg import L1, Group, blocks
        >>> w = torch.tensor([[3.0, 0.5], [4.0, 0.5]])
        >>> Group(L1(1.0), by=blocks(2, 1), weights=1.0).prox(w, 1.0)
        tensor([[2.4000, 0.0000],
                [3.2000, 0.0000]])
    """

    rows: int
    columns: int | None = None

    def __post_init__(self) -> None:
        _check_whole("blocks", rows=self.rows, **({} if self.columns is None else {"columns": self.columns}))

    @property
    def by_row(self) -> bool:
        return self.rows == 1

    def factors(self, shape: Sequence[int]) -> list[Factors]:
        sizes = (self.rows,) if self.columns is None else (self.rows, self.columns)
        return [[(length // size, True), (size, False)] for length, size in zip(shape, sizes, strict=False)]

    def check(self, w: Tensor) -> None:
        _check_dims(self, w, 1 if self.columns is None else 2)
        if w.shape[0] % self.rows or (w.dim() > 1 and w.shape[1] % (self.columns or 1)):
            raise ValueError(
                f"{self!r} does not fit shape {tuple(w.shape)}: each number must divide its dimension; choose one that "
                "does, or use by=labels(index) for groups of your own."
            )

    def __repr__(self) -> str:
        return f"blocks({self.rows})" if self.columns is None else f"blocks({self.rows}, {self.columns})"


def _product(sizes: Sequence[int]) -> int:
    """Product of whole numbers, which torch.compile follows (math.prod it does not)."""
    result = 1
    for size in sizes:
        result *= size
    return result


def _check_whole(name: str, **numbers: int) -> None:
    for argument, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} needs {argument} >= 1, a whole number, got {value!r}.")


def _check_dims(groups: Groups, w: Tensor, least: int) -> None:
    if w.dim() < least:
        raise ValueError(
            f"{groups!r} needs a tensor with at least {least} dimension(s), got shape {tuple(w.shape)}; use by=whole, "
            "or by=labels(index) for groups of your own."
        )
