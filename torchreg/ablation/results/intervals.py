"""Means of groups of numbers, with Student's intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
KINDS = ("low", "high", "se", "n", "nan")  # what a table has of a metric beside its mean
_NEGLIGIBLE = -60.0  # logarithm of a power that is lost in rounding


@dataclass(frozen=True)
class Means:
    """The mean of each group, arrays of shape (groups,).

    Attributes:
        n: numbers in the group, NaN among them.
        nan: how many of these are NaN; the mean is NaN where there is one.
        mean: NaN for no numbers.
        se: standard error of the mean, NaN for n < 2.
        low: the interval's lower end, NaN for n < 2.
        high: the upper end.
    """

    n: Array
    nan: Array
    mean: Array
    se: Array
    low: Array
    high: Array


def means(values: Array, codes: Array, groups: int, ci: float) -> Means:
    """``mean -+ t se``, where ``se = s / sqrt(n)``, s has the divisor n - 1, and t has n - 1 degrees of freedom.

    Args:
        values: numbers, (k,).
        codes: the group of each, 0 to groups - 1, (k,).
        groups: how many there are.
        ci: the interval's confidence, in (0, 1).
    """
    n = np.bincount(codes, minlength=groups)
    nan = np.bincount(codes[np.isnan(values)], minlength=groups)
    with np.errstate(all="ignore"):  # groups of none or one, and infinite numbers
        mean = _mean(values, codes, n)
        squares = np.bincount(codes, (values - mean[codes]) ** 2, minlength=groups)
        se = np.where(n > 1, np.sqrt(squares / (n - 1) / n), np.nan)
        sizes, which = np.unique(n, return_inverse=True)
        half = np.array([t_quantile(ci, int(size) - 1) if size > 1 else np.nan for size in sizes])[which] * se
        return Means(n, nan, mean, se, mean - half, mean + half)


def _mean(values: Array, codes: Array, n: Array) -> Array:
    """Twice, the second time of what remains: the mean of equal numbers is that number."""
    first = np.bincount(codes, values, minlength=len(n)) / n
    rest = np.bincount(codes, values - first[codes], minlength=len(n)) / n
    return np.where(np.isfinite(rest), first + rest, first)


def check_confidence(ci: float) -> None:
    """Refuse what is no confidence.

    Raises:
        ValueError: if it is not between 0 and 1.
    """
    if not 0.0 < ci < 1.0:
        raise ValueError(f"ci is the intervals' confidence, between 0 and 1, got {ci!r}; 0.95 is usual.")


@lru_cache(maxsize=256)
def t_quantile(confidence: float, df: int) -> float:
    """The t with ``P(|T| <= t) = confidence``, for Student's T with ``df`` degrees of freedom, by bisection.

    Args:
        confidence: in (0, 1).
        df: a whole number >= 1.
    """
    ratios = _ratios(df)
    low, high = 0.0, math.pi / 2  # of theta = atan(t / sqrt(df))
    while low < (middle := (low + high) / 2) < high:
        if _central(middle, df, ratios) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(df) * math.tan(high)


def _central(theta: float, df: int, ratios: Array) -> float:
    """``P(|T| <= sqrt(df) tan(theta))``.

    Source: Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3 (odd) and 26.7.4 (even).
    """
    sine, cosine = math.sin(theta), math.cos(theta)
    log = math.log1p(-(sine**2)) if sine < cosine else 2 * math.log(cosine)  # of cos^2, exact at both ends
    felt = ratios[: 1 + int(_NEGLIGIBLE / log)]
    total = float(felt @ np.exp(np.arange(len(felt)) * log))
    return sine * total if df % 2 == 0 else 2 / math.pi * (theta + sine * cosine * total)


def _ratios(df: int) -> Array:
    """The series' coefficients: products of (2i - 1) / 2i for even df, of 2i / (2i + 1) for odd df."""
    terms, odd = df // 2, df % 2
    below = 2 * np.arange(1, terms) + odd
    return np.cumprod(np.concatenate(([1.0], (below - 1) / below)))[:terms]
