"""What an optimizer's update is to a compiled pass, and the pieces that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Group = Mapping[str, Any]


@dataclass(frozen=True)
class Pace:
    """The effective steps of all entries, ``rate * over``.

    Attributes:
        rate: a number.
        over: of each entry, mostly the inverse of ``below``.
        below: of each entry.
        unmet: the entries that have met no gradient, None where the optimizer does not tell.
        alone: the step of such an entry, a number.
    """

    rate: Tensor
    over: Tensor
    below: Tensor
    unmet: Tensor | None = None
    alone: Tensor | None = None

    def steps(self, most: float | None) -> Tensor:
        """The step of each entry, at most ``most``."""
        steps = self.rate * self.over
        if self.unmet is not None and self.alone is not None:
            steps = torch.where(self.unmet, self.alone, steps)
        return steps if most is None else steps.clamp(max=most)

    def inverses(self, most: float | None, factor: Tensor) -> Tensor:
        """One over the step of each entry times a factor, with a minus where it has met no gradient."""
        least, dtype = 1.0 / (factor * torch.inf if most is None else factor * most), self.below.dtype
        inverse = self.below * once((1.0 / (self.rate * factor)).to(dtype))
        inverse = inverse if most is None else inverse.clamp(min=once(least.to(dtype)))
        if self.unmet is None or self.alone is None:
            return inverse
        alone = -(1.0 / (self.alone * factor)).maximum(least)
        return torch.where(self.unmet, once(alone.to(dtype)), inverse)


Moved = tuple[Tensor, tuple[Tensor, ...], Pace | None]


@dataclass(frozen=True, eq=False)
class Update:
    """How an optimizer with given switches steps one tensor.

    Attributes:
        kept: the tensors of its state that it reads and writes.
        counters: the 0-d tensors of its state that count.
        numbers: (group, counters) -> what the host reckons; the first is the effective step of an entry that has met
            no gradient, or of every entry where ``move`` gives none.
        move: (parameter, gradient, kept, numbers) -> the parameter, what is kept, its `Pace` or None.
        advance: (group, state) -> the counters, after it has moved them as the optimizer does.
        counts_anywhere: whether ``numbers`` takes "step" as a tensor too; its first is then a number all the same.
    """

    kept: tuple[str, ...]
    counters: tuple[str, ...]
    numbers: Callable[..., tuple[float, ...]]
    move: Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]], Moved]
    advance: Callable[[Group, MutableMapping[str, Any]], tuple[float, ...]]
    counts_anywhere: bool = False


def once(x: Tensor) -> Tensor:
    """What compiled code is to keep in memory, and not to reckon anew wherever it is used."""
    return x.as_strided(x.shape, x.stride())


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
