"""Two lines for any training loop: two thirds of the weights exactly zero, accuracy almost unchanged.

The penalty acts as a proximal step here. Added to the loss (``loss + penalty(model)``) it shrinks
the weights as well, but sets none of them to exactly zero.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from torchreg import L1, ProxOptimizer, attach, sparsity


def main(epochs: int = 60) -> float:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    y = torch.tensor(digits.target)
    train, test = slice(0, 1200), slice(1200, None)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    base = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    term = attach(L1(5e-4), model)  # line 1: what to penalise, and how much
    optimizer = ProxOptimizer(base, term)  # line 2: the proximal step after AdamW's own
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=1e-4)  # not 0: zeros settle

    for epoch in range(epochs):
        for batch in torch.randperm(1200).split(100):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[train][batch]), y[train][batch])
            loss.backward()
            optimizer.step()
        schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3d}  loss {loss.item():.4f}  penalty {term().item():.4f}")

    accuracy = (model(x[test]).argmax(1) == y[test]).float().mean().item()
    print(sparsity(term))
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
