"""Whether moments of training rows may come from those of all rows by subtraction.

What is subtracted is known to the rounding of all rows. Where the rows that a fold holds out have nearly all of a
column's variance, as one huge row has, little but rounding is left, and no certificate sees it.
"""

from __future__ import annotations

from torch import Tensor

from torchreg.linear.folds import Fold
from torchreg.linear.frame import Frame, Spread, spread_of

_LEAST = 1e-6  # of the whole's squares: where training rows have less, subtraction leaves fewer than ten digits


def keeps_digits(frame: Frame, fold: Fold) -> bool:
    """Whether subtraction leaves ten digits of the squares of each column and target that is not 0 on training rows.

    Squares are about the mean where there is an intercept, about 0 where there is none.

    Args:
        frame: all rows.
        fold: (train, test) row numbers on the device, which together are all rows.
    """
    train, test = fold
    whole = frame.spread
    least = _LEAST * _squares(frame, whole)
    left = _squares(frame, _without(whole, _spread_of(frame, test), frame.weights[test].sum()))
    if bool(((left > least) | (least == 0.0)).all()):
        return True
    exact = _squares(frame, _spread_of(frame, train))
    return bool(((exact > least) | (exact == 0.0)).all())


def _spread_of(frame: Frame, rows: Tensor) -> Spread:
    """Of some rows, by a look at them."""
    weights = frame.weights[rows]
    return spread_of(frame.raw.subset(rows), frame.problem.y[rows], weights / weights.sum())


def _without(whole: Spread, part: Spread, share: Tensor) -> Spread:
    """Of the other rows, by subtraction of a part that has a share of the weights."""
    left = 1.0 - share
    shift = (part.mean - whole.mean) * share / left
    held = share * (part.variance + (part.mean - whole.mean).square())
    return Spread(whole.mean - shift, (whole.variance - held) / left - shift.square())


def _squares(frame: Frame, spread: Spread) -> Tensor:
    return spread.variance if frame.fit_intercept else spread.variance + spread.mean.square()
