"""One fit at one alpha, default arguments, against scikit-learn's: the fits that people run most.

    python benchmarks/fit_single.py
    python benchmarks/fit_single.py --small --rounds 5

Least squares with L1 and with an elastic net at the alpha that scikit-learn's cross-validation chooses, on data with
far more columns than rows like gene expression (blocks of correlated columns, heavy tails, means far from zero), and at
every alpha from 1e-3 to 1 on normal data; a grid search; logistic regression with L1 against liblinear; how long the
smallest fit takes; and how much slower two fits at once on two cores are than one.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from harness import options, save, turns, verdict

GENES = {"71 x 4088": (71, 4088), "38 x 3051": (38, 3051), "62 x 2000": (62, 2000)}
ALPHAS = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]
BLOCK = 25  # correlated columns
PEERS = ("torchreg", "scikit-learn")
AT_ONCE = """
import sys, time
sys.path.insert(0, {folder!r})
from fit_single import normal
from torchreg.linear import Lasso
X, y = normal(600, 800)
def fits(seconds):
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for alpha in (0.3, 0.1, 0.03):
            Lasso(alpha).fit(X, y)
        count += 1
    return (time.perf_counter() - start) / count
fits(1.0)
print("ready", flush=True)
sys.stdin.readline()
print(fits({seconds}))
"""


def genes(n: int, p: int, *, classes: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Columns in correlated blocks, heavy tails, scales that differ, and ten columns that count."""
    draws = np.random.default_rng(0)
    shared = np.repeat(draws.standard_t(4, (n, -(-p // BLOCK))), BLOCK, 1)[:, :p]
    X = np.sqrt(0.8) * shared + np.sqrt(0.2) * draws.standard_t(4, (n, p))
    X = X * draws.lognormal(0.0, 0.5, p) + draws.normal(7.0, 1.5, p)
    coef = np.zeros(p)
    coef[draws.choice(p, 10, replace=False)] = draws.standard_normal(10)
    eta = (X - X.mean(0)) / X.std(0) @ coef
    if classes:
        return X, (eta + 0.3 * eta.std() * draws.logistic(size=n) > 0.0).astype(int)
    return X, eta + 0.5 * eta.std() * draws.standard_normal(n)


def normal(n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent columns, 30 that count."""
    draws = np.random.default_rng(0)
    X, coef = draws.standard_normal((n, p)), np.zeros(p)
    coef[draws.choice(p, min(30, p), replace=False)] = draws.standard_normal(min(30, p))
    return X, X @ coef + draws.standard_normal(n)


def workloads(*, small: bool) -> dict[str, tuple[float, Callable[[str], Callable[[], object]]]]:
    """By name: the bar on torchreg's time over scikit-learn's, and what to run of each library."""
    import sklearn.linear_model as theirs
    from sklearn.model_selection import GridSearchCV

    import torchreg.linear as ours

    library = {"torchreg": ours, "scikit-learn": theirs}
    found: dict[str, tuple[float, Callable[[str], Callable[[], object]]]] = {}

    def add(name: str, bar: float, model: Callable[[str], object], data: tuple[np.ndarray, np.ndarray]) -> None:
        found[name] = bar, lambda who: lambda: model(who).fit(*data)

    def single(kind: str, alpha: float) -> Callable[[str], object]:
        return lambda who: getattr(library[who], kind)(alpha)

    def logistic(C: float) -> Callable[[str], object]:
        peer = {"torchreg": {}, "scikit-learn": {"solver": "liblinear"}}
        return lambda who: library[who].LogisticRegression(C=C, l1_ratio=1, **peer[who])

    shapes = {"20 x 200": (20, 200)} if small else GENES
    for name, shape in shapes.items():
        data = genes(*shape)
        for kind in ("Lasso", "ElasticNet"):
            chosen = getattr(theirs, f"{kind}CV")(cv=5).fit(*data).alpha_
            add(f"{kind}, {name}, the CV's alpha", 3.0, single(kind, chosen), data)
    rows, columns = (60, 80) if small else (600, 800)
    data = normal(rows, columns)
    for kind in ("Lasso", "ElasticNet"):
        for alpha in ALPHAS[: 2 if small else None]:
            add(f"{kind}, {rows} x {columns}, alpha {alpha:g}", 3.0, single(kind, alpha), data)
    grid = {"alpha": np.geomspace(1e-3, 1.0, 3 if small else 30)}
    for kind in ("Lasso", "ElasticNet"):
        search = lambda who, kind=kind: GridSearchCV(getattr(library[who], kind)(), grid, cv=5)  # noqa: E731
        add(f"GridSearchCV({kind}), {len(grid['alpha'])} alphas", 3.0, search, data)
    for name, shape in list(shapes.items())[1:] or shapes.items():
        labelled = genes(*shape, classes=True)
        for C in (0.1, 1.0):
            add(f"LogisticRegression, L1, {name}, C = {C:g}", 5.0, logistic(C), labelled)
    return found


def compared(rounds: int, *, small: bool) -> Iterator[dict[str, object]]:
    for what, (bar, run) in workloads(small=small).items():
        times = turns({who: run(who) for who in PEERS}, rounds, "cpu")
        mine, theirs = (statistics.median(times[who]) for who in PEERS)
        yield row(what, mine / theirs, bar) | {"milliseconds": round(mine, 3), "scikit-learn": round(theirs, 3)}


def smallest(rounds: int) -> dict[str, object]:
    """Milliseconds of Lasso().fit on 442 x 10, after warming up."""
    from sklearn.datasets import load_diabetes

    from torchreg.linear import Lasso

    X, y = load_diabetes(return_X_y=True)
    times = turns({"fit": lambda: Lasso().fit(X, y)}, 10 * rounds, "cpu")["fit"]
    return row("Lasso().fit, 442 x 10, milliseconds", statistics.median(times), 2.0)


def at_once(rounds: int, seconds: float) -> dict[str, object]:
    """What three fits take in each of two processes at once, over what they take in one alone."""

    def run(processes: int) -> float:
        code = AT_ONCE.format(folder=sys.path[0], seconds=seconds)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(processes)]
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return statistics.mean(float(worker.communicate()[0]) for worker in workers)

    shares = [run(2) / run(1) for _ in range(rounds)]
    return row("two fits at once over one, Lasso, 600 x 800", statistics.median(shares), 1.3)


def row(what: str, ratio: float, bar: float) -> dict[str, object]:
    found = verdict(ratio, bar)
    print(f"{what:58s} {ratio:6.2f}   bar {bar:>5}   {found}", flush=True)
    return {"what": what, "ratio": round(ratio, 3), "bar": bar, "verdict": found}


def main() -> None:
    chosen = options(__doc__, rounds=7, small="small data, to see that it runs: nothing is written")
    warnings.simplefilter("ignore")  # scikit-learn's, of tolerances that it does not reach
    start = time.perf_counter()
    rows = [at_once(2 if chosen.small else 5, 0.5 if chosen.small else 4.0), smallest(chosen.rounds)]
    for row in compared(chosen.rounds, small=chosen.small):
        rows.append(row)
        if not chosen.small:  # what there is, should it be stopped
            save("fit-single", {"rows": rows}, chosen)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
