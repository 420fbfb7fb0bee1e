"""Pooling adjacent violators in passes over tensors, against scipy's loop."""

import pytest
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from torchreg.functional import isotonic
from torchreg.functional.isotonic import non_increasing

F64 = torch.float64


def cases(count: int):
    draw = torch.Generator().manual_seed(count)
    falling = torch.linspace(1.0, 0.0, count, dtype=F64)
    noise = torch.randn(count, generator=draw, dtype=F64)
    flat = torch.ones(count, dtype=F64)
    yield "noise", noise, flat
    yield "weights", noise, 10.0 ** (3 * torch.randn(count, generator=draw, dtype=F64))
    yield "ties", noise.round(), flat
    yield "falls already", falling, flat
    yield "rises", -falling, flat
    yield (
        "a last entry that pools one after the other",
        torch.cat([falling[:-1], torch.tensor([30.0], dtype=F64)]),
        flat,
    )
    yield "trend and noise", 5 * falling + noise, flat


def reference(values: Tensor, weights: Tensor) -> Tensor:
    return torch.from_numpy(isotonic_regression(values.numpy(), weights=weights.numpy(), increasing=False).x.copy())


@pytest.mark.parametrize("runs", [0, 1, isotonic._RUNS], ids=["halves", "one pass, then halves", "as on the CPU"])
@pytest.mark.parametrize("count", [1, 2, 3, 17, 64, 1000, 30_000])
def test_it_is_scipys(count, runs, monkeypatch):
    monkeypatch.setattr(isotonic, "_RUNS", runs)
    for name, values, weights in cases(count):
        found, wanted = non_increasing(values * weights, weights), reference(values, weights)
        assert (found[1:] <= found[:-1]).all(), name
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9), name
        blocks = [len(torch.unique_consecutive(x.round(decimals=9))) for x in (found, wanted)]
        assert len(torch.unique_consecutive(found)) == blocks[0] == blocks[1], f"{name}: blocks are not exactly equal"


def test_passes_are_bounded_whatever_the_data(monkeypatch):
    passes = []
    merge = isotonic._merged
    monkeypatch.setattr(isotonic, "_merged", lambda *halves: passes.append(1) or merge(*halves))
    count = 5000  # pooled from the end, an entry a pass: a loop over violators needs thousands
    for name, values, weights in cases(count):
        passes.clear()
        non_increasing(values * weights, weights)
        assert len(passes) <= count.bit_length(), name
    assert isotonic._RUNS <= 64


def test_under_vmap_it_is_the_loop():
    rows = torch.randn(4, 33, generator=torch.Generator().manual_seed(0), dtype=F64)
    together = torch.vmap(non_increasing)(rows, torch.ones_like(rows))
    alone = torch.stack([non_increasing(row, torch.ones_like(row)) for row in rows])
    assert torch.allclose(together, alone, rtol=1e-13, atol=1e-13)
