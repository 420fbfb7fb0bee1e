"""Schedules of a penalty's strength: frozen functions from the number of optimizer steps made to alpha.

``from torchreg import schedules``, then ``schedules.cubic(0.0, 1e-3, 5000)``. A schedule knows no
term and no optimizer; `PenaltyScheduler` follows it. Each is a frozen dataclass that reads as a
function, so it can be compared, printed, pickled and written into an ablation's grid. Any other
function ``int -> float`` will do too, though a lambda cannot be pickled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torchreg.penalties.alpha import strength

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class constant:
    """The same strength at every step.

    Args:
        alpha: finite, >= 0.

    Example:
        >>> from torchreg import schedules
        >>> schedules.constant(0.1)(1000)
        0.1
    """

    alpha: float

    def __post_init__(self) -> None:
        _check_alphas(self, "alpha")

    def __call__(self, step: int) -> float:
        return self.alpha


@dataclass(frozen=True)
class linear:
    """A straight line from ``start`` to ``end``, then ``end``: with ``start=0.0`` a warm-up.

    ``(1 - x) start + x end`` with ``x = (k - begin) / steps`` held within 0 and 1.

    Args:
        start: strength up to step ``begin``, finite, >= 0.
        end: strength from step ``begin + steps`` on, finite, >= 0.
        steps: length of the ramp in optimizer steps, >= 1.
        begin: where it begins, in optimizer steps.

    Example:
        >>> from torchreg import schedules
        >>> warmup = schedules.linear(0.0, 0.1, 4)
        >>> [warmup(k) for k in (0, 1, 2, 4, 9)]
        [0.0, 0.025, 0.05, 0.1, 0.1]
    """

    start: float
    end: float
    steps: int
    begin: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        _check_alphas(self, "start", "end")
        _check_counts(self, steps=1, begin=0)

    def __call__(self, step: int) -> float:
        return _between(self.start, self.end, 1.0 - _progress(step - self.begin, self.steps))


@dataclass(frozen=True)
class cosine:
    """Half a cosine from ``start`` to ``end``, flat at both ends, then ``end``.

    ``end + (start - end) (1 + cos(pi x)) / 2`` with ``x = (k - begin) / steps`` held within 0 and 1.

    Args:
        start: strength up to step ``begin``, finite, >= 0.
        end: strength from step ``begin + steps`` on, finite, >= 0.
        steps: length of the ramp in optimizer steps, >= 1.
        begin: where it begins, in optimizer steps.

    Source:
        Loshchilov and Hutter, ICLR 2017 (SGDR), equation 5, there for the learning rate.

    Example:
        >>> from torchreg import schedules
        >>> [round(schedules.cosine(0.1, 0.0, 4)(k), 4) for k in range(6)]
        [0.1, 0.0854, 0.05, 0.0146, 0.0, 0.0]
    """

    start: float
    end: float
    steps: int
    begin: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        _check_alphas(self, "start", "end")
        _check_counts(self, steps=1, begin=0)

    def __call__(self, step: int) -> float:
        share = (1.0 + math.cos(math.pi * _progress(step - self.begin, self.steps))) / 2.0
        return _between(self.start, self.end, share)


@dataclass(frozen=True)
class cubic:
    """A ramp that is steep at first and then flattens: the pruning schedule of Zhu and Gupta, for a strength.

    ``end + (start - end) (1 - x)^3`` with ``x = (k - begin) / steps`` held within 0 and 1.

    Their ramp is of the share of zeros; a strength has no fixed share, so look at `sparsity`.

    Args:
        start: strength up to step ``begin``, finite, >= 0.
        end: strength from step ``begin + steps`` on, finite, >= 0.
        steps: length of the ramp in optimizer steps, >= 1.
        begin: where it begins, in optimizer steps.
        every: the strength changes at each ``every``-th step of the ramp only, >= 1.

    Source:
        Zhu and Gupta, "To prune, or not to prune", 2017, equation 1.

    Example:
        >>> from torchreg import schedules
        >>> [round(schedules.cubic(0.0, 0.1, 4)(k), 4) for k in range(6)]
        [0.0, 0.0578, 0.0875, 0.0984, 0.1, 0.1]
    """

    start: float
    end: float
    steps: int
    begin: int = field(default=0, kw_only=True)
    every: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        _check_alphas(self, "start", "end")
        _check_counts(self, steps=1, begin=0, every=1)

    def __call__(self, step: int) -> float:
        gone = step - self.begin
        gone = gone if gone >= self.steps else gone - gone % self.every
        return _between(self.start, self.end, (1.0 - _progress(gone, self.steps)) ** 3)


@dataclass(frozen=True)
class staircase:
    """A strength that is multiplied by ``factor`` after each ``every`` steps: ``alpha * factor^(k // every)``.

    Args:
        alpha: strength at step 0, finite, >= 0.
        factor: finite, >= 0; above 1 the strength grows for ever.
        every: width of a stair in optimizer steps, >= 1.

    Example:
        >>> from torchreg import schedules
        >>> [schedules.staircase(0.8, 0.5, 10)(k) for k in (0, 9, 10, 25)]
        [0.8, 0.8, 0.4, 0.2]
    """

    alpha: float
    factor: float
    every: int

    def __post_init__(self) -> None:
        _check_alphas(self, "alpha", "factor")
        _check_counts(self, every=1)

    def __call__(self, step: int) -> float:
        return float(self.alpha * self.factor ** (step // self.every))


@dataclass(frozen=True)
class table:
    """A strength for each stretch of steps: that of the last entry at or before the step.

    Args:
        entries: dict (or pairs) from step to strength; it needs one for step 0.

    Example:
        >>> from torchreg import schedules
        >>> phases = schedules.table({0: 0.0, 100: 0.1, 300: 0.02})
        >>> [phases(k) for k in (0, 99, 100, 299, 5000)]
        [0.0, 0.0, 0.1, 0.1, 0.02]
    """

    entries: Mapping[int, float] | Iterable[tuple[int, float]]

    def __post_init__(self) -> None:
        try:
            given = dict(self.entries)
        except (TypeError, ValueError):
            raise TypeError(f"table needs a dict from step to strength, got {self.entries!r}.") from None
        for step in given:
            _check_count("table", "each step", step, 0)
        if 0 not in given:
            raise ValueError(f"table needs a strength for step 0, got steps {sorted(given)}; write {{0: 0.0, ...}}.")
        frozen = tuple((step, _alpha("table", given[step])) for step in sorted(given))
        object.__setattr__(self, "entries", frozen)

    def __call__(self, step: int) -> float:
        return [alpha for begin, alpha in self.entries if begin <= step][-1]  # type: ignore[misc]


def _progress(gone: int, steps: int) -> float:
    return min(max(gone / steps, 0.0), 1.0)


def _between(start: float, end: float, share: float) -> float:
    """Exactly ``start`` at share 1 and ``end`` at share 0."""
    return share * start + (1.0 - share) * end


def _alpha(owner: str, given: float) -> float:
    found = strength(owner, given)
    if not isinstance(found, float):
        raise TypeError(
            f"{owner} needs strengths as numbers, got a tensor; a term's tensor alpha is filled with the "
            "schedule's numbers."
        )
    return found


def _check_alphas(schedule: object, *names: str) -> None:
    for name in names:
        object.__setattr__(schedule, name, _alpha(type(schedule).__name__, getattr(schedule, name)))


def _check_counts(schedule: object, **least: int) -> None:
    for name, smallest in least.items():
        _check_count(type(schedule).__name__, name, getattr(schedule, name), smallest)


def _check_count(owner: str, name: str, given: int, least: int) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise ValueError(f"{owner} needs {name} as an int >= {least}, got {given!r}; count in optimizer steps.")
