"""What may take the place of the plain proximal step for a term's parameters, before and after the base's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch.optim import Optimizer

from torchreg.training.clipping import as_clipped
from torchreg.training.common_step import Copies
from torchreg.training.dual_averaging import DualAveraging
from torchreg.training.effective_step import rule_for
from torchreg.training.grad_scaler import unless_skipped
from torchreg.training.param_positions import Slot
from torchreg.training.proximal_step import prox_step
from torchreg.training.site import Site
from torchreg.training.step_rules import StepRule
from torchreg.training.term import Term
from torchreg.training.term_part import AnyTerm

Mode = Literal["prox", "dual_averaging"]
_BEGUN = "_begun_step"  # the attribute of who has begun a step and not finished it


class Control(Protocol):
    """What a term's parameters take in place of the plain proximal step; assigned to ``term.control``.

    All sites of the term come in one call. A parameter holds its own value w while gradients are taken and the base
    steps it; nothing is lent, so closures, exceptions and skipped steps find it as it is.
    """

    def check(self, term: AnyTerm, *, masters: bool) -> None:
        """Raise where it cannot act on a term, of an optimizer with masters or without; nothing has changed then."""

    def before(self, sites: Sequence[Site]) -> None:
        """Before the base's step and its closure. Nothing may be made in the state of a site that is not `stepped`."""

    def after(self, sites: Sequence[Site], shrink: Callable[[], None]) -> None:
        """After the base's step, of the `stepped` sites at least. ``shrink()`` is what they would take else."""

    def undo(self, sites: Sequence[Site]) -> None:
        """After a step that raised: what the base has added to entries that must be zero goes; may come twice."""


def check_controls(terms: Sequence[Term], mode: Mode, *, masters: bool) -> None:
    """Raise, before anything has changed, where a term cannot be stepped as its control or a mode asks for.

    Raises:
        ValueError: for another mode, a lazy term, or what a control cannot act on.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {list(get_args(Mode))}, got {mode!r}.")
    for term in terms:
        for control in _of_term(term, mode):
            if any(part.lazy for part in term.parts):
                raise ValueError(
                    f"{list(term.parameters)[:3]} are attached with lazy=True, and {control!r} moves every row at each "
                    "step; attach them without, or step them by another optimizer with mode='prox'."
                )
            control.check(term, masters=masters)


def around(owner: Any, run: Callable[[Any], Any], closure: Any) -> Any:
    """Both halves of a step, between what the controls of the owner's terms do before it and where it raises."""
    if not controlled(owner):
        return run(closure)
    begin(owner)
    if torch.compiler.is_compiling():
        return run(closure)
    try:
        result = run(closure)
    except BaseException:
        give_up(owner)
        raise
    done(owner)
    return result


def controlled(owner: Any) -> bool:
    """Whether any term of an owner takes other than the plain proximal step."""
    return owner.mode != "prox" or any(t.control is not None or t.together is not None for t in owner.terms)


def begin(owner: Any) -> None:
    """Before the base's step; one that was begun and broke off before, in a hook's optimizer, is undone."""
    if not controlled(owner):
        return
    settle(owner)
    _each(owner, "before")
    if not torch.compiler.is_compiling():
        setattr(owner, _BEGUN, True)


def settle(owner: Any) -> None:
    """Undo a step that was begun and broke off, before its weights or its state are used for something else."""
    if getattr(owner, _BEGUN, False):
        give_up(owner)


def done(owner: Any) -> None:
    """After both halves of a step."""
    if getattr(owner, _BEGUN, False):
        setattr(owner, _BEGUN, False)


def give_up(owner: Any) -> None:
    """After a step that raised."""
    _each(owner, "undo")
    done(owner)


@torch.no_grad()
def _each(owner: Any, do: str) -> None:
    rule = rule_for(owner.base, owner.metric)
    for controls, slots in _by_term(owner):
        for control in controls:
            getattr(control, do)(_sites(owner, slots, rule, stepped=False))


def base_then_prox(owner: Any, closure: Callable[[], Any] | None) -> Any:
    """The base's step and the proximal one after it; returns what the base's step returns."""
    if closure is None:
        owner.positions.refuse_sparse()
        loss = owner.base.step()
    else:
        loss = owner.base.step(closure)
        owner.positions.refuse_sparse()
    owner.prox()
    return loss


def proximal_half(owner: Any) -> None:
    """The proximal half of a step, for the parameters that the base has just stepped."""
    rule = unless_skipped(as_clipped(rule_for(owner.base, owner.metric), owner), owner.base)
    copies: Copies = owner._before or [[] for _ in owner.positions.slots]
    owner._before = []
    if not controlled(owner):
        prox_step(owner.base, owner.positions.slots, rule, owner.foreach, copies)
        return
    for p in (p for group in owner.base.param_groups for p in group["params"] if p.grad is not None):
        owner.base.state.setdefault(p, {})  # torch.distributed.checkpoint wants a state of all or of none
    with torch.no_grad():
        for controls, slots in _by_term(owner):
            before = [own for slot, own in zip(owner.positions.slots, copies, strict=True) if slot in slots]
            _taken(owner, controls, slots, rule, before)()


def _taken(
    owner: Any, controls: list[Control], slots: list[Slot], rule: StepRule, copies: Copies
) -> Callable[[], None]:
    """What the first control does with the sites, which may ask for what the next does, the plain step in the end."""
    if not controls:
        return lambda: prox_step(owner.base, slots, rule, owner.foreach, copies)
    first, rest = controls[0], controls[1:]
    return lambda: first.after(_sites(owner, slots, rule, stepped=True), _taken(owner, rest, slots, rule, copies))


def _by_term(owner: Any) -> list[tuple[list[Control], list[Slot]]]:
    """The slots of each term, and what controls them: the term's own control, its joint groups, the owner's mode."""
    found = []
    for term in owner.terms:
        slots = [slot for slot in owner.positions.slots if any(slot.part is part for part in term.parts)]
        found.append((_of_term(term, owner.mode), slots))
    return found


def _of_term(term: Term, mode: Mode) -> list[Control]:
    own: list[Control] = [control for control in (term.control, term.together) if control is not None]
    return own if mode == "prox" else [*own, DualAveraging()]


def sites_of(term: Term) -> list[Site]:
    """The sites of a term that an optimizer steps, between two steps; those are marked that have a state."""
    owner: Any = term.owner
    slots = [slot for slot in owner.positions.slots if any(slot.part is part for part in term.parts)]
    return _sites(owner, slots, rule_for(owner.base, owner.metric), stepped=False)


def _sites(owner: Any, slots: Sequence[Slot], rule: StepRule, *, stepped: bool) -> list[Site]:
    """The sites of all trained parameters; those are marked that the base has stepped, or else has a state for."""
    base: Optimizer = owner.base
    found = getattr(base, "found_inf", None)
    sites = []
    for slot in slots:
        group = base.param_groups[slot.group]
        for k, p in zip(slot.positions, slot.parameters(base), strict=True):
            known = p in base.state
            moved = p.grad is not None and (known or rule.shape != "entry") if stepped else known
            skipped = None if found is None else (found.to(p.device, non_blocking=True) > 0).reshape(())
            state = base.state[p] if known or moved else {}
            sites.append(Site(slot.part, p, state, group, rule, skipped, (slot.group, k), moved))
    return sites
