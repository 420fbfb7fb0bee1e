"""Run by torchrun: the averaged gradients of DDP with an activity penalty are those of one process on all samples."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from torchreg import L1, attach_activity


class Net(nn.Module):
    def __init__(self, repeated: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.repeated = nn.Linear(4, 6).double(), nn.Linear(6, 2).double(), repeated

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.first, x, use_reentrant=False) if self.repeated else self.first(x)
        return self.second(hidden.relu())


def gradients(model: nn.Module, net: Net, x: Tensor, micro: int) -> list[Tensor]:
    activity = attach_activity(L1(0.3), [net.first, net.second])
    for part in x.chunk(micro):
        ((model(part).square().mean() + activity()) / micro).backward()
    return [p.grad for p in net.parameters()]


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share = x.chunk(dist.get_world_size())[dist.get_rank()]
    for repeated in (False, True):
        alone, net = Net(repeated), Net(repeated)
        wanted = gradients(alone, alone, x, 1)
        found = gradients(DistributedDataParallel(net), net, share, 2)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    (out / f"{dist.get_rank()}").write_text("equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
