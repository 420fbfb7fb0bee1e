"""Proximal maps that look at the order of entries against one `torch.sort` of the same vector, 10^6 entries.

``python benchmarks/projections.py``; ``--device cuda`` for a GPU. Rows in a metric, as under Adam, have no bar.
"""

import harness
import torch

from torchreg import SLOPE, L1Ball, LInf, MaxNorm, Simplex, rows

ENTRIES = 10**6
STEP = 0.1


def main() -> None:
    """Measure, print and save."""
    chosen = harness.options(__doc__)
    w = torch.randn(ENTRIES, device=chosen.device)
    steps = 0.2 * torch.rand(ENTRIES, device=chosen.device) + 1e-3
    last = torch.zeros(ENTRIES, device=chosen.device)
    last[:-1] = torch.linspace(20.0, 10.0, ENTRIES - 1, device=chosen.device)
    last[-1] = 9.0
    drop = (
        (torch.arange(ENTRIES) < ENTRIES - 1).float().to(chosen.device)
    )  # pools one entry after the other from the end
    penalties = {
        "SLOPE, alpha 0.1": SLOPE(0.1),
        "SLOPE, alpha 1": SLOPE(1.0),
        "SLOPE, alpha 5": SLOPE(5.0),
        "Simplex": Simplex(),
        "L1Ball, radius 1": L1Ball(1.0),
        "L1Ball, half of the norm": L1Ball(float(w.abs().sum()) / 2),
        "LInf": LInf(1000.0),
    }
    candidates = {name: lambda p=p: p.prox(w, STEP) for name, p in penalties.items()}
    penalties |= {"SLOPE that pools from the end": SLOPE(1000.0, drop)}
    candidates["SLOPE that pools from the end"] = lambda: penalties["SLOPE that pools from the end"].prox(last, STEP)
    in_a_metric = {"SLOPE": SLOPE(1.0), "Simplex": Simplex(), "L1Ball": L1Ball(1.0), "LInf": LInf(1000.0)}
    candidates |= {f"{name} in a metric": lambda p=p: p.prox(w, steps) for name, p in in_a_metric.items()}
    matrix = w.view(1000, 1000)
    candidates |= {"MaxNorm, 1000 rows": lambda: MaxNorm(1.0).prox(matrix, STEP)}
    candidates |= {"L1Ball, 1000 rows": lambda: L1Ball(1.0, by=rows).prox(matrix, STEP)}
    times = harness.medians({"sort": lambda: torch.sort(w), **candidates}, chosen.rounds, chosen.device)
    bars = [
        (f"{name} / torch.sort", name, "sort", None if "metric" in name or "rows" in name else 3.0)
        for name in candidates
    ]
    harness.report("projections", times, bars, chosen)


if __name__ == "__main__":
    main()
