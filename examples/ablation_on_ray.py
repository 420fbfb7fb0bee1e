"""The same ablation on a laptop, a GPU machine or a cluster: cells as tasks of Ray.

Without a cluster Ray is started on this machine. `RayExecutor(address="auto", num_gpus=0.25)` joins
one, and puts four cells on each GPU. A worker or a node that dies costs its cells one more try.
"""

import os
import tempfile
from collections import Counter

import torch
from sklearn.datasets import load_digits
from torch import nn

from torchreg import L1, Group, ProxOptimizer, attach, rows, sparsity
from torchreg.ablation import Ablation, RayExecutor, ablate, logspace


def run(penalty, cell) -> dict:
    """One cell: it seeds, loads its data, trains and tests, in whatever process."""
    cell.seed_everything()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32, device=device)
    y = torch.tensor(digits.target, device=device)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).to(device)
    optimizer = ProxOptimizer(torch.optim.Adam(model.parameters(), lr=1e-2), attach(penalty, model))
    for _ in range(10):
        for batch in torch.randperm(1200, device=device).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    right = (model(x[1200:]).argmax(1) == y[1200:]).float().mean()
    return {"val_accuracy": right, "sparsity": sparsity(model).fraction, "pid": os.getpid()}


def main() -> Ablation:
    penalties = {"weights": L1(1.0), "neurons": Group(L1(1.0), by=rows)}
    with tempfile.TemporaryDirectory() as out:  # on a cluster: a directory that all nodes see
        result = ablate(run, penalties, logspace(1e-4, 3e-3, 3), seeds=range(2), out=out, executor=RayExecutor())
    for row in sorted(result.rows, key=lambda row: (row["penalty"], row["alpha"], row["seed"])):
        print("{penalty:8} alpha {alpha:.0e}  accuracy {val_accuracy:.3f}  zeros {sparsity:.1%}".format(**row))
    print(f"cells by process: {sorted(Counter(row['pid'] for row in result.rows).values())}")
    return result


if __name__ == "__main__":
    main()
