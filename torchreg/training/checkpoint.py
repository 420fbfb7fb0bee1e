"""What a checkpoint keeps of the penalties: whose they are, of which kind, how strong."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from torchreg.penalties import Penalty
from torchreg.training.term import Part, Term

KEY = "torchreg"  # the one entry that ours adds to a base optimizer's state dict
Renewal = tuple[Part, Penalty]


def strengths(terms: list[Term]) -> list[dict[str, Any]]:
    """Kind, alpha and parameter names of each part, as plain data."""
    return [
        {"penalty": _kind(part.penalty), "alpha": part.penalty.alpha, "names": list(part.parameters)}
        for term in terms
        for part in term.parts
    ]


def renewals(terms: list[Term], saved: list[dict[str, Any]]) -> list[Renewal]:
    """Each part with its penalty at the saved strength; nothing is changed yet.

    Raises:
        ValueError: where the checkpoint has other parameters, other penalties or no valid alpha.
    """
    present = strengths(terms)
    before, now = ({name for part in parts for name in part["names"]} for parts in (saved, present))
    if [part["names"] for part in saved] != [part["names"] for part in present]:
        raise ValueError(
            f"The checkpoint penalises other parameters: {len(saved)} part(s) then, {len(present)} now; only then "
            f"{sorted(before - now)[:5]}, only now {sorted(now - before)[:5]}. Attach the same terms in the same "
            f"order, or drop its {KEY!r} entry to load the base's state alone."
        )
    for then, part in zip(saved, present, strict=True):
        if then["penalty"] != part["penalty"]:
            raise ValueError(
                f"The checkpoint penalises {part['names'][:3]} by {then['penalty']} (shown at alpha 0), this optimizer "
                f"by {part['penalty']}; attach the same penalty, or drop the checkpoint's {KEY!r} entry."
            )
    parts = [part for term in terms for part in term.parts]
    return [(part, _at(part.penalty, then["alpha"])) for part, then in zip(parts, saved, strict=True)]


def restore(renewed: list[Renewal]) -> None:
    """Give each part its saved strength; warn once, naming what changed."""
    changed: list[str] = []
    for part, penalty in renewed:
        before, after = float(part.penalty.alpha), float(penalty.alpha)
        if before != after:
            changed.append(f"alpha = {after:g} for {', '.join(list(part.parameters)[:3])} (it was {before:g})")
        if isinstance(part.penalty.alpha, Tensor):
            part.penalty.alpha.detach().fill_(after)  # the caller's own knob goes on turning it
        else:
            part.penalty = penalty
    if changed:
        text = f"The checkpoint restored {'; '.join(changed)}; assign term.alpha after loading to use another."
        warnings.warn(text, stacklevel=3)


def _kind(penalty: Penalty) -> str:
    return repr(penalty.with_alpha(0.0))


def _at(penalty: Penalty, alpha: Any) -> Penalty:
    """The penalty at a saved strength, whose value is checked."""
    return penalty.with_alpha(float(alpha)) if not isinstance(penalty.alpha, Tensor) else _tensor(penalty, alpha)


def _tensor(penalty: Penalty, alpha: Any) -> Penalty:
    penalty.with_alpha(float(alpha))  # raises for a value out of range
    now = penalty.alpha
    assert isinstance(now, Tensor)
    return penalty.with_alpha(now.new_tensor(float(alpha)))
