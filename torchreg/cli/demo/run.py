"""What ``torchreg demo`` runs: six networks on real data, a table, a smaller network, weights and pictures.

The same small network is trained without a penalty, with L2 in the loss, with a sparse penalty in
the loss, with that penalty by `ProxOptimizer`, and to 90 % zeros by `TargetSparsity`. In the loss a
sparse penalty makes weights small; only the proximal step makes them exactly zero. A sixth loses
four neurons in five, which `compact` cuts out. It is one training loop for all: a term that an
optimizer owns returns its value detached, so ``loss + term()`` is right for each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from torchreg.cli.demo.choices import OPTIMIZERS, DemoModel, Options, recipes, row_sparse
from torchreg.cli.demo.data import DemoData, diabetes, load, moons
from torchreg.cli.demo.linear import LINEAR_ALPHA, linear_table
from torchreg.cli.demo.results import Result, measured, results_table, write_csv
from torchreg.selection.selectors import weights
from torchreg.training import ProxOptimizer, TargetSparsity, Term, attach, compact

_HIDDEN = (128, 64)
_BATCH = 64
_REPORTS = 4  # epoch lines per model
_MOONS_ALPHA, _MOONS_LR = 1e-3, 1e-2  # no penalty overfits, each penalty does not
_MOONS_PASSES = 4  # epochs for one of the data set, which has more batches


def run(options: Options) -> list[Result]:
    """Train, print the epochs, the table and the linear weights, and write CSV and PNG files.

    Raises:
        ImportError: if scikit-learn, which holds the data, is missing.
        FloatingPointError: if the training diverges.
    """
    with one_thread():
        return _run(options)


def _run(options: Options) -> list[Result]:
    data = load(options)
    options.out.mkdir(parents=True, exist_ok=True)
    results = [train(recipe, data, options) for recipe in recipes(options)]
    print(f"\n{options.data}, alpha = {options.strength:g}, {options.optimizer}, {options.epochs} epochs")
    print(results_table(results, data.measure))
    twin = train(row_sparse(options), data, options)
    print(f"\n{twin.name}, test {data.measure} {twin.test_score:.4f}, and what compact makes of it")
    print(shrunk(twin, data))
    print(f"\nA linear model of the diabetes data, its ten features standardised, alpha = {LINEAR_ALPHA:g}")
    print(linear_table(diabetes()))
    write_csv(results, data.measure, options.out / "results.csv")
    written = ["results.csv", *write_pictures(results, options)]
    print(f"\nWritten to {options.out}: {', '.join(written)}")
    return results


def write_pictures(results: list[Result], options: Options) -> list[str]:
    """Draw the pictures into the folder; without matplotlib, say which extra it takes. Returns the files' names."""
    try:
        from torchreg.cli.demo.pictures import draw
    except ImportError as error:
        print(f"\nNo pictures: {error}")
        return []
    chosen = Options(alpha=_MOONS_ALPHA, lr=_MOONS_LR, epochs=_MOONS_PASSES * options.epochs, seed=options.seed)
    points = moons(chosen)
    boundaries = [train(recipe, points, chosen, say=lambda line: None) for recipe in recipes(chosen)[:4]]
    return draw(results, boundaries, points, diabetes(), out=options.out)


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices of this size gain nothing from threads, and lose much where other work keeps the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def network(data: DemoData, options: Options) -> nn.Module:
    """Two hidden layers; the same start for each model, and the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        sizes = [data.X.shape[1], *_HIDDEN, data.outputs]
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers[:-1]).to(options.device)


def train(recipe: DemoModel, data: DemoData, options: Options, say: Callable[[str], None] = tqdm.write) -> Result:
    """Train a network, with a bar and a few epoch lines; the learning rate falls to 0 by a cosine."""
    model = network(data, options)
    term = term_of(recipe, model)
    kind, settings = OPTIMIZERS[options.optimizer]
    base = kind(model.parameters(), **settings | ({} if options.lr is None else {"lr": options.lr}))
    optimizer = ProxOptimizer(base, term) if recipe.prox else base
    if recipe.target is not None:
        TargetSparsity(term, recipe.target, steps=options.epochs * steps(data))
    schedule = CosineAnnealingLR(optimizer, options.epochs * steps(data))
    draws = torch.Generator().manual_seed(options.seed)
    say(f"\n{recipe.name}")
    start = time.perf_counter()
    for epoch in tqdm(range(1, options.epochs + 1), desc=recipe.name, unit="epoch", leave=False, disable=None):
        loss = train_epoch(model, data, term, optimizer, schedule, draws)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"{recipe.name} diverged, its loss is {loss} in epoch {epoch}; use a smaller --lr."
            )
        if epoch % math.ceil(options.epochs / _REPORTS) == 0 or epoch == options.epochs:
            place = f"{epoch:{len(str(options.epochs))}}/{options.epochs}"
            say(f"epoch {place}  loss {loss:.4f}  penalty {float(term().detach()):.4f}")
    return measured(recipe.name, model, data, time.perf_counter() - start)


def term_of(recipe: DemoModel, model: nn.Module) -> Term:
    """A recipe's penalty on the weights of a network, or on those of its hidden layers."""
    chosen = weights(model)
    return attach(recipe.penalty, dict(list(chosen.items())[:-1]) if recipe.hidden else chosen)


def shrunk(result: Result, data: DemoData) -> str:
    """The network without its zero neurons, as text; both score the same."""
    smaller, report = compact(result.model, data.X_test)
    with torch.no_grad():
        score = data.score(smaller(data.X_test), data.y_test)
    return f"{report}\ntest {data.measure} {score:.4f}"


def steps(data: DemoData) -> int:
    """Batches of an epoch."""
    return math.ceil(len(data.X) / _BATCH)


def train_epoch(
    model: nn.Module,
    data: DemoData,
    term: Callable[[], Tensor],
    optimizer: Optimizer,
    schedule: Any,
    draws: torch.Generator,
) -> float:
    """One pass over the data in random batches; returns the mean loss, without the penalty."""
    seen = torch.zeros((), device=data.X.device)
    for batch in torch.randperm(len(data.X), generator=draws).to(data.X.device).split(_BATCH):
        optimizer.zero_grad()
        loss = data.loss(model(data.X[batch]), data.y[batch])
        (loss + term()).backward()
        optimizer.step()
        schedule.step()
        seen += loss.detach() * len(batch)
    return float(seen) / len(data.X)
