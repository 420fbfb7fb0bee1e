"""One training run, and how many of them find a method's strength or setting."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from sparse_methods import OURS, Job, Method, zeros_of
from sparse_peers import PEERS
from sparse_tasks import TASKS, Task

import torchreg
from torchreg.ablation import Cell, ablate

METHODS = OURS | PEERS
TUNING_SEED = 1000
TRIALS = 8  # of each method on each task: strengths tried, or settings at two shares of zeros
TUNED_AT = (0.9, 0.95)
NEAR = 0.01  # a share of zeros that lies no further below the one wanted has reached it

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """What `ablate` runs: a cell of the grid is a strength, a seed, a share of zeros and a setting."""

    task: Task
    method: Method
    library: str = ""  # a hash of torchreg's sources, for its own methods

    def __call__(self, cell: Cell) -> dict[str, float]:
        """Train one net; scores, the share of zeros, and how often a weight came or went in the last tenth."""
        torch.set_num_threads(1)
        task, steps = self.task, self.task.steps
        problem = task.build(cell.seed, steps)
        job = Job(
            problem.model, task.penalised(problem.model), task.by, steps, task.lr,
            cell.axes["target"], cell.penalty, cell.axes["setting"],
        )  # fmt: skip
        training, flips, before = self.method.start(job), 0, None
        for k in range(steps):
            for group in training.optimizer.param_groups:
                group["lr"] = task.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * k / steps)) / 2)
            training.optimizer.zero_grad()
            (problem.loss(k) + training.extra_loss(k)).backward()
            training.step(k)
            if k >= steps - max(1, steps // 10):
                now = torch.cat([w.flatten() for w in training.now()]) == 0
                flips += 0 if before is None else int((now != before).sum())
                before = now
        found = training.now()
        zeros, units = zeros_of(found, task.by)
        scores = {f"{part}_score": problem.score(part) for part in ("val", "test")}
        return {**scores, "zeros": zeros / units, "flips": flips / len(now), "f1": problem.found(found)}


@dataclass
class Bench:
    """All runs of one method on one task, in a ledger of their own: a change of another method leaves it alone."""

    task: str
    method: str
    ledgers: Path
    seeds: tuple[int, ...]
    quick: bool = False
    changed: Literal["error", "new"] = "error"  # what to do where rows are of another version of the code
    longer: int = 1  # times as many steps, with the settings that were chosen at the task's own number

    @property
    def name(self) -> str:
        """Of the task, and how many times as long it is."""
        return f"{self.task}-x{self.longer}" if self.longer > 1 else self.task

    @cached_property
    def _trial(self) -> Trial:
        task = TASKS[self.task]
        steps = 24 if self.quick else task.steps * self.longer
        method = METHODS[self.method]
        return Trial(replace(task, steps=steps), method, library() if method.ours else "")

    def rows(self, targets: Iterable[float]) -> list[Row]:
        """A row for each share of zeros and seed, at the strength or setting that validation data chose."""
        method, found = self._trial.method, []
        if method.searched:
            tried = self._search()
            chosen = {target: (self._alpha_for(target, tried), {}) for target in targets}
        else:
            alpha = self._trial.task.alpha if method.alpha is None else method.alpha
            setting = self._setting(alpha)
            chosen = dict.fromkeys(targets, (alpha, setting))
        for target, (alpha, setting) in chosen.items():
            found += self._run([alpha], [target], [setting], self.seeds)
        return found

    def _run(self, alphas: list[float], targets: Iterable[float], settings: list[dict], seeds: Iterable[int]) -> list:
        """Rows of these cells, which run if they have not yet."""
        trial, targets, seeds = self._trial, list(targets), list(seeds)
        penalty = {self._trial.method.about: trial.method.penalty(trial.task.by)}
        ablation = ablate(
            trial, penalty, alphas, seeds=seeds, grid={"target": targets, "setting": settings}, progress=False,
            out=self.ledgers / self.name / self.method, on_change=self.changed,
        )  # fmt: skip
        wanted = [json.dumps(setting) for setting in settings]
        rows = [
            row for row in ablation.rows
            if row["alpha"] in alphas and row["target"] in targets and row["seed"] in seeds
            and json.dumps(row["setting"]) in wanted and row["status"] == "ok"
        ]  # fmt: skip
        return [{"task": self.name, "method": self.method, **row} for row in rows]

    def _setting(self, alpha: float) -> dict[str, Any]:
        """The setting with the best mean on validation data."""
        settings = list(self._trial.method.settings)
        if len(settings) == 1:
            return settings[0]
        if self.longer > 1:
            return replace(self, longer=1)._setting(alpha)
        targets = TUNED_AT[: max(1, TRIALS // len(settings))]
        rows = self._run([alpha], targets, settings, [TUNING_SEED])
        return max(settings, key=lambda one: sum(row["val_score"] for row in rows if row["setting"] == one))

    def _search(self) -> list[Row]:
        """Strengths on the way to each share of zeros, those of most interest first."""
        tried: list[Row] = []
        targets = self._trial.task.targets
        for k in range(2 if self.quick else TRIALS):
            alpha = self._alpha_for(targets[k % len(targets)], tried)
            if all(alpha != row["alpha"] for row in tried):
                tried += self._run([alpha], [targets[0]], [{}], [TUNING_SEED])
        return tried

    def _alpha_for(self, target: float, tried: list[Row]) -> float:
        """The strength that should reach a share of zeros.

        Its logarithm is on the line between two trials, over the logit of the share.
        A strength between the last that falls short and the first that does not; beyond both by a factor of three, of
        ten where not half of the units are zero.
        """
        if not tried:
            return self._trial.task.alpha * self._trial.method.search_from
        points = sorted((math.log(row["alpha"]), row["zeros"]) for row in tried)
        below = [point for point in points if point[1] < target]
        above = [
            point for point in points if point[1] >= target and point[0] > max((b[0] for b in below), default=-1e9)
        ]
        if not above:
            found = below[-1][0] + math.log(3 if below[-1][1] > 0.5 else 10)
        elif not below:
            found = above[0][0] - math.log(3)
        else:
            (a0, z0), (a1, z1) = below[-1], above[0]
            share = (_logit(target + NEAR / 4) - _logit(z0)) / max(_logit(z1) - _logit(z0), 1e-9)
            found = a0 + (a1 - a0) * min(max(share, 0.1), 0.9)
        return float(f"{math.exp(found):.4g}")


@cache
def library() -> str:
    """A hash of torchreg's sources."""
    files = sorted(Path(torchreg.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _logit(share: float) -> float:
    share = min(max(share, 1e-3), 1 - 1e-3)
    return math.log(share / (1 - share))


def plain_rows(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows as they are committed: what was run, and what came out."""
    names = ("task", "method", "target", "alpha", "setting", "seed", "val_score", "test_score", "zeros", "flips", "f1")
    kept = [{name: _short(row[name]) for name in names} | {"seconds": round(row["seconds"], 2)} for row in rows]
    return sorted(kept, key=lambda row: (row["method"], row["target"], row["seed"]))


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value
