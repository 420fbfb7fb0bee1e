"""Duality gaps as sums of terms none of which is negative, so that no digits cancel.

With ``u = s * loss'(eta)`` and ``z = s * g``, ``g`` minus the gradient of the data term, the gap is the sum of two
Fenchel-Young gaps: ``f(eta) + f*(u) - <u, eta>`` over the rows, and ``R(w) + R*(z) - <z, w>`` over the coefficients.
Each is a sum of terms >= 0. The scale ``0 < s <= 1`` makes ``z`` feasible where R has no ridge.

In full, with weights v_i of sum 1, ``eta = X w + b + offset``, ``r = loss'(eta)`` and ``g = -X' (v * r)``:

    gap = sum_i v_i (f(eta_i) + f*(s r_i) - s r_i eta_i)  +  R(w) + R*(s g) - s <g, w>

- Least squares: the first sum is ``(1 - s)^2 sum_i v_i r_i^2 / 2``; with K outputs r_i^2 is summed over them.
- Other losses: their `Datafit.fenchel_gap`; s is no larger than their conjugate's domain allows. With K outputs r_i
  and eta_i are rows of K numbers, and ``s r_i eta_i`` their inner product.
- The intercept b is unpenalised: at its best value the r_i have weighted mean 0, so it adds nothing.
- L1 with a ridge, alone or together, per entry: `penalty_gap`. Groups: `GroupTerms.gap`. With K outputs w and g are
  tables, and the sums go over all their entries or groups; one s serves them all.
- Any other penalty, or loss without a conjugate: nan.

Source: Fenchel's inequality (Rockafellar, Convex Analysis, 1970, theorem 23.5); scaling of the residual: El Ghaoui,
Viallon and Rabbani, Pacific J. Optim. 8, 2012.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchreg.linear.groupwise.conditions import group_terms
from torchreg.linear.intercept import mean_of
from torchreg.linear.objective.entry_terms import dual_scale, penalty_gap
from torchreg.linear.problem import Problem
from torchreg.penalties import GroupForm, L1Form, NoConjugate, Penalty


def full_gap(
    problem: Problem, penalty: Penalty, coef: Tensor, eta: Tensor, *, unexplained: float | Tensor = math.inf
) -> Tensor:
    """The duality gap of any problem at ``coef``, 0-d; nan where a conjugate is not known.

    ``sum_i v_i (f(eta_i) + f*(s r_i) - s r_i eta_i) + R(coef) + R*(s g) - s <g, coef>``, as this module's docstring
    says.

    Args:
        problem: the data term.
        penalty: of the coefficients.
        coef: (p,) or (p, K).
        eta: its linear predictor, at the best intercept, (n,) or (n, K).
        unexplained: the largest correlation of an unpenalised coefficient that may pass for zero; beyond it no dual
            point is known and the gap is inf.
    """
    form = penalty.form(coef)
    if not isinstance(form, (L1Form, GroupForm)):
        return torch.full_like(problem.weights[0], torch.nan)
    g = -problem.gradient(eta)
    size = torch.where((coef == 0.0) & (form.lower == 0.0), g, g.abs())
    missed = torch.where(is_free(form, coef), size, 0.0).amax()
    return gap_at(problem, form, coef, eta, g) + torch.where(missed > unexplained, torch.inf, 0.0)


def is_free(form: L1Form | GroupForm, coef: Tensor) -> Tensor:
    """Which coefficients are unpenalised, of coef's shape."""
    l2 = torch.as_tensor(form.l2, dtype=coef.dtype, device=coef.device)
    if isinstance(form, GroupForm):
        l1 = form.by.expand(form.l1, coef) + form.inner
    else:
        l1 = torch.as_tensor(form.l1, dtype=coef.dtype, device=coef.device)
    return ((l1 == 0.0) & (l2 == 0.0)).broadcast_to(coef.shape)


def gap_at(problem: Problem, form: L1Form | GroupForm, coef: Tensor, eta: Tensor, g: Tensor) -> Tensor:
    """`full_gap` for a penalty of known form where ``g``, minus the gradient of the data term, is known too.

    Args:
        problem: the data term.
        form: of the penalty; of coefficients (p, K) each entry, or each group, counts by itself.
        coef: (p,) or (p, K).
        eta: its linear predictor, at the best intercept, (n,) or (n, K).
        g: of coef's shape.
    """
    rows = problem.datafit.grad(eta, problem.y)
    if isinstance(form, L1Form):
        form, coef, g = _flat(form, coef), coef.reshape(-1), g.reshape(-1)
        scale = dual_scale(form, g)
    else:
        (terms,), coef, g = group_terms([form], coef), coef.reshape(-1), g.reshape(-1)
        scale = terms.scale(g)
    scale = torch.minimum(scale, problem.datafit.feasible(rows, problem.y))
    try:
        data = mean_of(problem.datafit.fenchel_gap(eta, scale * rows, problem.y), problem.weights)
    except NoConjugate:
        return torch.full_like(scale, torch.nan)
    return data + (penalty_gap(form, coef, scale * g) if isinstance(form, L1Form) else terms.gap(coef, scale * g))


def _flat(form: L1Form, coef: Tensor) -> L1Form:
    """The form over all entries of coefficients (p, K), in one dimension."""
    if coef.dim() == 1:
        return form
    l1, l2 = (
        torch.as_tensor(part, dtype=coef.dtype, device=coef.device).broadcast_to(coef.shape).reshape(-1)
        for part in (form.l1, form.l2)
    )
    return L1Form(l1, l2, form.lower)
