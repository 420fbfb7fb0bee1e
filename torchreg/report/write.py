"""The report as a file."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from torchreg.ablation.results.overview import Overview
from torchreg.report.page import page
from torchreg.report.sections import opening, sections, title

if TYPE_CHECKING:
    from torchreg.ablation import Ablation


def write_report(
    ablation: Ablation, path: str | Path, *, minimize: Collection[str] | None = None, ci: float = 0.95
) -> Path:
    """Write tables, figures and the record of an ablation as one HTML file that needs nothing else.

    The file runs no script and asks for nothing from elsewhere: a Content-Security-Policy within it forbids
    both. Whatever comes from the user (names, metrics, errors, the command) is text in it, never markup.
    An earlier file is replaced at once or stays whole. Without matplotlib the report has no figures, and says so.

    Args:
        ablation: what `torchreg.ablation.ablate` returned or `Ablation.load` read.
        path: the file to write; its directory must exist.
        minimize: metrics where less is better; None takes those whose names say so, such as ``val_loss``. The
            report states the direction of each.
        ci: confidence of the intervals.

    Returns:
        The path.

    Raises:
        FileNotFoundError: if the directory does not exist.
        ValueError: if the ablation has no rows, ``minimize`` has a metric without a mean, or ``ci`` is not between 0
            and 1.
    """
    path = Path(path)
    overview = Overview.of(ablation, minimize, ci)
    text = page(title(ablation), opening(ablation), list(sections(ablation, overview)))
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with unfinished.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
