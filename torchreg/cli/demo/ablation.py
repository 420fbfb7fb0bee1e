"""What ``torchreg demo --ablate`` runs: how strong should the penalty be? A small ablation from end to end.

The demo's network is trained by `ProxOptimizer` without a penalty and at four strengths, with three
seeds each. It prints the means over seeds, the differences to no penalty on the same seeds, and the
strongest penalty that validation data cannot tell from the best; it writes the rows and a report with
figures. Every cell is kept in a directory: the same line again trains nothing, and after Ctrl-C it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import CosineAnnealingLR

from torchreg.ablation import Ablation, Cell, ablate
from torchreg.cli import terminal
from torchreg.cli.demo.choices import OPTIMIZERS, PENALTIES, Options, sparse_penalty
from torchreg.cli.demo.data import DemoData, load
from torchreg.cli.demo.run import network, one_thread, steps, train_epoch
from torchreg.penalties import Penalty
from torchreg.report import write_report
from torchreg.training import ProxOptimizer, attach, sparsity

_STRENGTHS = (0.0, 0.3, 1.0, 3.0, 10.0)  # times the demo's own
_SEEDS = 3
_EPOCHS = 4  # of those asked for, one in so many: there are fifteen networks to train
_HELD_OUT = 5  # of the rows to fit, one in so many chooses the strength


def run(options: Options) -> Ablation:
    """Train what is not trained yet, print tables, write figures and a report.

    Raises:
        ImportError: if scikit-learn, which holds the data, is missing.
    """
    label, penalty = PENALTIES[options.penalty].label, sparse_penalty(options.penalty, 1.0)
    alphas = [float(f"{options.strength * factor:.6g}") for factor in _STRENGTHS]
    asked: dict[str, Any] = {
        "data": options.data, "optimizer": options.optimizer, "epochs": max(1, options.epochs // _EPOCHS),
        "lr": options.lr, "device": options.device,
    }  # fmt: skip
    with one_thread():
        ablation = ablate(
            partial(train, **asked), {label: penalty}, alphas,
            seeds=range(options.seed, options.seed + _SEEDS), out=options.out / "ablation" / options.data,
            on_change="new",
        )  # fmt: skip
    show(ablation, options.out)
    return ablation


def train(penalty: Penalty, seed: int, cell: Cell, **asked: Any) -> Mapping[str, Any]:
    """One network."""
    options = Options(**asked, seed=seed)
    data, validation = held_out(load(options))
    model = network(data, options)
    kind, settings = OPTIMIZERS[options.optimizer]
    base = kind(model.parameters(), **settings | ({} if options.lr is None else {"lr": options.lr}))
    term = attach(penalty, model)
    optimizer = ProxOptimizer(base, term)
    schedule = CosineAnnealingLR(optimizer, options.epochs * steps(data))
    draws = cell.seed_everything()
    for epoch in range(1, options.epochs + 1):
        loss = train_epoch(model, data, term, optimizer, schedule, draws)
        cell.report(epoch, loss=loss, val_loss=data.loss(model(validation.X_test), validation.y_test))
    measure = "r2" if data.regression else "accuracy"
    return {
        f"val_{measure}": data.score(model(validation.X_test), validation.y_test),
        f"test_{measure}": data.score(model(data.X_test), data.y_test),
        **sparsity(model).metrics(),
    }


def held_out(data: DemoData) -> tuple[DemoData, DemoData]:
    """Most of the rows to fit, with the test data; and the same with the other rows in the place of the test data."""
    rest = len(data.X) - len(data.X) // _HELD_OUT
    fit = DemoData(data.X[:rest], data.y[:rest], data.X_test, data.y_test)
    return fit, DemoData(fit.X, fit.y, data.X[rest:], data.y[rest:])


def show(ablation: Ablation, out: Path) -> None:
    """Print what the ablation says; write the rows, the figures and the report."""
    metric = next(name for name in ablation.metrics if name.startswith("val_"))
    for title, found in (
        ("Means over seeds, with 95 % intervals", ablation.summary()),
        ("Differences to no penalty on the same seeds", ablation.paired()),
        (f"The strongest within one standard error of the best {metric}", ablation.best(metric, rule="1se")),
    ):
        terminal.say(f"\n{title}\n{found}")
    ablation.to_csv(out / "rows.csv")
    written = ["rows.csv"]
    try:
        write_report(ablation, out / "report.html")
    except ImportError as error:
        terminal.say(f"\nNo report: {error}")
    else:
        written.append("report.html")
    terminal.say(f"\nWritten to {out}: {', '.join(written)}; every cell is in {ablation.dir}")
