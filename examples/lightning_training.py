"""Lightning: ``configure_optimizers`` returns a ProxOptimizer, a callback logs; nothing else changes."""

import logging

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn

from torchreg import L1, PenaltyScheduler, ProxOptimizer, attach, schedules, sparsity
from torchreg.integrations.lightning import PenaltyLogger


class Digits(pl.LightningModule):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.steps = steps

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        base = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.0)
        self.term = attach(L1(0.0), self.net)
        optimizer = ProxOptimizer(base, self.term)
        PenaltyScheduler(self.term, schedules.linear(0.0, 5e-4, steps=self.steps // 4))
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


def main(epochs: int = 40) -> float:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    digits = load_digits()
    x = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    y = torch.tensor(digits.target)
    train = torch.utils.data.TensorDataset(x[:1200], y[:1200])
    model = Digits(steps=epochs * 12)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        callbacks=[PenaltyLogger(every_n_steps=40)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader(train, batch_size=100, shuffle=True))
    print({name: round(float(value), 5) for name, value in trainer.callback_metrics.items()})
    accuracy = (model.net(x[1200:]).argmax(1) == y[1200:]).float().mean().item()
    print(sparsity(model.term))
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
