"""Which strength makes nine weights in ten exactly zero? A search in place of trial and error.

Each trial trains for every seed, and is a row a seed in a directory: stopped and started again, the
search goes on where it was, and a smaller `tol` makes use of all trials before.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn

from torchreg import L1, ProxOptimizer, attach, sparsity
from torchreg.ablation import SearchResult, search


def run(penalty, cell) -> dict:
    """Train a small network on handwritten digits with the penalty."""
    cell.seed_everything()
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = ProxOptimizer(torch.optim.Adam(model.parameters(), lr=1e-2), attach(penalty, model))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(10):
        for batch in torch.randperm(1200).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()
    right = (model(x[1200:]).argmax(1) == y[1200:]).float().mean()
    return {"val_accuracy": right, **sparsity(model).metrics()}


def main() -> SearchResult:
    with tempfile.TemporaryDirectory() as out:  # yours would stay: out="runs/digits"
        found = search(run, L1(1e-3), {"sparsity": 0.9}, seeds=range(3), tol=0.01, out=out)
    trials = {}
    for row in found.trials:
        trials.setdefault(row["alpha"], []).append(row)
    print("   alpha    zeros  accuracy  (means of 3 seeds, in the order of the trials)")
    for alpha, rows in trials.items():
        zeros, right = (sum(row[name] for row in rows) / len(rows) for name in ("sparsity", "val_accuracy"))
        print(f"{alpha:8.6f}  {zeros:6.1%}  {right:8.3f}")
    print(f"alpha = {found.alpha:.6f} makes {found.value:.1%} of the weights zero")
    return found


if __name__ == "__main__":
    main()
