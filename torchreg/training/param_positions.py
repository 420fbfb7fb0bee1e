"""Which of an optimizer's tensors are a term's parameters, however its ``param_groups`` are edited.

A parameter is identified
1. by the name that it has in the model of the term, where that is known and the optimizer has the model's tensor;
2. by its tensor, wherever in the groups it stands;
3. by its position, where another tensor of its shape has taken it that was not in the optimizer before
   (FSDP2 in Accelerate exchanges all of them);
4. a frozen one that the optimizer lacks rests until it is back, any other is refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer

from torchreg.functional.dtensor import is_memory_of, memory_of
from torchreg.functional.torch_private import without_compiler
from torchreg.training.bare_terms import all_matrices
from torchreg.training.term import Term
from torchreg.training.term_part import Owner, Part, check_fit
from torchreg.training.validation import refuse_sparse

Place = tuple[int, int]  # a group, and a position in it


@dataclass(frozen=True)
class Slot:
    """Where the trained parameters of one part stand in the base: a group, and positions in it."""

    part: Part
    group: int
    positions: list[int]

    def parameters(self, base: Optimizer) -> list[Tensor]:
        """The tensors that stand there now."""
        present = base.param_groups[self.group]["params"]
        return [present[k] for k in self.positions]


@dataclass(frozen=True)
class Positions:
    """The tensors and places of the penalised parameters.

    Attributes:
        tensors: the parameters of each part (by its id) by name; one that rests is none of the optimizer's.
        places: where those that the optimizer has stand, by their ids.
        sizes: how many parameters each group has.
        all: the memory of every tensor of the optimizer, by its id; some trainers free the tensors that they exchange,
            and ids come again.
        problem: why these parameters cannot be stepped, or "".
    """

    tensors: dict[int, dict[str, Tensor]]
    places: dict[int, Place]
    sizes: list[int]
    all: dict[int, StorageWeakRef | None]
    problem: str

    @property
    def own(self) -> set[int]:
        """The ids of those that the optimizer has; the tensors are held here, so no other comes by their ids."""
        return {id(p) for named in self.tensors.values() for p in named.values()} & self.places.keys()

    def had(self, p: Tensor) -> bool:
        """Whether the optimizer had this very tensor."""
        return id(p) in self.all and is_memory_of(self.all[id(p)], p)


class ParamPositions:
    """Keeps up with the places of the terms' parameters in an optimizer.

    Args:
        base: the optimizer.
        terms: those that are stepped.
        before: where parameters were before.

    Attributes:
        slots: where to step.

    Raises:
        ValueError: if a parameter is not the base's, or is penalised twice.
    """

    def __init__(self, base: Optimizer, terms: Sequence[Term], before: Positions | None = None) -> None:
        self.base, self.terms = base, list(terms)
        self._take(self._found(before))

    def of(self, terms: Sequence[Term]) -> ParamPositions:
        """The positions of other terms in the same optimizer."""
        return ParamPositions(self.base, terms, self._layout)

    @without_compiler
    def ready(self, owner: Owner) -> None:
        """Before a step: find what has moved, and claim the terms; nothing but ids is compared while nothing has.

        Raises:
            RuntimeError: if another optimizer steps one of the terms.
            ValueError: if a trained parameter is not the base's any more, or is penalised twice.
        """
        if self._signature() != self._seen:
            self._take(self._found(self._layout))
        for term in self.terms:
            term.claim(owner)

    def present(self, part: Part) -> dict[str, Tensor]:
        """The parameters of a part as they stand in the base now; changes nothing."""
        layout = self._layout if self._signature() == self._seen else self._found(self._layout)
        return layout.tensors[id(part)]

    def refuse_sparse(self) -> None:
        """Raise RuntimeError where a parameter that is to be stepped has a sparse gradient."""
        for slot in self.slots:
            refuse_sparse([] if slot.part.lazy else slot.parameters(self.base))

    def _signature(self) -> Any:
        """Differs once a parameter has moved or was frozen, or another has attached itself to the base."""
        ids = [list(map(id, group["params"])) for group in self.base.param_groups]
        trained = [p.requires_grad for named in self._layout.tensors.values() for p in named.values()]
        return ids, trained, [id(other) for other in attached(self.base)]

    def _found(self, before: Positions | None) -> Positions:
        others = [term for other in attached(self.base) if other is not self for term in other.terms]
        return find(self.base, self.terms, before, others)

    def _take(self, layout: Positions) -> None:
        if layout.problem:
            raise ValueError(layout.problem)
        slots: dict[tuple[int, int], Slot] = {}
        for part in _parts(self.terms):
            part.known = layout.tensors[id(part)]
            for p in part.known.values():
                if p.requires_grad and id(p) in layout.places:
                    group, position = layout.places[id(p)]
                    slots.setdefault((id(part), group), Slot(part, group, [])).positions.append(position)
        self.slots, self._layout = list(slots.values()), layout
        self._seen = self._signature()


def attached(base: Optimizer) -> list[ParamPositions]:
    """The positions of what `attach_to` has put on an optimizer, in that order."""
    hooks = getattr(base, "_optimizer_step_post_hooks", {}).values()
    found = [getattr(getattr(hook, "__self__", None), "positions", None) for hook in hooks]
    return [positions for positions in found if isinstance(positions, ParamPositions)]


def attached_terms(base: Optimizer) -> list[Term]:
    """The terms that `attach_to` lets an optimizer step."""
    return [term for positions in attached(base) for term in positions.terms]


def find(base: Optimizer, terms: Sequence[Term], before: Positions | None, others: Sequence[Term] = ()) -> Positions:
    """Where the terms' parameters are now, after they were ``before``; ``others`` are stepped on the same base."""
    groups = [group["params"] for group in base.param_groups]
    places = {id(p): (g, k) for g, group in enumerate(groups) for k, p in enumerate(group)}
    tensors = _surely(base, terms, places, {} if before is None else before.tensors)
    claimed = {id(p) for named in tensors.values() for p in named.values()}
    own, problems = set() if before is None else before.own, []
    for part in _parts(term for term in terms if not term.bare):
        for name, p in tensors[id(part)].items():
            if id(p) in places:
                continue
            other = _at_its_place(groups, before, p) if before is not None and id(p) in own else None
            if other is not None and id(other) not in claimed:
                tensors[id(part)][name] = other
                claimed.add(id(other))
            elif p.requires_grad:
                problems.append(_absent(name, p, edited=id(p) in own))
    problems += [*_misfits(terms, tensors, all_new=before is None), *_twice(terms, others, tensors)]
    known = {id(p): memory_of(p) for group in groups for p in group}
    return Positions(tensors, places, [len(group) for group in groups], known, problems[0] if problems else "")


def _parts(terms: Iterable[Term]) -> list[Part]:
    return [part for term in terms for part in term.parts]


def _surely(
    base: Optimizer, terms: Sequence[Term], places: Mapping[int, Place], before: Mapping[int, dict[str, Tensor]]
) -> dict[int, dict[str, Tensor]]:
    """Each parameter by the model's name or by its tensor; of a bare penalty the matrices that there are."""
    known = {id(part): before.get(id(part)) or _known(term, part) for term in terms for part in term.parts}
    owned = {id(p) for named in known.values() for p in named.values()}
    found = {}
    for term in terms:
        for part in term.parts:
            named = all_matrices(base) if term.bare else dict(known[id(part)])
            for name, p in () if term.bare else known[id(part)].items():
                now = term.in_model(name)
                if now is None or now is p:
                    continue
                if id(now) in places and id(now) not in owned:
                    named[name] = now
                elif id(now) in owned and id(p) not in places:
                    del named[name]  # it was tied to another
            found[id(part)] = named
    return found


def _known(term: Term, part: Part) -> dict[str, Tensor]:
    """The parameters as another optimizer has them, or as they were when last looked for."""
    return part.known if term.owner is None else part.parameters


def _at_its_place(groups: Sequence[Sequence[Tensor]], before: Positions, p: Tensor) -> Tensor | None:
    """The tensor that was put where a parameter stood, if it is new here and of its shape."""
    group, position = before.places[id(p)]
    if group >= len(groups) or len(groups[group]) != before.sizes[group]:
        return None  # positions have shifted
    other = groups[group][position]
    return other if other.shape == p.shape and not before.had(other) else None


def _misfits(terms: Sequence[Term], tensors: dict[int, dict[str, Tensor]], *, all_new: bool) -> Iterator[str]:
    """What is wrong with new tensors under their penalties; a model may have moved to a device since `attach`."""
    for part in _parts(terms):
        for name, p in tensors[id(part)].items():
            if all_new or p is not part.known.get(name):
                try:
                    check_fit(part.penalty, name, p)
                except (TypeError, ValueError) as error:
                    yield str(error)


def _twice(terms: Sequence[Term], others: Sequence[Term], tensors: dict[int, dict[str, Tensor]]) -> Iterator[str]:
    """Which parameters would take two proximal steps."""
    elsewhere = {id(p): name for part in _parts(others) for name, p in part.known.items()}
    taken: dict[int, str] = {}
    for part in _parts(terms):
        for name, p in tensors[id(part)].items():
            if id(p) in elsewhere:
                yield (
                    f"Parameter {name!r} has a proximal step already, by attach_to on the same optimizer (there it is "
                    f"{elsewhere[id(p)]!r}), and a second one would shrink it twice; call remove() on that Attachment, "
                    "or attach to other parameters."
                )
            elif id(p) in taken:
                yield (
                    f"Parameter {name!r} is penalised twice (first as {taken[id(p)]!r}), and two proximal steps "
                    "are not the step of the sum; attach one sum, such as Group(L1(a), by=rows) + L1(b)."
                )
            taken[id(p)] = name


def _absent(name: str, p: Tensor, *, edited: bool) -> str:
    what = f"Parameter {name!r} of shape {tuple(p.shape)} is penalised but "
    if edited:
        return (
            f"{what}no longer among the optimizer's parameters, since its param_groups were edited; put it back, "
            "freeze it with requires_grad_(False), or take its term off with remove_term(term) and attach to what is "
            "there."
        )
    return f"{what}is none of the base optimizer's parameters; give it to the optimizer, or attach to fewer."
