"""What the demo can be asked for, and its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import optim
from torch.optim import Optimizer

from torchreg.functional.groups import columns, rows
from torchreg.penalties import L1, L2, Group, Penalty, by_name

DATA = {"digits": 3e-4, "breast_cancer": 1e-3, "diabetes": 1e-2}  # and the alpha at which L1 keeps the test score

TARGET = 0.9  # share of zero weights of the last model in the table
ROWS_TARGET = 0.8  # share of zero neurons of the model that is made smaller


@dataclass(frozen=True)
class Choice:
    """A penalty to choose: its name in tables, and its default alpha relative to L1's."""

    label: str
    factor: float = 1.0


PENALTIES = {
    "l1": Choice("L1"),
    "l1l2": Choice("L1L2"),
    "l0": Choice("L0", 0.1),
    "mcp": Choice("MCP", 10.0),
    "scad": Choice("SCAD", 10.0),
    "group": Choice("group L1"),
    "sparse_group": Choice("sparse group L1", 0.5),
}

OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "adam": (optim.Adam, {"lr": 3e-3}),
    "adamw": (optim.AdamW, {"lr": 3e-3, "weight_decay": 0.0}),
    "nadam": (optim.NAdam, {"lr": 3e-3}),
    "radam": (optim.RAdam, {"lr": 3e-3}),
    "adamax": (optim.Adamax, {"lr": 5e-3}),
    "rmsprop": (optim.RMSprop, {"lr": 1e-3}),
    "adagrad": (optim.Adagrad, {"lr": 2e-2}),
    "adadelta": (optim.Adadelta, {"lr": 1.0}),
    "sgd": (optim.SGD, {"lr": 5e-2, "momentum": 0.9}),
}


@dataclass(frozen=True)
class Options:
    """What the command line sets; alpha and lr of None mean the default of the data and the optimizer."""

    data: str = "digits"
    penalty: str = "l1"
    alpha: float | None = None
    optimizer: str = "adam"
    lr: float | None = None
    epochs: int = 80
    out: Path = Path("torchreg-demo")
    device: str = "cpu"
    seed: int = 0

    @property
    def strength(self) -> float:
        """The alpha that all penalties of the table have."""
        return DATA[self.data] * PENALTIES[self.penalty].factor if self.alpha is None else self.alpha


@dataclass(frozen=True)
class DemoModel:
    """One of the models to train: a penalty, in the loss or by the proximal step, perhaps to a share of zeros."""

    name: str
    penalty: Penalty
    prox: bool = False
    target: float | None = None
    hidden: bool = False  # whether the last layer, whose rows are the outputs, is left out


def sparse_penalty(name: str, alpha: float) -> Penalty:
    """A penalty of the table; groups are the inputs of each layer."""
    return by_name(name, alpha, by=columns if "group" in name else None)


def recipes(options: Options) -> list[DemoModel]:
    """The models of the table."""
    label, alpha = PENALTIES[options.penalty].label, options.strength
    return [
        DemoModel("no penalty", L2(0.0)),
        DemoModel("L2 in the loss", L2(alpha)),
        DemoModel(f"{label} in the loss", sparse_penalty(options.penalty, alpha)),
        DemoModel(f"{label} by ProxOptimizer", sparse_penalty(options.penalty, alpha), prox=True),
        DemoModel(f"TargetSparsity({TARGET:g})", L1(alpha), prox=True, target=TARGET),
    ]


def row_sparse(options: Options) -> DemoModel:
    """The twin whose hidden layers lose whole neurons, for `compact`."""
    penalty = Group(L1(options.strength), by=rows)
    return DemoModel(f"TargetSparsity({ROWS_TARGET:g}) of neurons", penalty, prox=True, target=ROWS_TARGET, hidden=True)
