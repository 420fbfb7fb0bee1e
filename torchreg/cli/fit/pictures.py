"""The pictures of ``torchreg fit``; they need matplotlib."""

from __future__ import annotations

from pathlib import Path

from torchreg.cli.fit.result import FitResult
from torchreg.plots import CVDisplay, PathDisplay, panels

_SIZE = (7.0, 4.5)


def draw(result: FitResult, *, path: Path, cv: Path) -> list[str]:
    """Draw the path, and the cross-validation if there was one; returns the names of the files.

    Args:
        result: what was fitted.
        path: where to write the path's picture.
        cv: where to write that of the cross-validation.
    """
    scale = result.table.deviations if result.options.standardize else None
    figure, (ax,) = panels(size=_SIZE)
    PathDisplay.from_path(result.path, names=result.table.names, scale=scale, chosen=result.alpha, ax=ax)
    if scale is not None and len(result.outputs) == 1:
        ax.set_ylabel("coefficient x standard deviation of its feature")
    figure.savefig(path)
    if result.cv is None:
        return [path.name]
    figure, (ax,) = panels(size=_SIZE)
    CVDisplay.from_path(result.cv, loss=f"held-out {result.task.loss}", folds=True, ax=ax)
    figure.savefig(cv)
    return [path.name, cv.name]
