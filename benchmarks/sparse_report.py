"""The report of the benchmark of sparse training, from its rows alone.

Each number of the table is a mean over seeds; a difference is of the same seeds, with its standard error. A method that
falls short of the share of zeros by more than a hundredth is shown, marked, and competes with nobody.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from sparse_tasks import TASKS
from sparse_trial import METHODS, NEAR, TRIALS, Row

OURS = "target"
CHOSEN = "target-chosen"  # the same with its method chosen as others choose settings; of groups, OURS
BARS = (0.9, 0.95)
PEERS = ("gradual", "one-shot", "torchao-count", "torchao-l1", "rigl", "loss")  # without whom no bar holds
SEEDS = 5  # of each of them
SHORT = "&#8224;"  # a dagger


@dataclass(frozen=True)
class Group:
    """Rows of a task, a method and a share of zeros, by seed."""

    method: str
    target: float
    rows: dict[int, Row]

    def mean(self, name: str) -> float:
        """Mean over seeds; NaN where the task has no such number."""
        values = [row[name] for row in self.rows.values()]
        return math.nan if None in values else mean(values)

    @property
    def reached(self) -> bool:
        """Whether it has as many zeros as were wanted."""
        return self.mean("zeros") >= self.target - NEAR

    def minus(self, other: Group) -> tuple[float, float]:
        """Mean of the paired differences in the test score, and its standard error."""
        seeds = _common(self, other)
        apart = [self.rows[s]["test_score"] - other.rows[s]["test_score"] for s in seeds]
        if not apart:
            return math.nan, math.nan
        return mean(apart), stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan


Table = dict[tuple[str, float], Group]


def load(folder: Path) -> dict[str, Table]:
    """Groups of every task that has rows, by method and share of zeros."""
    found: dict[str, Table] = {}
    for path in sorted(folder.glob("*.jsonl")):
        parted: dict[tuple[str, float], dict[int, Row]] = defaultdict(dict)
        for line in path.read_text().splitlines():
            row = json.loads(line)
            parted[row["method"], row["target"]][row["seed"]] = row
        found[path.stem] = {key: Group(*key, rows) for key, rows in parted.items()}
    return {name: found[name] for name in [*TASKS, *sorted(found.keys() - TASKS.keys())] if name in found}


def rivals(table: Table, target: float) -> list[Group]:
    """Methods that have reached a share of zeros, the best mean first."""
    there = [group for group in table.values() if group.target == target and group.method != "dense" and group.reached]
    return sorted(there, key=lambda group: -group.mean("test_score"))


def verdicts(tasks: dict[str, Table], method: str = OURS) -> list[str]:
    """A line for each task and share of zeros at which `TargetSparsity` is judged."""
    return [
        f"- {name}, {target:.0%}: {_verdict(table, table.get((method, target), table[OURS, target]))}"
        for name, table in tasks.items()
        for target in BARS
        if name in TASKS and (OURS, target) in table
    ]


def _verdict(table: Table, ours: Group) -> str:
    target, better = ours.target, []
    rows = {method: table.get((method, target)) for method in METHODS if method not in ("dense", ours.method)}
    for method, group in rows.items():
        apart, error = group.minus(ours) if group is not None and group.reached else (0.0, 0.0)
        if apart > error:
            better.append(f"{METHODS[method].about} by {apart:.4f} (standard error {error:.4f})")
    if better or not ours.reached:
        short = [] if ours.reached else [f"not reached ({ours.mean('zeros'):.3f} zeros)"]
        return "missed: " + "; ".join(short + better)
    missing = [METHODS[method].about for method in PEERS if len(_common(rows[method], ours)) < SEEDS]
    return f"not judged: fewer than {SEEDS} seeds of {', '.join(missing)}" if missing else "holds"


def _common(group: Group | None, other: Group) -> set[int]:
    return set() if group is None else group.rows.keys() & other.rows.keys()


def best_line(table: Table, target: float) -> str:
    """Who has the best mean, and who is within a standard error of the difference to it."""
    ranked = rivals(table, target)
    if not ranked:
        return ""
    first, equals = ranked[0], []
    for group in ranked[1:]:
        apart, error = group.minus(first)
        if -apart <= error:
            equals.append(METHODS[group.method].about)
    beside = f"; within a standard error: {', '.join(equals)}" if equals else ""
    return f"- {target:.1%}".replace(".0%", "%") + f": **{METHODS[first.method].about}**{beside}"


def _score(group: Group | None, best: Group | None) -> str:
    if group is None:
        return ""
    text = f"{group.mean('test_score'):.4f}"
    if not group.reached:
        return f"{text} {SHORT}"
    return f"**{text}**" if group is best else text


def _table(head: Iterable[str], body: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *map(list, body))]


def task_section(name: str, table: Table) -> list[str]:
    """What one task has shown."""
    task = TASKS.get(name) or TASKS[name.rpartition("-x")[0]]
    targets = sorted({group.target for group in table.values() if group.method != "dense"})
    order = [m for m in METHODS if any((m, t) in table for t in targets)]
    best = {t: next(iter(rivals(table, t)), None) for t in targets}
    reference = OURS if any((OURS, t) in table for t in targets) else "gradual"
    told = METHODS[reference].about
    dense = table.get(("dense", 0.0))
    new = " (new: no default was chosen by it)" if task.new else ""
    lines = [f"## {name}: {task.about}{new}", ""]
    if dense:
        lines += [f"Score: {task.score} on test data; the dense net has {dense.mean('test_score'):.4f}.", ""]
    lines += _table(
        ["method", *(f"{t:.1%}".replace(".0%", "%") for t in targets)],
        ([METHODS[m].about, *(_score(table.get((m, t)), best[t]) for t in targets)] for m in order),
    )
    bars = [t for t in targets if t in BARS]
    lines += ["", f"Differences to {told} on the same seeds, with their standard errors; zeros; flips a weight:", ""]
    lines += _table(
        ["method", *(f"{what} {t:.0%}" for t in bars for what in ("difference", "zeros", "flips"))],
        ([METHODS[m].about, *(c for t in bars for c in _against(table, m, t, reference))] for m in order),
    )
    if any(not math.isnan(group.mean("f1")) for group in table.values()):
        lines += ["", "F1 of the inputs that are used:", ""]
        lines += _table(
            ["method", *(f"{t:.1%}".replace(".0%", "%") for t in targets)],
            ([METHODS[m].about, *(_plain(table.get((m, t)), "f1") for t in targets)] for m in order),
        )
    return [*lines, "", "Best:", "", *filter(None, (best_line(table, t) for t in targets)), ""]


def _plain(group: Group | None, name: str) -> str:
    return "" if group is None else f"{group.mean(name):.3f}"


def _against(table: Table, method: str, target: float, reference: str) -> list[str]:
    group, other = table.get((method, target)), table.get((reference, target))
    if group is None:
        return ["", "", ""]
    apart = "" if other is None or method == reference else "{:+.4f} ({:.4f})".format(*group.minus(other))
    return [apart, f"{group.mean('zeros'):.3f}", f"{group.mean('flips'):.3f}"]


def stability(tasks: dict[str, Table]) -> list[str]:
    """The order of methods in runs several times as long, where there are some."""
    lines = []
    for name, longer in tasks.items():
        short = tasks.get(name.rpartition("-x")[0])
        if name in TASKS or short is None:
            continue
        for target in sorted({group.target for group in longer.values()}):
            both = [m for m in METHODS if (m, target) in longer and (m, target) in short]
            orders = [sorted(both, key=lambda m, t=t: -t[m, target].mean("test_score")) for t in (short, longer)]
            told = [" > ".join(METHODS[m].about for m in order) for order in orders]
            lines += [f"- {name}, {target:.0%}: {_agree(*orders)}; at first {told[0]}; in longer runs {told[1]}"]
    return lines


def _agree(first: list[str], second: list[str]) -> str:
    pairs = [(a, b) for i, a in enumerate(first) for b in first[i + 1 :]]
    same = sum(second.index(a) < second.index(b) for a, b in pairs)
    return f"{same} of {len(pairs)} pairs are in the same order"


def write(folder: Path, environment: dict[str, Any]) -> Path:
    """Write ``sparse_training.md`` beside the folder of rows."""
    tasks = load(folder)
    seeds = {len(group.rows) for table in tasks.values() for group in table.values()} or {0}
    cells = sum(len(group.rows) for table in tasks.values() for group in table.values())
    held = verdicts(tasks)
    lines = [
        "# Sparse training: the table",
        "",
        "Made by `python benchmarks/sparse_training.py` from the rows in `sparse_training/`; not written by hand.",
        "",
        f"{cells} nets, {' to '.join(str(n) for n in sorted({min(seeds), max(seeds)}))} seeds for each number; "
        + ", ".join(f"{name} {value}" for name, value in environment.items())
        + ". Each task has one net, one set of data, one number of steps and one learning rate for all methods (AdamW, "
        "cosine to 1 %, no decay). A method with a strength or with settings has "
        f"{TRIALS} trials on a seed of its own: settings by the score on validation data, strengths to reach the "
        "shares of zeros; `TargetSparsity` has none, and its defaults, but where its method is chosen. "
        "Zeros are weights == 0 at the end, or groups where the task says so; flips are changes between zero and not, "
        f"a weight, in the last tenth of the steps. {SHORT}: more than {NEAR} short of the zeros wanted; such a number "
        "competes with none.",
        "",
        "![Score against zeros](sparse_training.png)",
        "",
        "## The bar",
        "",
        "At 90 % and at 95 % no method has a better mean than TargetSparsity's default by more than the standard error "
        "of the paired difference, on any task:",
        "",
        *(held or ["- not judged: there are no rows of TargetSparsity yet"]),
        "",
    ]
    if any((CHOSEN, target) in table for table in tasks.values() for target in BARS):
        lines += [
            "The same of TargetSparsity with its method and shrinkage chosen by as many trials as others have, or "
            "of the default where zeros are of groups:",
            "",
            *verdicts(tasks, CHOSEN),
            "",
        ]
    for name, table in tasks.items():
        lines += task_section(name, table)
    steady = stability(tasks)
    if steady:
        lines += [
            "## Is the order stable?",
            "",
            "The same with more steps, at the settings chosen before:",
            "",
            *steady,
        ]
    path = folder.parent / "sparse_training.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path
