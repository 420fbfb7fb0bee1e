"""Sums of penalties: which may be added, since their proximal maps compose to that of the sum; and their alpha.

A number that multiplies ``L1(0.1) + L2(0.01)`` is a factor, and would be read as a strength: set to 0.1 it makes
``L1(0.01)``. So the alpha of a sum is read, set, scheduled and searched only where it can be read in no other way:
where a term has strength 1, whose strength it then is, or where the terms' strengths are shares that add up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut
from torchreg.functional.groups import Groups
from torchreg.functional.reductions import narrowed, widened
from torchreg.functional.shrinkage import Scalar, ridge_step, scaled
from torchreg.penalties.alpha import NoExactProx, check_values, strength
from torchreg.penalties.base import Form, Grain, Penalty, ProxForm, refuse_several
from torchreg.penalties.one_step import inner_penalties, is_fused, one_step
from torchreg.penalties.spec import short
from torchreg.penalties.structure import GroupForm, L1Form


@dataclass(frozen=True, eq=False, repr=False)
class Sum(Penalty):
    """A sum of penalties whose prox is exact: ``alpha * (R_1(w) + R_2(w) + ...)``.

    Exact are any penalty + L2, and a group penalty + L1 (the sparse group lasso, Simon et al., JCGS 22,
    2013), with or without L2. At alpha = 0 it is no penalty, its constraints included.

    A sum has an alpha, to be set, scheduled or searched, where that is the strength of a term, which has strength 1
    (``L1(1.0) + L2(0.1)``), or of all together, as shares that add up to 1. ``L1(0.1) + L2(0.01)`` has several
    strengths and no alpha; ``Sum((L1(0.1) + L2(0.01),), alpha=2.0)`` multiplies it by a factor.

    Args:
        terms: the penalties, each with its own strength.
        alpha: multiplies the sum.

    Raises:
        NoExactProx: where the prox of the sum has no closed form.
        ValueError: for an alpha, here or in `with_alpha`, of a sum that has none.

    Example:
        >>> import torch
        >>> from torchreg import L1, Group, rows
        >>> penalty = Group(L1(1.0), by=rows, weights=1.0) + L1(0.5)
        >>> penalty.prox(torch.tensor([[3.5, -4.5], [0.9, 1.0]]), 1.0)
        tensor([[ 2.4000, -3.2000],
                [ 0.0000,  0.0000]])
    """

    terms: tuple[Penalty, ...]
    alpha: Scalar = 1.0
    _ordered: tuple[Penalty, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        object.__setattr__(self, "alpha", strength("Sum", self.alpha))
        if not self.terms or not all(isinstance(t, Penalty) for t in self.terms):
            raise TypeError(f"Sum needs penalties, got {self.terms!r}; write L1(0.1) + L2(0.01).")
        object.__setattr__(self, "_ordered", _ordered([t for t in self.terms if t.ridge is None]))
        if isinstance(self.alpha, Tensor) or self.alpha != 1.0:
            refuse_several(self)

    @property
    def several(self) -> tuple[Penalty, ...]:
        return () if _is_normalised(self.terms) else self.terms

    @property
    def _ridges(self) -> list[Scalar]:
        return [t.ridge for t in self.terms if t.ridge is not None]

    @property
    def convex(self) -> bool:
        return all(t.convex for t in self.terms)

    @property
    def even(self) -> bool:
        return all(t.even for t in self.terms)

    @property
    def ridge(self) -> Scalar | None:
        return None if self._ordered else self.alpha * sum(self._ridges)

    @property
    def groups(self) -> Groups | None:
        return next((t.groups for t in self.terms if t.groups is not None), None)

    @property
    def grain(self) -> Grain:
        grains = {t.grain for t in self.terms}
        return "tensor" if "tensor" in grains else "row" if "row" in grains else "entry"

    def part(self, cut: Cut) -> Penalty | None:
        parts = [p for t in self.terms if (p := t.part(cut)) is not None]
        if len(parts) < len(self.terms):
            return None
        changed = any(p is not t for p, t in zip(parts, self.terms, strict=True))
        return Sum(tuple(parts), self.alpha) if changed else self

    def value(self, w: Tensor) -> Tensor:
        together = sum((t.value(w) for t in self.terms[1:]), self.terms[0].value(w))
        nothing = self.alpha == 0
        if isinstance(nothing, Tensor):
            return torch.where(nothing, torch.zeros_like(together), self.alpha * together)
        return torch.zeros_like(together) if nothing else self.alpha * together

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        x, rest = widened(w), scaled(self.alpha, _joint_step(self, step))
        for ridge in self._ridges:
            factor, rest = ridge_step(rest, ridge)
            x = x * factor + 0.0
        for term in self._ordered:
            x = term.prox(x, rest)
        return narrowed(x, w)

    def form(self, w: Tensor) -> Form:
        return _form_of_sum(self, [t.form(w) for t in self._ordered], self._ridges)

    def check(self, w: Tensor) -> None:
        check_values("Sum", self.alpha)
        for term in self.terms:
            term.check(w)

    def __repr__(self) -> str:
        parts, one = list(map(repr, self.terms)), isinstance(self.alpha, float) and self.alpha == 1.0
        if one and len(parts) > 1:
            return " + ".join(parts)
        return f"Sum(({', '.join(parts)}{',' * (len(parts) == 1)}), alpha={short(self.alpha)})"


def added(one: Penalty, other: Penalty) -> Sum:
    """``one + other``."""
    return Sum((*_summands(one), *_summands(other)))


def _summands(penalty: Penalty) -> tuple[Penalty, ...]:
    """The terms that ``+`` joins: a plain sum is taken apart, any other penalty is one term."""
    plain = isinstance(penalty, Sum) and isinstance(penalty.alpha, float) and penalty.alpha == 1.0
    return penalty.terms if plain else (penalty,)  # type: ignore[attr-defined]


def _is_normalised(terms: Sequence[Penalty]) -> bool:
    """Whether a number that multiplies these is the strength of one of them, or of all together.

    A sum of one sum is: who writes ``Sum((L1(0.1) + L2(0.01),), alpha=2.0)`` says that a factor is meant.
    """
    if len(terms) == 1 and terms[0].several:
        return True
    own = [math.nan if t.several or isinstance(t.alpha, Tensor) else float(t.alpha) for t in terms]
    return 1.0 in own or math.isclose(sum(own), 1.0)


def _ordered(rest: list[Penalty]) -> tuple[Penalty, ...]:
    """The terms that are no ridge, in the order in which their proximal maps compose exactly."""
    if len(rest) <= 1:
        return tuple(rest)
    if len(rest) == 2:
        for first, second in (rest, rest[::-1]):
            if first.sublinear and second.radial:  # Yu, NeurIPS 2013, theorem 4; `Cardinality.radial`
                return first, second
            if first.fuses and _is_alike(second):  # Friedman et al., Ann. Appl. Stat. 1, 2007, proposition 1
                return first, second
    raise NoExactProx(
        f"{' + '.join(map(repr, rest))} has no exact proximal map in closed form. Exact are any penalty + L2, "
        "Group(...) + L1, TotalVariation(...) + L1, and TopK or NM + L1. Join strengths of the same kind into one "
        "penalty, or keep one penalty in the prox and add the other to the loss: loss + penalty(model)."
    )


def _joint_step(penalty: Penalty, step: Scalar) -> Scalar:
    """The step of a sum; of a fused lasso it has to be one for the tensor, so that equal entries stay equal."""
    return one_step(penalty, step) if is_fused(penalty) else step


def _is_alike(penalty: Penalty) -> bool:
    """Whether a penalty acts on each entry alone, on all alike, and its prox keeps their order."""
    fields = [penalty, *inner_penalties(penalty)]
    weighted = any(isinstance(x, Tensor) and x.dim() for p in fields for x in vars(p).values())
    return penalty.convex and penalty.grain == "entry" and not weighted


def _form_of_sum(penalty: Penalty, forms: list[Form], ridges: list[Scalar]) -> Form:
    """The form of a sum, from those of the terms that are no ridge."""
    if not isinstance(penalty.alpha, Tensor) and penalty.alpha == 0.0:
        return L1Form(0.0)
    if any(isinstance(f, ProxForm) for f in forms):
        return ProxForm(penalty)
    joint: Form = _sparse_group_form(forms) if len(forms) > 1 else forms[0] if forms else L1Form(0.0)
    if isinstance(joint, GroupForm) and any(isinstance(r, Tensor) and r.dim() for r in ridges):
        return ProxForm(penalty)  # a ridge that differs within a group leaves no closed form
    for ridge in ridges:
        joint = joint.plus_ridge(ridge)  # type: ignore[union-attr]
    return joint.times(penalty.alpha)  # type: ignore[union-attr]


def _sparse_group_form(forms: list[Form]) -> Form:
    """The form of L1 and a group penalty together."""
    inner, group = forms
    assert isinstance(inner, L1Form), forms  # as `_ordered` has put them
    assert isinstance(group, GroupForm), forms
    return replace(group, inner=inner.l1, l2=group.l2 + inner.l2, lower=max(group.lower, inner.lower))
