"""A lasso path on a file that need not fit in memory: its rows are read once, chunk by chunk.

The file is mapped, not read: a chunk comes to memory when its rows are needed, and what is kept of all
chunks are second moments. So the number of rows is no limit; that of the features is (24 p^2 bytes).
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from torchreg import L1
from torchreg.linear import RowChunks, fit_path

ROWS, FEATURES, USEFUL, CHUNK, PIECE = 300_000, 100, 5, 8192, 10_000


def written(folder: Path) -> None:
    """Two files of random features and a target that depends on the first few, written piece by piece."""
    draw = np.random.default_rng(0)
    X = np.memmap(folder / "X", "float32", "w+", shape=(ROWS, FEATURES))
    y = np.memmap(folder / "y", "float32", "w+", shape=(ROWS,))
    for start in range(0, ROWS, PIECE):
        rows = draw.standard_normal((PIECE, FEATURES), "float32")
        X[start : start + PIECE] = rows
        y[start : start + PIECE] = 7.0 + rows[:, :USEFUL].sum(1) + draw.standard_normal(PIECE)


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        written(Path(name))
        X = np.memmap(Path(name) / "X", "float32", "r", shape=(ROWS, FEATURES))
        y = np.memmap(Path(name) / "y", "float32", "r", shape=(ROWS,))
        print(f"file of {X.nbytes / 2**20:.0f} MiB, chunks of {CHUNK * X[0].nbytes / 2**20:.0f} MiB")

        begin = time.perf_counter()
        path = fit_path(RowChunks(X, y, size=CHUNK), None, L1(1.0), alphas=20, eps=0.01)
        print(f"{len(path)} solutions in {time.perf_counter() - begin:.1f} s")
        print(f"largest relative duality gap: {float((path.dual_gaps / path.null_objective).max()):.0e}")
        fit = path.at(float(path.alphas[10]))
        kept = fit.coef.nonzero().flatten().tolist()
        print(f"alpha {fit.alpha:.3f}: kept {kept}, intercept {float(fit.intercept):.3f}")

        whole = fit_path(X[:PIECE], y[:PIECE], L1(1.0), alphas=20, eps=0.01)  # a piece that does fit in memory
        chunks = fit_path(RowChunks(X[:PIECE], y[:PIECE], size=1000), None, L1(1.0), alphas=20, eps=0.01)
        difference = float((chunks.coefs - whole.coefs).abs().max())
        print(f"first {PIECE} rows, in chunks and in memory: coefficients differ by {difference:.0e} at most")
        del X, y  # an open map keeps its file
    return len(kept)


if __name__ == "__main__":
    main()
