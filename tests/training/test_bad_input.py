"""Every refusal says what was given, what is allowed and what to do, before anything changes."""

import math

import numpy as np
import pytest
import torch
from catalog import CATALOG, OwnLogSum
from torch import nn

from torchreg import (
    L0,
    L1,
    L1L2,
    L2,
    MCP,
    SCAD,
    Group,
    NonNegative,
    Sum,
    Towards,
    Weighted,
    columns,
    filters,
    labels,
    matching,
    of_type,
    rows,
    whole,
)  # fmt: skip
from torchreg.penalties import NoExactProx

ALPHAS = [L1, L2, L1L2, L0, MCP, SCAD]
NAN, INF = math.nan, math.inf
T = torch.tensor


@pytest.mark.parametrize("kind", ALPHAS)
@pytest.mark.parametrize("alpha", [-0.1, NAN, INF, -INF])
def test_alpha_is_finite_and_not_negative(kind, alpha):
    for make in (kind, kind(0.1).with_alpha, Group(kind(0.1), rows).with_alpha, Weighted(kind(0.1), 1.0).with_alpha):
        with pytest.raises(ValueError, match=rf"{kind.__name__}.*alpha >= 0, got {alpha}.*alpha=0"):
            make(alpha)
    with pytest.raises(ValueError, match="alpha"):
        (kind(1.0) + L2(0.1)).with_alpha(alpha)


@pytest.mark.parametrize("kind", ALPHAS)
@pytest.mark.parametrize("alpha", [True, "0.1", None, [0.1], 1j])
def test_alpha_is_a_number(kind, alpha):
    with pytest.raises(TypeError, match=rf"{kind.__name__}.*alpha.*got {type(alpha).__name__}"):
        kind(alpha)


@pytest.mark.parametrize("alpha", [T([0.1]), T([0.1, 0.2]), T(1), T(True), T(1j)])
def test_a_tensor_alpha_is_0d_and_floating(alpha):
    with pytest.raises(ValueError, match=r"L1.*0-d.*shape.*(Weighted|vmap)"):
        L1(alpha)


@pytest.mark.parametrize("alpha", [-1.0, NAN, INF])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda p: p,
        lambda p: Group(p, rows),
        lambda p: Weighted(p, 2.0),
        NonNegative,
        lambda p: Towards(p, torch.zeros(3, 2)),
        lambda p: p + L2(0.1),
    ],
)
def test_values_of_tensor_alphas_are_checked_at_attach(alpha, wrap):
    with pytest.raises(ValueError, match="alpha >= 0"):
        wrap(L1(T(alpha))).check(torch.zeros(3, 2))


@pytest.mark.parametrize("alpha", [-1.0, NAN, INF])
def test_the_tensor_alpha_of_a_sum_is_checked_at_attach(alpha):
    with pytest.raises(ValueError, match="alpha >= 0"):
        (L1(1.0) + L2(0.1)).with_alpha(T(alpha)).check(torch.zeros(3, 2))


@pytest.mark.parametrize(("kind", "least"), [(MCP, 0), (SCAD, 2)])
@pytest.mark.parametrize("below", [0.0, -2.0, NAN, INF, -INF])
def test_gamma_is_in_range(kind, least, below):
    gamma = least + below
    with pytest.raises(ValueError, match=rf"{kind.__name__} needs gamma > {least}, got {gamma}; use L1"):
        kind(0.1, gamma)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, NAN, INF])
def test_l1_ratio_is_a_share(ratio):
    with pytest.raises(ValueError, match=rf"l1_ratio between 0 and 1, got {ratio}; use"):
        L1L2(0.1, ratio)


@pytest.mark.parametrize("make", [lambda w: Weighted(L1(0.1), w), lambda w: Group(L1(0.1), rows, weights=w)])
@pytest.mark.parametrize("bad", [-1.0, NAN, T([1.0, -1.0]), T([NAN, 1.0]), T([-INF])])
def test_weights_are_not_negative(make, bad):
    with pytest.raises(ValueError, match=r"needs weights >= 0 .*got (-|nan)"):
        make(bad)


@pytest.mark.parametrize("make", [lambda w: Weighted(L1(0.1), w), lambda w: Group(L1(0.1), rows, weights=w)])
@pytest.mark.parametrize("bad", [T([1, 2]), T([True]), T([1j]), "rows", [1.0, 2.0]])
def test_weights_are_floating_point(make, bad):
    with pytest.raises(TypeError, match="weights"):
        make(bad)


MISFITS = [
    ("Weighted", Weighted(L1(0.1), torch.ones(4)), (3, 2), r"\(4,\).*\(3, 2\)"),
    ("Weighted, too many dimensions", Weighted(L1(0.1), torch.ones(1, 3, 2)), (3, 2), r"\(1, 3, 2\).*\(3, 2\)"),
    ("Weighted, broadcast of w", Weighted(L1(0.1), torch.ones(3, 2)), (3, 1), r"\(3, 2\).*\(3, 1\)"),
    ("Group's weights", Group(L1(0.1), rows, weights=torch.ones(4)), (3, 2), r"\(4,\).*3 groups.*\(3, 2\)"),
    ("labels", Group(L1(0.1), labels(T([0, 1]))), (3, 2), r"\(2,\).*\(3, 2\)"),
    ("labels of entries", Group(L1(0.1), labels(T([[0, 1]]))), (3, 2), r"\(1, 2\).*\(3, 2\)"),
    ("rows", Group(L1(0.1), rows), (), r"rows.*at least 1.*\(\)"),
    ("columns", Group(L1(0.1), columns), (3,), r"columns.*at least 2.*\(3,\)"),
    ("filters", Group(L1(0.1), filters), (3, 2), r"filters.*at least 3.*\(3, 2\)"),
    ("Towards", Towards(L1(0.1), torch.ones(2, 3)), (3, 2), r"\(2, 3\).*\(3, 2\)"),
]


@pytest.mark.parametrize(("penalty", "shape", "message"), [pytest.param(*m[1:], id=m[0]) for m in MISFITS])
@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: p + L2(0.1), lambda p: L2(0.1) + p, lambda p: Sum((p,))])
def test_what_does_not_fit_names_both_shapes(penalty, shape, message, wrap):
    w = torch.ones(shape)
    with pytest.raises(ValueError, match=message):
        wrap(penalty).check(w)
    assert bool((w == 1.0).all())


@pytest.mark.parametrize("index", [T([0.0, 1.0]), T([True]), T([1j]), [0, 1], "rows"])
def test_labels_are_integers(index):
    with pytest.raises(TypeError, match=r"integers, got .*torch\.tensor"):
        labels(index)


def test_labels_are_not_negative():
    with pytest.raises(ValueError, match=">= 0, got -2"):
        labels(T([0, -2]))


ILLEGAL = [
    (lambda: Group(Group(L1(0.1), rows), columns), TypeError, "separable.*Group.*sparse group"),
    (lambda: Weighted(Group(L1(0.1), rows), 1.0), TypeError, r"separable.*Group\(\.\.\., weights"),
    (lambda: Weighted(L1(0.1) + L2(0.1), 1.0), TypeError, "separable.*each term"),
    (lambda: Weighted(NonNegative(L1(0.1)), 1.0), TypeError, "separable.*outside"),
    (lambda: Group(NonNegative(L1(0.1)), rows), TypeError, r"separable.*NonNegative\(Group"),
    (lambda: NonNegative(Towards(L1(0.1), torch.ones(2))), TypeError, r"\|w\|.*Towards"),
    (lambda: NonNegative(NonNegative(L1(0.1))), TypeError, r"\|w\|.*NonNegative"),
    (lambda: Towards(NonNegative(L1(0.1)), torch.ones(2)), TypeError, "constraint.*Towards"),
    (lambda: Towards(Towards(L1(0.1), torch.ones(2)), torch.ones(2)), TypeError, "reference of its own"),
    (lambda: Towards(L1(0.1), 1.0), TypeError, "reference"),
    (lambda: Group(L1(0.1), "rows"), TypeError, "by=rows.*got 'rows'"),
    (lambda: Group(L1(0.1), T([0, 1])), TypeError, "by=rows"),
    (lambda: Group(0.1, rows), TypeError, "penalty of the norm.*0.1"),
    (lambda: Weighted(0.1, torch.ones(2)), TypeError, "separable.*0.1"),
    (lambda: NonNegative(0.1), TypeError, "penalty.*0.1"),
    (lambda: Towards(0.1, torch.ones(2)), TypeError, "penalty.*0.1"),
    (lambda: Sum(()), TypeError, "Sum needs penalties"),
    (lambda: Sum((L1(0.1), 0.1)), TypeError, "Sum needs penalties"),
    (lambda: L1(0.1) + 0.1, TypeError, "unsupported"),
    (lambda: L1(0.1)([]), ValueError, "no tensors"),
    (lambda: L1(0.1)({}), ValueError, "no tensors"),
]


@pytest.mark.parametrize(("act", "error", "message"), ILLEGAL, ids=range(len(ILLEGAL)))
def test_illegal_nestings_say_what_to_use(act, error, message):
    with pytest.raises(error, match=message):
        act()


NO_EXACT_PROX = [
    (L1(0.1), MCP(0.1)),
    (L1(0.1), L1(0.2)),
    (Group(L1(0.1), rows), Group(L1(0.1), columns)),
    (Group(L1(0.1), rows), MCP(0.1)),
    (Group(L1(0.1), rows), L1(0.1), L1(0.2)),
    (Towards(Group(L1(0.1), rows), torch.zeros(2, 2)), L1(0.1)),
    (OwnLogSum(0.1), L1(0.1)),
]


@pytest.mark.parametrize("terms", NO_EXACT_PROX, ids=str)
def test_a_sum_without_an_exact_prox_is_refused_with_reasons(terms):
    """L1 + L1 too, as it is one L1: the error says to join strengths of a kind."""
    with pytest.raises(NoExactProx, match=r"no exact.*any penalty \+ L2.*Group\(...\) \+ L1.*loss"):
        Sum(terms)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool])
@pytest.mark.parametrize("penalty", [L1(0.1), Group(L1(0.1), whole), NonNegative(L1(0.1)), L1(0.1) + L2(0.1)], ids=repr)
def test_tensors_that_are_not_real_floating_point_are_refused(dtype, penalty):
    with pytest.raises(TypeError, match=rf"real floating-point.*{dtype}.*convert"):
        penalty.check(torch.ones(3, 2).to(dtype))


@pytest.mark.parametrize("other", [np.ones(3), None, 3.0, "w"], ids=["array", "None", "number", "text"])
@pytest.mark.parametrize("case", CATALOG, ids=lambda case: case.id)
def test_what_is_no_tensor_is_refused_by_its_type(case, other):
    for target in (other, [other], {"w": other}):
        with pytest.raises(TypeError, match="acts on torch tensors, or on a module's, got"):
            case.make()(target)
    with pytest.raises(TypeError, match=rf"torch tensors, got {type(other).__name__}; use torch.as_tensor"):
        L1(0.1).prox(other, 1.0)


def test_selectors_take_types_and_patterns_only():
    model = nn.Linear(2, 2)
    for act in (lambda: of_type(model), lambda: of_type(model, "Linear"), lambda: matching(model, 3)):
        with pytest.raises((TypeError, ValueError)):
            act()
