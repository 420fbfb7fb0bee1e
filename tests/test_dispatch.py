"""How many operations a proximal step adds, and that it never waits for a device."""

import pytest
import torch
from fake_device import watch
from torch.utils._python_dispatch import TorchDispatchMode

from torchreg import L1, L1L2, MCP, Group, ProxOptimizer, Weighted, attach, columns, rows


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def dispatched(run):
    with Counting() as counting:
        run()
    return counting.count


@pytest.mark.parametrize("base_class", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("penalty", [L1(1e-3), L1L2(1e-3)], ids=repr)
def test_foreach_adds_at_most_20_operations_for_100_tensors(base_class, penalty):
    parameters = [torch.nn.Parameter(torch.randn(64, 64)) for _ in range(100)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    base = base_class(parameters, lr=1e-3, foreach=True)
    opt = ProxOptimizer(base, penalty, foreach=True)
    base.step()
    assert dispatched(opt.step) - dispatched(base.step) <= 20


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("base_class", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(
    "penalty",
    [L1(1e-3), L1L2(1e-3), MCP(1e-3), Weighted(L1(1e-3), 2.0), Group(L1(1e-3), by=rows), Group(MCP(1e-3), by=columns)],
    ids=repr,
)
def test_a_step_never_waits_for_the_device(base_class, penalty, foreach, device):
    parameters = [torch.nn.Parameter(torch.randn(n, 64, device=device)) for n in (8, 64, 1024)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    base = base_class(parameters, lr=1e-3, fused=True)
    opt = ProxOptimizer(base, attach(penalty, {str(k): p for k, p in enumerate(parameters)}), foreach=foreach)
    opt.step()  # the first step makes the state
    with watch(allow_waits=False):
        opt.step()
    assert all(p.isfinite().all() for p in parameters)
