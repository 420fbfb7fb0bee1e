"""Fifty small models trained together by `ablate_batched` against a loop over them, ledgers and scores included.

    python benchmarks/ablate_batched.py [--device cuda] [--threads N] [--rounds N] [--quick]

An MLP 64-64-10 on scikit-learn's digits, batches of 64, AdamW, 10 strengths x 5 seeds; L1, and groups by rows. The
loop is `ablate` over the same cells, each by `ProxOptimizer` in this process on one thread. Whole calls take turns, all
in new directories: what is timed is a finished ablation, with its check against solo runs. Results are compared before
anything is timed. The bar: one fifth of the loop's time on one thread. With --threads above 1 the models are trained
together on so many threads too, without a bar. --quick rehearses with few models and steps and saves nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import harness
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from torchreg import L1, Group, Penalty, ProxOptimizer, attach, rows
from torchreg.ablation import Ablation, ablate, ablate_batched, logspace

BAR = 0.2  # of the loop's time
BATCH, RATE = 64, 1e-2
KINDS: dict[str, Penalty] = {"L1": L1(1.0), "rows": Group(L1(1.0), by=rows)}
AGREE = 0.01  # of accuracies; in float32 the ways of two runs part by rounding
Metrics = dict[str, float]


class Digits:
    """The data, and how a model is made, trained and scored, alone or with others."""

    def __init__(self, device: str, steps: int) -> None:
        x, y = load_digits(return_X_y=True)
        self.device, self.steps = device, steps
        self.x = torch.as_tensor(x / 16.0, dtype=torch.float32, device=device)
        self.y = torch.as_tensor(y, device=device)
        draws = torch.Generator().manual_seed(0)
        order = torch.randperm(len(y), generator=draws).to(device)
        self.test, train = order[:500], order[500:]
        picks = torch.randint(len(train), (steps, BATCH), generator=draws).to(device)
        self.batches = [(self.x[train[k]], self.y[train[k]]) for k in picks]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self.batches[step]

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(self.device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return functional.cross_entropy(model(x), y)

    def optimizer(self, model: nn.Module, penalty: Penalty) -> ProxOptimizer:
        return ProxOptimizer(torch.optim.AdamW(model.parameters(), lr=RATE), attach(penalty, model))

    @torch.no_grad()
    def score(self, model: nn.Module) -> Metrics:
        right = (model(self.x[self.test]).argmax(1) == self.y[self.test]).double().mean()
        weights = [p for p in model.parameters() if p.dim() > 1]
        return {"accuracy": right.item(), "zeros": sum(int((p == 0).sum()) for p in weights)}

    def run(self, penalty: Penalty, seed: int) -> Metrics:
        """A cell of the loop."""
        model = self.model(seed)
        optimizer = self.optimizer(model, penalty)
        for step in range(self.steps):
            optimizer.zero_grad()
            self.loss(model, self.batch(step)).backward()
            optimizer.step()
        return self.score(model)


def loop(digits: Digits, penalty: Penalty, grid: dict[str, Any]) -> Ablation:
    with tempfile.TemporaryDirectory() as out:
        return ablate(digits.run, penalty, **grid, out=out, progress=False)


def together(digits: Digits, penalty: Penalty, grid: dict[str, Any]) -> Ablation:
    with tempfile.TemporaryDirectory() as out:
        return ablate_batched(
            digits.loss, digits.model, penalty, **grid, optimizer_fn=digits.optimizer, batch_fn=digits.batch,
            steps=digits.steps, score_fn=digits.score, out=out, progress=False,
        )  # fmt: skip


def on_threads(count: int, run: Callable[[], object]) -> Callable[[], object]:
    def timed() -> object:
        torch.set_num_threads(count)
        return run()

    return timed


def difference(one: Ablation, other: Ablation) -> float:
    """The largest difference of an accuracy between two ablations, if every cell of both has been trained."""
    if any(row["status"] != "ok" for row in (*one.rows, *other.rows)):
        raise SystemExit("A cell has failed; nothing is measured.")
    pairs = zip(one.rows, other.rows, strict=True)
    return max(abs(a["accuracy"] - b["accuracy"]) for a, b in pairs)


def as_markdown(names: dict[str, str], times: dict[str, float], facts: dict[str, Any], chosen: Any) -> str:
    """The table of a result file."""
    lines = ["| models trained together | loop, ms | together, ms | times faster | bar |", "|---|---:|---:|---:|---:|"]
    for name, reference in names.items():
        bar = "" if reference == name else "5" if name.endswith("1 thread") else "-"
        if bar:
            ratio = times[reference] / times[name]
            lines.append(f"| {name} | {times[reference]:.0f} | {times[name]:.0f} | {ratio:.1f} | {bar} |")
    told = harness.environment(chosen)
    told = ", ".join(f"{key} {value}" for key, value in (told | facts).items())
    return "\n".join(
        [f"# {str(__doc__).splitlines()[0]}", "", *lines, "", f"Medians of whole calls in turns. {told}.\n"]
    )


def main() -> None:
    quick = "--quick" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--quick"]
    chosen = harness.options(str(__doc__).splitlines()[0], rounds=5)
    grid = {"alphas": logspace(1e-5, 1e-2, 2 if quick else 10), "seeds": range(2 if quick else 5)}
    digits = Digits(chosen.device, steps=20 if quick else 150)
    candidates: dict[str, Callable[[], object]] = {}
    names: dict[str, str] = {}
    apart: dict[str, float] = {}
    for kind, penalty in KINDS.items():
        one, other = (lambda run=run, p=penalty: run(digits, p, grid) for run in (loop, together))
        torch.set_num_threads(1)
        apart[kind] = difference(one(), other())
        if apart[kind] > AGREE:
            raise SystemExit(f"{kind}: accuracies differ by {apart[kind]:.3f}; nothing is measured.")
        reference = f"{kind}, loop"
        candidates[reference], names[reference] = on_threads(1, one), reference
        for count in sorted({1, chosen.threads}):
            name = f"{kind}, {count} thread{'s' * (count > 1)}"
            candidates[name], names[name] = on_threads(count, other), reference
    begin = time.perf_counter()
    times = harness.medians(candidates, chosen.rounds, chosen.device)
    facts = {"models": len(grid["alphas"]) * len(grid["seeds"]), "steps": digits.steps, "batch": BATCH}
    facts |= {"largest difference of an accuracy": apart, "seconds": round(time.perf_counter() - begin)}
    table = as_markdown(names, times, facts, chosen)
    print(table)
    if quick:
        return
    bars = [
        (f"{name} / loop", name, reference, BAR if name.endswith("1 thread") else None)
        for name, reference in names.items()
        if name != reference
    ]
    harness.report("ablate_batched", times, bars, chosen)
    harness.result_file("ablate_batched", chosen).with_suffix(".md").write_text(table)


if __name__ == "__main__":
    main()
