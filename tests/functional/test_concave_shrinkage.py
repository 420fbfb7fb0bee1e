"""Proximal maps of the concave penalties in float32: no weight grows, small steps add up, nothing overflows."""

from __future__ import annotations

import pytest
import torch

from torchreg import LHalf, LogSum, LTwoThirds

each = pytest.mark.parametrize("penalty", [LHalf(1.0), LTwoThirds(1.0), LogSum(1.0), LogSum(1.0, eps=1.0)], ids=repr)


@each
@pytest.mark.parametrize("step", [1e-9, 1e-8, 1e-7])
def test_no_weight_grows(penalty, step):
    w = torch.rand(2000, generator=torch.Generator().manual_seed(0)) + 0.01
    for _ in range(50):
        shrunk = penalty.prox(w, step)
        assert bool((shrunk <= w).all())
        w = shrunk


@each
def test_small_steps_take_off_in_float32_what_they_take_off_in_float64(penalty):
    start = torch.rand(2000, generator=torch.Generator().manual_seed(0)) + 0.01
    single, double = start, start.double()
    for _ in range(300):
        single, double = penalty.prox(single, 1e-6), penalty.prox(double, 1e-6)
    lost, exact = (start - single).double().mean(), (start.double() - double).mean()
    assert lost.item() == pytest.approx(exact.item(), rel=0.01)


@each
@pytest.mark.parametrize("step", [1e-45, 1e-40, 1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_no_size_of_weight_or_step_overflows(penalty, step):
    sizes = torch.tensor([4e-45, 3e-38, 3e-26, 3e-20, 3e-10, 3.0, 3e10, 3e30, 3e38])
    for w in (sizes, -sizes):
        shrunk = penalty.prox(w, step)
        assert bool(shrunk.isfinite().all() & (shrunk.abs() <= w.abs()).all() & (shrunk * w.sign() >= 0).all())
    nearly = penalty.prox(sizes.double(), step).float()  # float64 has the room
    torch.testing.assert_close(penalty.prox(sizes, step), nearly, rtol=1e-4, atol=1e-37)
