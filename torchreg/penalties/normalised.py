"""When a sum of penalties has an alpha: if that number is the strength of one of its terms, or of all together.

A number that multiplies ``L1(0.1) + L2(0.01)`` is a factor, and would be read as a strength: set to 0.1 it makes
``L1(0.01)``. So the alpha of a sum is read, set, scheduled and searched only where it can be read in no other way:
where a term has strength 1, whose strength it then is, or where the terms' strengths are shares that add up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torchreg.penalties.base import Penalty


def is_normalised(terms: Sequence[Penalty]) -> bool:
    """Whether a number that multiplies these is the strength of one of them, or of all together.

    A sum of one sum is: who writes ``Sum((L1(0.1) + L2(0.01),), alpha=2.0)`` says that a factor is meant.
    """
    if len(terms) == 1 and terms[0].several:
        return True
    own = [math.nan if t.several or isinstance(t.alpha, Tensor) else float(t.alpha) for t in terms]
    return 1.0 in own or math.isclose(sum(own), 1.0)


def refuse_several(penalty: Penalty) -> None:
    """Raise ValueError for a sum of several strengths, of which none is the sum's alpha, and for a constraint."""
    if len(penalty.several) == 1 and any(t is penalty.several[0] for t in penalty.several[0].several):
        raise ValueError(
            f"{penalty!r} is a constraint: it holds or not, and has no strength, alpha, to be set or searched. "
            "Another bound is another object; to compare bounds, make it in run(...) from an axis of ablate's grid."
        )
    if penalty.several:
        raise ValueError(
            f"{penalty!r} has several strengths and no alpha of its own: a number set for it would multiply them "
            f"all. {_advice(penalty.several)} A factor on the whole has to be named: Sum((penalty,), alpha=1.0)."
        )


def _advice(terms: Sequence[Penalty]) -> str:
    lead = next((t for t in terms if t.ridge is None), terms[0])
    strength = lead.alpha
    if lead.several or isinstance(strength, Tensor) or not strength:
        return "Give one of its terms strength 1, whose strength the sum's alpha then is."
    joined = " + ".join(repr(t if t.several else t.with_alpha(t.alpha / strength)) for t in terms)
    return f"Write ({joined}).with_alpha({strength:g}), whose alpha is the strength of {type(lead).__name__}."
