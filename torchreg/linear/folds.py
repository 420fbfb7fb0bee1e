"""Folds of a cross-validation: drawn once, from a number, a scikit-learn splitter or pairs of row numbers."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchreg.linear.designs.arrays import tensor_of

Fold = tuple[Tensor, Tensor]
PackedFold = tuple[bytes, bytes]


def drawn_folds(
    cv: int | Iterable[Any] | Any, n: int, y: Any, random_state: int | None, *, classes: bool = False
) -> tuple[Fold, ...]:
    """Pairs (train, test) of row numbers.

    Args:
        cv: how many folds of (nearly) equal size, an object with ``split(X, y)``, or the pairs themselves.
        n: number of rows.
        y: target, for splitters that stratify.
        random_state: seed with which a number of folds shuffles the rows first; None leaves their order.
        classes: whether y are classes, of which each of a number of folds then has its share.

    Raises:
        ValueError: if there are fewer than 2 folds or more than rows, a part is empty, a row number is out of range, or
            a mask has not as many entries as there are rows.
        TypeError: if cv is none of these.
    """
    if isinstance(cv, Integral) and not isinstance(cv, bool):
        numbers = torch.unique(tensor_of(y).cpu(), dim=0, return_inverse=True)[1] if classes else None
        return _equal_folds(int(cv), n, random_state, numbers)
    named = isinstance(cv, str | bytes | type)  # which have a split of another kind, or one of their instances
    if hasattr(cv, "split") and not named:
        target = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
        cv = cv.split(np.zeros((n, 1)), target)
    if named or not isinstance(cv, Iterable):
        raise TypeError(
            "cv takes a number of folds (cv=5), an object with split(X, y), or pairs (train, test) of row numbers or "
            f"masks, got {cv!r}."
        )
    folds = tuple(_pair(fold, n) for fold in cv)
    if not folds or any(not len(part) for fold in folds for part in fold):
        raise ValueError("cv has no fold, or one whose training or test rows are empty.")
    return folds


def _equal_folds(count: int, n: int, random_state: int | None, classes: Tensor | None) -> tuple[Fold, ...]:
    if count < 2:
        raise ValueError(
            f"k-fold cross-validation requires at least one train/test split: cv must be >= 2, got {count}."
        )
    if count > n:
        raise ValueError(f"Cannot have number of splits n_splits={count} greater than the number of samples: {n}.")
    order = torch.arange(n, device="cpu")
    if random_state is not None and not isinstance(random_state, Integral):
        raise TypeError(
            f"random_state takes a whole number, or None for rows in their order, got {random_state!r}; for other "
            "randomness pass a splitter: cv=KFold(5, shuffle=True, random_state=...)."
        )
    if random_state is not None:
        order = torch.randperm(n, generator=torch.Generator("cpu").manual_seed(int(random_state)), device="cpu")
    if classes is None:
        parts = [part.sort().values for part in torch.tensor_split(order, count)]
    else:
        parts = _stratified(order, classes, count)
    return tuple((torch.cat([*parts[:k], *parts[k + 1 :]]).sort().values, parts[k]) for k in range(count))


def _stratified(order: Tensor, classes: Tensor, count: int) -> list[Tensor]:
    """Test rows that have (nearly) the same share of each class, the rows of a class dealt out in an order.

    How many of a class a fold has is as in scikit-learn's StratifiedKFold, so that all folds have (nearly) equal size;
    there classes are numbered as they come, which decides who has the rows that are left over.
    """
    first = torch.full((int(classes.max()) + 1,), len(order)).scatter_reduce_(
        0, classes, torch.arange(len(order)), "amin"
    )
    numbers = first.argsort().argsort()[classes]
    dealt, parts = numbers.sort().values, torch.empty_like(order)
    for number in range(len(first)):
        shares = torch.tensor([int((dealt[k::count] == number).sum()) for k in range(count)])
        parts[order[numbers[order] == number]] = torch.arange(count).repeat_interleave(shares)
    return [(parts == k).nonzero().flatten() for k in range(count)]


def counted_folds(folds: Sequence[Fold], kept: Tensor | None, n: int) -> tuple[Fold, ...]:
    """The folds of those rows that count, numbered among themselves.

    Args:
        folds: row numbers of all rows.
        kept: numbers of the rows whose weight is not zero, ascending; None for all.
        n: number of all rows.

    Raises:
        ValueError: if all training or all test rows of a fold have weight 0: it has no mean loss.
    """
    if kept is None:
        return tuple(folds)
    numbers = torch.arange(len(kept), device="cpu")
    place = torch.full((n,), -1, device="cpu").index_copy_(0, kept.cpu(), numbers)
    counted = [tuple(place[part][place[part] >= 0] for part in fold) for fold in folds]
    for number, (fold, left) in enumerate(zip(folds, counted, strict=True), 1):
        for name, part, rest in zip(("training", "test"), fold, left, strict=True):
            if not len(rest):
                raise ValueError(
                    f"Fold {number} of {len(folds)} has {len(part)} {name} rows, all of weight 0; leave rows of weight "
                    "0 out of X, or draw folds that mix them with others: cv=KFold(5, shuffle=True), or random_state=0."
                )
    return tuple((train, test) for train, test in counted)


def warn_of_missing_classes(folds: Sequence[Fold], target: Tensor) -> None:
    """One UserWarning where training rows lack a class: their fit gives it the chance 0, and its rows a loss of choice.

    Args:
        folds: (train, test) row numbers.
        target: class of each row, (n,), or its indicators, (n, K).
    """
    labels, numbers = torch.unique(target.cpu(), dim=0, return_inverse=True)
    lacking = [int((torch.bincount(numbers[train], minlength=len(labels)) == 0).sum()) for train, _ in folds]
    worst = max(lacking)
    if worst:
        warnings.warn(
            f"{sum(count > 0 for count in lacking)} of {len(folds)} folds train without a class: fold "
            f"{lacking.index(worst) + 1} without {worst} of {len(labels)} classes, so that the loss of their rows, and "
            "the alpha that it chooses, mean little. Give each class to all folds: cv=5, or cv=StratifiedKFold(5); a "
            "class of one row has no fold to be trained in and tested on, so gather more rows or leave it out.",
            stacklevel=3,
        )


def packed_folds(folds: Sequence[Fold]) -> tuple[PackedFold, ...]:
    """Row numbers as compressed steps from one to the next, which are mostly ones: less than a byte each, not 8."""

    def packed(rows: Tensor) -> bytes:
        return zlib.compress(np.diff(rows.cpu().numpy(), prepend=0).astype("<i8").tobytes())

    return tuple((packed(train), packed(test)) for train, test in folds)


def unpacked_folds(packed: Sequence[PackedFold]) -> tuple[Fold, ...]:
    """The folds that `packed_folds` has packed, in the same order."""

    def rows(part: bytes) -> Tensor:
        return torch.from_numpy(np.frombuffer(zlib.decompress(part), "<i8").cumsum())

    return tuple((rows(train), rows(test)) for train, test in packed)


def _pair(fold: Any, n: int) -> Fold:
    if not isinstance(fold, Iterable) or isinstance(fold, str | bytes):
        raise TypeError(f"cv takes pairs (train, test) of row numbers or masks, got {fold!r} for one of them.")
    parts = tuple(fold)
    if len(parts) != 2:
        raise ValueError(
            f"cv takes pairs (train, test) of row numbers or masks, got {len(parts)} parts for one of them."
        )
    return _numbers(parts[0], n), _numbers(parts[1], n)


def _numbers(rows: Any, n: int) -> Tensor:
    """Row numbers of a mask or of numbers."""
    array = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
    if array.size and (array.dtype.kind not in "biu" or array.ndim != 1):
        raise TypeError(
            f"cv takes row numbers or a mask in one dimension for each part of a fold, got dtype {array.dtype}, shape "
            f"{array.shape}; whole numbers from 0 to {n - 1} name rows."
        )
    given = torch.as_tensor(array, device="cpu")
    if given.dtype == torch.bool:
        if len(given) != n:
            raise ValueError(f"cv has a mask of {len(given)} entries, but there are {n} rows; give one for each row.")
        return given.nonzero().flatten()
    numbers = given.long()
    outside = numbers[(numbers < 0) | (numbers >= n)]
    if len(outside):
        raise ValueError(f"cv names row {int(outside[0])}, but there are {n} rows; number them from 0 to {n - 1}.")
    return numbers
