"""Cross-validation in the first sweep, and the bench of any workload."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fit_workloads
import numpy as np
from fit_problem import Problem, alpha_max, read_coefs
from fit_session import Failed, Interpreters
from fit_sweep import SLOW, Bench, kind, solvers

REFERENCE = "scikit-learn cv"


class CrossBench(Bench):
    """Cross-validation: tolerances are those that reached the target on the path of the full data.

    Fold coefficients are not public in every library, losses are: `deviations` are the largest differences of the
    fold losses to the reference's (scikit-learn at tol 1e-10), relative to the loss of no coefficients.
    """

    base: Bench
    reference: np.ndarray | None = None

    def sweep(self, wanted: list[str] | None, fresh: list[str]) -> None:
        basic = None if wanted is None else sorted({full_path(name) for name in wanted})
        self.base.sweep(basic, [full_path(name) for name in fresh])
        self.base.close()
        self.sweeps = {name: [] for name in wanted or solvers(self.problem)}
        self.once(REFERENCE, 1e-10, save=True, patience=20)
        self.reference = self._read(REFERENCE)
        for rungs in self.chosen().values():
            for name, tol in rungs.items():
                if not self._failed(name, tol) and tol not in {rung["tol"] for rung in self.sweeps[name]}:
                    self.sweeps[name].append({"tol": tol, **self._run(name, tol)})

    def _run(self, name: str, tol: float) -> dict[str, object]:
        assert self.reference is not None
        try:
            seconds = self.once(name, tol, save=True)
        except Failed as error:
            return {"error": str(error)}
        deviation = np.abs(self._read(name) - self.reference).max() / self.reference[0].mean()
        return {"seconds": seconds, "deviation": float(deviation)}

    def _read(self, name: str) -> np.ndarray:
        shape = len(self.problem.alphas), int(self.problem.folds.max()) + 1
        return read_coefs(self.workers[name].stem, shape).toarray()

    def chosen(self) -> dict[float, dict[str, float]]:
        found: dict[float, dict[str, float]] = {}
        for target, tols in self.base.chosen().items():
            pairs = {name: tols[full_path(name)] for name in self.sweeps if full_path(name) in tols}
            found[target] = {name: tol for name, tol in pairs.items() if not self._failed(name, tol)}
        return found

    def certificate(self) -> float:
        return self.base.certificate()

    def _failed(self, name: str, tol: float) -> bool:
        """Too slow at this or a looser tolerance, or unable at all."""
        errors = [rung for rung in self.sweeps[name] if "error" in rung]
        return any(not rung["error"].startswith(SLOW) or tol <= rung["tol"] for rung in errors)

    def rungs(self, solver: str) -> list[dict]:
        return self.sweeps[solver]

    def table(self) -> str:
        rows = [f"| {name} | {'; '.join(map(_loss_text, rungs))} |" for name, rungs in self.sweeps.items()]
        return "\n".join(
            [f"### {self.problem.name}", "", "| solver | tol seconds (loss deviation) |", "|---|---|", *rows, ""]
        )


def _loss_text(rung: dict) -> str:
    return rung["error"] if "error" in rung else f"{rung['tol']:.0e} {rung['seconds']:.3f} ({rung['deviation']:.0e})"


def full_path(name: str) -> str:
    """The solver of paths inside a cross-validation: "glmnet cov cv" -> "glmnet cov"."""
    return name.removesuffix(" cv").removesuffix(" folds")


@contextmanager
def bench_of(
    name: str, available: dict[str, Callable], interpreters: Interpreters, chosen: argparse.Namespace
) -> Iterator[Bench]:
    """The workload's bench, its data on disk; sweeps of other data are dropped."""
    bench = _open(name, available, interpreters, chosen)
    try:
        yield bench
    finally:
        bench.close()


def with_intercept(made: Problem) -> Problem:
    """The same data with an intercept, and alphas from the alpha_max that it implies."""
    top = alpha_max(made.X, made.y, made.loss, made.group, True)
    return replace(made, name=f"{made.name}-intercept", intercept=True, alphas=made.alphas / made.alphas[0] * top)


def _open(name: str, available: dict[str, Callable], interpreters: Interpreters, chosen: argparse.Namespace) -> Bench:
    folder = chosen.work / (f"{name}-intercept" if chosen.intercept else name)
    stamp, sources = folder / "stamp", (fit_workloads.__file__,)
    digest = hashlib.sha256(b"".join(Path(source).read_bytes() for source in sources)).hexdigest() + str(chosen.scale)
    if not stamp.exists() or stamp.read_text() != digest:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        made = available[name](name)
        (with_intercept(made) if chosen.intercept else made).save(folder)
        stamp.write_text(digest)
    problem = Problem.load(folder)
    if kind(problem) != "cv":
        return Bench(problem, folder, interpreters, chosen)
    bench = CrossBench(problem, folder, interpreters, chosen)
    bench.base = _open(name.replace("cv-", "-"), available, interpreters, chosen)
    return bench
