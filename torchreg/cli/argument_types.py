"""What the command line takes for a number, a name, a list: each function is an argument's ``type``."""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable

import torch

from torchreg.penalties.by_name import OLD_NAMES


def number(text: str, kind: Callable[[str], float], fits: Callable[[float], bool], wanted: str) -> float:
    """A finite number that fits."""
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and fits(value)):
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
    return value


def at_least_zero(text: str) -> float:
    """A strength."""
    return number(text, float, lambda x: x >= 0, "a finite number >= 0")


def positive(text: str) -> float:
    """A learning rate, a time."""
    return number(text, float, lambda x: x > 0, "a finite number > 0")


def count(text: str) -> int:
    """A number of epochs, of strengths."""
    return int(number(text, int, lambda x: x >= 1, "a whole number >= 1"))


def count_or_none(text: str) -> int:
    """A number of workers, of retries."""
    return int(number(text, int, lambda x: x >= 0, "a whole number >= 0"))


def seed(text: str) -> int:
    """A seed of random generators."""
    return int(number(text, int, lambda x: 0 <= x < 2**32, "a whole number from 0 to 2**32 - 1"))


def penalty_name(text: str) -> str:
    """A word of `torchreg.penalties.by_name`; words of earlier versions are understood, and what they are now said."""
    name = OLD_NAMES.get(text, text)
    if name != text:
        sys.stderr.write(f"torchreg: --penalty {text} is called {name} now.\n")
    return name


def folds(text: str) -> int:
    """The folds of a cross-validation."""
    return int(number(text, int, lambda x: x >= 2, "a whole number >= 2"))


def share(text: str) -> float:
    """A part of a whole."""
    return number(text, float, lambda x: 0 <= x <= 1, "a number from 0 to 1")


def columns(text: str) -> tuple[str, ...]:
    """Names of a table's columns."""
    names = tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True), []))
    if not names or "" in names:
        raise argparse.ArgumentTypeError(f'must be names with a comma between, "quoted" if they hold one, got {text!r}')
    return names


def separator(text: str) -> str:
    """Between columns."""
    sep = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(sep) != 1:
        raise argparse.ArgumentTypeError(f"must be one character, or tab, got {text!r}")
    return sep


def device(text: str) -> str:
    """One that can be used here."""
    try:
        return str(torch.empty(0, device=text).device)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {str(error).splitlines()[0]}") from None
