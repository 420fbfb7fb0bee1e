"""Half of the channels of a convolutional net go, and `compact` makes the smaller, faster net that computes the same.

A channel is a filter, its entries of the batch norm and what the next layer makes of it: `coupled` groups them.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from torchreg import L1, ProxOptimizer, TargetSparsity, compact, coupled


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def main(epochs: int = 30) -> tuple[float, float]:
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16.0, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    model, steps = network(), epochs * 12
    term = coupled(model, x[:2]).attach(L1(0.0))
    optimizer = ProxOptimizer(torch.optim.AdamW(model.parameters(), lr=3e-3), term)
    TargetSparsity(term, 0.5, steps=steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for batch in torch.randperm(1200).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    smaller, report = compact(model, x[1200:])
    print(report)
    with torch.no_grad():
        difference = (smaller(x[1200:]) - model(x[1200:])).abs().max().item()
        accuracy = (smaller(x[1200:]).argmax(1) == y[1200:]).float().mean().item()
    print(f"test accuracy {accuracy:.3f}, outputs differ by {difference:.1e} at most")
    return accuracy, difference


if __name__ == "__main__":
    main()
