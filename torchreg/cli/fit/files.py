"""What ``torchreg fit`` writes: coefficients, pictures, and a record of the run."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchreg.ablation.results.spreadsheet import write_csv
from torchreg.cli.fit.options import FitOptions
from torchreg.cli.fit.result import FitResult
from torchreg.release import installed_version

COEFFICIENTS, PATH, CV, RECORD = "coefficients.csv", "path.png", "cv.png", "fit.json"


def check_folder(options: FitOptions) -> None:
    """Make the folder for the results, before a long fit.

    Raises:
        OSError: if it cannot be made.
        ValueError: if a result would overwrite the data.
    """
    for name in (COEFFICIENTS, PATH, CV, RECORD):
        if (options.out / name).resolve() == options.data.resolve():
            raise ValueError(f"{name} would overwrite the data {options.data}; choose another --out.")
    options.out.mkdir(parents=True, exist_ok=True)


def write_files(result: FitResult) -> list[str]:
    """Write all results over those of an earlier run; returns lines that say what was written."""
    out, lines = result.options.out, []
    earlier = _files_of(out / RECORD)
    write_csv(out / COEFFICIENTS, ("feature", *result.outputs), _coefficients(result))
    written = [COEFFICIENTS]
    try:
        from torchreg.cli.fit.pictures import draw
    except ImportError as error:
        lines.append(f"No pictures: {error}")
    else:
        written += draw(result, path=out / PATH, cv=out / CV)
    others = [name for name in (PATH, CV) if name not in written and (out / name).exists()]
    for name in set(others) & earlier:
        (out / name).unlink()
    written.append(RECORD)
    text = json.dumps(record(result, written), indent=2, allow_nan=False, ensure_ascii=False)
    (out / RECORD).write_text(f"{text}\n", encoding="utf-8")
    lines.append(f"Written to {out}: {', '.join(written)}")
    return lines + [
        f"Removed {out / name}, which was of an earlier run" if name in earlier else f"{out / name} is not of this run"
        for name in others
    ]


def _files_of(record: Path) -> set[str]:
    """The files that an earlier run says it wrote; none where there is no record that can be read."""
    try:
        return set(json.loads(record.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _coefficients(result: FitResult) -> list[tuple[Any, ...]]:
    """The intercept and all coefficients, zeros too, largest first."""
    rows = [(result.table.names[j], *result.coef[j].tolist()) for j in result.order]
    return [("(intercept)", *result.intercept.tolist()), *rows]


def record(result: FitResult, files: list[str]) -> dict[str, Any]:
    """The run in JSON's types; what is not finite is null."""
    path, intercept = result.path, result.intercept.tolist()
    n, p = result.table.X.shape
    return _finite({
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__,
            "torchreg": installed_version(), "numpy": np.__version__,
        },
        "options": {name: str(v) if isinstance(v, Path) else v for name, v in asdict(result.options).items()},
        "sha256": _digest(result.options.data),
        "task": result.task.name, "classes": list(result.task.classes),
        "n": n, "p": p, "alpha": result.alpha, "alpha_max": path.alpha_max,
        "objective": result.number(path.objectives), "null_objective": path.null_objective,
        "duality_gap": result.number(path.dual_gaps), "violation": result.number(path.violations),
        "tolerance": path.tol, "gap_allowed": result.gap_allowed, "converged": bool(path.converged[result.index]),
        "n_iter": int(path.n_iters[result.index]), "n_nonzero": int((result.coef != 0).any(1).sum()),
        "intercept": intercept if len(intercept) > 1 else intercept[0],
        "cross_validation": _cross_validation(result), "files": files,
    })  # fmt: skip


def _cross_validation(result: FitResult) -> dict[str, Any] | None:
    cv = result.cv
    if cv is None:
        return None
    return {
        "folds": result.options.folds, "rule": result.options.rule or "min", "loss": result.task.loss,
        "alpha_min": float(cv.alpha_min), "alpha_1se": float(cv.alpha_1se),
        "mean": result.number(cv.mean), "se": result.number(cv.se),
        "fits": cv.converged.numel(), "not_converged": [
            {"fold": miss.fold + 1, "alpha": float(cv.alphas[miss.index]), "duality_gap": miss.dual_gap,
             "violation": miss.violation, "allowed": miss.allowed} for miss in cv.missed
        ],
    }  # fmt: skip


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
