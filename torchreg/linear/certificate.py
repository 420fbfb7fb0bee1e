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
from collections.abc import Sequence

import torch
from torch import Tensor

from torchreg.linear.groupwise.conditions import group_terms
from torchreg.linear.intercept import mean_of
from torchreg.linear.problem import Problem
from torchreg.penalties import GroupForm, L1Form, NoConjugate, Penalty
from torchreg.shrinkage import soft


def dual_scale(form: L1Form, g: Tensor) -> Tensor:
    """The largest ``s <= 1`` such that ``s g`` is feasible for the penalty's conjugate.

    ``s = min(1, min_j l1_j / |g_j|)`` over the entries j with l1 and without a ridge, whose conjugate is finite for
    ``|z_j| <= l1_j`` alone; g_j instead of |g_j| where coefficients are >= 0. A ridge makes every z feasible.

    Unpenalised coefficients are left out: their correlations are zero up to rounding.

    Args:
        form: of one penalty.
        g: correlations, (p,) or (p, batch).

    Returns:
        0-d or (batch,).
    """
    l1, l2 = columns(form.l1, g), columns(form.l2, g)
    size = g if form.lower == 0.0 else g.abs()
    bound = (l2 == 0.0) & (size > l1) & (l1 > 0.0)
    ratio = torch.where(bound, l1 / torch.where(bound, size, 1.0), 1.0)
    return ratio.amin(0) if len(ratio) else ratio.new_ones(g.shape[1:])


def penalty_gap(form: L1Form, w: Tensor, z: Tensor) -> Tensor:
    """``R(w) + R*(z) - <z, w>`` as a sum of non-negative terms.

    For each entry, ``R(w) = l1 |w| + l2 w^2 / 2``, and S is soft thresholding, ``S(z) = sign(z) max(0, |z| - l1)``:

    - l1 alone: ``l1 |w| - z w``, for ``|z| <= l1``;
    - with a ridge: ``l1 |w| - sign(z) min(|z|, l1) w + (l2 w - S(z))^2 / (2 l2)``;
    - neither, where z is 0 but for rounding: ``|z w|``, what leaving w as it is may cost;
    - forced to zero (l1 infinite): 0.

    Where coefficients are >= 0, z stands for |z|, and S(z) is ``max(0, z - l1)``.

    Args:
        form: of one penalty.
        w: coefficients, (p,) or (p, batch).
        z: feasible correlations, of w's shape.

    Returns:
        0-d or (batch,).
    """
    l1, l2 = columns(form.l1, z), columns(form.l2, z)
    bounded = z if form.lower == 0.0 else z.abs()
    clipped = torch.minimum(bounded, l1)
    linear = torch.where(w == 0.0, 0.0, torch.nan_to_num(l1, posinf=0.0) * w.abs() - _sign(form, z) * clipped * w)
    excess = soft(z.clamp(min=0.0) if form.lower == 0.0 else z, l1)
    free = (l1 == 0.0) & (l2 == 0.0)
    ridge = l2 > 0.0
    quadratic = torch.where(ridge, (l2 * w - excess).square() / (2.0 * torch.where(ridge, l2, 1.0)), 0.0)
    return torch.where(free, (z * w).abs(), linear + quadratic).clamp(min=0.0).sum(0)


def _sign(form: L1Form, z: Tensor) -> Tensor:
    return torch.ones_like(z) if form.lower == 0.0 else z.sign()


def violation(form: L1Form, w: Tensor, g: Tensor) -> Tensor:
    """The largest distance of ``g`` from the subdifferential of the penalty at ``w``.

    ``max(0, |g| - l1)`` where w is 0, with g for |g| where coefficients are >= 0; elsewhere
    ``|g - l2 w - l1 sign(w)|``.

    Args:
        form: of one penalty.
        w: coefficients, (p,) or (p, batch).
        g: minus the gradient of the data term, of w's shape.

    Returns:
        0-d or (batch,).
    """
    l1, l2 = columns(form.l1, g), columns(form.l2, g)
    size = g if form.lower == 0.0 else g.abs()
    finite = torch.nan_to_num(l1, posinf=0.0)
    at_zero = (size - l1).clamp(min=0.0)
    elsewhere = (g - l2 * w - finite * w.sign()).abs()
    distance = torch.where(w == 0.0, at_zero, elsewhere)
    return distance.amax(0) if len(distance) else distance.new_zeros(g.shape[1:])


def columns(strength: float | Tensor, like: Tensor) -> Tensor:
    """A strength as a tensor that broadcasts with coefficients (p,) or (p, batch)."""
    value = torch.as_tensor(strength, dtype=like.dtype, device=like.device)
    return value[:, None] if value.dim() == 1 and like.dim() == 2 else value


def table(forms: Sequence[L1Form], like: Tensor) -> L1Form:
    """Penalties of several strengths as one: (1, batch) for numbers, (p, batch) for strengths of each column."""
    l1, l2 = (
        torch.stack(torch.broadcast_tensors(*(columns(s, like[:, 0]).reshape(-1) for s in part)), 1)
        for part in ([form.l1 for form in forms], [form.l2 for form in forms])
    )
    return L1Form(l1, l2, forms[0].lower)


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
