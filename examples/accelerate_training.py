"""Accelerate: the loop that you have, with accumulation and a checkpoint; exact zeros come from the same two lines.

On several GPUs start it with ``accelerate launch examples/accelerate_training.py``; nothing in it changes.
"""

import tempfile

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn

from torchreg import L1, PenaltyScheduler, ProxOptimizer, attach, schedules, sparsity


def main(epochs: int = 40) -> float:
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    digits = load_digits()
    x = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    y = torch.tensor(digits.target)
    batches = torch.utils.data.DataLoader(list(zip(x[:1200], y[:1200], strict=True)), batch_size=50, shuffle=True)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    base = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    term = attach(L1(0.0), model)  # before prepare, which may wrap the model and exchange its parameters
    optimizer = ProxOptimizer(base, term)
    ramp = PenaltyScheduler(term, schedules.linear(0.0, 5e-4, steps=100))  # counts optimizer steps, not batches
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * 12)
    model, optimizer, batches, decay = accelerator.prepare(model, optimizer, batches, decay)

    for _ in range(epochs):
        for inputs, labels in batches:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), labels)
                accelerator.backward(loss)
                optimizer.step()
                decay.step()
                optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)  # the strength and the schedule's count are in the optimizer's state
        accelerator.load_state(folder)
    test = x[1200:].to(accelerator.device)
    accuracy = (model(test).argmax(1).cpu() == y[1200:]).float().mean().item()
    print(sparsity(term))
    print(f"{ramp.count} steps, alpha {term.alpha:g}, test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
