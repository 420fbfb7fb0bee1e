"""A ledger held by its one driver, from the first check to the last row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from torchreg.ablation.function import Run, source_file, source_sha256, title
from torchreg.ablation.ledger.lock import DriverLock
from torchreg.ablation.ledger.manifest import add_function, add_penalties, open_manifest, write_manifest
from torchreg.ablation.ledger.mark import marked
from torchreg.ablation.ledger.reader import Reader, Row
from torchreg.ablation.ledger.record import now, run_record
from torchreg.ablation.ledger.rows import counted
from torchreg.ablation.ledger.shard import LedgerError, append
from torchreg.ablation.plain import dumps
from torchreg.ablation.plan import Plan


class Ledger:
    """A directory of rows, open for writing.

    Args:
        path: the directory; it is made if it is not there.
        run: the user's function.
        new: whether rows of another source of it may be left behind.

    Attributes:
        path: absolute.
        mark: a name of its own, by which other processes know that they see the same directory.
        source: sha256 of the function's source.
    """

    def __init__(self, path: Path, run: Run, *, new: bool) -> None:
        self.path, self._run, self._new = path.resolve(), run, new
        self.source = source_sha256(run)
        self.mark = ""
        self._reader = Reader(self.path, self.source)

    def __enter__(self) -> Self:
        open_manifest(self.path)  # refuses what is not ours before anything is written
        with ExitStack() as undo:
            undo.enter_context(DriverLock(self.path))
            self._manifest = open_manifest(self.path)
            add_function(self._manifest, title(self._run), self.source, new=self._may_change())
            self._manifest["sessions"].append(run_record(source_file(self._run)))
            self.mark = marked(self.path)
            self._held = undo.pop_all()
        return self

    def _may_change(self) -> bool:
        """Whether another source may go on here: who mends a function that has only failed mixes no rows."""
        known = self._manifest["run"]
        if self._new or known is None or known["sha256"] == self.source:
            return True
        return all(row["status"] != "ok" for row in counted(self.path, self._manifest).values())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held, suppress(*([] if error is None else [LedgerError])):
            self._manifest["sessions"][-1]["end"] = now()
            write_manifest(self.path, self._manifest)

    def begin(self, plan: Plan) -> None:
        """Note what is asked for, before anything runs.

        Raises:
            ValueError: if a name has meant another penalty here.
        """
        specs = {name: penalty.with_alpha(1.0).spec() for name, penalty in plan.penalties.items()}
        add_penalties(self._manifest, specs)
        asked = plan.describe()
        earlier = [grid for grid in self._manifest["grids"] if grid != asked]
        self._manifest["grids"] = [*earlier, asked]
        write_manifest(self.path, self._manifest)

    def rows(self) -> Mapping[str, Row]:
        """By key, the row that counts."""
        return self._reader.rows()

    def write(self, rows: Iterable[Row]) -> None:
        """Make rows durable that no worker could write."""
        for row in rows:
            append(self.path, dumps(row))
