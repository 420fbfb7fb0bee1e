"""Text for a terminal: columns of a table, and letters that do not move the cursor."""

from __future__ import annotations

from collections.abc import Iterable


def text_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Text columns as wide as their widest entry."""
    lines = [tuple(map(printable, line)) for line in (head, *rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def printable(text: str, *, keep: str = "") -> str:
    r"""Text in which control characters, escape sequences and marks of direction are written out.

    Names, errors and file contents may hold them, and a terminal would obey.

    Args:
        text: from anywhere.
        keep: characters to leave, such as a line feed.

    Example:
        >>> printable("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )
