"""Where penalised parameters stand in an optimizer: by position, which survives a swap of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from torchreg.penalties import Penalty
from torchreg.training.placement import check_placement
from torchreg.training.term import Part, Term, attach


@dataclass(frozen=True)
class Slot:
    """Where the parameters of one part stand in the base: a group, and positions in it."""

    part: Part
    group: int
    positions: list[int]
    names: list[str]

    def parameters(self, base: Optimizer) -> list[Tensor]:
        """The tensors that stand there now."""
        present = base.param_groups[self.group]["params"]
        return [present[k] for k in self.positions]

    def renew(self, base: Optimizer) -> None:
        """Give the part the tensors that stand there now."""
        self.part.parameters.update(zip(self.names, self.parameters(base), strict=True))


def matrices(group: dict[str, Any], index: int) -> dict[str, Tensor]:
    """The parameters of a group that a bare penalty takes, by position."""
    return {f"group {index}, parameter {k}": p for k, p in enumerate(group["params"]) if p.dim() >= 2}


def bare_term(base: Optimizer, penalty: Penalty) -> Term:
    """A bare penalty attached to what it takes of an optimizer."""
    taken: dict[str, Tensor] = {}
    for index, group in enumerate(base.param_groups):
        taken.update(matrices(group, index))
    if not taken:
        raise ValueError(
            "A bare penalty takes the optimizer's parameters with two or more dimensions, and there are none; "
            "choose parameters with attach(penalty, {name: parameter})."
        )
    return attach(penalty, taken)


def joined_terms(base: Optimizer, terms: Sequence[Term | Penalty]) -> tuple[list[Term], list[bool]]:
    """The terms, with each bare penalty attached to what it takes of the optimizer; and which were bare."""
    if not terms:
        raise ValueError("A proximal step needs a term or a penalty, got none; use attach(L1(0.1), model).")
    for term in terms:
        if not isinstance(term, (Term, Penalty)):
            raise TypeError(f"Terms and penalties are stepped, got {type(term).__name__}; use attach(...).")
    return [bare_term(base, t) if isinstance(t, Penalty) else t for t in terms], [isinstance(t, Penalty) for t in terms]


def renew_parts(slots: Sequence[Slot], base: Optimizer) -> None:
    """Give each term's parts the tensors that stand in the base now, as some trainers exchange them."""
    for slot in slots:
        slot.renew(base)


def slots_of(base: Optimizer, terms: list[Term]) -> list[Slot]:
    """Where each part's parameters stand in the base: positions, which survive a swap of tensors."""
    places = {id(p): (g, k) for g, group in enumerate(base.param_groups) for k, p in enumerate(group["params"])}
    found: dict[tuple[int, int], Slot] = {}
    taken: dict[int, str] = {}
    for term in terms:
        for part in term.parts:
            for name, p in part.parameters.items():
                if id(p) not in places:
                    raise ValueError(
                        f"Parameter {name!r} of shape {tuple(p.shape)} is penalised but is none of the base "
                        "optimizer's parameters; give it to the optimizer, or attach to fewer."
                    )
                if id(p) in taken:
                    raise ValueError(
                        f"Parameter {name!r} is penalised twice (first as {taken[id(p)]!r}), and two proximal steps "
                        "are not the step of the sum; attach one sum, such as Group(L1(a), by=rows) + L1(b)."
                    )
                check_placement(name, part.penalty, p)
                taken[id(p)] = name
                group, position = places[id(p)]
                slot = found.setdefault((id(part), group), Slot(part, group, [], []))
                slot.positions.append(position)
                slot.names.append(name)
    return list(found.values())
