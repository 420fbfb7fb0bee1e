"""What commands write to the terminal."""

from __future__ import annotations

from tqdm import tqdm

from torchreg.text_table import printable


def say(text: str) -> None:
    """Print lines above any progress bar; control characters in them, from files or names, are written out."""
    tqdm.write(printable(text, keep="\n"))
