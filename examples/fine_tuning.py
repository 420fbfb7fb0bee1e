"""Fine-tuning towards pretrained weights (L1-SP): most weights return exactly to where they began.

``Towards(L1(alpha), start)`` penalises the distance to the pretrained weights; the proximal step
sets it to exactly zero, so the fine-tuned model is the pretrained one plus a sparse update.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from torchreg import L1, ProxOptimizer, Towards, attach


def train(model, x, y, optimizer, epochs):
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()


def main(epochs: int = 30) -> float:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    y = torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    train(model, x[:1000], y[:1000], torch.optim.Adam(model.parameters(), lr=5e-3), epochs)  # pretraining

    flipped = x.reshape(-1, 8, 8).flip(2).reshape(-1, 64)  # the new task: mirrored digits
    before = (model(flipped[1400:]).argmax(1) == y[1400:]).float().mean().item()
    term = attach(lambda name, p: Towards(L1(2e-3), p), model)  # the reference is a copy of p as it is now
    start = {name: p.detach().clone() for name, p in term.parameters.items()}
    base = torch.optim.Adam(model.parameters(), lr=5e-3)
    train(model, flipped[1000:1400], y[1000:1400], ProxOptimizer(base, term), epochs)
    after = (model(flipped[1400:]).argmax(1) == y[1400:]).float().mean().item()

    moved = sum(int((p != start[name]).sum()) for name, p in term.parameters.items())
    total = sum(p.numel() for p in start.values())
    print(f"accuracy on mirrored digits: {before:.3f} before, {after:.3f} after")
    print(f"weights that moved: {moved} of {total} ({moved / total:.1%}); all others equal the pretrained ones")
    return moved / total


if __name__ == "__main__":
    main()
