"""Where a penalty has kinks, and what it forbids."""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.penalties import GroupForm, L1Form, Penalty

Start = tuple[Tensor, Tensor]


def allowed(start: Start, form: L1Form | GroupForm) -> Start:
    """The start without what the penalty forbids."""
    coef, intercept = start
    l1 = form.by.expand(form.l1, coef) if isinstance(form, GroupForm) else form.l1
    l1 = torch.as_tensor(l1, dtype=coef.dtype, device=coef.device)
    return torch.where(l1.isinf(), 0.0, coef.clamp(min=form.lower)), intercept


def without_kink(form: L1Form | GroupForm, coef: Tensor) -> L1Form | None:
    """The same penalty as one of single coefficients where it has no kink, else None."""
    if isinstance(form, GroupForm):
        form = L1Form(form.by.expand(form.l1, coef) + form.inner, form.l2, form.lower)
    return form if is_kinkless(form) else None


def is_smooth(penalty: Penalty, coef: Tensor) -> bool:
    """Whether the penalty has no kink: a ridge, or nothing, on the coefficients that it does not force to zero."""
    form = penalty.with_alpha(1.0).form(coef)
    return isinstance(form, L1Form) and is_kinkless(form)


def is_kinkless(form: L1Form) -> bool:
    """Whether it is a ridge, or nothing, on what it does not force to zero."""
    l1 = form.l1 if isinstance(form.l1, Tensor) else torch.tensor(form.l1, dtype=torch.float64, device="cpu")
    return form.lower != 0.0 and bool(((l1 == 0.0) | l1.isinf()).all())
