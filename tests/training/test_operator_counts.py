"""How many operations a proximal step adds."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchreg import L1, L1L2, ProxOptimizer


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
