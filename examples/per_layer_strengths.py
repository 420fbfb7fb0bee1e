"""A strength of its own for each layer, as Keras has it, and biases too where asked.

The penalty is part of the loss here: it shrinks, but gives no exact zeros.
"""

import torch
from torch import nn

from torchreg import L1, L1L2, L2, attach, matching, weights


def main() -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    x, y = torch.randn(256, 20), torch.randn(256, 1)

    # Keras: Dense(kernel_regularizer=L2(1e-3)), Dense(kernel_regularizer=L1(1e-4), bias_regularizer=L2(1e-2)), ...
    strengths = {"0.weight": L2(1e-3), "2.weight": L1(1e-4), "4.weight": L1L2(1e-4), "2.bias": L2(1e-2)}
    term = attach(lambda name, parameter: strengths[name], weights(model) | matching(model, "2.bias"))
    print(term)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(200):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        (loss + term()).backward()
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1:3d}  loss {loss.item():.4f}  penalty {term().item():.4f}")
    return term().item()


if __name__ == "__main__":
    main()
