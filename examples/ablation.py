"""How strong should L1 be? One training loop, eight strengths, three seeds: a table with intervals.

Stop it at any time and run it again: what is done is not done twice. Longer lists run only what is new.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn

from torchreg import L1, ProxOptimizer, attach, sparsity
from torchreg.ablation import Ablation, ablate, logspace


def run(penalty, cell) -> dict:
    """One cell: your own training loop, which returns what the table shall show."""
    cell.seed_everything()
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = ProxOptimizer(torch.optim.Adam(model.parameters(), lr=1e-2), attach(penalty, model))
    for epoch in range(15):
        for batch in torch.randperm(1200).split(100):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
        cell.report(epoch, loss=loss.item())
    right = (model(x[1200:]).argmax(1) == y[1200:]).float().mean()
    return {"val_accuracy": right, **sparsity(model).metrics()}


def main() -> Ablation:
    with tempfile.TemporaryDirectory() as out:  # yours would stay: out="runs/digits"
        result = ablate(run, L1(1.0), logspace(1e-5, 1e-2, 7, zero=True), seeds=range(3), out=out)
    print(result.summary())
    print(result.paired(baseline_alpha=0))
    print(result.best("val_accuracy", rule="1se"))
    return result


if __name__ == "__main__":
    main()
