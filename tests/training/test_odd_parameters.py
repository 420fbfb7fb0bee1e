"""Complex and lazy parameters, and optimizers that cannot be followed: what the refusals advise does work."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam

from torchreg import L1, Group, ProxOptimizer, attach, matching, rows
from torchreg.linear import fit_path

GOAL = torch.complex(torch.tensor([[0.3, 2.0], [-1.0, 0.05]]), torch.tensor([[0.2, -1.0], [0.4, 0.05]]))
ALPHA = 0.5
SOLUTION = GOAL * (1.0 - ALPHA / GOAL.abs()).clamp(min=0.0)  # of |w - goal|^2 / 2 + alpha |w|: the modulus shrinks


def test_of_complex_weights_the_advice_reaches_the_minimiser_with_exact_zeros():
    with pytest.raises(
        TypeError, match=r"'w'.*complex64.*view_as_complex\(p\).*Group\(penalty, by=rows, weights=1.0\)"
    ):
        attach(L1(ALPHA), {"w": nn.Parameter(GOAL)})
    p = nn.Parameter(torch.ones(4, 2))
    opt = ProxOptimizer(Adam([p], lr=0.03), attach(Group(L1(ALPHA), by=rows, weights=1.0), {"p": p}))
    for _ in range(1500):
        opt.zero_grad()
        w = torch.view_as_complex(p).view(GOAL.shape)
        ((w - GOAL).abs().square().sum() / 2).backward()
        opt.step()
    found = torch.view_as_complex(p.detach()).view(GOAL.shape)
    assert torch.equal(found == 0, SOLUTION == 0)
    torch.testing.assert_close(found, SOLUTION, rtol=0.0, atol=1e-4)


def test_of_complex_weights_the_modulus_in_the_loss_has_its_gradient():
    with pytest.raises(TypeError, match=r"penalty\(w.abs\(\)\)"):
        L1(ALPHA)(GOAL)
    w = nn.Parameter(torch.ones_like(GOAL))
    opt = SGD([w], lr=0.1)
    for _ in range(300):
        opt.zero_grad()
        ((w - GOAL).abs().square().sum() / 2 + L1(ALPHA)(w.abs())).backward()
        opt.step()
    far = SOLUTION != 0
    torch.testing.assert_close(w.detach()[far], SOLUTION[far], rtol=0.0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("penalty", [L1(0.1), Group(L1(0.1), by=rows)], ids=repr)
def test_a_lazy_module_is_attached_after_its_first_batch(penalty):
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"'0.weight' belongs to a lazy module.*run one batch"):
        attach(penalty, matching(model, "*.weight"))
    model(torch.ones(1, 3))
    assert attach(penalty, matching(model, "*.weight")).parameters["0.weight"].shape == (4, 3)


def test_lbfgs_is_refused_and_what_is_named_instead_solves():
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=r"LBFGS.*torchreg.linear.fit_path\(X, y, penalty\)"):
        ProxOptimizer(LBFGS(model.parameters()), attach(L1(0.1), model))
    assert bool(fit_path(x, x[:, 0], L1(1.0), alphas=[0.1]).converged.all())
