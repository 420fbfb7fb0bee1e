"""Two of every four weights zero, the pattern that sparse tensor cores multiply at twice the speed (2:4)."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from torchreg import NM, ProxOptimizer, attach, sparsity


def main(epochs: int = 30) -> float:
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16.0, dtype=torch.float32), torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    term = attach(NM(2, 4), {"0.weight": model[0].weight, "2.weight": model[2].weight})
    optimizer = ProxOptimizer(torch.optim.AdamW(model.parameters(), lr=3e-3), term)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(1200).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()
    fullest = max(int(w.reshape(-1, 4).count_nonzero(1).max()) for w in term.parameters.values())
    accuracy = (model(x[1200:]).argmax(1) == y[1200:]).float().mean().item()
    print(sparsity(term))
    print(f"at most {fullest} of each four are not zero; test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
