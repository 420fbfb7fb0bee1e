"""What a checkpoint keeps of the penalties: their strengths, and whose they are."""

from __future__ import annotations

import warnings
from typing import Any

from torchreg.shrinkage import Scalar
from torchreg.training.term import Term

KEY = "torchreg"  # the one entry that ours adds to a base optimizer's state dict


def strengths(terms: list[Term]) -> list[dict[str, Any]]:
    """The alpha and the parameter names of each part, as plain data."""
    return [{"alpha": part.penalty.alpha, "names": list(part.parameters)} for term in terms for part in term.parts]


def compare_strengths(saved: list[dict[str, Any]], present: list[dict[str, Any]]) -> None:
    """Raise ValueError where a checkpoint penalises other parameters than now."""
    before, now = ({name for part in parts for name in part["names"]} for parts in (saved, present))
    if [part["names"] for part in saved] != [part["names"] for part in present]:
        raise ValueError(
            f"The checkpoint penalises other parameters: {len(saved)} part(s) then, {len(present)} now; only then "
            f"{sorted(before - now)[:5]}, only now {sorted(now - before)[:5]}. Attach the same terms in the same "
            f"order, or drop its {KEY!r} entry to load the base's state alone."
        )


def restore_strengths(terms: list[Term], saved: list[dict[str, Any]]) -> None:
    """Give each part its saved alpha; warn once, naming what changed."""
    changed: list[str] = []
    for part, entry in zip((part for term in terms for part in term.parts), saved, strict=True):
        before: Scalar = part.penalty.alpha
        part.penalty = part.penalty.with_alpha(entry["alpha"])
        if float(before) != float(entry["alpha"]):
            names = ", ".join(entry["names"][:3])
            changed.append(f"alpha = {float(entry['alpha']):g} for {names} (it was {float(before):g})")
    if changed:
        warnings.warn(
            f"The checkpoint restored {'; '.join(changed)}; assign term.alpha after loading to use another.",
            stacklevel=3,
        )
