"""What an ablation has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torchreg.ablation.ledger.rows import Row, read


@dataclass(frozen=True)
class Ablation:
    """Rows of a ledger."""

    rows: tuple[Row, ...]
    dir: Path
    manifest: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a directory."""
        rows, manifest = read(path)
        return cls(tuple(rows), Path(path), manifest)
