"""What a selector returns: a dict from name to parameter that does not lose parameters when it is joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor
from torch.nn import Parameter


class Selected(dict[str, Parameter]):
    """Named parameters of a model; ``|`` joins two, and refuses two parameters of one name.

    Names are those within the module that was given, so ``weights(encoder) | weights(decoder)`` would keep the
    decoder's alone wherever the two have layers of the same name.

    Raises:
        ValueError: by ``|`` and ``|=``, if both sides have a name for different tensors.

    Example:
        >>> from torch import nn
        >>> from torchreg import matching, weights
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        >>> list(weights(model) | matching(model, "0.bias"))
        ['0.weight', '1.weight', '0.bias']
    """

    def __or__(self, other: Any) -> Any:
        return Selected(super().__or__(_distinct(self, other))) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Any) -> Any:
        return Selected(super().__ror__(_distinct(self, other))) if isinstance(other, Mapping) else NotImplemented

    def __ior__(self, other: Any) -> Self:  # type: ignore[override]
        return super().__ior__(_distinct(self, dict(other)))


def _distinct(selected: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Any]:
    clashes = [name for name in selected if name in other and selected[name] is not other[name]]
    if clashes:
        name = clashes[0]
        raise ValueError(
            f"{name!r} is on both sides of | the name of a parameter, of shape {tuple(selected[name].shape)} and "
            f"{tuple(other[name].shape)} ({len(clashes)} such name(s)), and one would be lost: names are those within "
            "the module that was given. Select from the whole model, matching(model, 'encoder.*') | ..., or attach one "
            "term to each, ProxOptimizer(base, attach(penalty, encoder), attach(penalty, decoder))."
        )
    return dict(other)
