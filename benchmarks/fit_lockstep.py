"""Cross-validated lassos on one device: all folds in lockstep against one fold after the other, and the path alone.

    python benchmarks/fit_lockstep.py --device cuda
    python benchmarks/fit_lockstep.py --scale 0.01 --rounds 3

The data is made on the device, so that nothing is copied or written. The ways take turns; a line gives the median of
the rounds after a first, warming one, the least and the largest; the last line how far the losses of the two ways
differ. `--scale` multiplies both sides of every design.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

import torchreg
from torchreg import L1
from torchreg.linear import cv, fit_cv, fit_path
from torchreg.linear.fold_paths import training_paths

SHAPES = {"20000x100000": (20_000, 100_000), "200000x5000": (200_000, 5_000), "sparse-1000000": (100_000, 1_000_000)}
TRUE_FEATURES, SIGNAL_TO_NOISE, PER_ROW = 100, 3.0, 100
Data = tuple[Tensor, Tensor]


def dense(n: int, p: int, device: str) -> Data:
    """Standard normal columns, neighbours correlated by 0.5."""
    draw = torch.Generator(device).manual_seed(0)
    X = torch.randn(p, n, generator=draw, device=device, dtype=torch.float64)
    for j in range(1, p):
        X[j].mul_(0.75**0.5).add_(X[j - 1], alpha=0.5)
    return X.T, noisy(lambda places, w: X[places].T @ w, n, p, draw)


def sparse(n: int, p: int, device: str) -> Data:
    """Rows of 100 entries; a feature's frequency falls with its rank."""
    draw = torch.Generator(device).manual_seed(0)
    ranks = torch.rand(n, PER_ROW, generator=draw, device=device, dtype=torch.float64)
    columns = ((20.0 * (1.0 + p / 20.0) ** ranks - 20.0).long().clamp(max=p - 1)).flatten()
    rows = torch.arange(n, device=device).repeat_interleave(PER_ROW)
    values = torch.randn(n * PER_ROW, generator=draw, device=device, dtype=torch.float64).abs()
    X = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (n, p)).coalesce().to_sparse_csr()

    def signal(places: Tensor, w: Tensor) -> Tensor:
        return X @ torch.zeros(p, device=device, dtype=torch.float64).index_copy_(0, places, w)

    return X, noisy(signal, n, min(p, 2000), draw)


def noisy(signal: Callable[[Tensor, Tensor], Tensor], n: int, p: int, draw: torch.Generator) -> Tensor:
    places = torch.randperm(p, generator=draw, device=draw.device)[:TRUE_FEATURES]
    clean = signal(places, torch.randn(len(places), generator=draw, device=draw.device, dtype=torch.float64))
    noise = torch.randn(n, generator=draw, device=draw.device, dtype=torch.float64)
    return (clean - clean.mean()) / clean.std() + noise / SIGNAL_TO_NOISE


def ways(X: Tensor, y: Tensor, alphas: int, eps: float) -> dict[str, Callable[[], Tensor]]:
    def crossed(lockstep: bool) -> Tensor:
        def paths(*args, **options):
            return training_paths(*args, **options, lockstep=lockstep)

        cv.training_paths = paths
        return fit_cv(X, y, L1(1.0), alphas=alphas, eps=eps, random_state=0).losses

    return {
        "path": lambda: fit_path(X, y, L1(1.0), alphas=alphas, eps=eps).objectives,
        "lockstep": lambda: crossed(True),
        "in turn": lambda: crossed(False),
    }


def compare(name: str, chosen: argparse.Namespace) -> None:
    n, p = (max(50, round(side * chosen.scale)) for side in SHAPES[name])
    X, y = (sparse if name.startswith("sparse") else dense)(n, p, chosen.device)
    tried = ways(X, y, chosen.alphas, 1e-2 if p > n else 1e-3)
    seconds: dict[str, list[float]] = {way: [] for way in tried}
    for _ in range(chosen.rounds + 1):
        found = {way: timed(run, seconds[way], chosen.device) for way, run in tried.items()}
    for way, times in seconds.items():
        middle = statistics.median(times[1:])
        print(f"{name} ({n} x {p}) {way}: {middle:.3f} s, {min(times[1:]):.3f} to {max(times[1:]):.3f}")
    apart = (found["lockstep"] / found["in turn"] - 1.0).abs().max()
    print(f"{name}: losses differ by {float(apart):.1e}")


def timed(run: Callable[[], Tensor], seconds: list[float], device: str) -> Tensor:
    start = time.perf_counter()
    found = run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds.append(time.perf_counter() - start)
    return found


def main() -> None:
    warnings.filterwarnings("ignore", message="Sparse")  # torch on its own sparse tensors
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(SHAPES)}; default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--alphas", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    where = torch.cuda.get_device_name() if chosen.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    print(f"torchreg {torchreg.__version__}, torch {torch.__version__}, {where}")
    for name in chosen.workloads or SHAPES:
        compare(name, chosen)


if __name__ == "__main__":
    main()
