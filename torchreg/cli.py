"""The command line: ``torchreg demo``, ``torchreg fit``, ``torchreg --version``."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from torchreg import __version__, demo
from torchreg.commands import fit
from torchreg.commands.fit_options import FOLDS, PENALTIES, RULES, TASKS, FitOptions
from torchreg.demo_choices import DATA, OPTIMIZERS, Options
from torchreg.demo_choices import PENALTIES as DEMO_PENALTIES

_EXPECTED: dict[str, tuple[type[Exception], ...]] = {
    "demo": (ImportError, OSError, FloatingPointError),
    "fit": (ImportError, OSError, ValueError),
}
_ABOUT = """Regularisation for PyTorch: exact zeros and true minimisers, in training loops and in linear fits.

  torchreg demo                                  what L1 and L2 do to networks on real data
  torchreg fit data.csv --target y               a sparse linear model of a table, alpha by cross-validation
  torchreg COMMAND --help                        all options of a command

In Python: help(torchreg), help(torchreg.linear).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code: 0, or 2 if an extra is missing, a file cannot be read or written, the data cannot be
        fitted or the training diverges. Wrong arguments exit with 2 too, as `argparse` does.
    """
    parser = _parser()
    given = vars(parser.parse_args(argv))
    command = given.pop("command")
    try:
        if command == "demo":
            demo.run(Options(**given))
        else:
            fit.run(FitOptions(**given))
    except _EXPECTED[command] as error:
        parser.exit(2, f"torchreg {command}: {error}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="torchreg", description=_ABOUT, formatter_class=plain)
    parser.add_argument("--version", action="version", version=f"torchreg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(
        commands.add_parser(
            "demo", help="see L1 and L2 at work on real data", description=demo.__doc__, formatter_class=plain
        )
    )
    _add_fit(
        commands.add_parser(
            "fit", help="fit a sparse linear model to a CSV file", description=fit.__doc__, formatter_class=plain
        )
    )
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    default = Options()
    add = parser.add_argument
    add("--data", choices=DATA, default=default.data, help="scikit-learn's data set (%(default)s)")
    add("--penalty", choices=DEMO_PENALTIES, default=default.penalty, help="the sparse penalty (%(default)s)")
    add("--alpha", type=_at_least_zero, help="strength of all penalties (by data set and penalty)")
    add("--optimizer", choices=OPTIMIZERS, default=default.optimizer, help="(%(default)s)")
    add("--lr", type=_positive, help="first learning rate; it falls to 0 (by optimizer)")
    add("--epochs", type=_count, default=default.epochs, help="passes over the data (%(default)s)")
    add("--out", type=Path, default=default.out, help="folder for the CSV and PNG files (%(default)s)")
    add("--device", type=_device, default=default.device, help="such as cpu or cuda (%(default)s)")
    add("--seed", type=_seed, default=default.seed, help="of the split, the start and the batches (%(default)s)")


def _add_fit(parser: argparse.ArgumentParser) -> None:
    default = FitOptions(Path(), "")
    add = parser.add_argument
    add("data", type=Path, metavar="DATA.csv", help="the table; a header names its columns")
    add("--target", required=True, metavar="COLUMN", help="what to explain")
    add("--task", choices=TASKS, help="(text, true/false and two distinct values: classification; else regression)")
    formulas = "; ".join(f"{name}: {choice.formula}" for name, choice in PENALTIES.items())
    add("--penalty", choices=PENALTIES, default=default.penalty, help=f"{formulas} (%(default)s)")
    strength = parser.add_mutually_exclusive_group()
    strength.add_argument("--alpha", type=_at_least_zero, help="the penalty's strength (by cross-validation)")
    strength.add_argument("--cv", type=_folds, metavar="FOLDS", help=f"folds that choose alpha ({FOLDS})")
    add("--alphas", type=_count, metavar="N", default=default.alphas, help="strengths on the path (%(default)s)")
    add("--rule", choices=RULES, help="least held-out loss, or the largest alpha within 1 standard error of it (min)")
    add("--l1-ratio", type=_share, metavar="R", help="share of L1 in enet, from 0 to 1 (0.5)")
    columns = parser.add_mutually_exclusive_group()
    columns.add_argument("--features", type=_columns, metavar="A,B,C", help="columns to use (all but the target)")
    columns.add_argument("--drop", type=_columns, default=(), metavar="A,B,C", help="columns not to use")
    add("--one-hot", action="store_true", help="text columns become a column of 0 and 1 for each of their values; "
        "for one of two values, if there are two")  # fmt: skip
    add("--standardize", action="store_true", help="penalise features of variance 1; needed where units differ")
    add("--weights", metavar="COLUMN", help="weights of the rows, >= 0")
    add("--sep", type=_separator, default=default.sep, help="between columns; tab for tabulators (%(default)s)")
    add("--device", type=_device, default=default.device, help="such as cpu or cuda (%(default)s)")
    add("--seed", type=_seed, default=default.seed, help="of the folds (%(default)s)")
    add("--out", type=Path, default=default.out, metavar="DIR", help="folder for the results (%(default)s)")


def _number(text: str, kind: Callable[[str], float], fits: Callable[[float], bool], wanted: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and fits(value)):
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
    return value


def _at_least_zero(text: str) -> float:
    return _number(text, float, lambda x: x >= 0, "a finite number >= 0")


def _positive(text: str) -> float:
    return _number(text, float, lambda x: x > 0, "a finite number > 0")


def _count(text: str) -> int:
    return int(_number(text, int, lambda x: x >= 1, "a whole number >= 1"))


def _seed(text: str) -> int:
    return int(_number(text, int, lambda x: 0 <= x < 2**32, "a whole number from 0 to 2**32 - 1"))


def _folds(text: str) -> int:
    return int(_number(text, int, lambda x: x >= 2, "a whole number >= 2"))


def _share(text: str) -> float:
    return _number(text, float, lambda x: 0 <= x <= 1, "a number from 0 to 1")


def _columns(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True), []))
    if not names or "" in names:
        raise argparse.ArgumentTypeError(f'must be names with a comma between, "quoted" if they hold one, got {text!r}')
    return names


def _separator(text: str) -> str:
    sep = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(sep) != 1:
        raise argparse.ArgumentTypeError(f"must be one character, or tab, got {text!r}")
    return sep


def _device(text: str) -> str:
    try:
        return str(torch.empty(0, device=text).device)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {str(error).splitlines()[0]}") from None
