"""Text in columns, for whatever prints a table."""

from __future__ import annotations

from collections.abc import Iterable


def text_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Text columns as wide as their widest entry."""
    lines = [head, *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
