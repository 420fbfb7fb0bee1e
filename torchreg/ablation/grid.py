"""How penalties are called in a table, and which strengths, seeds and axes may be asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torchreg.ablation.json_values import plain, unified
from torchreg.penalties import Penalty
from torchreg.penalties.base import refuse_several
from torchreg.penalties.spec import canonical

COLUMNS = ("penalty", "alpha", "seed", "mode", "status", "seconds", "attempt", "error", "key")
TAKEN = (*COLUMNS, "n", "n_failed", "baseline")  # by columns of rows, and of tables that are made of them
_GIVEN = ("penalty", "seed", "cell")  # what `run` may receive beside the axes
_MARK = 1.2345e67  # stands for alpha while a name is made
_DIGITS = 12  # of a grid's strengths: powers may differ in their last bit between machines, cells may not
_SEEDS = 2**32  # numpy's generator takes no larger seed


def logspace(low: float, high: float, n: int, *, zero: bool = False) -> tuple[float, ...]:
    """Strengths whose logarithms are evenly spaced, ascending.

    Each is rounded to 12 significant digits, so that every machine makes the same cells of it, and
    so that a finer grid meets the points of a coarser one.

    Args:
        low: the least, > 0.
        high: the largest, > low.
        n: how many, >= 2, without the zero.
        zero: put 0.0, the unpenalised baseline, before them.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from torchreg.ablation import logspace
        >>> logspace(1e-3, 0.1, 3, zero=True)
        (0.0, 0.001, 0.01, 0.1)
    """
    if not (0.0 < low < high < math.inf):
        raise ValueError(f"logspace needs 0 < low < high < inf, got {low!r} and {high!r}; zero=True adds alpha = 0.")
    if n < 2:
        raise ValueError(f"logspace needs n >= 2 strengths, got {n!r}.")
    start, length = math.log10(low), math.log10(high) - math.log10(low)
    inner = [rounded(10.0 ** (start + length * k / (n - 1))) for k in range(1, n - 1)]
    return (*((0.0,) if zero else ()), float(low), *inner, float(high))


def rounded(alpha: float) -> float:
    """To 12 significant digits, as strengths are that were computed."""
    return float(f"{alpha:.{_DIGITS}g}")


def name_of(penalty: Penalty) -> str:
    """The penalty's ``repr`` without its strength: ``L1``, ``L1L2(l1_ratio=0.5)``, ``Group(penalty=L1, by=rows)``.

    Of a sum, whose strength multiplies it, it is the sum of the terms with the strengths that they have.
    """
    text, mark, plain_sum = repr(penalty.with_alpha(_MARK)), f"alpha={_MARK:g}", repr(penalty.with_alpha(1.0))
    if text.count("alpha=") > plain_sum.count("alpha="):
        return plain_sum
    for part in (f"{mark}, ", f", {mark}", mark):
        text = text.replace(part, "")
    return text.replace("()", "")


def named_penalties(penalties: Penalty | Iterable[Penalty] | Mapping[str, Penalty]) -> dict[str, Penalty]:
    """Penalties by name, none twice.

    Raises:
        TypeError: if something else than a penalty is given.
        ValueError: if there is none, if two have one name or are equal but for alpha, or one has several strengths.
    """
    if isinstance(penalties, Penalty):
        penalties = [penalties]
    if not isinstance(penalties, Iterable) or isinstance(penalties, (str, type)):
        raise TypeError(f"penalties is a penalty such as L1(1.0), a list or a dict of them, got {penalties!r}.")
    pairs = list(penalties.items()) if isinstance(penalties, Mapping) else [(None, p) for p in penalties]
    found: dict[str, Penalty] = {}
    for given, penalty in pairs:
        if not isinstance(penalty, Penalty):
            raise TypeError(f"penalties holds {penalty!r}; give penalties such as L1(1.0), a list or a dict of them.")
        refuse_several(penalty)
        name = name_of(penalty) if given is None else given
        if not isinstance(name, str) or not name:
            raise TypeError(f"A penalty's name is a non-empty string, got {name!r}.")
        twin = next((n for n, p in found.items() if n == name or p.with_alpha(1.0) == penalty.with_alpha(1.0)), None)
        if twin is not None:
            raise ValueError(
                f"Penalties {twin!r} and {name!r} are one: they differ in nothing but alpha, which `alphas` sets, or "
                "have one name; leave one out, or name them by a dict."
            )
        found[name] = penalty
    if not found:
        raise ValueError("penalties is empty; give at least one, such as L1(1.0).")
    return found


def checked_alphas(alphas: Iterable[float]) -> tuple[float, ...]:
    """Strengths as floats, each once.

    Raises:
        TypeError: if they are no collection of numbers.
        ValueError: if there is none, one is negative, not finite or there twice.
    """
    if not isinstance(alphas, Iterable) or isinstance(alphas, (str, bytes)):
        raise TypeError(f"alphas is a collection of numbers, got {alphas!r}; write [{alphas!r}] or logspace(...).")
    given = [float(alpha) for alpha in alphas]
    if bad := [alpha for alpha in given if not 0.0 <= alpha < math.inf]:
        raise ValueError(f"alphas must be finite and >= 0, got {bad[0]!r}.")
    return _each_once("alphas", [alpha + 0.0 for alpha in given])


def checked_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """Seeds as ints, each once.

    Raises:
        TypeError: if they are no whole numbers.
        ValueError: if there is none, one is out of range or there twice.
    """
    if isinstance(seeds, int):
        raise TypeError(f"seeds is a collection, got {seeds!r}; write seeds=range({seeds!r}) or seeds=({seeds!r},).")
    given = []
    for seed in seeds:
        if isinstance(seed, (bool, str, bytes)) or int(seed) != seed:
            raise TypeError(f"seeds must be whole numbers, got {seed!r}.")
        if not 0 <= seed < _SEEDS:
            raise ValueError(f"seeds must be from 0 to 2**32 - 1, got {seed!r}.")
        given.append(int(seed))
    return _each_once("seeds", given)


def checked_grid(grid: Mapping[str, Iterable[Any]] | None) -> dict[str, tuple[Any, ...]]:
    """Axes with their values in JSON's types, each once: 0 and 0.0 are one value, True and 1 are two.

    Raises:
        TypeError: if a value has no place in JSON.
        ValueError: if a name is taken, or an axis is empty or holds a value twice.
    """
    axes = {}
    for name, values in (grid or {}).items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"An axis of grid is named as an argument of run, got {name!r}.")
        if name in TAKEN or name in _GIVEN:
            raise ValueError(f"grid has an axis {name!r}, a name that is taken; choose another.")
        if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
            raise TypeError(f"grid[{name!r}] is a collection of values, got {values!r}; write [{values!r}].")
        axes[name] = _each_once(f"grid[{name!r}]", [plain(value, f"grid[{name!r}]") for value in values])
    return axes


def _each_once(what: str, values: list[Any]) -> tuple[Any, ...]:
    if not values:
        raise ValueError(f"{what} is empty; give at least one value.")
    seen: set[str] = set()
    for value in values:
        if (text := canonical(unified(value))) in seen:
            raise ValueError(f"{what} holds {value!r} twice; each value makes cells of its own, leave one out.")
        seen.add(text)
    return tuple(values)
