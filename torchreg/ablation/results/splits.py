"""Which data a metric was measured on, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SPLIT = re.compile(r"(valid(?:ation)?|val|test)(?![A-Za-z0-9])", re.IGNORECASE)


def is_test(metric: str) -> bool:
    """Whether a metric is of the test data: it is called ``test``, or ``test`` and a sign, as in ``test_loss``."""
    return _order(metric) == 2


def in_order(metrics: Iterable[str]) -> tuple[str, ...]:
    """Those of validation data first, those of test data last, else as they came."""
    return tuple(sorted(metrics, key=_order))


def _order(metric: str) -> int:
    split = _SPLIT.match(metric)
    return 1 if split is None else 2 if split[1].lower() == "test" else 0
