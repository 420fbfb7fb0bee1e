"""Ablations made of rows, as the tests of figures and reports need them."""

import math

from torchreg.ablation import Ablation

EVIL = "<script>document.title='taken'</script>"
ALPHAS = (0.0, 1e-3, 1e-2, 1e-1)


def row(penalty="L1", alpha=0.0, seed=0, *, axes=None, mode="independent", error=None, **metrics):
    status = "ok" if error is None else "failed"
    return {
        "penalty": penalty, "alpha": alpha, "seed": seed, **(axes or {}), "mode": mode, "status": status, **metrics,
        "seconds": 0.5, "attempt": 1, "error": error, "key": "0" * 32,
    }  # fmt: skip


def ablation(rows, axes=(), dir=None, manifest=None):
    known = set(row()) | set(axes)
    metrics = dict.fromkeys(name for one in rows if one["status"] == "ok" for name in one if name not in known)
    return Ablation(tuple(rows), tuple(axes), tuple(metrics), dir, manifest or {})


def measured(penalty, alpha, seed):
    """Metrics that fall with alpha and differ between seeds; at alpha = 0 all penalties are one function."""
    strength = alpha * (1.0 if penalty == "L1" else 0.5)
    sparsity = strength / (strength + 0.01)
    accuracy = 0.9 - 0.3 * sparsity**2 + 0.01 * math.sin(7.0 * seed + 100.0 * strength)
    layers = {"conv.weight": sparsity, "head.weight": 0.5 * sparsity + 0.01 * seed * (alpha > 0)}
    return {"val_accuracy": accuracy, "val_loss": 1.0 - accuracy, "sparsity": sparsity, "layers": layers}


def grid(penalties=("L1", "MCP"), alphas=ALPHAS, seeds=3, **more):
    return [
        row(name, alpha, seed, **more, **measured(name, alpha, seed))
        for name in penalties for alpha in alphas for seed in range(seeds)
    ]  # fmt: skip
