"""What the user's function sees of its cell."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import random
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchreg.ablation.grid import TAKEN
from torchreg.ablation.json_values import dumps, plain
from torchreg.ablation.ledger.files import LedgerError, check_contents, make_folder, open_file, read_bytes, replace
from torchreg.penalties import Penalty

CURVE = "curve.jsonl"
_STATE, _SUM = "state.pt", "state.sha256"


class Axes(dict[str, Any]):
    """The values of a grid's axes, which knows those that nobody has looked at.

    Attributes:
        unread: names of axes whose value was never asked for.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.unread = set(values)

    def __getitem__(self, name: str) -> Any:
        self.unread.discard(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or the default where there is no such axis."""
        self.unread.discard(name)
        return super().get(name, default)

    def __reduce__(self) -> Any:
        return dict, (list(self.items()),)


def _reads_all(name: str) -> Any:
    method = getattr(dict, name)

    def read(self: Axes, *others: Any) -> Any:
        self.unread.clear()
        return method(self, *others)

    return read


for _name in ("__iter__", "__eq__", "__or__", "__repr__", "copy", "items", "keys", "pop", "values"):
    setattr(Axes, _name, _reads_all(_name))  # whoever takes all of them is taken to use them


class Cell:
    """One cell of an ablation, as ``run(cell=...)`` receives it.

    Attributes:
        penalty: with this cell's strength.
        seed: of this run.
        axes: its values of the grid's axes.
        seconds_elsewhere: what its row counts beside the time of its own run: its share of work for several cells.

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
        self.penalty, self.seed, self.axes = penalty, seed, Axes(axes)
        self._home, self._previous = home, previous
        self._reported = self._saved = False
        self.seconds_elsewhere = 0.0

    @property
    def alpha(self) -> float:
        """The penalty's strength."""
        return float(self.penalty.alpha)

    @cached_property
    def dir(self) -> Path:
        """A directory for this cell's own files: checkpoints, pictures. It is made when first asked for.

        Raises:
            LedgerError: if an earlier try, or whoever sent the ledger, has left links in it that lead elsewhere.
        """
        if self._home is None:
            raise RuntimeError(
                "This cell belongs to no ledger, so that it has no directory; it was not made by ablate."
            )
        ledger, name = _parts(self._home)
        make_folder(ledger, name)
        check_contents(ledger, name)
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
        if isinstance(epoch := plain(epoch, "epoch"), bool) or not isinstance(epoch, (int, float)):
            raise TypeError(f"report's epoch is a number, against which curves are drawn, got {epoch!r}.")
        if taken := [name for name in metrics if name in TAKEN or name in self.axes]:
            raise ValueError(f"report has a metric {taken[0]!r}, a name that is taken; choose another.")
        line = dumps({"epoch": epoch, **plain(metrics, "report")})
        ledger, name = _parts(self.dir)
        how = os.O_APPEND if self._reported else os.O_TRUNC
        with os.fdopen(open_file(ledger, f"{name}/{CURVE}", os.O_WRONLY | os.O_CREAT | how), "w") as file:
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
        """Keep tensors, numbers, and lists and dicts of them, as the start of the path's next cell.

        Raises:
            TypeError: if it holds anything else, which `start` would refuse.
        """
        data = _saved(state)
        ledger, name = _parts(self.dir)
        told = hashlib.sha256(data).hexdigest()
        # durable before the cell's row, which says that it need not run again
        replace(ledger, f"{name}/{_STATE}", lambda file: file.write(data))
        replace(ledger, f"{name}/{_SUM}", lambda file: file.write(told.encode()))
        self._saved = True

    def start(self) -> Any:
        """What the cell before on the path saved, on the CPU; None for the first, and for independent cells.

        It is read with ``weights_only=True``: nothing in it is executed.

        Raises:
            FileNotFoundError: if that state has been removed.
            LedgerError: if it is not as it was saved.
            pickle.UnpicklingError: if it holds more than tensors, numbers, and lists and dicts of them.
        """
        if self._previous is None:
            return None
        ledger, name = _parts(self._previous)
        try:
            data = read_bytes(ledger, f"{name}/{_STATE}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(
                f"{self._previous / _STATE}, from which this cell starts, is gone; run the path in another directory."
            ) from error
        with contextlib.suppress(FileNotFoundError):  # earlier versions have left none
            if read_bytes(ledger, f"{name}/{_SUM}") != hashlib.sha256(data).hexdigest().encode():
                raise LedgerError(
                    f"{self._previous / _STATE}, from which this cell starts, is not as it was saved: its checksum "
                    "differs. Put back a copy of it, or run the path in another directory."
                )
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    @property
    def saved(self) -> bool:
        """Whether this run has called `save`; a state of an earlier try does not count."""
        return self._saved


def _saved(state: Any) -> memoryview:
    """A state as `start` will read it, which has been tried, on a device where tensors have no data."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    for device in ("meta", "cpu"):
        buffer.seek(0)
        try:
            torch.load(buffer, map_location=device, weights_only=True)
            break
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise TypeError(
                f"A state with {named[1] if named else 'such things in it'} could not be read again: it is tensors, "
                "numbers, strings, and lists and dicts of them, such as model.state_dict(); arrays go by "
                "torch.from_numpy."
            ) from error
        except NotImplementedError:  # quantized tensors have no such device
            continue
    return buffer.getbuffer()


def _parts(home: Path) -> tuple[Path, str]:
    """The ledger, and a cell's directory within it."""
    return home.parents[1], f"{home.parent.name}/{home.name}"
