"""Strengths for penalties that have no alpha_max, because they set no coefficient to zero: ridge above all."""

_SPAN = 1e3  # from the middle to either end: six decades, over which ridge goes from next to nothing to all but zero


def ends_around(middle: float) -> tuple[float, float]:
    """The largest and the least strength of a path that surrounds ``middle``, > 0."""
    return _SPAN * middle, middle / _SPAN
