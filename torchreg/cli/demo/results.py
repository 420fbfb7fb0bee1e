"""What the demo says of a trained network: a row of its table and of its CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from torchreg.cli.demo.data import DemoData
from torchreg.selection.selectors import weights
from torchreg.text_table import text_table
from torchreg.training import sparsity


@dataclass(frozen=True)
class Result:
    """A trained model and what the table says of it; zeros and norm are of the penalised weights."""

    name: str
    model: nn.Module
    train_score: float
    test_score: float
    zeros: int
    total: int
    norm: float
    seconds: float


@torch.no_grad()
def measured(name: str, model: nn.Module, data: DemoData, seconds: float) -> Result:
    """What the table says of a trained model."""
    zeros = sparsity(model)
    norm = math.sqrt(sum(float(w.double().square().sum()) for w in weights(model).values()))
    fit, test = data.score(model(data.X), data.y), data.score(model(data.X_test), data.y_test)
    return Result(name, model, fit, test, zeros.zeros, zeros.total, norm, seconds)


def results_table(results: Iterable[Result], measure: str) -> str:
    """The results as text."""
    head = ("model", f"train {measure}", f"test {measure}", "exact zeros", "", "norm", "seconds")
    return text_table(
        head,
        [
            (r.name, f"{r.train_score:.4f}", f"{r.test_score:.4f}", f"{r.zeros:>6} of {r.total}",
             f"{r.zeros / r.total:>6.1%}", f"{r.norm:.2f}", f"{r.seconds:.1f}")
            for r in results
        ],
    )  # fmt: skip


def write_csv(results: Iterable[Result], measure: str, path: Path) -> None:
    """The results as numbers."""
    head = ("model", f"train {measure}", f"test {measure}", "zeros", "weights", "norm", "seconds")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows((r.name, r.train_score, r.test_score, r.zeros, r.total, r.norm, r.seconds) for r in results)
