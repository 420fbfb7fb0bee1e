"""Nine tasks for sparse training: data, net, loss, and a score on validation and on test data.

What a seed moves: the net's start, the order of batches, and the data where they are drawn; of data that exist, which
part of the pool is trained on and which validates. Test data of these are the same for all seeds, and no setting is
chosen by them. A score is better the larger it is. The new tasks were looked at in no choice of a default.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import cross_entropy, mse_loss

from torchreg import Groups, columns, weights

sys.path.append(str(Path(__file__).parents[1] / "examples" / "cluster"))
from byte_model import ByteTransformer, Size, batch, standard_library

TARGETS = (0.9, 0.95, 0.8, 0.98)  # in the order of what is asked for most
HALF = 0.5


@dataclass
class Problem:
    """A task at one seed.

    Attributes:
        model: at its start.
        loss: step -> training loss on that step's batch.
        score: "val" or "test" -> the score of the model as it is.
        found: weights that are penalised, as they are now -> F1 of the inputs that matter, where it is known which.
    """

    model: nn.Module
    loss: Callable[[int], Tensor]
    score: Callable[[str], float]
    found: Callable[[list[Tensor]], float] = field(default=lambda weights: float("nan"))


@dataclass(frozen=True)
class Task:
    """What is trained, and for how long.

    Attributes:
        about: one line for the report.
        score: what is measured.
        build: (seed, steps) -> `Problem`.
        lr, steps: of AdamW, rate falling by a cosine to 1 %.
        by: what is made zero: None for entries, or groups.
        only: name of the one weight that is penalised; None for all.
        new: whether nobody looked at it when a default of torchreg was chosen.
        targets: shares of zeros to train to.
        alpha: where the search for a strength begins.
    """

    about: str
    score: str
    build: Callable[[int, int], Problem]
    lr: float
    steps: int
    by: Groups | None = None
    only: str | None = None
    new: bool = False
    targets: tuple[float, ...] = TARGETS
    alpha: float = 1e-3

    def penalised(self, model: nn.Module) -> dict[str, Parameter]:
        """The weights whose zeros count."""
        found = weights(model)
        return found if self.only is None else {self.only: found[self.only]}


def rows_of(n: int, size: int, steps: int, seed: int) -> Tensor:
    """Indices of each step's batch, (steps, size)."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(n, (steps, size), generator=draw)


def split(n: int, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """A pool of n rows, parted at random into training and validation."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[validation:], order[:validation]


Parts = dict[str, tuple[Tensor, Tensor]]


def supervised(model: nn.Module, parts: Parts, objective: Callable[[Tensor, Tensor], Tensor], size: int, steps: int,
               seed: int, measure: Callable[[Tensor, Tensor], float]) -> Problem:  # fmt: skip
    """A problem of inputs and targets, given as "train", "val" and "test"."""
    x, y = parts["train"]
    taken = rows_of(len(x), size, steps, seed)

    def loss(step: int) -> Tensor:
        rows = taken[step]
        return objective(model(x[rows]), y[rows])

    @torch.no_grad()
    def score(part: str) -> float:
        model.eval()
        given, wanted = parts[part]
        return measure(model(given), wanted)

    return Problem(model, loss, score)


def accuracy(out: Tensor, y: Tensor) -> float:
    """Share of rows whose largest logit is the right one."""
    return float((out.argmax(1) == y).double().mean())


def r2(out: Tensor, y: Tensor) -> float:
    """One minus the squared error over the variance around the mean of each output."""
    return float(1 - (out - y).square().sum() / (y - y.mean(0)).square().sum())


@cache
def _digits() -> Parts:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    pool, test = split(len(x), 500, seed=0)
    return {"pool": (x[pool], y[pool]), "test": (x[test], y[test])}


def _digits_parts(seed: int, shape: tuple[int, ...]) -> Parts:
    parts = {name: (x.reshape(-1, *shape), y) for name, (x, y) in _digits().items()}
    x, y = parts["pool"]
    train, val = split(len(x), 250, seed)
    return {"train": (x[train], y[train]), "val": (x[val], y[val]), "test": parts["test"]}


def digits_mlp(seed: int, steps: int) -> Problem:
    """A net 64-128-64-10 on scikit-learn's digits."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    return supervised(model, _digits_parts(seed, (64,)), cross_entropy, 64, steps, seed, accuracy)


def digits_conv(seed: int, steps: int) -> Problem:
    """Three convolutions and a linear layer on the same digits."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )
    return supervised(model, _digits_parts(seed, (1, 8, 8)), cross_entropy, 32, steps, seed, accuracy)


def _drawn(truth: Callable[[Tensor], Tensor], inputs: int, rows: int, noise: float, draw: torch.Generator) -> Parts:
    """Normal inputs and noisy outputs: so many rows to train on, half as many to validate, 2000 to test."""
    parts = {}
    for part, n in (("train", rows), ("val", rows // 2), ("test", 2000)):
        x = torch.randn(n, inputs, generator=draw)
        parts[part] = x, truth(x) + noise * torch.randn(n, 1, generator=draw)
    return parts


def f1(kept: Tensor, matter: Tensor) -> float:
    """Harmonic mean of precision and recall of what is kept."""
    return float(2 * (kept & matter).sum() / (kept.sum() + matter.sum()))


def sparse_teacher(seed: int, steps: int) -> Problem:
    """A teacher with 8 tanh units over 15 of 200 inputs; a net 200-64-1, which may use each input or not."""
    draw = torch.Generator().manual_seed(seed)
    matter = torch.zeros(200, dtype=torch.bool)
    matter[torch.randperm(200, generator=draw)[:15]] = True
    inner, outer = torch.randn(15, 8, generator=draw) / 15**HALF, torch.randn(8, 1, generator=draw)
    parts = _drawn(lambda x: torch.tanh(2 * x[:, matter] @ inner) @ outer, 200, 1000, 0.3, draw)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(200, 64), nn.ReLU(), nn.Linear(64, 1))
    problem = supervised(model, parts, mse_loss, 64, steps, seed, r2)
    problem.found = lambda weights: f1((weights[0] != 0).any(0), matter)
    return problem


def planted_linear(seed: int, steps: int) -> Problem:
    """A linear model of 300 inputs, 15 of which matter, from 200 rows."""
    draw = torch.Generator().manual_seed(seed)
    matter = torch.zeros(300, dtype=torch.bool)
    matter[torch.randperm(300, generator=draw)[:15]] = True
    truth = (matter * torch.randn(300, generator=draw))[:, None]
    parts = _drawn(lambda x: x @ truth, 300, 200, 1.0, draw)
    torch.manual_seed(seed)
    problem = supervised(nn.Linear(300, 1), parts, mse_loss, 32, steps, seed, r2)
    problem.found = lambda weights: f1((weights[0] != 0).any(0), matter)
    return problem


@cache
def _text() -> tuple[Tensor, Tensor]:
    return standard_library(4_000_000)


def bytes_transformer(seed: int, steps: int) -> Problem:
    """A transformer of two layers, width 64 and 64 bytes of context on the sources of Python's standard library."""
    size, (train, held_out) = Size(64, 2, 2, 64), _text()
    half = len(held_out) // 2
    texts = {"val": held_out[:half], "test": held_out[half:]}
    torch.manual_seed(seed)
    model = ByteTransformer(size)

    @torch.no_grad()
    def score(part: str) -> float:
        model.eval()
        rows = batch(texts[part], 0, 512, size.context)
        bits = [float(model.loss(some)) / torch.log(torch.tensor(2.0)).item() for some in rows.split(64)]
        return -sum(bits) / len(bits)

    return Problem(model, lambda step: model.loss(batch(train, seed * 100_003 + step, 16, size.context)), score)


@cache
def _patches() -> dict[str, Tensor]:
    """Patches of 8x8 in three colours: of each photo the left part to train, the right to validate and test."""
    from sklearn.datasets import load_sample_images

    draw, found = torch.Generator().manual_seed(0), {"train": [], "val": [], "test": []}
    for image in load_sample_images().images:
        photo = torch.tensor(image, dtype=torch.float32).permute(2, 0, 1) / 255
        for part, n, left, right in (("train", 5000, 0, 440), ("val", 500, 440, 540), ("test", 1000, 540, 640)):
            rows = torch.randint(photo.shape[1] - 8, (n,), generator=draw)
            starts = torch.randint(left, right - 8, (n,), generator=draw)
            found[part] += [photo[:, r : r + 8, c : c + 8].flatten() for r, c in zip(rows, starts, strict=True)]
    stacked = {part: torch.stack(patches) for part, patches in found.items()}
    return {part: (x - x.mean(1, keepdim=True)) / stacked["train"].std() for part, x in stacked.items()}


def autoencoder(seed: int, steps: int) -> Problem:
    """Patches of photos, without their mean, through 128 units: 192-128-192."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(192, 128), nn.ReLU(), nn.Linear(128, 192))
    parts = {part: (x, x) for part, x in _patches().items()}
    return supervised(model, parts, mse_loss, 64, steps, seed, r2)


def friedman(seed: int, steps: int) -> Problem:
    """Friedman's first function of 5 of 20 inputs, 1500 rows; a net 20-128-64-1."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(4250, 20, noise=1.0, random_state=seed)
    x, y = torch.tensor(2 * x - 1, dtype=torch.float32), torch.tensor((y - 14.4) / 5, dtype=torch.float32)[:, None]
    ends = {"train": slice(0, 1500), "val": slice(1500, 2250), "test": slice(2250, None)}
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))
    return supervised(model, {part: (x[at], y[at]) for part, at in ends.items()}, mse_loss, 64, steps, seed, r2)


def series(seed: int, steps: int) -> Problem:
    """The Mackey-Glass equation's series, five steps ahead of 20 noisy values; a GRU of 48 units."""
    x = _mackey_glass(6000)
    noisy = x + 0.05 * torch.randn(len(x), generator=torch.Generator().manual_seed(seed))
    windows, ahead = noisy[:-5].unfold(0, 20, 1)[..., None], x[24:, None]
    ends = {"train": slice(0, 2000), "val": slice(2100, 3100), "test": slice(3200, None)}
    torch.manual_seed(seed)
    parts = {part: (windows[at], ahead[at]) for part, at in ends.items()}
    return supervised(LastState(1, 48, 1), parts, mse_loss, 64, steps, seed, r2)


@cache
def _mackey_glass(n: int) -> Tensor:
    """``x' = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x``, every third unit of time, with mean 0 and deviation 1."""
    past = [1.2] * 171  # Euler's steps of 0.1
    for _ in range(30 * (n + 100)):
        past.append(past[-1] + 0.1 * (0.2 * past[-171] / (1.0 + past[-171] ** 10) - 0.1 * past[-1]))
    x = torch.tensor(past[-30 * n :: 30], dtype=torch.float64)
    return ((x - x.mean()) / x.std()).float()


class LastState(nn.Module):
    """A GRU and a linear layer on its last state."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(inputs, hidden, batch_first=True), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


def classes(seed: int, steps: int) -> Problem:
    """Six classes of four clusters each, told by 15 of 60 inputs and by 10 mixtures of them; a net 60-96-48-6."""
    from sklearn.datasets import make_classification

    x, y = make_classification(
        7000, 60, n_informative=15, n_redundant=10, n_classes=6, n_clusters_per_class=4, flip_y=0.02, class_sep=1.5,
        random_state=seed,
    )  # fmt: skip
    x, y = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32), torch.tensor(y)
    ends = {"train": slice(0, 4000), "val": slice(4000, 5000), "test": slice(5000, None)}
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(60, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 6))
    parts = {part: (x[at], y[at]) for part, at in ends.items()}
    return supervised(model, parts, cross_entropy, 64, steps, seed, accuracy)


TASKS = {
    "digits-mlp": Task("digits, net 64-128-64-10", "accuracy", digits_mlp, 3e-3, 1500),
    "digits-conv": Task("digits, three convolutions", "accuracy", digits_conv, 3e-3, 1000),
    "teacher": Task(
        "15 of 200 inputs matter, net 200-64-1; zeros are columns of the first layer", "R2", sparse_teacher, 3e-3, 1500,
        by=columns, only="0.weight", targets=(0.9, 0.95, 0.925, 0.8, 0.98), alpha=1e-2,
    ),
    "linear": Task(
        "linear model, 200 rows, 300 inputs, 15 matter", "R2", planted_linear, 1e-2, 2000, only="weight", alpha=1e-1
    ),
    "bytes": Task(
        "byte-level transformer on Python's standard library", "-bits a byte", bytes_transformer, 3e-3, 800,
        targets=(0.9, 0.95), alpha=1e-4,
    ),
    "autoencoder": Task("photos' patches through 192-128-192", "R2", autoencoder, 3e-3, 1500, alpha=1e-4),
    "friedman": Task("Friedman's function, net 20-128-64-1", "R2", friedman, 3e-3, 1500),
    "series": Task("the Mackey-Glass series, GRU with 48 units", "R2", series, 3e-3, 800, new=True),
    "classes": Task("tabular: six classes, net 60-96-48-6", "accuracy", classes, 3e-3, 1500, new=True),
}  # fmt: skip
