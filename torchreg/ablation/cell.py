"""What the user's function sees of its cell."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchreg.ablation.ledger.shard import sync_directory
from torchreg.ablation.naming import TAKEN
from torchreg.ablation.plain import dumps, plain
from torchreg.penalties import Penalty

CURVE = "curve.jsonl"
_STATE = "state.pt"


class Cell:
    """One cell of an ablation, as ``run(cell=...)`` receives it.

    Attributes:
        penalty: with this cell's strength.
        seed: of this run.
        axes: its values of the grid's axes.

    Example:
        >>> from torchreg import L1
        >>> from torchreg.ablation import Cell
        >>> cell = Cell(L1(0.1), seed=0, axes={"width": 64}, home=None)
        >>> cell.alpha, cell.axes["width"]
        (0.1, 64)
    """

    def __init__(
        self, penalty: Penalty, seed: int, axes: Mapping[str, Any], home: Path | None, previous: Path | None = None
    ) -> None:
        self.penalty, self.seed, self.axes = penalty, seed, dict(axes)
        self._home, self._previous = home, previous
        self._reported = self._saved = False

    @property
    def alpha(self) -> float:
        """The penalty's strength."""
        return float(self.penalty.alpha)

    @cached_property
    def dir(self) -> Path:
        """A directory for this cell's own files: checkpoints, pictures. It is made when first asked for."""
        if self._home is None:
            raise RuntimeError(
                "This cell belongs to no ledger, so that it has no directory; it was not made by ablate."
            )
        self._home.mkdir(parents=True, exist_ok=True)
        return self._home

    def report(self, epoch: int, **metrics: Any) -> None:
        """Add a point to this cell's learning curve; a run that is done again begins it anew.

        Args:
            epoch: what the curve is drawn against.
            metrics: numbers by name.

        Raises:
            TypeError: if a value has no place in JSON.
            ValueError: if a name is taken.
        """
        if taken := [name for name in metrics if name in TAKEN or name in self.axes]:
            raise ValueError(f"report has a metric {taken[0]!r}, a name that is taken; choose another.")
        line = dumps({"epoch": plain(epoch, "epoch"), **plain(metrics, "report")})
        with (self.dir / CURVE).open("a" if self._reported else "w", encoding="utf-8") as file:
            file.write(line + "\n")
        self._reported = True

    def seed_everything(self) -> torch.Generator:
        """Seed Python's, NumPy's and torch's global generators, on all devices, by this cell's seed.

        Returns:
            A CPU generator of its own with the same seed, for loaders and splits.
        """
        random.seed(self.seed)
        np.random.seed(self.seed)  # noqa: NPY002 - the global generator is what older code draws from
        torch.manual_seed(self.seed)
        return torch.Generator().manual_seed(self.seed)

    def save(self, state: Any) -> None:
        """Keep tensors, numbers, and lists and dicts of them, as the start of the path's next cell."""
        file = self.dir / _STATE
        unfinished = file.with_suffix(".tmp")
        with unfinished.open("wb") as opened:
            torch.save(state, opened)
            opened.flush()
            os.fsync(opened.fileno())  # the cell's row, which says that it need not run again, is as durable
        unfinished.replace(file)
        sync_directory(self.dir)
        self._saved = True

    def start(self) -> Any:
        """What the cell before on the path saved, on the CPU; None for the first, and for independent cells.

        It is read with ``weights_only=True``: nothing in it is executed.

        Raises:
            FileNotFoundError: if that state has been removed.
            pickle.UnpicklingError: if it holds more than tensors, numbers, and lists and dicts of them.
        """
        if self._previous is None:
            return None
        file = self._previous / _STATE
        if not file.exists():
            raise FileNotFoundError(f"{file}, from which this cell starts, is gone; run the path in another directory.")
        return torch.load(file, map_location="cpu", weights_only=True)

    @property
    def saved(self) -> bool:
        """Whether this run has called `save`; a state of an earlier try does not count."""
        return self._saved
