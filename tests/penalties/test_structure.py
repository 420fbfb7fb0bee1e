"""Forms: the exact data that solvers get, checked by writing out the formula that they stand for."""

import math

import torch
from catalog import CATALOG
from helpers import F64, every, loop, normal

from torchreg.penalties import GroupForm, L1Form, ProxForm


def _times(strength, x):
    """``strength * x`` where an infinite strength allows 0 alone."""
    strength = torch.as_tensor(strength, dtype=F64)
    return torch.where(x == 0, 0.0, strength * x).sum()


def formula(form, w):
    """The penalty that a form describes, from the docstrings of the forms."""
    size = w.abs()
    cost = _times(form.l2, w**2) / 2.0 + torch.where((w < form.lower).any(), math.inf, 0.0)
    if isinstance(form, L1Form):
        return cost + _times(form.l1, size)
    return cost + _times(form.l1, form.by.sum(w**2).sqrt()) + _times(form.inner, size)


KNOWN = [c for c in CATALOG if not isinstance(c.make().form(torch.zeros(c.shape, dtype=F64)), ProxForm)]


@every(*KNOWN)
@loop("alpha", [None, 0.0, 2.0])
def test_the_formula_of_a_form_is_the_value(case, alpha):
    penalty = case.make() if alpha is None else case.make().with_alpha(alpha)
    for seed in range(6):
        w = normal(case.shape, seed)
        w = penalty.prox(w, 0.5) if seed % 2 else w
        form = penalty.form(w)
        assert isinstance(form, L1Form | GroupForm)
        assert torch.allclose(formula(form, w), penalty.value(w), rtol=1e-13, atol=1e-14)


@every()
def test_every_convex_penalty_but_a_users_own_has_exact_data(case):
    form = case.make().form(torch.zeros(case.shape, dtype=F64))
    exact = (
        case.convex
        and case.form
        and case.id != "own Penalty"
        and "reference" not in vars(case.make())
        and case.id not in {"Group L2", "Group L2, weights 0 and inf"}
    )
    if exact:
        assert not isinstance(form, ProxForm)
    if not case.convex:
        assert isinstance(form, ProxForm)


@every(*[c for c in CATALOG if c not in KNOWN])
def test_a_prox_form_names_its_penalty(case):
    assert case.make().form(torch.zeros(case.shape)).penalty == case.make()
