"""A bar for what takes long, where it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def shown(items: Iterable[T], *, progress: bool, total: int, what: str, unit: str) -> Iterable[T]:
    """The items, behind a bar if ``progress``: a bar, even a disabled one, leaves tqdm's monitor thread running."""
    return tqdm(items, total=total, desc=what, unit=unit) if progress else items
