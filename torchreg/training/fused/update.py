"""What an optimizer's update is to a compiled pass, and the pieces that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

Group = Mapping[str, Any]
Moved = tuple[Tensor, tuple[Tensor, ...], Tensor | None]


@dataclass(frozen=True, eq=False)
class Update:
    """How an optimizer with given switches steps one tensor.

    Attributes:
        kept: the tensors of its state that it reads and writes.
        counters: the 0-d tensors of its state that count.
        numbers: (group, counters) -> what the host reckons; the first is the effective step of an entry that has met
            no gradient, or of every entry where ``move`` gives none.
        move: (parameter, gradient, kept, numbers) -> the parameter, what is kept, the effective steps or None.
        advance: (group, state) -> the counters, after it has moved them as the optimizer does.
        counts_anywhere: whether ``numbers`` takes "step" as a tensor too; its first is then a number all the same.
    """

    kept: tuple[str, ...]
    counters: tuple[str, ...]
    numbers: Callable[..., tuple[float, ...]]
    move: Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]], Moved]
    advance: Callable[[Group, MutableMapping[str, Any]], tuple[float, ...]]
    counts_anywhere: bool = False


SWITCHES: dict[type[Optimizer], Callable[[Group], tuple[Any, ...]]] = {}
KNOWN: dict[type[Optimizer], Callable[..., Update]] = {}


def known(*kinds: type[Optimizer], switches: Callable[[Group], tuple[Any, ...]]) -> Callable[[Any], Any]:
    """Register what makes an update of the switches that these optimizers' groups have."""

    def register(make: Any) -> Any:
        for kind in kinds:
            SWITCHES[kind], KNOWN[kind] = switches, make
        return make

    return register


def counted(group: Group, state: MutableMapping[str, Any]) -> tuple[float, ...]:
    """`Update.advance` of an optimizer that counts steps."""
    del group
    state["step"] += 1
    return (state["step"].item(),)


def uncounted(group: Group, state: MutableMapping[str, Any]) -> tuple[float, ...]:
    """`Update.advance` of an optimizer that counts nothing."""
    del group, state
    return ()


def mixed(before: Tensor, now: Tensor, weight: Tensor, little: bool) -> Tensor:
    """``torch.lerp``, which takes the form that rounds less."""
    return before + weight * (now - before) if little else now - (now - before) * (1.0 - weight)


def squares(before: Tensor, kept: Tensor, new: Tensor, g: Tensor) -> Tensor:
    """The running mean of squares, or their weighted sum."""
    return before * kept + new * g * g


def has_decay(group: Group) -> bool:
    """Whether weights decay."""
    return bool(group["weight_decay"] != 0)
