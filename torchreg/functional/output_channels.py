"""Groups by output channel of transposed convolutions, whose weights have them in dimension 1."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from torchreg.functional.groups import Groups, filters

Held = TypeVar("Held")


@dataclass(frozen=True, repr=False)
class transposed_filters(Groups):
    """Groups by output channel of a transposed convolution, whose weight is (inputs, outputs / groups, ...).

    `attach` puts it in the place of `filters` where it is given modules or a selector's result; a bare tensor does
    not know its layer.

    Args:
        groups: the ``groups`` of the layer, each with inputs and outputs of its own.

    Raises:
        ValueError: if ``groups`` is no whole number >= 1; at attach, if the tensor's inputs cannot be split so.

    Example:
        >>> import torch
        >>> from torchreg import L1, Group, transposed_filters
        >>> w = torch.tensor([[[3.0], [0.1]], [[4.0], [0.1]]])
        >>> Group(L1(1.0), by=transposed_filters(), weights=1.0).prox(w, 1.0).flatten(1)
        tensor([[2.4000, 0.0000],
                [3.2000, 0.0000]])
    """

    groups: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.groups, bool) or not isinstance(self.groups, int) or self.groups < 1:
            raise ValueError(f"transposed_filters needs groups >= 1, the layer's, got {self.groups!r}.")

    def check(self, w: Tensor) -> None:
        filters.check(w)
        if w.shape[0] % self.groups:
            raise ValueError(
                f"transposed_filters({self.groups}) does not fit shape {tuple(w.shape)}, whose {w.shape[0]} inputs are "
                "no multiple of that; give the groups of the transposed convolution."
            )

    def _by_output(self, x: Tensor) -> Tensor:
        return x.reshape(self.groups, x.shape[0] // self.groups, *x.shape[1:]).transpose(1, 2).flatten(0, 1).flatten(1)

    def sum(self, x: Tensor) -> Tensor:
        return self._by_output(x).sum(1)

    def extreme(self, x: Tensor, *, largest: bool) -> Tensor:
        return self._by_output(x).amax(1) if largest else self._by_output(x).amin(1)

    def expand(self, v: Tensor, like: Tensor) -> Tensor:
        rows = v.reshape(self.groups, like.shape[1]).repeat_interleave(like.shape[0] // self.groups, 0)
        return rows.reshape(*rows.shape, *[1] * (like.dim() - 2))

    def count(self, w: Tensor) -> int:
        return self.groups * w.shape[1]

    def __repr__(self) -> str:
        return f"transposed_filters({self.groups})"


def by_output_channel(penalty: Held, groups: int | None) -> Held:
    """A penalty whose groups by `filters` are the output channels of a transposed convolution.

    Args:
        penalty: any penalty; without such groups it is given back.
        groups: the convolution's ``groups``, None for a tensor that belongs to none.
    """
    if groups is None:
        return penalty
    changed = _with(penalty, groups)
    return penalty if changed is penalty else changed


def _with(held: Any, groups: int) -> Any:
    if isinstance(held, Groups) and held == filters:
        return transposed_filters(groups)
    if isinstance(held, tuple):
        parts = tuple(_with(part, groups) for part in held)
        return held if all(a is b for a, b in zip(parts, held, strict=True)) else parts
    if not is_dataclass(held) or isinstance(held, type):
        return held
    old = {f.name: getattr(held, f.name) for f in fields(held) if f.init}
    new = {name: _with(value, groups) for name, value in old.items()}
    return held if all(new[name] is old[name] for name in old) else replace(held, **new)
