"""A sum's alpha is the strength of one of its terms, or the sum has none: no factor is taken for a strength."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

import torchreg
from torchreg import (
    L1,
    L2,
    Group,
    NonNegative,
    PenaltyScheduler,
    ProxOptimizer,
    Sum,
    ablate,
    alpha_max,
    attach,
    penalty_metrics,
    rows,
    schedules,
)
from torchreg.ablation import search
from torchreg.linear import SparseRegressor, SparseRegressorCV, fit_cv, fit_path, solve

SEVERAL = {
    "elastic net": lambda: L1(0.1) + L2(0.02),
    "ridge first": lambda: L2(0.02) + L1(0.1),
    "sparse group lasso": lambda: Group(L1(0.5), by=rows) + L1(0.125),
    "constrained": lambda: NonNegative(L1(0.1) + L2(0.02)),
    "three": lambda: Group(L1(0.5), by=rows) + L1(0.125) + L2(0.25),
}
each_sum = pytest.mark.parametrize("make", SEVERAL.values(), ids=SEVERAL)
refused = pytest.raises(ValueError, match=r"several strengths and no alpha.*Write \(.*whose alpha is")


@each_sum
def test_the_penalty_that_the_message_tells_to_write_is_the_same_function(make):
    penalty, w = make(), torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="several strengths") as told:
        penalty.with_alpha(0.1)
    written = eval(re.search("Write (.+), whose alpha", str(told.value)).group(1), vars(torchreg))
    written = NonNegative(written) if isinstance(penalty, NonNegative) else written
    for x in (w, w.abs()):
        torch.testing.assert_close(written.value(x), penalty.value(x))
        torch.testing.assert_close(written.prox(x, 0.7), penalty.prox(x, 0.7))


@each_sum
def test_nothing_sets_or_reads_an_alpha_of_several_strengths(make):
    net = nn.Linear(3, 4)
    term = attach(make(), net)
    opt = ProxOptimizer(SGD(net.parameters(), lr=0.1), term)
    with refused:
        PenaltyScheduler(term, schedules.linear(0.0, 0.1, 100))
    with refused:
        term.alpha = 0.1
    with refused:
        _ = term.alpha
    with refused:
        alpha_max(net, term, lambda: net(torch.ones(1, 3)).sum())
    with refused:
        make().alpha_max(torch.ones(4, 3))
    with refused:
        Sum((L1(0.1), L2(0.02)), alpha=2.0)
    assert opt.terms[0].scheduler is None


@each_sum
def test_what_is_printed_and_logged_has_no_alpha_to_be_misread(make):
    term = attach(make(), {"w": torch.ones(4, 3)})
    assert str(term).splitlines()[-1].split()[-1] == "-"
    assert "alpha" not in penalty_metrics(term)
    ours = attach((L1(1.0) + L2(0.2)).with_alpha(0.1), {"w": torch.ones(4, 3)})
    assert str(ours).splitlines()[-1].split()[-1] == "0.1"
    assert penalty_metrics(ours)["alpha"] == 0.1


def test_a_scheduled_sum_ends_at_the_strengths_that_are_meant():
    end, weights = torch.linspace(-1, 1, 12).view(4, 3), []
    for penalty, ramp in (((L1(1.0) + L2(0.1)), schedules.linear(0.0, 0.1, 5)), (L1(0.0), None)):
        net = nn.Linear(3, 4, bias=False)
        net.weight.data.copy_(end)
        term = attach(penalty, net)
        opt = ProxOptimizer(SGD(net.parameters(), lr=1.0), term)
        if ramp is not None:
            PenaltyScheduler(term, ramp)
        for k in range(12):
            if ramp is None:  # by hand, with the strengths written out
                alpha = 0.1 * min(k / 5, 1.0)
                opt.terms[0].parts[0].penalty = L1(alpha) + L2(0.1 * alpha)
            net.weight.grad = net.weight.detach() - end
            opt.step()
        weights.append(net.weight.detach())
    torch.testing.assert_close(*weights)
    # the minimiser of |w - end|^2 / 2 + 0.1 |w|_1 + 0.01 |w|^2
    torch.testing.assert_close(weights[0], end.sign() * (end.abs() - 0.1).clamp(min=0) / 1.02)


def test_a_factor_can_be_scheduled_where_it_is_named():
    term = attach(Sum((L1(0.1) + L2(0.02),)), {"w": torch.ones(4, 3)})
    full = term().item()
    term.alpha = 0.5
    assert term().item() == pytest.approx(full / 2)


def test_a_factor_of_1_is_printed_as_one_and_read_back():
    for alpha in (1.0, 0.5):
        named = Sum((L1(0.1) + L2(0.02),), alpha=alpha)
        assert f"alpha={alpha:g})" in str(attach(named, {"w": torch.ones(4, 3)}))
        assert eval(repr(named), vars(torchreg)) == named


@each_sum
def test_states_from_when_every_sum_had_a_factor_are_read(make):
    def optimizer():
        net = nn.Linear(3, 4)
        return ProxOptimizer(SGD(net.parameters(), lr=0.1), attach(make(), {"w": net.weight}))

    terms = ", ".join(map(repr, getattr(make(), "penalty", make()).terms))
    kind = repr(make()).replace(terms.replace(", ", " + "), f"Sum(({terms}), alpha=0)")
    if isinstance(make(), Sum):
        kind = f"Sum(({terms}), alpha=0)"
    state = optimizer().state_dict()
    state["torchreg"]["parts"] = [{"penalty": kind, "alpha": 1.0, "names": ["w"], "count": None}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer().load_state_dict(state)
        optimizer().load_state_dict(state, strict=False)
        optimizer().terms[0].load_state_dict({"parts": state["torchreg"]["parts"]})
    state["torchreg"]["parts"][0]["alpha"] = 0.5
    with pytest.raises(ValueError, match=r"multiplies .* by 0.5"):
        optimizer().load_state_dict(state)


X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X @ torch.tensor([2.0, -1.0, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64)


def test_ablations_and_searches_and_paths_refuse_it():
    several = L1(0.1) + L2(0.02)
    with refused:
        ablate(lambda penalty, seed: {"loss": 0.0}, several, [0.1])
    with refused:
        ablate(lambda penalty, seed: {"loss": 0.0}, {"mine": several}, [0.1])
    with refused:
        search(lambda penalty, seed: {"loss": 0.0}, several, {"loss": 0.1})
    with refused:
        fit_path(X, Y, several, alphas=[0.1])
    with refused:
        fit_path(X, Y, several)
    with refused:
        fit_cv(X, Y, several)
    with refused:
        SparseRegressorCV(several).fit(X.numpy(), Y.numpy())


def test_fits_at_a_sums_own_strengths_are_those_of_scikit_learn():
    theirs = pytest.importorskip("sklearn.linear_model").ElasticNet(alpha=0.14, l1_ratio=0.1 / 0.14, tol=1e-12)
    coef = theirs.fit(X.numpy(), Y.numpy()).coef_
    for penalty in (L1(0.1) + L2(0.02), (L1(1.0) + L2(0.2)).with_alpha(0.1)):
        np.testing.assert_allclose(SparseRegressor(penalty).fit(X.numpy(), Y.numpy()).coef_, coef, atol=1e-7)
        np.testing.assert_allclose(solve(X, Y, penalty).coef, coef, atol=1e-7)
    path = fit_path(X, Y, L1(1.0) + L2(0.2), alphas=[0.1])
    np.testing.assert_allclose(path.coefs[0], coef, atol=1e-7)


def test_checkpoints_of_several_strengths_go_on_and_know_others():
    def made(penalty) -> ProxOptimizer:
        net = nn.Linear(3, 4)
        return ProxOptimizer(SGD(net.parameters(), lr=0.1), attach(penalty, net))

    opt = made(L1(0.1) + L2(0.02))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(L1(0.1) + L2(0.02)).load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match=r"(?s)L1\(alpha=0.1\) \+ L2\(alpha=0.02\).*by L1\(alpha=0.2\)"):
        made(L1(0.2) + L2(0.02)).load_state_dict(opt.state_dict())
