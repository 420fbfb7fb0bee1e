"""Sparse layers: the dense layer's results, chosen by what was measured, exchangeable state."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from torchreg import to_sparse
from torchreg.training.compaction import sparse_layers
from torchreg.training.compaction.cost import measure_pair
from torchreg.training.compaction.sparse_linear import SparseLinear


def linear(inputs=24, outputs=12, *, zeros=0.9, bias=True, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    made = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    with torch.no_grad():
        made.weight[torch.rand(outputs, inputs) < zeros] = 0.0
    return made


@pytest.fixture
def winner(monkeypatch):
    """Pretend a measurement, in which the layout that is named wins."""

    def choose(*layouts):
        def medians(calls, repeats, device):
            made = [call.func for call in calls]
            kinds = ["dense" if isinstance(m, nn.Linear) else m.layout for m in made]
            return [1.0 if kind in layouts else 2.0 for kind in kinds]

        monkeypatch.setattr(sparse_layers, "medians_in_turns", medians)

    return choose


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (2, 3, 24), (0, 24), (2, 0, 24)])
def test_a_sparse_layer_is_the_dense_one(dtype, bias, zeros, shape):
    dense = linear(zeros=zeros, bias=bias, dtype=dtype)
    sparse, x = SparseLinear(dense), torch.randn(shape, dtype=dtype)
    for grads in (True, False):
        with torch.set_grad_enabled(grads):
            torch.testing.assert_close(sparse(x), dense(x))
            assert sparse(x).is_contiguous()
    torch.testing.assert_close(sparse(x.new_ones(2 * x.numel())[::2].view(shape)), dense(torch.ones_like(x)))
    assert torch.equal(sparse.weight, dense.weight)


def test_inputs_and_biases_have_the_gradients_of_before():
    dense = linear()
    sparse, x = SparseLinear(dense), torch.randn(5, 24, dtype=torch.float64)
    grads = []
    for layer in (dense, sparse):
        given = x.clone().requires_grad_()
        layer(given).square().sum().backward()
        grads.append((given.grad, layer.bias.grad))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_gives_its_own_precision():
    dense = linear(dtype=torch.float32)
    sparse, x = SparseLinear(dense), torch.randn(5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            assert sparse(given).dtype is dense(given).dtype is torch.bfloat16
            torch.testing.assert_close(sparse(given), dense(given), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shape", [(), (3,), (24, 3), (3, 8, 3)])
def test_inputs_of_another_width_are_refused(shape):
    with pytest.raises(ValueError, match="24 features last"):
        SparseLinear(linear())(torch.ones(shape, dtype=torch.float64))


def net():
    torch.manual_seed(1)
    return nn.Sequential(linear(), nn.ReLU(), linear(12, 8, zeros=0.8), nn.Dropout(0.5), nn.Linear(8, 3).double())


X = torch.linspace(-1, 1, 5 * 24, dtype=torch.float64).reshape(5, 24)


def test_layers_that_are_faster_sparse_become_sparse_and_the_model_given_stays(winner):
    winner("CSR")
    model = net()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    smaller, report = to_sparse(model, X)
    assert torch.equal(torch.get_rng_state(), random)
    assert [type(m).__name__ for m in smaller] == ["SparseLinear", "ReLU", "SparseLinear", "Dropout", "Linear"]
    assert type(model[0]) is nn.Linear
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in (*model.modules(), *smaller.modules()))
    assert [(line.name, line.chosen, line.rows) for line in report.layers] == [
        ("0", "CSR", 5),
        ("2", "CSR", 5),
        ("4", "dense", 0),
    ]
    assert report.layers[0].zeros == (model[0].weight == 0).double().mean()
    assert report.layers[0].seconds == {"dense": 2.0, "CSR": 1.0}
    assert report.layers[2].reason == "no entry is zero"
    torch.testing.assert_close(smaller.eval()(X), model.eval()(X))


@pytest.mark.parametrize("times", [(1.0, 1.0), (1.0, 0.97), (1.0, 2.0)])
def test_layers_that_are_not_faster_stay(times, monkeypatch):
    monkeypatch.setattr(sparse_layers, "medians_in_turns", lambda *_: list(times))  # less than 5 % may be noise
    smaller, report = to_sparse(net(), X)
    assert [line.chosen for line in report.layers] == ["dense"] * 3
    assert not any(isinstance(m, SparseLinear) for m in smaller.modules())


def test_a_real_measurement_chooses_the_layout_with_the_least_time():
    torch.manual_seed(0)
    model = nn.Sequential(linear(1024, 1024, zeros=0.999, dtype=torch.float32), nn.ReLU(), nn.Linear(1024, 4))
    with torch.no_grad():
        model[2].weight[0, 0] = 0.0  # nearly dense: four numbers for each that is saved
    smaller, report = to_sparse(model, torch.randn(64, 1024), repeats=5)
    for line in report.layers:
        assert set(line.seconds) == {"dense", "CSR"}
        faster = line.seconds["CSR"] <= 0.95 * line.seconds["dense"]
        assert line.chosen == ("CSR" if faster else "dense")
    assert report.layers[0].chosen == "CSR"  # a thousandth of the work
    cost = measure_pair(model, smaller, torch.randn(64, 1024), repeats=1)
    assert cost.parameters[1] < 0.01 * cost.parameters[0]
    assert cost.memory[1] < cost.memory[0]


def test_state_dicts_are_exchanged_with_the_dense_model(winner):
    winner("CSR")
    model, other = net(), net()
    smaller, _ = to_sparse(model, X)
    state = smaller.state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(torch.randn_like(p) * (torch.rand_like(p) < 0.3))  # other zeros
    smaller.load_state_dict(other.state_dict())
    torch.testing.assert_close(smaller.eval()(X), other.eval()(X))
    other.load_state_dict(smaller.state_dict())
    broken = dict(model.state_dict())
    broken["0.weight"] = broken["0.weight"][:3]
    with pytest.raises(RuntimeError, match=r"size mismatch for 0.weight.*\(3, 24\).*\(12, 24\)"):
        smaller.load_state_dict(broken)
    del broken["0.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"0.weight"'):
        smaller.load_state_dict(broken)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"0.further"'):
        smaller.load_state_dict({**model.state_dict(), "0.further": X})


def test_copies_pickles_and_other_dtypes(winner, tmp_path):
    winner("CSR")
    model = net().eval()
    smaller, _ = to_sparse(model, X)
    torch.save(smaller, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for same in (copy.deepcopy(smaller), pickle.loads(pickle.dumps(smaller)), loaded, smaller.to("cpu")):
        assert torch.equal(same(X), smaller(X))
    torch.testing.assert_close(copy.deepcopy(smaller).float()(X.float()), copy.deepcopy(model).float()(X.float()))
    assert smaller[0].row_starts.dtype is torch.int32
    again, report = to_sparse(smaller, X)
    assert len(report.layers) == 1  # what is sparse stays so
    assert torch.equal(again(X), smaller(X))


def test_torch_says_nothing_about_its_beta_state_to_users(tmp_path):
    make = (
        "import torch, sys; from torchreg.training.compaction.sparse_linear import SparseLinear\n"
        "layer = SparseLinear(torch.nn.Linear(4, 3)); layer(torch.ones(2, 4)); layer.state_dict(); layer.weight\n"
        f"torch.save(layer, {str(tmp_path / 'layer.pt')!r})"
    )
    load = f"import torch; torch.load({str(tmp_path / 'layer.pt')!r}, weights_only=False)(torch.ones(2, 4))"
    for code in (make, load):
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_layers_that_cannot_be_replaced_say_why(winner):
    winner("CSR")

    class Own(nn.Linear):
        pass

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(4, 2, 6)
            self.own, self.never = Own(4, 4), nn.Linear(4, 4)
            self.pruned, self.normed = nn.Linear(4, 4), nn.Linear(4, 4)
            prune.l1_unstructured(self.pruned, "weight", amount=4)
            parametrizations.weight_norm(self.normed)
            self.empty = nn.Linear(4, 1)
            self.empty.weight = nn.Parameter(torch.empty(0, 4))
            self.small = nn.Linear(4, 4, dtype=torch.float16)
            for layer in (self.own, self.never, self.encoder.linear1, self.small):
                nn.init.zeros_(layer.weight[:1])

        def forward(self, x):
            return self.small(self.normed(self.pruned(self.own(self.encoder(x)))).half())

    model = Model()
    smaller, report = to_sparse(model.eval(), torch.randn(5, 3, 4))
    reasons = {line.name: line.reason for line in report.layers}
    assert all("itself" in reasons[f"encoder.{name}"] for name in ("linear1", "linear2", "self_attn.out_proj"))
    assert "Own is not torch's own layer" in reasons["own"]
    assert "did not run" in reasons["never"]
    assert "prune.remove" in reasons["pruned"]
    assert "computed" in reasons["normed"]
    assert "no values" in reasons["empty"]
    assert not any(isinstance(m, SparseLinear) for m in smaller.modules()) or reasons["small"] == ""
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(smaller(x), model(x))


def test_shared_layers_stay_shared_and_the_root_may_be_a_layer(winner):
    winner("CSR")
    layer = linear(8, 8, zeros=0.9)
    smaller, report = to_sparse(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(3, 8, dtype=torch.float64))
    assert smaller[0] is smaller[2]
    assert len(report.layers) == 1
    alone, report = to_sparse(layer)
    assert isinstance(alone, SparseLinear)
    assert report.layers[0].rows == 1  # without inputs
    assert report.layers[0].name == ""


def test_rows_are_the_most_that_a_layer_meets(winner):
    winner("CSR")

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = linear(8, 8)

        def forward(self, x, *, more):
            return self.layer(x).sum() + self.layer(input=more).sum()

    _, report = to_sparse(Twice(), {"x": torch.ones(2, 8).double(), "more": torch.ones(3, 4, 8).double()})
    assert report.layers[0].rows == 12


def test_a_report_prints_as_a_table(winner):
    winner("CSR")
    lines = repr(to_sparse(net(), X)[1]).splitlines()
    assert lines[0].split()[:4] == ["layer", "(cpu)", "shape", "zeros"]
    assert lines[1].split()[0] == "0"
    assert "CSR" in lines[1]
    assert lines[3].endswith("no entry is zero")


def test_the_pattern_two_of_four_is_asked_for(monkeypatch):
    dense = linear(8, 4, zeros=0.0)
    with pytest.raises(ValueError, match="at most two entries"):
        SparseLinear(dense, "2:4")
    with torch.no_grad():
        dense.weight.view(-1, 4)[:, :2] = 0.0
    # no CPU computes with torch's packed weights: a plain tensor stands for them
    monkeypatch.setattr("torchreg.training.compaction.sparse_linear.to_sparse_semi_structured", lambda w: w.clone())
    monkeypatch.setattr(torch.Tensor, "to_dense", lambda w: w.clone())
    sparse, x = SparseLinear(dense, "2:4"), torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(sparse(x), dense(x))
    assert torch.equal(sparse.state_dict()["weight"], dense.weight)
    with pytest.raises(ValueError, match="at most two entries"):
        sparse.load_state_dict(linear(8, 4, zeros=0.0).state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="2:4 needs CUDA")
def test_two_of_four_on_cuda_is_the_dense_layer():
    dense = linear(4096, 4096, zeros=0.0, dtype=torch.float16).cuda()
    with torch.no_grad():
        dense.weight.view(-1, 4)[:, 1:3] = 0.0
    x = torch.randn(2048, 4096, dtype=torch.float16, device="cuda")
    smaller, report = to_sparse(dense, x)
    assert "2:4" in report.layers[0].seconds
    assert report.layers[0].chosen == min(report.layers[0].seconds, key=report.layers[0].seconds.get)
    torch.testing.assert_close(smaller(x), dense(x), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(SparseLinear(dense, "2:4").weight, dense.weight)
    again = SparseLinear(dense, "2:4")
    again.load_state_dict(dense.state_dict())
    torch.testing.assert_close(again(x), dense(x), rtol=1e-2, atol=1e-2)


def test_a_model_that_fails_and_what_is_no_model():
    model = net()
    with pytest.raises(RuntimeError):
        to_sparse(model, torch.randn(2, 5))
    assert not any(m._forward_pre_hooks for m in model.modules())
    with pytest.raises(TypeError, match="Module, got Parameter"):
        to_sparse(model[0].weight)
