"""The penalty of activations: by hand, under accumulation, DDP, checkpointing, compilation and mixed precision."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass

import pytest
import torch
from helpers import normal
from processes import torchrun
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchreg import L1, L2, MCP, Group, Spectral, attach_activity, columns, rows


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()


X = normal((8, 4))


def grads(model: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


def same(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def by_hand(model: nn.Sequential, x: Tensor, alpha: float) -> Tensor:
    """Loss + penalty of the hidden codes and of the output, written out."""
    hidden = model[1](model[0](x))
    out = model[2](hidden)
    return out.square().mean() + alpha * (hidden.abs().sum(1) + out.abs().sum(1)).mean()


def test_it_is_the_mean_over_the_batch_with_its_gradient():
    model = net()
    by_hand(model, X, 0.3).backward()
    wanted = grads(model)
    activity = attach_activity(L1(0.3), [model[1], model[2]])
    loss = model(X).square().mean() + activity()
    torch.testing.assert_close(loss, by_hand(net(), X, 0.3), rtol=1e-14, atol=0.0)
    loss.backward()
    same(grads(model), wanted)
    assert float(activity()) == 0.0  # read once


@pytest.mark.parametrize("penalty", [L2(0.2), MCP(0.2, 3.0), Group(L1(0.2), by=rows), Group(L1(0.2), by=columns)])
def test_any_penalty_of_the_output_over_the_batch_size(penalty):
    model = net()
    activity = attach_activity(penalty, model)
    out = model(X)
    torch.testing.assert_close(activity(), penalty.value(out) / 8, rtol=1e-14, atol=0.0)
    assert float(attach_activity(Spectral(1.0), model)()) == 0.0


def test_micro_batches_add_up_to_the_whole():
    model = net()
    by_hand(model, X, 0.3).backward()
    wanted = grads(model)
    activity = attach_activity(L1(0.3), {"codes": model[1], "out": model[2]})
    for part in X.chunk(4):
        ((model(part).square().mean() + activity()) / 4).backward()
    same(grads(model), wanted)


def test_calls_within_a_pass_add_up():
    model = net()
    activity = attach_activity(L1(1.0), model[0])
    once, twice = model[0](X), model[0](2.0 * X[:4])
    expected = once.abs().sum() / 8 + twice.abs().sum() / 4
    torch.testing.assert_close(activity(), expected, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(activity.last, expected.detach(), rtol=1e-14, atol=0.0)
    assert not activity.last.requires_grad


def test_evaluation_and_no_grad_collect_nothing():
    model = net()
    activity = attach_activity(L1(1.0), model[0])
    model.eval()
    model(X)
    assert float(activity()) == 0.0
    model.train()
    with torch.no_grad():
        model(X)
    assert float(activity()) == 0.0
    model(X)
    activity.clear()
    assert float(activity()) == 0.0


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = net(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


def test_a_repeated_forward_pass_counts_once():
    plain = net()
    by_hand(plain, X, 0.3).backward()
    model = Checkpointed(reentrant=False)
    activity = attach_activity(L1(0.3), [model.inner[1], model.inner[2]])
    for _ in range(2):
        loss = model(X).square().mean() + activity()
        torch.testing.assert_close(loss, by_hand(net(), X, 0.3), rtol=1e-14, atol=0.0)
        loss.backward()
        assert float(activity()) == 0.0  # the pass that backward repeats has left nothing
        same(grads(model), [p.grad for p in plain.parameters()])


def test_a_reentrant_checkpoint_is_refused_instead_of_being_left_out():
    model = Checkpointed(reentrant=True)
    activity = attach_activity(L1(0.3), model.inner[1])
    loss = model(X.clone().requires_grad_()).square().mean() + activity()
    with pytest.raises(RuntimeError, match=r"reentrant checkpoint.*use_reentrant=False"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_penalised_alike(backend):
    torch._dynamo.reset()
    plain = net()
    model = net()
    activity = attach_activity(L1(0.3), [model[1], model[2]])
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for k in range(3):
        x = X + k
        by_hand(plain, x, 0.3).backward()
        (compiled(x).square().mean() + activity()).backward()
        same(grads(model), grads(plain))
    model.eval()
    compiled(X)
    assert float(activity()) == 0.0


@dataclass
class Output:
    hidden: Tensor
    index: Tensor
    more: object = None


class Nested(nn.Module):
    def forward(self, x: Tensor) -> object:
        index = torch.zeros(len(x), dtype=torch.int64)
        return {"a": (x, [2.0 * x, index]), "b": Output(3.0 * x, index, more=(None, 4.0 * x))}


def test_nested_outputs_count_by_their_floating_tensors():
    module, x = Nested(), X.clone().requires_grad_()
    activity = attach_activity(L1(1.0), module)
    module(x)
    torch.testing.assert_close(activity(), 10.0 * x.abs().sum() / 8, rtol=1e-14, atol=0.0)
    chosen = attach_activity(L1(1.0), module, of=lambda out: out["b"].hidden)
    module(x)
    torch.testing.assert_close(chosen(), 3.0 * x.abs().sum() / 8, rtol=1e-14, atol=0.0)


def test_another_dimension_may_count_samples():
    lstm = nn.LSTM(4, 5, num_layers=2).double()
    activity = attach_activity(L1(1.0), lstm, of=lambda out: out[1][0], batch_dim=1)
    _, (h, _) = lstm(normal((7, 3, 4)))
    torch.testing.assert_close(activity(), h.abs().sum() / 3, rtol=1e-14, atol=0.0)


def test_a_row_is_a_sample_along_whatever_dimension():
    lstm = nn.LSTM(4, 5).double()
    activity = attach_activity(Group(L1(1.0), by=rows), lstm, of=lambda out: out[0], batch_dim=1)
    out, _ = lstm(normal((7, 3, 4)))
    by_hand = sum(35**0.5 * out[:, k].norm() for k in range(3)) / 3
    torch.testing.assert_close(activity(), by_hand, rtol=1e-14, atol=0.0)
    with pytest.raises(TypeError, match="batch_dim as an int, got 'time'"):
        attach_activity(L1(1.0), lstm, batch_dim="time")


class Twice(nn.Module):
    """Returns one tensor in two places, as models with all their hidden states do."""

    def forward(self, x):
        h = x * 2.0
        return {"last": h, "all": (x, h)}


def test_a_tensor_that_is_returned_twice_counts_once():
    model, x = Twice(), normal((3, 4))
    activity = attach_activity(L1(1.0), model)
    model(x)
    torch.testing.assert_close(activity(), 3.0 * x.abs().sum() / 3, rtol=1e-14, atol=0.0)


def test_a_shallow_copy_has_the_same_hook():
    model = nn.Linear(4, 2).double()
    activity = attach_activity(L1(1.0), model)
    out = copy.copy(model)(X)
    torch.testing.assert_close(activity(), out.abs().sum() / 8, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_half_precision_are_added_up_in_float32(dtype):
    model = nn.Linear(4, 4)
    nn.init.constant_(model.weight, 100.0)
    activity = attach_activity(L1(1.0), model)
    with torch.autocast("cpu", dtype=dtype):
        out = model(torch.ones(2, 4).repeat(1000, 1) * 10)
    value = activity()
    assert out.dtype == dtype
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(out.detach().double().abs().sum() / 2000), rel=1e-6)
    value.backward()
    assert model.weight.grad.isfinite().all()


def test_an_output_that_is_changed_in_place_is_named():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True)).double()
    activity = attach_activity(L1(1.0), {"hidden": model[0]})
    model(X)
    with pytest.raises(RuntimeError, match=r"'hidden' was changed in place.*inplace=False"):
        activity()
    activity.remove()
    after = attach_activity(L1(1.0), model[1])
    out = model(X)
    torch.testing.assert_close(after(), out.abs().sum() / 8, rtol=1e-14, atol=0.0)


def test_it_leaves_when_it_is_told():
    model = net()
    with attach_activity(L1(1.0), model) as activity:
        model(X)
    assert float(activity()) == 0.0
    assert not model._forward_hooks
    model(X)
    assert float(activity()) == 0.0


def test_copies_and_pickles_have_a_term_of_their_own():
    model = net()
    activity = attach_activity(L1(1.0), model[0])
    model(X)
    twin = copy.deepcopy(model)
    twin(X)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    torch.load(stored, weights_only=False)(X)
    torch.testing.assert_close(activity(), model[0](X).abs().sum() / 8, rtol=1e-14, atol=0.0)  # its own pass alone


def test_empty_batches_and_numbers_are_no_nan():
    module = nn.Identity()
    activity = attach_activity(L1(1.0), module)
    module(torch.zeros(0, 4, requires_grad=True))
    assert activity().item() == 0.0
    module(torch.tensor(-3.0, requires_grad=True))
    assert activity().item() == 3.0


def test_outputs_that_nobody_reads_are_told_of_once():
    module = nn.Identity()
    activity = attach_activity(L1(1.0), module)
    x = torch.ones(1, requires_grad=True)
    for _ in range(999):
        module(x)
    with pytest.warns(UserWarning, match=r"1000 outputs.*not read.*clear\(\)"):
        module(x)
    for _ in range(500):
        module(x)
    assert activity().item() == 1500.0


def test_the_strength_can_be_turned():
    module = nn.Identity()
    activity = attach_activity(L1(1.0), {"it": module})
    activity.alpha = 0.5
    module(torch.ones(2, 3, requires_grad=True))
    assert activity().item() == 1.5
    assert activity.alpha == 0.5
    assert repr(activity) == "L1(alpha=0.5) of the output of it"


class Index(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


def test_bad_input_is_named():
    model = net()
    for act, error, message in (
        (lambda: attach_activity(model, L1(0.1)), TypeError, "penalty first, got Sequential"),
        (lambda: attach_activity(L1(0.1), "relu"), TypeError, "got str"),
        (lambda: attach_activity(L1(0.1), [model[0].weight]), TypeError, "got Parameter"),
        (lambda: attach_activity(L1(0.1), 3), TypeError, "got int"),
        (lambda: attach_activity(L1(0.1), []), ValueError, "no modules"),
        (lambda: attach_activity(L1(0.1), [model[0], model[0]]), ValueError, "twice"),
    ):
        with pytest.raises(error, match=message):
            act()
    assert not model._forward_hooks
    index = Index()
    attach_activity(L1(0.1), {"index": index})
    with pytest.raises(TypeError, match=r"no floating-point tensor in the output of 'index'.*of="):
        index(X)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_ddp_averages_to_the_gradient_of_the_whole_batch(tmp_path):
    run = torchrun("activity_checks.py", 2, tmp_path)
    assert [p.read_text() for p in sorted(tmp_path.iterdir())] == ["equal", "equal"], run.stderr[-3000:]


def test_a_sparse_autoencoder_learns_codes_with_zeros():
    """The use that it is for: with the penalty fewer units are on, at the same data."""
    shares = []
    for alpha in (0.0, 0.05):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        activity = attach_activity(L1(alpha), model[1])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x = normal((64, 8)).float()
        for _ in range(200):
            optimizer.zero_grad()
            ((model(x) - x).square().mean() + activity()).backward()
            optimizer.step()
        shares.append(float((model[1](model[0](x)) == 0).float().mean()))
    assert shares[1] > shares[0] + 0.2
