"""Paths and cross-validations of the lasso on a GPU, against scikit-learn on the same machine's cores.

    python benchmarks/fit_gpu.py                            # part of gpu.sh
    python benchmarks/fit_gpu.py --tiny --devices cpu fake  # a rehearsal where there is no GPU

Designs as in fit_workloads.py, drawn on the device: Gaussian, rho = 0.5, or sparse with Zipf's law; 100 strengths to
1e-2 of the largest (1e-3 where n > p). torchreg computes in float64 and gets X on the device, in float64 or float32, as
it is, at its default tolerance; its first fit of another size warms up. scikit-learn gets X in memory, by columns, and
its own default tolerance, looser than torchreg's; the largest gaps, relative to the null model, stand beside the times.
It has a limit of time: then the ratio is that for the strengths which it finished, or the least that it can be.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from fit_cuml import coordinate_descent
from fit_gpu_peers import Peer, cuml_lasso
from gpu_record import Bar, NotRunError, Record, Row, arguments, row, run_part
from torch import Tensor

from torchreg import L1
from torchreg.linear import fit_cv, fit_path

TRUE_FEATURES, SIGNAL_TO_NOISE, FOLDS = 50, 3.0, 5


@dataclass(frozen=True)
class Problem:
    """X (n, p) by columns or sparse by rows, y (n,), descending strengths."""

    X: Tensor
    y: Tensor
    alphas: list[float]

    def __str__(self) -> str:
        n, p = self.X.shape
        kind = "sparse " if self.X.layout != torch.strided else ""
        return f"{n} x {p} {kind}{str(self.X.dtype).removeprefix('torch.')}, {len(self.alphas)} strengths"

    def to(self, dtype: torch.dtype) -> Problem:
        return replace(self, X=self.X.to(dtype), y=self.y.to(dtype))


def problem(X: Tensor, places: Tensor, count: int) -> Problem:
    """With a target of standard normal coefficients at those places, and noise."""
    n, p = X.shape
    coef = torch.zeros(p, dtype=X.dtype, device=X.device)
    coef[places] = torch.randn(len(places), dtype=X.dtype, device=X.device)
    y = standardised(X @ coef) + torch.randn(n, dtype=X.dtype, device=X.device) / SIGNAL_TO_NOISE
    y = standardised(y)
    largest = float((X.T @ y if X.layout == torch.strided else y @ X).abs().max()) / n
    eps = 1e-3 if n > p else 1e-2
    return Problem(X, y, [largest * eps ** (k / (count - 1)) for k in range(count)])


def standardised(rows: Tensor) -> Tensor:
    """Mean 0 and variance 1 along the last axis, in place."""
    rows -= rows.mean(-1, keepdim=True)
    return rows.div_(rows.square().mean(-1, keepdim=True).sqrt_())


def dense(n: int, p: int, count: int, device: torch.device, rho: float = 0.5) -> Problem:
    columns = torch.randn(p, n, dtype=torch.float64, device=device)
    for j in range(1, p):  # an AR(1) process along the features
        columns[j].mul_((1 - rho**2) ** 0.5).add_(columns[j - 1], alpha=rho)
    places = torch.randperm(p)[:TRUE_FEATURES].to(device)
    return problem(standardised(columns).T, places, count)


def zipf(n: int, p: int, per_row: int, count: int, device: torch.device) -> Problem:
    """Rows draw features with probability proportional to 1 / (rank + 20); values are |N(0, 1)| * idf."""
    weight = (1 / (torch.arange(p, dtype=torch.float64) + 20)).cumsum(0)
    at = torch.stack(
        [
            torch.randint(n, (n * per_row,)),
            torch.searchsorted(weight, torch.rand(n * per_row, dtype=torch.float64) * weight[-1]),
        ]
    )
    values = torch.randn(n * per_row, dtype=torch.float64).abs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse tensors, that they are new
        X = torch.sparse_coo_tensor(at, values, (n, p)).coalesce()
        row_of, column_of = X.indices()
        idf = ((1 + n) / (1 + column_of.bincount(minlength=p))).log() + 1
        values = X.values() * idf[column_of]
        length = torch.zeros(n, dtype=torch.float64).index_add_(0, row_of, values.square()).sqrt()
        X = torch.sparse_coo_tensor(X.indices(), values / length[row_of], (n, p)).coalesce().to_sparse_csr()
    found = problem(X, torch.randperm(min(p, 2000))[:TRUE_FEATURES], count)
    return replace(found, X=found.X.to(device), y=found.y.to(device))


def timed(run: Callable[[], object], device: torch.device) -> tuple[object, float]:
    """What it gives and its seconds; the median of three where it is short."""
    taken: list[float] = []
    while not taken or (len(taken) < 3 and taken[0] < 2.0):
        began = time.perf_counter()
        found = run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return found, sorted(taken)[len(taken) // 2]


def path_of(given: Problem, count: int | None = None):
    return fit_path(given.X, given.y, L1(1.0), alphas=given.alphas[:count], fit_intercept=False)


def path_rows(given: Problem, device: torch.device) -> list[Row]:
    _reset_peak(device)
    path, seconds = timed(lambda: path_of(given), device)
    gap = float((path.dual_gaps / path.null_objective).max())
    told = f"gap {gap:.0e}, {int(path.converged.sum())} converged, {int(path.n_nonzero[-1])} coefficients at the end"
    return [row(f"path of {given}", seconds, "s", note=told + _peak(device))]


def cv_rows(given: Problem, device: torch.device) -> list[Row]:
    _reset_peak(device)
    found, seconds = timed(lambda: cv_of(given), device)
    told = f"{int(found.converged.sum())} of {found.converged.numel()} converged"
    return [row(f"{FOLDS}-fold CV of {given}", seconds, "s", note=told + _peak(device))]


def cv_of(given: Problem):
    return fit_cv(given.X, given.y, L1(1.0), cv=FOLDS, alphas=given.alphas, fit_intercept=False)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(device: torch.device) -> str:
    return f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else ""


def relative_gap(given: Problem, coefs: Tensor, alphas: list[float]) -> float:
    """The largest duality gap of (a, p) coefficients, over half the mean square of y."""
    n, wide = len(given.y), torch.float64
    place = given.X.device if given.X.layout == torch.strided else torch.device("cpu")  # has products from the left
    X, y, coefs = (part.to(place, wide) for part in (given.X, given.y, coefs))
    null, worst = float(y.square().sum()) / (2 * n), 0.0
    for alpha, w in zip(alphas, coefs, strict=True):
        residual = y - X @ w
        slope = float((X.T @ residual if X.layout == torch.strided else residual @ X).abs().max()) / n
        scale = min(1.0, alpha / slope) if slope else 1.0
        dual = float(y @ residual) * scale / n - float(residual.square().sum()) * scale**2 / (2 * n)
        primal = float(residual.square().sum()) / (2 * n) + alpha * float(w.abs().sum())
        worst = max(worst, (primal - dual) / null)
    return worst


def bar_for(given: Problem) -> Bar | None:
    """Not slower; small problems are rehearsals."""
    return ("<=", 1.0) if given.X.numel() >= 1e7 else None


def against_path(given: Problem, device: torch.device, seconds: float) -> list[Row]:
    """scikit-learn's path, as far as it comes, and torchreg's of the same strengths."""
    with Peer(given) as peer:
        done, taken, coefs = peer.path(seconds)
    if not done:
        raise NotRunError(f"scikit-learn's path of {given}: no strength within {seconds:.0f} s")
    gap = relative_gap(given, coefs, given.alphas[:done])
    path, own = timed(lambda: path_of(given, done), device)
    own_gap = float((path.dual_gaps / path.null_objective).max())
    note = f"{own:.2f} s, gap {own_gap:.0e}, over {taken:.1f} s, gap {gap:.0e}"
    name = f"path over scikit-learn's, {given}" + (f", the first {done}" if done < len(given.alphas) else "")
    return [row(name, own / taken, "x", bar_for(given), note=note)]


def against_cv(given: Problem, device: torch.device, seconds: float) -> list[Row]:
    with Peer(given) as peer:
        taken = peer.cv(seconds)
    _, own = timed(lambda: cv_of(given), device)
    note = (
        f"{own:.2f} s over {taken:.1f} s" if taken else f"{own:.2f} s; scikit-learn was stopped after {seconds:.0f} s"
    )
    name = f"{FOLDS}-fold CV over scikit-learn's, {given}" + ("" if taken else ", at most")
    return [row(name, own / (taken or seconds), "x", bar_for(given), note=note)]


def against_cuml(given: Problem, device: torch.device, seconds: float, *, emulated: bool) -> list[Row]:
    tol, began = 1e-4, time.perf_counter()
    solve = coordinate_descent if emulated else cuml_lasso
    coefs = solve(given.X, given.y, given.alphas, tol, seconds)
    done, taken = len(coefs), time.perf_counter() - began
    gap = relative_gap(given, coefs, given.alphas[:done])
    path, own = timed(lambda: path_of(given, done), device)
    note = (
        f"{own:.2f} s, gap {float((path.dual_gaps / path.null_objective).max()):.0e}, over {taken:.1f} s, gap {gap:.0e}"
    )
    name = "an emulation of cuML's" if emulated else "cuML's"
    return [row(f"path over {name}, {given}, the first {done}", own / taken, "x", bar_for(given), note=note)]


def measure(record: Record, device: torch.device, tiny: bool) -> None:
    count, limit = (5, 5.0) if tiny else (100, 14.0)
    square, tall = ((60, 60), (120, 20)) if tiny else ((20_000, 20_000), (100_000, 2_000))
    features = (80, 400, 6) if tiny else (100_000, 1_000_000, 100)
    made: dict[str, Problem] = {}
    makers: dict[str, Callable[[], Problem]] = {
        "tall": partial(dense, *tall, count, device),
        "sparse": partial(zipf, *features, count, device),
        "square": partial(dense, *square, count, device),
        "tall float32": lambda: of("tall").to(torch.float32),
        "square float32": lambda: of("square").to(torch.float32),
    }

    def of(name: str) -> Problem:
        if name not in made:
            made[name] = makers[name]()
        return made[name]

    def rows_of(run: Callable[..., list[Row]], name: str, needs: float = 1.0, **more: object) -> None:
        what = f"{run.__name__.replace('_', ' ')}, {name}"
        at_most = min(record.left(), 0.35 * record.seconds)
        record.measure(what, lambda: run(of(name), device, **more), needs=needs, at_most=at_most, device=device.type)

    def against_peers(names: Sequence[str]) -> None:
        for name in names:
            rows_of(against_path, name, limit, seconds=limit)
            if name != "sparse":
                rows_of(against_cv, name, limit, seconds=limit)

    if not tiny:
        record.measure("a small path, to warm up", lambda: path_rows(dense(300, 200, 10, device), device))
    for name in ("tall", "sparse") if tiny else makers:
        rows_of(path_rows, name)
        if name != "sparse":
            rows_of(cv_rows, name)
    if device.type == "fake":  # the peers' times are the CPU's
        return
    against_peers(["tall"] if tiny else ["tall", "sparse", "square"])
    rows_of(against_cuml, "tall", limit, seconds=limit, emulated=False)
    rows_of(against_cuml, "tall", limit, seconds=limit / 2, emulated=True)
    against_peers([] if tiny else ["tall float32", "square float32"])


if __name__ == "__main__":
    run_part(arguments(__doc__), measure)
