"""Which 15 of 200 inputs does a nonlinear function use? Groups of columns of the first layer tell.

A column of the first layer's matrix is an input: where it is zero, the network does not look at it.
"""

import torch
from torch import nn

from torchreg import L1, Group, ProxOptimizer, TargetSparsity, attach, columns


def main(steps: int = 2000) -> tuple[int, int]:
    generator = torch.Generator().manual_seed(0)
    used = torch.randperm(200, generator=generator)[:15]
    teacher = [torch.randn(a, b, generator=generator) / a**0.5 for a, b in ((15, 8), (8, 1))]
    x = torch.randn(2000, 200, generator=generator)
    y = torch.tanh(2.0 * x[:, used] @ teacher[0]) @ teacher[1] + 0.05 * torch.randn(2000, 1, generator=generator)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 64), nn.ReLU(), nn.Linear(64, 1))
    term = attach(Group(L1(1e-3), by=columns), {"0.weight": model[0].weight})
    optimizer = ProxOptimizer(torch.optim.AdamW(model.parameters(), lr=3e-3), term)
    TargetSparsity(term, 1 - 15 / 200, steps=steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(2000, (64,))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()

    kept = model[0].weight.any(0).nonzero().flatten()
    right = len(set(kept.tolist()) & set(used.tolist()))
    print(f"{len(kept)} of 200 inputs kept, {right} of the 15 that matter")
    return len(kept), right


if __name__ == "__main__":
    main()
