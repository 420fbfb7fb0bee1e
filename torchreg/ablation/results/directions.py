"""Whether more of a metric is better, as far as its name tells."""

from __future__ import annotations

import re

_LESS = """loss error err errors mse rmse mae mape nll bce ce kl perplexity ppl deviance ece brier wer cer fid regret
    seconds time latency flops bytes memory"""
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def less_is_better(metric: str) -> bool:
    """Whether one of the words in a metric's name is known to mean a loss or a cost, as in ``val_loss``."""
    known = _LESS.split()
    return any(word.lower() in known for word in _WORDS.findall(metric))
