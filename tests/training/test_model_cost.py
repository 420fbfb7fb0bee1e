"""Costs of a pair of models: counts against formulas written out, and models that are left as they were."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from torch import nn

from torchreg.training.compaction.cost import LiveBytes, measure_pair


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 5))


def test_parameters_operations_and_memory_of_an_mlp_are_those_of_the_formula():
    cost = measure_pair(mlp(40), mlp(10), torch.randn(7, 20), repeats=2)
    entries = {w: 20 * w + w + 5 * w + 5 for w in (40, 10)}
    assert cost.parameters == (entries[40], entries[10])
    assert cost.flops == (2 * 7 * 40 * 25, 2 * 7 * 10 * 25)
    assert cost.memory == tuple(4 * (entries[w] + 2 * 7 * w) for w in (40, 10))  # hidden before and after the ReLU


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_operations_within_fused_recurrent_layers_are_counted(kind):
    gates = {nn.LSTM: 4, nn.GRU: 3}[kind]
    cost = measure_pair(kind(6, 8), kind(6, 4), torch.randn(5, 3, 6), repeats=1)
    assert cost.flops == tuple(2 * 15 * gates * h * (6 + h) for h in (8, 4))


def test_operations_within_a_fused_encoder_layer_are_counted():
    def encoder(width):
        return nn.TransformerEncoderLayer(8, 2, width, batch_first=True)

    cost = measure_pair(encoder(32), encoder(16), torch.randn(3, 5, 8), repeats=1)
    assert cost.flops == tuple(2 * (15 * 8 * 8 * 4 + 2 * 3 * 5 * 5 * 8 + 2 * 15 * 8 * f) for f in (32, 16))


def test_operations_of_attention_and_convolutions_are_counted():
    class Attention(nn.Module):
        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v)

    cost = measure_pair(Attention(), Attention(), (torch.randn(2, 3, 5, 4),) * 3, repeats=1)
    assert cost.flops == (2 * 2 * 2 * 3 * 5 * 5 * 4,) * 2
    cost = measure_pair(nn.Conv2d(3, 8, 3), nn.Conv2d(3, 4, 3), torch.randn(2, 3, 7, 7), repeats=1)
    assert cost.flops == tuple(2 * 2 * 25 * 3 * 9 * c for c in (8, 4))


def test_live_bytes_are_those_of_the_plain_sum_of_what_is_held():
    with LiveBytes() as seen:
        a = torch.ones(100)
        b = a.view(10, 10).add_(1.0)  # nothing new
        c = b + 1.0
        assert seen.now == seen.peak == 800
        del a, b
        assert (seen.now, seen.peak) == (400, 800)
        d = c.double()
        assert (seen.now, seen.peak) == (1200, 1200)
        del c, d
    assert (seen.now, seen.peak) == (0, 1200)


class Slow(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.calls = seconds, 0

    def forward(self, x):
        self.calls += 1
        time.sleep(self.seconds)
        return x


def test_latency_is_the_time_that_a_call_takes_and_the_calls_take_turns():
    slow, fast = Slow(0.012), Slow(0.003)
    cost = measure_pair(slow, fast, torch.ones(1), repeats=5)
    assert 0.012 <= cost.seconds[0] < 0.1
    assert 0.003 <= cost.seconds[1] < 0.1
    assert cost.speedup == cost.seconds[0] / cost.seconds[1]
    assert slow.calls == fast.calls >= 5


class Noisy(nn.Module):
    """Everything that a model may change by being run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.relu = nn.ReLU(inplace=True)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        self.modes = [m.training for m in self.modules()]
        return self.drop(self.norm(self.linear(self.relu(x)))) + torch.rand(4)


def test_models_inputs_and_the_random_state_are_left_as_they_were():
    models = Noisy(), Noisy().eval()
    models[0].norm.eval()
    for p in models[0].parameters():
        p.grad = torch.ones_like(p)
    x = torch.randn(3, 4)
    kept, states = x.clone(), [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    modes, random = [[m.training for m in model.modules()] for model in models], torch.get_rng_state()
    backends = torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()
    measure_pair(*models, x, repeats=2)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), random)
    assert [[m.training for m in model.modules()] for model in models] == modes
    assert not any(models[0].modes)  # they ran in eval mode
    assert all((p.grad == 1).all() for p in models[0].parameters())
    assert all(p.grad is None for p in models[1].parameters())
    for model, state in zip(models, states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert backends == (torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled())


def test_a_model_that_fails_is_left_as_it_was_too():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    with pytest.raises(RuntimeError):
        measure_pair(model, model, torch.randn(2, 5))
    assert all(m.training for m in model.modules())
    assert torch.backends.mkldnn.enabled
    assert torch.is_grad_enabled()


def test_inputs_by_position_by_name_and_alone():
    class Two(nn.Module):
        def forward(self, a, *, b):
            return a @ b

    class Both(nn.Module):
        def forward(self, a, b):
            return a @ b

    a, b = torch.randn(2, 3), torch.randn(3, 4)
    assert measure_pair(Two(), Two(), {"a": a, "b": b}, repeats=1).flops == (48, 48)
    assert measure_pair(Both(), Both(), (a, b), repeats=1).flops == (48, 48)
    assert measure_pair(Both(), Both(), [a, b], repeats=1).flops == (48, 48)


def test_shared_parameters_count_once_and_half_precision_half():
    tied = mlp(20)
    tied[2] = nn.Linear(20, 20)
    tied[2].weight = tied[0].weight
    cost = measure_pair(tied, tied.double(), torch.randn(2, 20, dtype=torch.float64), repeats=1)
    assert cost.parameters == (440, 440)
    assert (
        measure_pair(nn.Linear(4, 4).half(), nn.Linear(4, 4).half(), torch.ones(1, 4).half(), repeats=1).memory
        == (2 * 20 + 2 * 4,) * 2
    )


def test_it_waits_for_an_accelerator_before_it_reads_the_clock(accelerator, monkeypatch):
    waits = []
    real = torch.accelerator.synchronize if accelerator.type == "cuda" else lambda device: None
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: (waits.append(device), real(device)))
    models = [nn.Linear(6, n).to(accelerator) for n in (4, 2)]
    cost = measure_pair(*models, torch.ones(3, 6, device=accelerator), repeats=2)
    assert len(waits) >= 2 * 2 * 2  # before and after each of two measurements of two models
    assert {device.type for device in waits} == {torch.device(cost.device).type} == {accelerator.type}
    assert cost.parameters == (28, 14)
    assert cost.memory[0] >= 4 * (28 + 12)


def test_a_cost_is_frozen_and_prints_as_a_table():
    cost = measure_pair(mlp(40), mlp(10), torch.randn(7, 20), repeats=3)
    lines = repr(cost).splitlines()
    assert lines[0].split() == ["median", "of", "3,", "cpu", "before", "after", "before", "/", "after"]
    assert [line.split()[0] for line in lines[1:]] == ["parameters", "FLOPs", "latency", "peak"]
    assert lines[2].split()[1:] == ["14,000", "3,500", "4.00"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        cost.repeats = 1
    empty = measure_pair(nn.Identity(), nn.Identity(), torch.ones(1), repeats=1)
    assert repr(empty).splitlines()[1].split() == ["parameters", "0", "0", "-"]


@pytest.mark.parametrize("repeats", [0, -1, 2.5, True])
def test_wrong_arguments_say_what_is_allowed(repeats):
    with pytest.raises(ValueError, match="repeats >= 1"):
        measure_pair(mlp(2), mlp(2), torch.ones(1, 20), repeats=repeats)
    with pytest.raises(TypeError, match=r"Module as 'after', got function"):
        measure_pair(mlp(2), lambda x: x, torch.ones(1, 20))
