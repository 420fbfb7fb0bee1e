"""Of a weight that is computed from other tensors, those are penalised whose zeros are zeros of the weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization

from torchreg import L1, ProxOptimizer, attach, matching, sparsity, weights
from torchreg.selection.layers import layer_weights

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


class Direction(nn.Module):
    """DoRA's decomposition of a weight: a length for each row, times a direction."""

    def forward(self, length, v):
        return length[:, None] * v / v.norm(dim=1, keepdim=True)

    def right_inverse(self, w):
        return w.norm(dim=1), w


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).t()


class Adapted(nn.Module):
    """A weight beside a product of two trained factors."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, w):
        return w + self.up.weight @ self.down.weight


class Signs(nn.Module):
    def forward(self, w):
        return torch.sign(w)


class Positive(nn.Module):
    def forward(self, w):
        return nn.functional.softplus(w)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", (torch.arange(16) % 3 > 0).float().reshape(4, 4))

    def forward(self, w):
        return w * self.mask


def by(module):
    def made(linear):
        register_parametrization(linear, "weight", module(), unsafe=True)
        return linear

    return made


NEW = "parametrizations.weight.original"
KINDS = {  # what makes the weight, and which tensors are penalised
    "weight_norm": (weight_norm, [NEW + "0"]),
    "weight_norm of the whole": (lambda m: weight_norm(m, dim=None), [NEW + "0"]),
    "weight_norm of columns": (lambda m: weight_norm(m, dim=1), [NEW + "0"]),
    "old weight_norm": (old_weight_norm, ["weight_g"]),
    "old weight_norm of the whole": (lambda m: old_weight_norm(m, dim=None), ["weight_g"]),
    "spectral_norm": (spectral_norm, []),
    "old spectral_norm": (old_spectral_norm, []),
    "orthogonal": (orthogonal, []),
    "cayley": (lambda m: orthogonal(m, orthogonal_map="cayley"), []),
    "householder": (lambda m: orthogonal(m, orthogonal_map="householder"), []),
    "direction": (by(Direction), [NEW + "0"]),
    "signs": (by(Signs), []),
    "positive": (by(Positive), []),
    "symmetric": (by(Symmetric), [NEW]),
    "masked": (by(Masked), [NEW]),
    "pruned": (lambda m: prune.l1_unstructured(m, "weight", 0.5), ["weight_orig"]),
    "symmetric and normed": (lambda m: spectral_norm(by(Symmetric)(m)), []),
}
each = pytest.mark.parametrize("kind", KINDS)


def made(kind, seed=0):
    torch.manual_seed(seed)
    return KINDS[kind][0](nn.Linear(4, 4))


def effective(layer):
    """The weight of the layer in a pass, which hooks and parametrizations compute."""
    layer(torch.randn(2, layer.in_features))
    return layer.weight.detach()


@each
def test_what_is_chosen(kind):
    model = nn.Sequential(made(kind), nn.Linear(4, 2))
    assert list(weights(model)) == ["0." + name for name in KINDS[kind][1]] + ["1.weight"]
    left = {name: why for name, why in weights(model).left_out.items() if not name.endswith("bias")}
    assert all("scale-free" in why or "zeros" in why for why in left.values())


@each
def test_zeros_of_what_is_chosen_are_zeros_of_the_weight_and_lengths_of_what_is_scale_free_change_nothing(kind):
    layer = made(kind).eval()
    plain = effective(layer)
    chosen = weights(nn.Sequential(layer, nn.Linear(4, 2)))
    for name, why in chosen.left_out.items():
        if name.startswith("0.") and "scale-free" in why:
            other = made(kind).eval()
            other.load_state_dict(layer.state_dict())
            with torch.no_grad():
                other.get_parameter(name[2:]).mul_(4.0)
            torch.testing.assert_close(effective(other), plain)
    with torch.no_grad():
        for name, p in chosen.items():
            if name.startswith("0."):
                p.zero_()
    if any(name.startswith("0.") for name in chosen):
        assert not effective(layer).any()


@each
def test_selecting_changes_nothing(kind):
    layer = made(kind).train()
    model = nn.Sequential(layer, nn.Linear(4, 2))
    before, modes = copy.deepcopy(layer.state_dict()), [m.training for m in layer.modules()]
    state = torch.get_rng_state()
    weights(model)
    sparsity(model)
    assert all(torch.equal(before[name], v) for name, v in layer.state_dict().items())
    assert [m.training for m in layer.modules()] == modes
    assert torch.equal(state, torch.get_rng_state())


@each
def test_layer_weights_are_what_a_pass_uses(kind):
    layer = made(kind).eval()
    found, used = layer_weights(layer)["weight"].detach(), effective(layer)
    if kind == "old spectral_norm":  # its factor is left out: zeros are the same
        found = found * (used.norm() / found.norm())
    torch.testing.assert_close(found, used)


def test_trained_factors_of_an_adapted_weight_are_weights_and_the_sum_is_not():
    layer = by(Adapted)(nn.Linear(4, 4))
    assert list(weights(layer)) == [f"parametrizations.weight.0.{n}.weight" for n in ("down", "up")]


@pytest.mark.parametrize("norm", [weight_norm, old_weight_norm])
def test_l1_under_weight_norm_stays_finite_and_makes_rows_of_zeros(norm):
    """The default selection; with the directions in it 0 / 0 comes within a hundred steps."""

    def trained(choose):
        torch.manual_seed(0)
        model = nn.Sequential(norm(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 1))
        x = torch.randn(64, 16)
        optimizer = ProxOptimizer(torch.optim.Adam(model.parameters(), lr=1e-2), attach(L1(3e-3), choose(model)))
        for _ in range(400):
            optimizer.zero_grad()
            loss = (model(x) - x[:, :1]).square().mean()
            loss.backward()
            optimizer.step()
        return model, loss.detach()

    model, loss = trained(weights)
    w = effective(model[0])
    assert loss < 0.01
    assert w.isfinite().all()
    assert 0 < int((w == 0).all(1).sum()) < 16
    assert sparsity(model).parameters[0].zeros == int((w == 0).sum())
    everything = trained(lambda model: {n: p for n, p in matching(model, "*").items() if p.dim() >= 2})
    assert everything[1].isnan()


class UnitLength(nn.Module):
    def forward(self, w):
        return w / w.norm()


def test_a_parametrization_that_came_after_the_first_look_is_tried_too():
    layer = nn.Linear(4, 4)
    register_parametrization(layer, "weight", Symmetric())
    assert "parametrizations.weight.original" in weights(layer)
    register_parametrization(layer, "weight", UnitLength())
    with pytest.raises(ValueError, match="original is scale-free"):
        weights(layer)
