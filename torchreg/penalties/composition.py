"""Which penalties may be added: those whose proximal maps compose to that of the sum."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from torchreg.functional.shrinkage import Scalar
from torchreg.penalties.alpha import NoExactProx
from torchreg.penalties.one_step import inner_penalties, is_fused, one_step
from torchreg.penalties.structure import Form, GroupForm, L1Form, ProxForm

if TYPE_CHECKING:
    from torchreg.penalties.base import Penalty


def ordered(rest: list[Penalty]) -> tuple[Penalty, ...]:
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


def joint_step(penalty: Penalty, step: Scalar) -> Scalar:
    """The step of a sum; of a fused lasso it has to be one for the tensor, so that equal entries stay equal."""
    return one_step(penalty, step) if is_fused(penalty) else step


def _is_alike(penalty: Penalty) -> bool:
    """Whether a penalty acts on each entry alone, on all alike, and its prox keeps their order."""
    fields = [penalty, *inner_penalties(penalty)]
    weighted = any(isinstance(x, Tensor) and x.dim() for p in fields for x in vars(p).values())
    return penalty.convex and penalty.grain == "entry" and not weighted


def form_of_sum(penalty: Penalty, forms: list[Form], ridges: list[Scalar]) -> Form:
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
    assert isinstance(inner, L1Form), forms  # as `ordered` has put them
    assert isinstance(group, GroupForm), forms
    return replace(group, inner=inner.l1, l2=group.l2 + inner.l2, lower=max(group.lower, inner.lower))
