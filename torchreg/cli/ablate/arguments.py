"""The arguments of ``torchreg ablate``, and what their texts mean."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchreg.ablation import logspace
from torchreg.ablation.user_function import Run
from torchreg.cli import argument_types as types
from torchreg.penalties import Penalty, by_name
from torchreg.penalties.by_name import PENALTY_NAMES

PENALTIES: Mapping[str, Penalty] = {name: by_name(name) for name in PENALTY_NAMES}


def add_ablate(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    about = "Train every cell that is not done; run it again to resume, or with more strengths or seeds to extend."
    _add_run(actions.add_parser("run", help="train every cell that is not done", description=about))
    status = actions.add_parser("status", help="how many cells are done, failed, missing")
    table = actions.add_parser("table", help="means over seeds with intervals")
    plot = actions.add_parser("plot", help="the figures as PNG files")
    report = actions.add_parser("report", help="one HTML file with tables and figures")
    merge = actions.add_parser("merge", help="join the directories of several machines")
    for action in (status, table, plot, report):
        action.add_argument("directory", type=Path, metavar="DIR", help="of an ablation")
    table.add_argument("--by", type=types.columns, metavar="A,B", help="columns that make a line (all but the seed)")
    table.add_argument("--ci", type=_level, default=0.95, help="level of the intervals (%(default)s)")
    table.add_argument("--csv", type=Path, metavar="FILE", help="write the table to a file too")
    plot.add_argument("--out", type=Path, metavar="DIR", help="folder for the files (DIR/figures)")
    report.add_argument("--out", type=Path, metavar="FILE", help="(DIR/report.html)")
    merge.add_argument("out", type=Path, metavar="NEW", help="directory to make")
    merge.add_argument("sources", type=Path, nargs="+", metavar="DIR", help="directories to join")


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=function, metavar="MODULE:FUNCTION", help="takes penalty, seed, cell and axes by keyword, trains, "
        "returns a dict of metrics")  # fmt: skip
    add("--penalty", type=penalty, action="append", dest="penalties", metavar="[NAME=]PENALTY",
        help=f"one of {', '.join(PENALTIES)}, or MODULE:OBJECT; may be given again (l1)")  # fmt: skip
    add("--alphas", type=alphas, required=True, metavar="A,B,C | LOW:HIGH:N",
        help="strengths, or N of them evenly spaced in log alpha; 0,LOW:HIGH:N adds the baseline")  # fmt: skip
    add("--seeds", type=seeds, default=(0,), metavar="N | A,B,", help="seeds 0 to N - 1, or those listed (one, 0)")
    add("--grid", type=axis, action="append", default=[], metavar="NAME=A,B", help="values of a further argument of "
        "the function, numbers or text; may be given again")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="directory of the ablation (runs/FUNCTION)")
    add("--workers", type=types.count_or_none, default=0, help="processes; 0 runs all in one (%(default)s)")
    add("--ray", action="store_true", help="run the cells on a Ray cluster")
    add("--gpus", type=types.at_least_zero, default=0.0, help="GPUs of a cell on Ray, such as 0.25 (%(default)s)")
    add("--path", choices=("descending", "ascending"), help="warm starts along the strengths")
    add("--timeout", type=types.positive, metavar="SECONDS", help="for a cell; needs --workers or --ray")
    add("--retries", type=types.count_or_none, default=1, help="of a cell whose process died (%(default)s)")
    add("--on-change", choices=("error", "new"), default="error", help="if the function's source is not the one that "
        "made the rows that are there: stop, or leave those behind (%(default)s)")  # fmt: skip


def function(text: str) -> Run:
    """``module:function``, the module found from the working directory too."""
    found = _named(text)
    if not callable(found):
        raise argparse.ArgumentTypeError(f"{text!r} is {found!r}, which is no function")
    return found


def penalty(text: str) -> tuple[str, Penalty]:
    """``l1``, ``module:object``, either after ``name=``."""
    name, sep, given = text.rpartition("=")
    rest = types.penalty_name(given)
    if rest in PENALTIES:
        found = PENALTIES[rest]
    elif ":" in rest:
        found = _named(rest)
    else:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(PENALTIES)}, or MODULE:OBJECT, got {rest!r}")
    if not isinstance(found, Penalty):
        raise argparse.ArgumentTypeError(f"{rest!r} is {found!r}, which is no penalty")
    return (name if sep else rest), found


def alphas(text: str) -> tuple[float, ...]:
    """``0,0.1,0.2``, or ``1e-5:1e-1:9`` for `logspace`, or both."""
    found: list[float] = []
    for part in text.split(","):
        low, *rest = part.split(":")
        if not rest:
            found.append(types.at_least_zero(low))
        elif len(rest) == 2:
            ends = types.positive(low), types.positive(rest[0])
            try:
                found += logspace(*ends, types.count(rest[1]))
            except ValueError as error:
                raise argparse.ArgumentTypeError(str(error)) from None
        else:
            raise argparse.ArgumentTypeError(f"must be numbers with a comma between, or LOW:HIGH:N, got {part!r}")
    return tuple(found)


def seeds(text: str) -> tuple[int, ...]:
    """``5`` for 0 to 4, ``3,7,`` for these."""
    listed = [part for part in text.split(",") if part]
    return tuple(map(types.seed, listed)) if "," in text else tuple(range(types.count(text)))


def axis(text: str) -> tuple[str, tuple[Any, ...]]:
    """``width=64,128``: each value JSON, or text if it is none."""
    name, sep, values = text.partition("=")
    if not sep or not name:
        raise argparse.ArgumentTypeError(f"must be NAME=A,B, got {text!r}")
    return name, tuple(map(_value, types.columns(values)))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _level(text: str) -> float:
    return types.number(text, float, lambda x: 0 < x < 1, "a number between 0 and 1")


def _named(text: str) -> Any:
    module, sep, path = text.partition(":")
    if not sep:
        raise argparse.ArgumentTypeError(f"must be MODULE:NAME, got {text!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be found: {error}") from None
    return found
