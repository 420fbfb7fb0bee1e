"""A ledger held by its one driver, from the first check to the last row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Self

from torchreg.ablation.fingerprint import Fingerprint
from torchreg.ablation.ledger.directory_id import mark_anew
from torchreg.ablation.ledger.files import LedgerError
from torchreg.ablation.ledger.lock import DriverLock, LedgerBusy
from torchreg.ablation.ledger.manifest import Manifest, add_function, add_penalties, open_manifest, write_manifest
from torchreg.ablation.ledger.provenance import now, run_record
from torchreg.ablation.ledger.reader import Reader, Row, as_line
from torchreg.ablation.ledger.rows import CELLS, cells_of, counted
from torchreg.ablation.ledger.shard import Place, append, is_there
from torchreg.ablation.plan import Plan
from torchreg.ablation.user_function import Run, source_file, title


class Ledger:
    """A directory of rows, open for writing.

    Args:
        path: the directory; it is made if it is not there.
        run: the user's function.
        new: whether rows of another source of it may be left behind.

    Attributes:
        path: absolute.
        mark: a name of this session, by which other processes know that they see the same directory.
        unknown: names of the function's values that cannot be compared with those of another call.
        cells: name of the directory of the cells' own files.
        source: sha256 of what the function does; `code` of the part of it that every process must have.
    """

    def __init__(self, path: Path, run: Run, *, new: bool) -> None:
        self.path, self._run, self._new = path.resolve(), run, new
        self._code = Fingerprint(run)
        self.source, self.code, self.unknown = self._code.sha256, self._code.code, self._code.unknown
        self.mark, self.cells = "", CELLS
        self._reader = Reader(self.path, self.source)
        self._lock = DriverLock(self.path)
        self._manifest: Manifest | None = None
        self._lines: int | None = None  # that were there before

    def __enter__(self) -> Self:
        open_manifest(self.path)  # refuses what is not ours before anything is written
        try:
            self._lock.take()
            manifest = open_manifest(self.path)
            add_function(manifest, title(self._run), self._code, new=self._may_change(manifest))
            manifest["sessions"].append(run_record(source_file(self._run)))
            self.cells = cells_of(manifest["run"], self.source)
            self.mark = mark_anew(self.path)
            self._manifest = manifest
        except BaseException:
            self._lock.release()
            raise
        return self

    def _may_change(self, manifest: Manifest) -> bool:
        """Whether another source may go on here: who mends a function that has only failed mixes no rows."""
        known = manifest["run"]
        if self._new or known is None or known["sha256"] == self.source:
            return True
        return all(row["status"] != "ok" for row in counted(self.path, manifest).values())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with suppress(*([] if error is None else [LedgerError, LedgerBusy])):
                self._note_end()
        finally:
            self._manifest = None
            self._lock.release()

    def _note_end(self) -> None:
        """A session that has added no row is none that anything here is of."""
        if self._manifest is None:
            return
        self._lock.keep()  # who has lost it to another driver must not write over that one's manifest
        self._reader.rows()
        if self._lines is not None and self._reader.lines > self._lines:
            self._manifest["sessions"][-1]["end"] = now()
        else:
            del self._manifest["sessions"][-1]
        write_manifest(self.path, self._manifest)

    def begin(self, plan: Plan) -> None:
        """Note what is asked for, before anything runs.

        Raises:
            ValueError: if a name has meant another penalty here.
        """
        assert self._manifest is not None, "it is open"
        if self._lines is None:
            self._reader.rows()
            self._lines = self._reader.lines
        specs = {name: penalty.with_alpha(1.0).spec() for name, penalty in plan.penalties.items()}
        add_penalties(self._manifest, specs)
        asked = plan.describe()
        earlier = [grid for grid in self._manifest["grids"] if grid != asked]
        self._manifest["grids"] = [*earlier, asked]
        write_manifest(self.path, self._manifest)

    def rows(self) -> Mapping[str, Row]:
        """The row that counts of each cell, by the cell's key."""
        return self._reader.rows()

    def keep(self) -> None:
        """See that this is still the one driver.

        Raises:
            LedgerBusy: if another has begun, since the lock was removed or closed.
        """
        self._lock.keep()

    def write(self, rows: Iterable[Row], places: Iterable[Place | None] = repeat(None)) -> None:
        """Make rows durable that no worker has written here.

        Args:
            rows: of cells.
            places: where workers say that they have written them.
        """
        for row, place in zip(rows, places, strict=False):
            line = as_line(row)
            if place is None or not is_there(self.path, line, place):
                append(self.path, line)
