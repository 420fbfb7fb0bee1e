"""The command line: ``torchreg demo | fit | ablate``, ``torchreg --version``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torchreg import __version__
from torchreg.ablation import LedgerBusy, WorkerError
from torchreg.cli import argument_types as types
from torchreg.cli.ablate import command as ablate
from torchreg.cli.ablate.arguments import add_ablate
from torchreg.cli.demo import ablation as demo_ablation
from torchreg.cli.demo import run as demo
from torchreg.cli.demo.choices import DATA, OPTIMIZERS, Options
from torchreg.cli.demo.choices import PENALTIES as DEMO_PENALTIES
from torchreg.cli.fit import command as fit
from torchreg.cli.fit.options import FOLDS, FORMULAS, RULES, TASKS, FitOptions
from torchreg.text_table import printable

_EXPECTED: dict[str, tuple[type[Exception], ...]] = {
    "demo": (ImportError, OSError, FloatingPointError, ValueError, LedgerBusy),
    "fit": (ImportError, OSError, ValueError),
    "ablate": (ImportError, OSError, TypeError, ValueError, LedgerBusy, WorkerError),
}
_ABOUT = """Regularisation for PyTorch: exact zeros and true minimisers, in training loops and in linear fits.

  torchreg demo                                  what L1 and L2 do to networks on real data
  torchreg fit data.csv --target y               a sparse linear model of a table, alpha by cross-validation
  torchreg ablate run module:function ...        train over strengths, penalties and seeds; resumable
  torchreg COMMAND --help                        all options of a command

In Python: help(torchreg), help(torchreg.linear).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code: 0; 1 if cells of an ablation have failed; 2 if an extra is missing, a file cannot be
        read or written, the data cannot be fitted, a grid cannot be run or the training diverges; 130 after
        Ctrl-C. Wrong arguments exit with 2 too, as `argparse` does.
    """
    parser = _parser()
    given = vars(parser.parse_args(argv))
    command = given.pop("command")
    try:
        if command == "demo":
            (demo_ablation if given.pop("ablate") else demo).run(Options(**given))
        elif command == "fit":
            fit.run(FitOptions(**given))
        else:
            return ablate.ACTIONS[given.pop("action")](**given) or 0
    except _EXPECTED[command] as error:
        parser.exit(2, printable(f"torchreg {command}: {error}\n", keep="\n"))
    except KeyboardInterrupt as stopped:
        parser.exit(130, "\n".join(["", f"torchreg {command}: stopped.", *getattr(stopped, "__notes__", [])]) + "\n")
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
    add_ablate(
        commands.add_parser(
            "ablate",
            help="train over penalties, strengths and seeds",
            description=ablate.__doc__,
            formatter_class=plain,
        )
    )
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    default = Options()
    add = parser.add_argument
    add("--data", choices=DATA, default=default.data, help="scikit-learn's data set (%(default)s)")
    add("--penalty", type=types.penalty_name, choices=DEMO_PENALTIES, default=default.penalty,
        help="the sparse penalty (%(default)s)")  # fmt: skip
    add("--alpha", type=types.at_least_zero, help="strength of all penalties (by data set and penalty)")
    add("--optimizer", choices=OPTIMIZERS, default=default.optimizer, help="(%(default)s)")
    add("--lr", type=types.positive, help="first learning rate; it falls to 0 (by optimizer)")
    add("--epochs", type=types.count, default=default.epochs, help="passes over the data (%(default)s)")
    add("--out", type=Path, default=default.out, help="folder for the CSV and PNG files (%(default)s)")
    add("--device", type=types.device, default=default.device, help="such as cpu or cuda (%(default)s)")
    add("--seed", type=types.seed, default=default.seed, help="of the split, the start and the batches (%(default)s)")
    add("--ablate", action="store_true", help="instead of one strength, five of them with three seeds: tables, figures "
        "and a report; run it again to resume")  # fmt: skip


def _add_fit(parser: argparse.ArgumentParser) -> None:
    default = FitOptions(Path(), "")
    add = parser.add_argument
    add("data", type=Path, metavar="DATA.csv", help="the table; a header names its columns")
    add("--target", required=True, metavar="COLUMN", help="what to explain")
    add("--task", choices=TASKS, help="(text, true/false and two distinct values: classification; else regression)")
    formulas = "; ".join(f"{name}: {formula}" for name, formula in FORMULAS.items())
    add(
        "--penalty",
        type=types.penalty_name,
        choices=FORMULAS,
        default=default.penalty,
        help=f"{formulas} (%(default)s)",
    )
    strength = parser.add_mutually_exclusive_group()
    strength.add_argument("--alpha", type=types.at_least_zero, help="the penalty's strength (by cross-validation)")
    strength.add_argument("--cv", type=types.folds, metavar="FOLDS", help=f"folds that choose alpha ({FOLDS})")
    add("--alphas", type=types.count, metavar="N", default=default.alphas, help="strengths on the path (%(default)s)")
    add("--rule", choices=RULES, help="least held-out loss, or the largest alpha within 1 standard error of it (min)")
    add("--l1-ratio", type=types.share, metavar="R", help="share of L1 in l1l2, from 0 to 1 (0.5)")
    columns = parser.add_mutually_exclusive_group()
    columns.add_argument("--features", type=types.columns, metavar="A,B,C", help="columns to use (all but the target)")
    columns.add_argument("--drop", type=types.columns, default=(), metavar="A,B,C", help="columns not to use")
    add("--one-hot", action="store_true", help="text columns become a column of 0 and 1 for each of their values; "
        "for one of two values, if there are two")  # fmt: skip
    add("--standardize", action="store_true", help="penalise features of variance 1; needed where units differ")
    add("--weights", metavar="COLUMN", help="weights of the rows, >= 0")
    add("--sep", type=types.separator, default=default.sep, help="between columns; tab for tabulators (%(default)s)")
    add("--device", type=types.device, default=default.device, help="such as cpu or cuda (%(default)s)")
    add("--seed", type=types.seed, default=default.seed, help="of the folds (%(default)s)")
    add("--out", type=Path, default=default.out, metavar="DIR", help="folder for the results (%(default)s)")
