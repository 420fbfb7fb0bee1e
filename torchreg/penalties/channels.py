"""Groups by `filters` on the weights of transposed convolutions, whose output channels lie in dimension 1."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torchreg.groups import Groups, filters, transposed_filters

Held = TypeVar("Held")


def by_output_channel(penalty: Held, blocks: int | None) -> Held:
    """A penalty whose groups by `filters` are the output channels of a transposed convolution.

    Args:
        penalty: any penalty; without such groups it is given back.
        blocks: the convolution's ``groups``, None for a tensor that belongs to none.
    """
    if blocks is None:
        return penalty
    changed = _with(penalty, blocks)
    return penalty if changed is penalty else changed


def _with(held: Any, blocks: int) -> Any:
    if isinstance(held, Groups) and held == filters:
        return transposed_filters(blocks)
    if isinstance(held, tuple):
        parts = tuple(_with(part, blocks) for part in held)
        return held if all(a is b for a, b in zip(parts, held, strict=True)) else parts
    if not is_dataclass(held) or isinstance(held, type):
        return held
    old = {f.name: getattr(held, f.name) for f in fields(held) if f.init}
    new = {name: _with(value, blocks) for name, value in old.items()}
    return held if all(new[name] is old[name] for name in old) else replace(held, **new)
