"""The terms that a trainer's optimizers step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchreg.training import ProxOptimizer, Term


def terms_of(optimizers: Iterable[Any]) -> list[Term]:
    """The terms of each `ProxOptimizer` among the optimizers, or inside a trainer's wrapper of one.

    Raises:
        ValueError: if there is none.
    """
    found: list[Term] = []
    for optimizer in optimizers:
        inner = optimizer
        while inner is not None and not isinstance(inner, ProxOptimizer):
            inner = getattr(inner, "optimizer", None)
        found += [] if inner is None else inner.terms
    if not found:
        raise ValueError("No ProxOptimizer among the trainer's optimizers; give the terms, PenaltyLogger(term).")
    return found
