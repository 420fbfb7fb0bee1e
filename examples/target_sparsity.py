"""Exactly 90 % of the weights zero at the accuracy of the dense net: name the share, not a strength.

``TargetSparsity`` follows the optimizer's steps by itself. Zeros come on a ramp and may leave again while it lasts; at
four fifths of the steps they are settled, and what is left is trained on.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from torchreg import L1, ProxOptimizer, TargetSparsity, attach, sparsity

STEPS = 1500


def main(share: float = 0.9) -> float:
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16.0, dtype=torch.float32), torch.tensor(digits.target)
    train, test = torch.randperm(len(x)).split([1200, len(x) - 1200])

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    term = attach(L1(0.0), model)  # which weights are to become zero
    optimizer = ProxOptimizer(torch.optim.AdamW(model.parameters(), lr=3e-3), term)
    target = TargetSparsity(term, share, steps=STEPS)  # nothing to call
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    for _ in range(STEPS):
        batch = train[torch.randint(len(train), (64,))]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()

    for record in target.history[9::20]:
        print(f"step {record.step:4d}  wanted {record.wanted:.3f}  measured {record.measured:.3f}")
    accuracy = (model(x[test]).argmax(1) == y[test]).float().mean().item()
    print(sparsity(term))
    print(f"test accuracy {accuracy:.3f}, {target.phase}")
    return accuracy


if __name__ == "__main__":
    main()
