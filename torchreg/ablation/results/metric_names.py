"""What a metric's name tells: which data it was measured on, and whether less of it is better."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SPLIT = re.compile(r"(valid(?:ation)?|val|test)(?![A-Za-z0-9])", re.IGNORECASE)
_LESS = """loss error err errors mse rmse mae mape nll bce ce kl perplexity ppl deviance ece brier wer cer fid regret
    seconds time latency flops bytes memory"""
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def is_test(metric: str) -> bool:
    """Whether a metric is of the test data: it is called ``test``, or ``test`` and a sign, as in ``test_loss``."""
    return _order(metric) == 2


def in_order(metrics: Iterable[str]) -> tuple[str, ...]:
    """Metrics of validation data first, those of test data last, else as they came."""
    return tuple(sorted(metrics, key=_order))


def _order(metric: str) -> int:
    split = _SPLIT.match(metric)
    return 1 if split is None else 2 if split[1].lower() == "test" else 0


def less_is_better(metric: str) -> bool:
    """Whether one of the words in a metric's name is known to mean a loss or a cost, as in ``val_loss``."""
    known = _LESS.split()
    return any(word.lower() in known for word in _WORDS.findall(metric))
