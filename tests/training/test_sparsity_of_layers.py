"""sparsity(model) counts the weights as the layers use them: frozen, masked, parametrized, in sparse layouts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from torchreg import L1, Group, attach, rows, sparsity, weights


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 3))


def zeros_used(model, *names):
    """The zeros of the layers' weights after a pass, which computes them: the oracle."""
    model(torch.randn(2, 6))
    return {name: int((model.get_submodule(name).weight == 0).sum()) for name in names}


def counted(model):
    return {line.name: line.zeros for line in sparsity(model).parameters}


def test_frozen_layers_count():
    model = net()
    with torch.no_grad():
        model[0].weight[:2] = 0.0
    expected = {"0.weight": 12, "3.weight": 0}
    assert counted(model) == expected
    model[0].requires_grad_(False)
    assert counted(model) == expected
    model.requires_grad_(False)
    assert counted(model) == expected
    assert sparsity(model).fraction == pytest.approx(12 / 36)
    assert sparsity(nn.Linear(3, 3).requires_grad_(False)).total == 9


def test_masks_of_pruning_count():
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.ln_structured(model[3], "weight", 1, n=2, dim=0)
    prune.random_unstructured(model[3], "bias", 1)
    expected = zeros_used(model, "0", "3")
    assert expected == {"0": 12, "3": 4}
    assert counted(model) == {"0.weight": 12, "3.weight": 4}
    with torch.no_grad():
        model[0].weight_orig[model[0].weight_mask.bool()] = 0.0  # trained to zero since: no pass has shown it yet
    assert counted(model)["0.weight"] == 24
    prune.remove(model[3], "weight")
    assert counted(model) == {"0.weight": 24, "3.weight": 4}


def test_parametrized_weights_count_as_they_are_used_and_nothing_moves():
    model = nn.Sequential(weight_norm(nn.Linear(6, 4)), nn.ReLU(), nn.LayerNorm(4), spectral_norm(nn.Linear(4, 3)))
    with torch.no_grad():
        model[0].parametrizations.weight.original0[1:3] = 0.0
        model[3].parametrizations.weight.original[:, 0] = 0.0
    before = {name: v.clone() for name, v in model.state_dict().items()}
    assert counted(model) == {"0.weight": 12, "3.weight": 3}
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert {f"{k}.weight": v for k, v in zeros_used(model, "0", "3").items()} == counted(model)


def test_tied_layers_count_once_and_embeddings_norms_and_biases_do_not():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "e": nn.Embedding(4, 4), "n": nn.LayerNorm(4)})
    model["b"].weight = model["a"].weight
    nn.init.zeros_(model["e"].weight)
    found = sparsity(model)
    assert [line.name for line in found.parameters] == ["a.weight"]
    assert found.total == 16
    with pytest.raises(ValueError, match=r"Embedding has no weights.*matching.*register_weights"):
        sparsity(model["e"])


LAYOUTS = {
    "coo": lambda a: a.to_sparse(),
    "coo with dense rows": lambda a: a.to_sparse(1),
    "csr": lambda a: a.to_sparse_csr(),
    "csc": lambda a: a.to_sparse_csc(),
    "bsr": lambda a: a.to_sparse_bsr((2, 2)),
    "bsc": lambda a: a.to_sparse_bsc((2, 2)),
}


@pytest.mark.filterwarnings(
    "ignore:Sparse CS. tensor support is in beta", "ignore:Sparse BS. tensor support is in beta"
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 6), (6, 2)])
def test_sparse_tensors_count_explicit_and_implicit_zeros(layout, shape):
    torch.manual_seed(0)
    a = torch.randn(shape) * (torch.rand(shape) < 0.3)
    w = LAYOUTS[layout](a)
    values = w._values() if w.layout is torch.sparse_coo else w.values()
    values[0] = 0.0  # explicit
    dense = w.to_dense()
    found = sparsity({"w": w})
    assert (found.zeros, found.total) == (int((dense == 0).sum()), dense.numel())
    layer = nn.Linear(shape[1], shape[0])
    layer.weight = nn.Parameter(w, requires_grad=False)
    assert sparsity(layer).zeros == found.zeros


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_entries_of_coo_that_cancel_are_zeros_and_nan_is_none():
    w = torch.sparse_coo_tensor([[0, 0, 1, 1], [1, 1, 2, 0]], [1.0, -1.0, 3.0, float("nan")], (2, 3))
    assert sparsity({"w": w}).zeros == 4
    assert not w.is_coalesced()


def test_what_is_counted_of_a_module_without_computed_weights_is_what_is_penalised():
    model = net()
    assert list(counted(model)) == list(weights(model))


def test_what_is_no_tensor_and_what_has_no_shape_yet_is_refused_by_name():
    with pytest.raises(TypeError, match="torch tensors, got list for 'w'"):
        sparsity({"w": [0.0, 1.0]})
    lazy = nn.Sequential(nn.LazyLinear(3))
    for act in (sparsity, weights, lambda model: attach(Group(L1(0.1), rows), model)):
        with pytest.raises(ValueError, match=r"'0.weight' belongs to a lazy module.*one batch"):
            act(lazy)
    lazy(torch.ones(1, 2))
    assert list(weights(lazy)) == ["0.weight"]


def test_what_has_no_values_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'0.weight' lies on the meta device"):
        sparsity(net().to("meta"))
