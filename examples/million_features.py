"""A sparse linear model over a million hashed features, in seconds and in memory linear in them.

An EmbeddingBag of width 1 is a linear model on sparse rows. Its gradient must be dense
(``sparse=False``), since a proximal step touches every weight. `of_type` selects it: the default
selection spares embeddings.
"""

import time

import torch
from torch import nn

from torchreg import L1, ProxOptimizer, attach, of_type, sparsity

FEATURES = 1_000_000


def planted(rows: int, active: int = 20, generator: torch.Generator | None = None):
    """Rows of 30 feature numbers each: five of the few that matter, 25 of all the others."""
    useful = torch.randint(active, (rows, 5), generator=generator)
    noise = torch.randint(active, FEATURES, (rows, 25), generator=generator)
    effect = torch.linspace(-2.0, 2.0, active)
    chance = torch.sigmoid(effect[useful].sum(1))
    return torch.cat([useful, noise], 1), torch.bernoulli(chance, generator=generator)


def main(steps: int = 100) -> int:
    generator = torch.Generator().manual_seed(0)
    indices, y = planted(5000, generator=generator)
    model = nn.EmbeddingBag(FEATURES, 1, mode="sum", sparse=False)
    nn.init.zeros_(model.weight)

    begin = time.perf_counter()
    term = attach(L1(3e-3), of_type(model, nn.EmbeddingBag))
    optimizer = ProxOptimizer(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), term)
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(indices)[:, 0], y)
        loss.backward()
        optimizer.step()
        if step % 25 == 24:
            print(f"step {step + 1:3d}  loss {loss.item():.4f}  penalty {term().item():.4f}")
    print(sparsity(term))
    kept = model.weight.detach().flatten().nonzero().flatten()
    print(f"{len(kept)} of {FEATURES} features kept, {int((kept < 20).sum())} of the 20 that matter")
    print(f"{time.perf_counter() - begin:.1f} s")
    return len(kept)


if __name__ == "__main__":
    main()
