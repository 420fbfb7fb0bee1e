"""An ablation of 10^5 rows of ten metrics: read its directory, summarise, compare, choose, write files."""

import random
import tempfile
from itertools import product
from pathlib import Path

from harness import medians, options, save, verdict

from torchreg.ablation import Ablation
from torchreg.ablation.json_values import dumps
from torchreg.ablation.ledger.manifest import empty, write_manifest
from torchreg.ablation.ledger.shard import ROWS

PENALTIES = ("L1", "L2", "MCP", "SCAD")
ALPHAS = (0.0, *(10.0 ** (-k / 10) for k in range(49)))
SEEDS, WIDTHS = range(50), range(10)
METRICS = (*(f"val_{k}" for k in range(5)), *(f"test_{k}" for k in range(5)))
BARS = {"load": 3000.0, "summary": 1000.0}  # milliseconds


def write_ledger(ledger: Path) -> None:
    """The rows that a run of a day would leave."""
    (ledger / ROWS).mkdir()
    grid = {"alphas": ALPHAS, "seeds": list(SEEDS), "axes": {"width": list(WIDTHS)}, "path": None}
    told = {"penalties": {name: {"type": name} for name in PENALTIES}, "grids": [{"penalties": PENALTIES} | grid]}
    write_manifest(ledger, empty() | told | {"run": {"name": "run", "sha256": "0" * 64}})
    draw = random.Random(0).gauss
    with (ledger / ROWS / "host-1-0.jsonl").open("w", encoding="ascii") as file:
        for k, (name, alpha, seed, width) in enumerate(product(PENALTIES, ALPHAS, SEEDS, WIDTHS)):
            row = {
                "key": f"{k:032x}", "penalty": name, "alpha": alpha, "seed": seed, "axes": {"width": width},
                "mode": "independent", "before": None, "status": "ok",
                "metrics": {metric: draw(0.0, 1.0) for metric in METRICS},
                "seconds": 1.0, "attempt": 1, "error": None, "source": "0" * 64, "start": "2026-01-01T00:00:00Z",
                "end": "2026-01-01T00:00:01Z", "host": "host", "pid": 1,
            }  # fmt: skip
            file.write(f"{dumps(row)}\n")


def main() -> None:
    chosen = options(__doc__, rounds=5)
    with tempfile.TemporaryDirectory() as folder:
        write_ledger(Path(folder))
        ablation = Ablation.load(folder)
        assert len(ablation.rows) == 100_000
        times = medians(
            {
                "load": lambda: Ablation.load(folder),
                "summary": ablation.summary,
                "summary of one group": lambda: ablation.summary(by=()),
                "paired": ablation.paired,
                "best": lambda: ablation.best("val_0"),
                "pareto": lambda: ablation.pareto("val_0", "val_1", "val_2"),
                "status": ablation.status,
                "to_csv": lambda: ablation.to_csv(Path(folder) / "rows.csv"),
                "to_jsonl": lambda: ablation.to_jsonl(Path(folder) / "out.jsonl"),
            },
            chosen.rounds,
            chosen.device,
        )
    rows = []
    for what, taken in times.items():
        bar = BARS.get(what)
        rows.append({"what": what, "milliseconds": round(taken, 1), "bar": bar, "verdict": verdict(taken, bar)})
        print(f"{what:24s} {taken:8.0f} ms   bar {bar or '-':>6}   {verdict(taken, bar)}")
    save("ablation-results", {"rows": rows}, chosen)


if __name__ == "__main__":
    main()
