"""The first sweep: every solver's ladder of tolerances, judged by the evaluator and kept on disk."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fit_evaluator import score
from fit_problem import Problem, read_coefs
from fit_session import SETTLE, Failed, Interpreters, TooSlow, Worker

TARGETS = (1e-4, 1e-6, 1e-8)
EXHAUSTED = 1e-10  # relative duality gap by the evaluator: tighter tolerances cannot lower P* by more


def ladder(*exponents: float) -> list[float]:
    return [10.0**-e for e in exponents]


LADDERS = {
    "torchreg": ladder(3, 4, 5, 6, 7, 8, 9, 10, 12),
    "scikit-learn": ladder(2, 3, 4, 5, 6, 7, 8, 10),
    "torchreg resident": ladder(3, 4, 5, 6, 7, 8, 9, 10, 12),
    "cuml emulated": ladder(2, 3, 4, 5, 6, 8),
    "liblinear": ladder(0, 1, 2, 3, 4, 5, 6, 8),
    "saga": ladder(1, 2, 3, 4, 5, 6, 8),
    "celer": ladder(2, 3, 4, 5, 6, 7, 8, 9, 11),
    "skglm": ladder(1, 2, 3, 4, 5, 6, 8),
    "adelie": ladder(4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16),
    "adelie cov": ladder(4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16),
    "glmnet": ladder(4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18),
    "glmnet cov": ladder(4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18),
}
WARM_UP = 20.0  # seconds: a first run below it is repeated, since it may have compiled
SLOW = "> "  # how a TooSlow reads
ON_DEVICE = ("torchreg", "torchreg resident", "torchreg cv", "cuml emulated")
ABSENT = {
    "multinomial": {"celer": "no multinomial loss", "skglm": "no multinomial loss with an L1 penalty"},
    "group": {"scikit-learn": "no group lasso", "glmnet": "no group lasso"},
    "logistic": {},
    "lasso": {},
    "cv": {"skglm cv": "not run: draws new folds for every alpha, so its losses are of another problem"},
}


def kind(problem: Problem) -> str:
    if problem.folds is not None:
        return "cv"
    return "group" if problem.group > 1 else "lasso" if problem.loss == "quadratic" else problem.loss


def solvers(problem: Problem) -> list[str]:
    """torchreg first; covariance variants where n > p, as their documentation advises."""
    narrow = ["adelie cov", "glmnet cov"] if not problem.wide and not problem.sparse else []
    if kind(problem) == "cv":
        names = [
            "torchreg cv",
            "scikit-learn cv",
            "celer cv",
            "celer folds",
            "skglm folds",
            "adelie folds",
            "glmnet cv",
        ]
        return names + [
            name.replace("adelie cov", "adelie cov folds").replace("glmnet cov", "glmnet cov cv") for name in narrow
        ]
    large = ["torchreg resident", "cuml emulated"] if problem.name.startswith("gpu") else []
    return (
        large
        + {
            "lasso": ["torchreg", "scikit-learn", "celer", "skglm", "adelie", "glmnet", *narrow],
            "group": ["torchreg", "celer", "skglm", "adelie", *narrow[:1]],
            "logistic": ["torchreg", "liblinear", "saga", "celer", "skglm", "adelie", "glmnet"],
            "multinomial": ["torchreg", "saga", "adelie", "glmnet"],
        }[kind(problem)]
    )


class Bench:
    """A problem, its solvers' processes and their sweeps."""

    def __init__(self, problem: Problem, folder: Path, interpreters: Interpreters, chosen: argparse.Namespace):
        self.problem, self.folder, self.interpreters, self.chosen_options = problem, folder, interpreters, chosen
        self.workers: dict[str, Worker] = {}
        self.last = ""
        self.hellos: dict[str, dict] = {}
        self.record = folder / "sweeps.json"
        self.sweeps: dict[str, list[dict]] = json.loads(self.record.read_text()) if self.record.exists() else {}

    def once(self, solver: str, tol: float, *, save: bool = False, patience: float = 1.0) -> float:
        """Seconds of one run, in the solver's own process, started if need be; TooSlow after patience * limit."""
        if solver not in self.workers or self.workers[solver].process.poll() is not None:
            device = self.chosen_options.device if solver in ON_DEVICE else "cpu"
            self.workers[solver] = Worker(solver, self.folder, self.interpreters, self.chosen_options.threads, device)
            self.hellos[solver] = self.workers[solver].hello
        if solver != self.last:
            time.sleep(SETTLE)
        self.last = solver
        return self.workers[solver].solve(tol, patience * self.chosen_options.limit, save=save)

    def close(self, solver: str | None = None) -> None:
        for name in [solver] if solver else list(self.workers):
            if name in self.workers:
                self.workers.pop(name).close()

    def sweep(self, wanted: list[str] | None, fresh: list[str]) -> None:
        """Every rung is kept as it comes, so that a run that ends early goes on where it stopped."""
        for name in fresh:
            self.sweeps.pop(name, None)
        for name in wanted or solvers(self.problem):
            rungs = self.sweeps.setdefault(name, [])
            if rungs and "error" in rungs[0] and not rungs[0]["error"].startswith(SLOW):
                rungs.clear()  # it could not run then: perhaps it can now
            for rung in self._climb(name, LADDERS[name][len(rungs) :] if not _done(rungs) else []):
                rungs.append(rung)
                self.record.write_text(json.dumps(self.sweeps))
                if time.monotonic() > self.chosen_options.deadline:
                    raise SystemExit("out of --budget: run the same command again to go on")

    def _climb(self, name: str, tols: list[float]) -> Iterator[dict]:
        """Rungs until the last, a proof of exhaustion or the time limit; a first short run warms up."""
        for k, tol in enumerate(tols):
            label = f"{self.problem.name}  {name:16s} {tol:8.0e}"
            try:
                seconds = self.once(name, tol, save=True)
                if k == 0 and seconds < WARM_UP:
                    seconds = self.once(name, tol, save=True)
                cpu = self.workers[name].cpu_seconds
                rung = {"tol": tol, "seconds": seconds, "cpu_seconds": cpu, **self._judge(name)}
            except Failed as error:
                print(f"{label}  {error}", flush=True)
                yield {"tol": tol, "error": str(error)}
                if isinstance(error, TooSlow) or k == 0:
                    return
                continue
            print(f"{label} {seconds:9.3f} s  gap {rung['gap']:.1e}", flush=True)
            yield rung
            if rung["gap"] <= EXHAUSTED:
                return

    def _judge(self, name: str) -> dict:
        problem = self.problem
        coefs = read_coefs(self.workers[name].stem, (len(problem.alphas), problem.width))
        scores = score(problem, coefs)
        gap = float((scores.gaps / scores.null).max())
        kept = {"objectives": scores.objectives.tolist(), "null": scores.null, "gap": gap}
        return kept | {"nonzeros": int(np.diff(coefs.indptr).max())}

    def best(self) -> np.ndarray:
        """P*: the least objective per alpha that any solver reached at any tolerance."""
        return np.min(
            [rung["objectives"] for rungs in self.sweeps.values() for rung in rungs if "null" in rung], axis=0
        )

    def certificate(self) -> float:
        """The least relative gap of any run: P* is the optimum up to it; above 1e-9 the 1e-8 column is in doubt."""
        return min((r["gap"] for rungs in self.sweeps.values() for r in rungs if "null" in r), default=float("nan"))

    def suboptimality(self, rung: dict) -> float:
        return float(((np.array(rung["objectives"]) - self.best()) / rung["null"]).max())

    def chosen(self) -> dict[float, dict[str, float]]:
        """For each target, each solver's loosest tolerance that reaches it."""
        found: dict[float, dict[str, float]] = {target: {} for target in TARGETS}
        for target, solver in ((target, solver) for target in TARGETS for solver in self.sweeps):
            good = [r["tol"] for r in self.sweeps[solver] if "null" in r and self.suboptimality(r) <= target]
            if good:
                found[target][solver] = good[0]
        return found

    def rungs(self, solver: str) -> list[dict]:
        """The sweep as it is reported: tolerance, seconds, sub-optimality, gap, or the error."""
        keys = ("tol", "seconds", "cpu_seconds", "gap", "nonzeros", "error")
        shown = [{key: rung[key] for key in keys if key in rung} for rung in self.sweeps.get(solver, [])]
        for rung, full in zip(shown, self.sweeps.get(solver, []), strict=True):
            if "null" in full:
                rung["suboptimality"] = self.suboptimality(full)
        return shown

    def table(self) -> str:
        """Markdown: for each solver, seconds (tolerance) at each target, and its sweep."""
        lines = [
            f"### {self.problem.name}",
            "",
            "| solver | 1e-4 | 1e-6 | 1e-8 | sweep: tol seconds (sub-optimality) |",
        ]
        lines.append("|---|---|---|---|---|")
        picked = self.chosen()
        for solver in self.sweeps:
            rungs = {rung["tol"]: rung for rung in self.rungs(solver)}
            tols = [picked[target].get(solver) for target in TARGETS]
            cells = ["-" if tol is None else f"{rungs[tol]['seconds']:.3f}" for tol in tols]
            lines.append(f"| {solver} | {' | '.join(cells)} | {', '.join(map(_rung_text, rungs.values()))} |")
        return "\n".join(lines) + "\n"


def _done(rungs: list[dict]) -> bool:
    return bool(rungs) and (rungs[-1].get("gap", 1.0) <= EXHAUSTED or rungs[-1].get("error", "").startswith(SLOW))


def _rung_text(rung: dict) -> str:
    if "error" in rung:
        return f"{rung['tol']:.0e} {rung['error']}"
    return f"{rung['tol']:.0e} {rung['seconds']:.3f} ({rung['suboptimality']:.0e})"
