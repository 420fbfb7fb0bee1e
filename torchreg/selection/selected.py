"""What a selector returns: a dict from name to parameter that does not lose parameters when it is joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor
from torch.nn import Parameter

from torchreg.selection.weight_rules import ORDINARY
from torchreg.text_table import text_table


class Selected(dict[str, Parameter]):
    """Named parameters of a model; ``|`` joins two, and refuses two parameters of one name.

    Names are those within the module that was given, so ``weights(encoder) | weights(decoder)`` would keep the
    decoder's alone wherever the two have layers of the same name.

    Args:
        chosen: the parameters by name.
        left_out: of parameters that were not chosen, name -> why.
        transposed: of weights of transposed convolutions, name -> the layer's ``groups``: their output channels lie
            in dimension 1.

    Raises:
        ValueError: by ``|`` and ``|=``, if both sides have a name for different tensors.

    Example:
        >>> from torch import nn
        >>> from torchreg import matching, weights
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        >>> list(weights(model) | matching(model, "0.bias"))
        ['0.weight', '1.weight', '0.bias']
    """

    def __init__(
        self,
        chosen: Mapping[str, Parameter],
        left_out: Mapping[str, str] | None = None,
        transposed: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(chosen)
        self.left_out = {name: why for name, why in (left_out or {}).items() if name not in chosen}
        self.transposed = dict(transposed or {})

    def __or__(self, other: Any) -> Any:
        if not isinstance(other, Mapping):
            return NotImplemented
        return Selected(super().__or__(_distinct(self, other)), *self._joined(other))

    def __ror__(self, other: Any) -> Any:
        if not isinstance(other, Mapping):
            return NotImplemented
        return Selected(super().__ror__(_distinct(self, other)), *self._joined(other))

    def __ior__(self, other: Any) -> Self:  # type: ignore[override]
        joined = self | (other if isinstance(other, Mapping) else dict(other))
        self.update(joined)
        self.left_out, self.transposed = joined.left_out, joined.transposed
        return self

    def _joined(self, other: Any) -> tuple[dict[str, str], dict[str, int]]:
        left_out, transposed = getattr(other, "left_out", {}), getattr(other, "transposed", {})
        return {**self.left_out, **left_out}, {**self.transposed, **transposed}

    def __repr__(self) -> str:
        rows = [(name, str(tuple(p.shape))) for name, p in self.items()]
        return "\n".join([text_table(("name", "shape"), rows), *told(self.left_out)])


def told(left_out: Mapping[str, str], *, ordinary: bool = True) -> list[str]:
    """A line for each reason for which parameters were left out, with their names."""
    names: dict[str, list[str]] = {}
    for name, why in left_out.items():
        if ordinary or why not in ORDINARY:
            names.setdefault(why, []).append(name)
    return [
        f"left out: {', '.join(some[:3])}{f' and {len(some) - 3} more' if len(some) > 3 else ''} ({why})"
        for why, some in names.items()
    ]


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
