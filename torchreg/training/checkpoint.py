"""What a checkpoint keeps of the penalties: whose they are, of which kind, how strong, how far along a schedule."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchreg.penalties import Penalty
from torchreg.training.term_part import AnyTerm, Part

KEY = "torchreg"  # the one entry that ours adds to a base optimizer's state dict
Saved = dict[str, Any]


@dataclass(frozen=True)
class Renewal:
    """A part of a term, and what a checkpoint keeps for it: a valid strength, perhaps a schedule's count, a target."""

    term: AnyTerm
    part: Part
    alpha: float
    count: int | None
    target: Saved | None = None
    frozen: bool = False

    @property
    def names(self) -> str:
        """The first of the part's parameters, for messages."""
        return ", ".join(list(self.part.parameters)[:3])


def saved_parts(terms: Sequence[AnyTerm]) -> Saved:
    """The entry of a state dict."""
    return {"version": 1, "parts": strengths(terms)}


def strengths(terms: Sequence[AnyTerm]) -> list[Saved]:
    """Kind, alpha, parameter names, scheduled steps, target and freeze of each part, as plain data."""
    return [
        {
            "penalty": _kind(part.penalty),
            "alpha": part.penalty.alpha,
            "names": list(part.parameters),
            "count": None if term.scheduler is None else term.scheduler.count,
            **({"target": term.scheduler.saved()} if term.target is not None else {}),
            "frozen": term.frozen,
        }
        for term in terms
        for part in term.parts
    ]


def renewals(terms: Sequence[AnyTerm], saved: list[Saved]) -> list[Renewal]:
    """Each part with what was saved for it; nothing is changed yet.

    Raises:
        ValueError: where the checkpoint has other parameters, other penalties or no valid alpha.
    """
    saved = read(terms, saved)
    _refuse_others(saved, strengths(terms))
    parts = [(term, part) for term in terms for part in term.parts]
    for (term, _), then in zip(parts, saved, strict=True):
        if term.scheduler is not None and then.get("count") is not None and (other := _other_target(term, then)):
            raise ValueError(other)
    return [renewal(term, part, then) for (term, part), then in zip(parts, saved, strict=True)]


def restore(renewed: list[Renewal], differences: list[str]) -> str:
    """Give each part its saved strength and each scheduler its count; what changed or differs, for `tell`."""
    changed = [text for r in renewed if r.term.scheduler is None and (text := _turn(r))]
    told = [f"The checkpoint restored {'; '.join(changed)}; assign term.alpha after loading to use another."]
    told = differences + (told if changed else [])
    for r in {id(r.term): r for r in renewed}.values():
        if r.term.target is None:
            r.term.hold(r.frozen)
        if text := _resume(r):
            told.append(text)
    return " ".join(told)


def tell(differences: str) -> None:
    """Warn once, after a load that is complete even where warnings are errors."""
    if differences:
        warnings.warn(differences, stacklevel=3)


def _turn(renewal: Renewal) -> str:
    if renewal.part.penalty.several:
        return ""  # its strengths belong to its kind
    before = float(renewal.part.penalty.alpha)
    renewal.part.turn(renewal.alpha)
    if before == renewal.alpha:
        return ""
    return f"alpha = {renewal.alpha:g} for {renewal.names} (it was {before:g})"


def _resume(renewal: Renewal) -> str:
    """Let the term's scheduler go on; what is to be said where either side has none."""
    scheduler, count = renewal.term.scheduler, renewal.count
    if scheduler is not None and count is not None:
        other = _other_target(renewal.term, {"target": renewal.target})
        target = {} if renewal.target is None else {"target": renewal.target}
        return other or str(scheduler.resume(count, renewal.alpha, **target))
    if scheduler is not None:
        return (
            f"The checkpoint has alpha = {renewal.alpha:g} and no schedule for {renewal.names}; its "
            f"{type(scheduler).__name__} stays at step {scheduler.count}, alpha = {scheduler.last_alpha:g}."
        )
    if count is not None:
        return (
            f"The checkpoint was {count} steps into a {'schedule' if renewal.target is None else 'target'} for "
            f"{renewal.names}, which no {'PenaltyScheduler' if renewal.target is None else 'TargetSparsity'} goes on "
            "with; make it before load_state_dict."
        )
    return ""


def _other_target(term: AnyTerm, then: Saved) -> str:
    """What makes the target of a checkpoint another than a term's, "" if neither has one."""
    saved = then.get("target")
    if term.target is not None:
        return str(term.target.differs(saved))
    if saved is None:
        return ""
    return f"The checkpoint is of a TargetSparsity, here {term.scheduler!r} moves the term; make the same target."


def _refuse_others(saved: list[Saved], present: list[Saved]) -> None:
    before, now = ({name for part in parts for name in part["names"]} for parts in (saved, present))
    if [part["names"] for part in saved] != [part["names"] for part in present]:
        raise ValueError(
            f"The checkpoint penalises other parameters: {len(saved)} part(s) then, {len(present)} now; only then "
            f"{sorted(before - now)[:5]}, only now {sorted(now - before)[:5]}. Attach the same terms in the same "
            f"order, map by name with strict=False, or drop its {KEY!r} entry to load the base's state alone."
        )
    for then, part in zip(saved, present, strict=True):
        if then["penalty"] != part["penalty"]:
            raise ValueError(
                f"The checkpoint penalises {part['names'][:3]} by {then['penalty']} (shown at alpha 0), this optimizer "
                f"by {part['penalty']}; attach the same penalty, or load what fits with strict=False."
            )


def _kind(penalty: Penalty) -> str:
    return repr(penalty if penalty.several else penalty.with_alpha(0.0))


def read(terms: Sequence[AnyTerm], saved: list[Saved]) -> list[Saved]:
    """Saved parts with kinds as they are told now: every sum had a factor once, and was shown with that at 0."""
    several = [part.penalty for term in terms for part in term.parts if part.penalty.several]
    now = {repr(_without_factor(penalty)): _kind(penalty) for penalty in several}
    return [{**part, "penalty": now.get(part["penalty"], part["penalty"])} for part in saved]


def _without_factor(penalty: Penalty) -> Penalty:
    inner = getattr(penalty, "penalty", None)
    return penalty.replaced(alpha=0.0) if inner is None else penalty.replaced(penalty=_without_factor(inner))


def renewal(term: AnyTerm, part: Part, saved: Saved) -> Renewal:
    """What was saved for a part, once it is valid for its penalty."""
    alpha = float(saved["alpha"])
    if not part.penalty.several:
        part.penalty.with_alpha(alpha)  # raises for a value out of range
    elif alpha != 1.0:
        raise ValueError(
            f"The checkpoint multiplies {part.penalty!r} by {alpha:g}, a factor that a sum has no longer; put it into "
            f"the strengths of the terms, or name it, Sum((penalty,), alpha={alpha:g}), and drop the {KEY!r} entry."
        )
    return Renewal(term, part, alpha, saved.get("count"), saved.get("target"), saved.get("frozen", False))
