"""The command line: ``torchreg demo``, ``torchreg --version``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from torchreg import __version__, demo
from torchreg.demo_choices import DATA, OPTIMIZERS, PENALTIES, Options


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code: 0, or 2 if an extra is missing, the output folder cannot be written or the training
        diverges. Wrong arguments exit with 2 too, as `argparse` does.
    """
    parser = _parser()
    options = Options(**{k: v for k, v in vars(parser.parse_args(argv)).items() if k != "command"})
    try:
        demo.run(options)
    except (ImportError, OSError, FloatingPointError) as error:
        parser.exit(2, f"torchreg demo: {error}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchreg", description="Regularisation for PyTorch.")
    parser.add_argument("--version", action="version", version=f"torchreg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(
        commands.add_parser(
            "demo",
            help="see L1 and L2 at work on real data",
            description=demo.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    default = Options()
    add = parser.add_argument
    add("--data", choices=DATA, default=default.data, help="scikit-learn's data set (%(default)s)")
    add("--penalty", choices=PENALTIES, default=default.penalty, help="the sparse penalty (%(default)s)")
    add("--alpha", type=_at_least_zero, help="strength of all penalties (by data set and penalty)")
    add("--optimizer", choices=OPTIMIZERS, default=default.optimizer, help="(%(default)s)")
    add("--lr", type=_positive, help="first learning rate; it falls to 0 (by optimizer)")
    add("--epochs", type=_count, default=default.epochs, help="passes over the data (%(default)s)")
    add("--out", type=Path, default=default.out, help="folder for the CSV and PNG files (%(default)s)")
    add("--device", type=_device, default=default.device, help="such as cpu or cuda (%(default)s)")
    add("--seed", type=_seed, default=default.seed, help="of the split, the start and the batches (%(default)s)")


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


def _device(text: str) -> str:
    try:
        return str(torch.empty(0, device=text).device)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {str(error).splitlines()[0]}") from None
