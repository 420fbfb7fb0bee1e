"""What a penalty's proximal map takes: one step for a tensor, a step for each entry, or nothing, as there is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from torchreg.functional.shrinkage import Scalar
from torchreg.penalties.alpha import NoExactProx

if TYPE_CHECKING:
    from torchreg.penalties.base import Penalty


def inner_penalties(penalty: Penalty) -> list[Penalty]:
    """The penalties that one is made of, itself not: the terms of a sum, what a combinator is put around."""
    held = [x for field in vars(penalty).values() for x in (field if isinstance(field, tuple) else (field,))]
    return list({id(x): x for x in held if hasattr(x, "prox_steps")}.values())


def is_fused(penalty: Penalty) -> bool:
    """Whether this is a sum of a penalty of differences and one of each entry alone."""
    kinked = [p for p in inner_penalties(penalty) if p.ridge is None]
    return len(kinked) > 1 and any(p.fuses for p in kinked)


def parts_of(penalty: Penalty) -> Iterator[Penalty]:
    """A penalty and all that it is made of."""
    yield penalty
    for inner in inner_penalties(penalty):
        yield from parts_of(inner)


def takes_one_step(penalty: Penalty) -> bool:
    """Whether its proximal map is known for one step per tensor alone."""
    return any(p.prox_steps == "tensor" or is_fused(p) for p in parts_of(penalty))


def one_step(penalty: Penalty, step: Scalar) -> Scalar:
    """The step as a number or a 0-d tensor.

    Raises:
        NoExactProx: for a step for each entry.
    """
    if not isinstance(step, Tensor):
        return step
    if step.numel() > 1:
        raise NoExactProx(
            f"{penalty} has no proximal map in closed form for a step per entry, got one of shape {tuple(step.shape)}; "
            "give one step for the tensor. ProxOptimizer does, and moves the weights by it too."
        )
    return step.reshape(()) if step.numel() else 0.0


def no_prox(penalty: Penalty) -> NoExactProx:
    """What is raised for a penalty that gives no proximal step."""
    return NoExactProx(
        f"{penalty} has no proximal map, so no optimizer can step it; add it to the loss: loss + penalty(model)."
    )


def refuse_without_prox(penalty: Penalty) -> None:
    """Raise NoExactProx for a penalty that no optimizer can step."""
    for part in parts_of(penalty):
        if part.prox_steps == "none":
            raise no_prox(part)
        inner = inner_penalties(part)
        if any(takes_one_step(p) for p in inner) and any(isinstance(p.ridge, Tensor) and p.ridge.dim() for p in inner):
            raise NoExactProx(f"{part} has no proximal map: its ridge differs between entries, and all take one step.")


def refuse_rows(penalty: Penalty, lazy: bool) -> None:
    """Raise NoExactProx where a lazy term is to step some rows of what a penalty takes as a whole."""
    if lazy and takes_one_step(penalty):
        raise NoExactProx(f"{penalty} acts on all rows together, so lazy=True cannot step some of them.")
