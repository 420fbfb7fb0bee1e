"""`alpha_max` of a layer: at it zero is stationary, below it is not, and the model is left as it was."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from optimizer_catalog import least_squares
from torch import Tensor, nn
from torch.nn import functional

from torchreg import (
    L0,
    L1,
    L1L2,
    L2,
    MCP,
    Group,
    ProxOptimizer,
    Towards,
    Weighted,
    alpha_max,
    attach,
    columns,
    matching,
    rows,
    violation,
    weights,
)
from torchreg.linear import fit_path

F64 = torch.float64


class Net(nn.Module):
    """Convolution, batch norm, dropout, two heads on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(
            nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 5), nn.Tanh()
        )
        self.mean, self.scale = nn.Linear(5, 2), nn.Linear(5, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", None)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1  # a buffer that is replaced, not written to
        self.last = x
        hidden = self.trunk(x[:, None])
        return self.mean(hidden) + self.scale(hidden).square() + 0.1 * self.scale(hidden)


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(16, 6, generator=draw, dtype=F64), torch.randn(16, 2, generator=draw, dtype=F64)


def loss_of(model: nn.Module):
    x, y = data()
    return lambda: functional.mse_loss(model(x), y)


def test_of_a_linear_model_with_its_bias_fitted_it_begins_the_path():
    problem = least_squares()
    model = nn.Linear(30, 1, dtype=F64)
    model.bias.data.fill_(float(problem.y.mean()))
    found = alpha_max(model, attach(L1(1.0), model), lambda: (model(problem.X)[:, 0] - problem.y).square().mean() / 2)
    X, y = problem.X.numpy(), problem.y.numpy()
    assert found == pytest.approx(np.abs(X.T @ (y - y.mean())).max() / len(y), rel=1e-12)
    assert found == pytest.approx(float(fit_path(X, y, L1(1.0), alphas=3).alphas[0]), rel=1e-9)


PENALTIES = {
    "L1": L1(1.0),
    "L1L2": L1L2(1.0, 0.5),
    "MCP": MCP(1.0),
    "rows": Group(L1(1.0), by=rows),
    "columns": Group(L1(1.0), by=columns),
    "sum": Group(L1(1.0), by=rows) + L1(0.5),
    "tensor": L1(torch.tensor(1.0)),
}


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("layer", ["mean.weight", "trunk.0.weight", "trunk.5.weight"])
def test_at_it_zero_is_stationary_and_just_below_it_is_not(layer, penalty):
    model = Net().eval()
    loss, named = loss_of(model), matching(model, layer)
    found = alpha_max(model, attach(penalty, named), loss)
    assert 0.0 < found < math.inf
    (p,) = named.values()
    p.data.zero_()
    loss().backward()
    # bisections and norms are exact to rounding only
    assert violation(attach(penalty.with_alpha(found * (1 + 1e-6)), named)) == 0.0
    assert violation(attach(penalty.with_alpha(found * (1 - 1e-3)), named)) > 0.0


def test_training_holds_the_layer_at_zero_from_it_on_and_not_below():
    model = Net().eval()
    alone = matching(model, "mean.weight")
    for p in model.parameters():
        p.requires_grad_(p is model.mean.weight)
    found = alpha_max(model, attach(L1(1.0), alone), loss_of(model))
    for factor, zero in ((1.01, True), (0.9, False)):
        opt = ProxOptimizer(torch.optim.SGD([model.mean.weight], lr=0.05), attach(L1(factor * found), alone))
        for _ in range(2000):
            opt.zero_grad()
            loss_of(model)().backward()
            opt.step()
        assert bool((model.mean.weight == 0).all()) == zero


@pytest.mark.parametrize("backward", [False, True], ids=["returns the loss", "calls backward"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_exactly_as_it_was(backward, fails):
    model = Net().train()
    loss = loss_of(model)
    loss().backward()
    pending = loss()  # a graph that is still to be used
    model.trunk[4].eval()
    before = copy.deepcopy(model.state_dict())
    params = {n: (p, p.data_ptr(), p._version, p.grad, p.grad.clone()) for n, p in model.named_parameters()}
    modes, random, last = [m.training for m in model.modules()], torch.get_rng_state(), model.last

    def closure() -> Tensor:
        model.trunk.train()
        value = loss()
        if backward:
            model.zero_grad(set_to_none=False)
            value.backward()
        if fails:
            raise OSError("no data")
        return value

    term = attach(L1(1.0), matching(model, "mean.weight"))
    if fails:
        with pytest.raises(OSError, match="no data"):
            alpha_max(model, term, closure)
    else:
        alpha_max(model, term, closure)
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert model.last is last
    for name, p in model.named_parameters():
        same, address, version, grad, values = params[name]
        assert p is same
        assert (p.data_ptr(), p._version) == (address, version)
        assert p.grad is grad
        assert torch.equal(p.grad, values)
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    pending.backward()


def test_dropout_and_batch_statistics_are_those_of_the_mode_that_the_model_is_in():
    model = Net().train()
    term = attach(L1(1.0), matching(model, "mean.weight"))
    assert alpha_max(model, term, loss_of(model)) == alpha_max(model, term, loss_of(model))  # same random state
    trained = alpha_max(model, term, loss_of(model))
    assert alpha_max(model.eval(), term, loss_of(model)) != trained


def test_layers_in_a_row_are_refused_and_the_reason_said():
    model = Net()
    given = copy.deepcopy(model.state_dict())
    for chosen in (weights(model), matching(model, "trunk.[05].weight")):
        with pytest.raises(ValueError, match=r"trunk\.0\.weight.*hide each other.*one layer at a time"):
            alpha_max(model, attach(L1(1.0), chosen), loss_of(model))
    assert all(torch.equal(given[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("others", ["scale.weight", "trunk.5.weight"])
def test_layers_that_do_not_hide_each_other_get_the_largest(others):
    model = Net().eval()  # the other head passes a gradient to the trunk where this one is zero
    heads = matching(model, "mean.weight") | matching(model, others)
    found = alpha_max(model, attach(L1(1.0), heads), loss_of(model))
    for p in heads.values():
        p.data.zero_()
    loss_of(model)().backward()
    assert found == pytest.approx(max(float(p.grad.abs().max()) for p in heads.values()), rel=1e-12)


def test_spared_entries_keep_their_values_and_a_reference_is_gone_to():
    model = Net().eval()
    w = model.mean.weight
    mask = torch.zeros(2, 5, dtype=F64)
    mask[0] = 1.0
    found = alpha_max(model, attach(Weighted(L1(1.0), mask), w), loss_of(model))
    reference = torch.where(mask > 0, 0.0, w.detach())
    towards = alpha_max(model, attach(Towards(L1(1.0), reference), w), loss_of(model))
    w.data.copy_(reference)
    loss_of(model)().backward()
    assert found == pytest.approx(float(w.grad[0].abs().max()), rel=1e-9)
    assert towards == pytest.approx(float(w.grad.abs().max()), rel=1e-12)


def test_the_slope_at_zero_decides():
    model = Net().eval()
    w = {"w": model.mean.weight}
    assert alpha_max(model, attach(L2(1.0), w), loss_of(model)) == math.inf
    with pytest.raises(ValueError, match="step"):
        alpha_max(model, attach(L0(1.0), w), loss_of(model))
    slope = alpha_max(model, attach(L1(1.0), w), loss_of(model))
    # |t g| = sqrt(2 alpha t) where L0's prox begins to keep an entry
    hard = alpha_max(model, attach(L0(1.0), w), loss_of(model), step=0.5)
    assert hard == pytest.approx(0.5 * slope**2 / 2, rel=1e-9)


def test_bad_input_is_refused():
    model = Net()
    term, loss = attach(L1(1.0), model.mean), loss_of(model)
    with pytest.raises(TypeError, match="needs a module, got Tensor"):
        alpha_max(torch.ones(2), term, loss)
    with pytest.raises(TypeError, match="needs a term, got L1"):
        alpha_max(model, L1(1.0), loss)
    with pytest.raises(TypeError, match="returns the loss, got Tensor"):
        alpha_max(model, term, loss())
    with pytest.raises(TypeError, match="one number as a tensor"):
        alpha_max(model, term, lambda: 1.0)
    with pytest.raises(TypeError, match="one number as a tensor"):
        alpha_max(model, term, lambda: model(data()[0]))
    with pytest.raises(ValueError, match="does not depend on"):
        alpha_max(model, term, lambda: loss().detach())
    with pytest.raises(ValueError, match="does not depend on"):
        alpha_max(model, term, lambda: model.trunk(data()[0][:, None]).sum())
    several = attach(lambda name, p: L1(float(len(name))), matching(model, "*.weight"))
    with pytest.raises(ValueError, match="several alphas"):
        alpha_max(model, several, loss)
    model.mean.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="require none"):
        alpha_max(model, term, loss)
